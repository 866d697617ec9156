"""The range of source ports, as windows show it: what the sysctl says, whatever has the ports."""

import contextlib
import errno

import pytest

from connectx.addresses import PortRange
from connectx.linux import port_range, sysctl
from connectx.linux.port_range import find_port_range
from connectx.sandbox.networks import Network
from tests.kernel.raw import TCP, UDP, Transport


@pytest.mark.parametrize(
    "low, high",
    [(1, 65535), (1024, 65535), (1, 1000), (20001, 20004), (30000, 30000), (32768, 60999)],
)
@pytest.mark.parametrize("reserved", ["", "20001,20004,30000-31000"])
def test_it_is_the_sysctls(network: Network, low: int, high: int, reserved: str) -> None:
    network.sysctl("net.ipv4.ip_unprivileged_port_start", 0)
    network.port_range(low, high)
    network.sysctl("net.ipv4.ip_local_reserved_ports", reserved)
    if low == high and reserved:
        assert find_port_range() is None
        return
    assert find_port_range() == sysctl.read_port_range() == PortRange(low, high)


@pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
def test_ports_in_use_lie_inside_too(
    network: Network, closing: contextlib.ExitStack, transport: Transport
) -> None:
    network.port_range(20001, 20008)
    for port in (20001, 20002, 20005, 20008):
        closing.enter_context(transport.socket()).bind((transport.wildcard, port))
    assert find_port_range() == PortRange(20001, 20008)


def test_udp_ports_that_are_all_held(network: Network, closing: contextlib.ExitStack) -> None:
    """TCP has a table of its own."""
    network.port_range(20001, 20004)
    for port in range(20001, 20005):
        closing.enter_context(UDP.socket()).bind((UDP.wildcard, port))
    assert find_port_range() == PortRange(20001, 20004)
    for port in range(20001, 20005):
        closing.enter_context(TCP.socket()).bind((TCP.wildcard, port))
    assert find_port_range() is None


@pytest.mark.usefixtures("network")
def test_a_kernel_without_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> None:
        raise OSError(errno.ENOPROTOOPT, "no such option")

    monkeypatch.setattr(port_range, "set_ip_local_port_range", lacking)
    assert find_port_range() is None
