"""Whose 4-tuples a socket that is bound to a device has."""

import errno
import socket

import pytest

from connectx.linux.sockopts import set_ip_bind_address_no_port
from connectx.sandbox.networks import Network
from tests.kernel.raw import FIRST

#: The only port there is.
PORT = 20001
HOSTS = {socket.AF_INET: ("192.0.2.7", "192.0.2.99"), socket.AF_INET6: ("fd00::7", "fd00::99")}


@pytest.fixture
def _devices(network: Network) -> None:
    network.port_range(PORT, PORT)
    for name in ("one", "two"):
        network.add_device_pair(name, f"{name}-peer")
        for source, _ in HOSTS.values():
            network.add_address(source, 64 if ":" in source else 24, name)


def outcome(family: socket.AddressFamily, kind: int, device: str, kept: list[socket.socket]) -> str:
    """What comes of one more connection, over a device or "" for any; kept if it was made."""
    source, destination = HOSTS[family]
    sock = socket.socket(family, kind)
    kept.append(sock)
    sock.setblocking(False)  # noqa: FBT003 - named so by socket
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    try:
        set_ip_bind_address_no_port(sock, on=True)
        sock.bind((source, 0))
        sock.connect((destination, FIRST))
    except BlockingIOError as error:
        # TCP has sent its SYN; UDP has found no port.
        if kind == socket.SOCK_STREAM:
            return "ok"
        return errno.errorcode[error.errno or 0]
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


@pytest.mark.usefixtures("_devices")
@pytest.mark.parametrize("family", HOSTS)
@pytest.mark.parametrize(
    "kind, full",
    [(socket.SOCK_STREAM, "EADDRNOTAVAIL"), (socket.SOCK_DGRAM, "EAGAIN")],
    ids=["TCP", "UDP"],
)
class TestDevices:
    """For all addresses, not for link-local ones alone (inet_sk_bound_dev_eq)."""

    def found(self, family: socket.AddressFamily, kind: int, *devices: str) -> list[str]:
        kept: list[socket.socket] = []
        try:
            return [outcome(family, kind, device, kept) for device in devices]
        finally:
            for sock in kept:
                sock.close()

    def test_two_have_a_4_tuple_each(
        self, family: socket.AddressFamily, kind: int, full: str
    ) -> None:
        found = self.found(family, kind, "one", "one", "two", "two")
        assert found == ["ok", full, "ok", full]

    def test_a_socket_on_none_shuts_it_for_all(
        self, family: socket.AddressFamily, kind: int, full: str
    ) -> None:
        assert self.found(family, kind, "", "one", "two") == ["ok", full, full]
