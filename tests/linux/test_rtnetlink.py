import socket

import pytest

from connectx.linux import uapi
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
def test_added_addresses_are_usable_at_once(
    network: Network, servers: Servers, address: str
) -> None:
    network.add_address(address)
    listener = servers.listen(address)
    with socket.create_connection(listener.getsockname()[:2]) as client:
        assert client.getsockname()[0] == address
    with pytest.raises(FileExistsError):
        network.add_address(address)


def test_an_address_needs_a_device(network: Network) -> None:
    with pytest.raises(OSError, match=r"No such device|no interface"):
        network.add_address("192.0.2.7", device="eth7")


def test_device_pair_is_up_and_joined(network: Network) -> None:
    network.add_device_pair("left", "right")
    ethertype = 0x88B5  # set aside for experiments
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ethertype)) as receiver,
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("right", ethertype))
        receiver.settimeout(limits.LIMIT)
        sender.sendto(b"hello", ("left", ethertype, 0, 0, b"\xff" * 6))
        assert limits.receive(receiver, 100) == b"hello"
    with pytest.raises(FileExistsError):
        network.add_device_pair("left", "middle")


def test_link_local_addresses_are_usable_at_once(network: Network) -> None:
    network.add_device_pair("left", "right")
    network.add_address("fe80::7", 64, "left")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("fe80::7", 0, 0, socket.if_nametoindex("left")))


def test_a_device_can_be_bound_to(network: Network) -> None:
    network.add_device_pair("left", "right")
    network.add_address("192.0.2.7", 24, "left")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, uapi.SO_BINDTODEVICE, b"left\0")
        sock.connect(("192.0.2.9", 53))
        assert sock.getsockname()[0] == "192.0.2.7"
