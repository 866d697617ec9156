from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest

from connectx.lab import resources
from connectx.lab.private_networks import PrivateNetworks, leave_one_port
from connectx.lab.resources import CannotStartError
from connectx.linux import netns

if TYPE_CHECKING:
    from connectx.sandbox.networks import Network


def fail_in(networks: PrivateNetworks) -> None:
    with networks.fresh() as network:
        network.reserved_ports("40000")
        raise ZeroDivisionError


@pytest.mark.usefixtures("network")
class TestBooks:
    def test_name_each_change_once(self) -> None:
        with PrivateNetworks() as networks:
            for _ in range(2):
                with networks.fresh() as network:
                    network.port_range(40000, 40001)
                    network.add_address("192.0.2.7")
        assert networks.changes[-2:] == (
            "net.ipv4.ip_local_port_range = 40000 40001",
            "192.0.2.7 on lo",
        )
        assert len(set(networks.changes)) == len(networks.changes)

    def test_do_not_list_many_values(self) -> None:
        with PrivateNetworks() as networks, networks.fresh() as network:
            for port in range(40000, 40008):
                network.port_range(port, 40007 + port % 2)
        assert networks.changes[-1] == (
            "net.ipv4.ip_local_port_range = 40000 40007 and 7 other values"
        )

    def test_keep_what_was_changed_before_an_error(self) -> None:
        with PrivateNetworks() as networks:
            with pytest.raises(ZeroDivisionError):
                fail_in(networks)
            assert "net.ipv4.ip_local_reserved_ports = 40000" in networks.changes


@pytest.mark.usefixtures("network")
def test_the_thread_is_back_afterwards() -> None:
    before = netns.current()
    with PrivateNetworks() as networks:
        outer = netns.current()
        with networks.fresh():
            assert netns.current() not in {before, outer}
        assert netns.current() == outer != before
    assert netns.current() == before


def test_a_machine_without_private_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError(errno.EPERM, "run as root")

    monkeypatch.setattr(resources, "experiment_network", refuse)
    with pytest.raises(CannotStartError, match="run as root"), PrivateNetworks():
        pytest.fail("it has one after all")


def test_one_port_is_left(network: Network) -> None:
    ports = leave_one_port(network, 40002)
    # The kernel writes ends of the same parity into the machine's log.
    assert ports == (40002, 40003)
    with socket.socket(type=socket.SOCK_DGRAM) as first, socket.socket(type=socket.SOCK_DGRAM) as b:
        first.bind(("127.0.0.1", 0))
        assert first.getsockname()[1] == 40002
        with pytest.raises(OSError, match="Address already in use"):
            b.bind(("127.0.0.1", 0))
