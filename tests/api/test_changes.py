"""Sysctls, addresses and routes that change between calls, with nobody announcing it.

What is known is at most a second old, and is looked up again at the first failure.
No test waits for that second: the clock is put forward.
"""

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Final

import pytest

import connectx
from connectx import PortHeld, PortsExhausted, RangeNotHonoured, SourceNotLocal
from connectx.linux import sockopts
from connectx.sandbox.networks import Network
from tests.api.calls import (
    CAP_NET_RAW,
    TCP_MAPPED,
    UDP_MAPPED,
    Client,
    ip,
    is_stream,
    port_of,
    without_capability,
)
from tests.kernel.raw import FIRST, MPTCP, SECOND, TCP, TCP6, THIRD, UDP, UDP6, Transport

LOW, HIGH = 20001, 20004
PORTS: Final = list(range(LOW, HIGH + 1))
MOVED: Final = list(range(30001, 30005))

every_transport = pytest.mark.parametrize(
    "transport", [TCP, TCP6, TCP_MAPPED, MPTCP, UDP, UDP6, UDP_MAPPED], ids=str
)
with_or_without_source = pytest.mark.parametrize(
    "has_source", [False, True], ids=["no source", "source address"]
)

#: Puts the library's clock forward by so many seconds.
PutForward = Callable[[float], None]


@pytest.fixture(autouse=True)
def _four_ports(network: Network) -> None:
    network.port_range(LOW, HIGH)


@pytest.fixture
def put_forward(monkeypatch: pytest.MonkeyPatch) -> PutForward:
    skipped = 0.0
    monkeypatch.setattr("connectx._connect.namespace.monotonic", lambda: time.monotonic() + skipped)

    def skip(seconds: float) -> None:
        nonlocal skipped
        skipped += seconds

    return skip


def any_port(client: Client, *, has_source: bool) -> tuple[str, int] | None:
    return (client.transport.source, 0) if has_source else None


@with_or_without_source
@every_transport
class TestAtTheFirstFailure:
    def test_widened(self, client: Client, network: Network, *, has_source: bool) -> None:
        source = any_port(client, has_source=has_source)
        client.fill(FIRST, source)
        network.port_range(LOW, HIGH + 3)
        client.fill(FIRST, source)
        assert client.ports(FIRST) == [*PORTS, HIGH + 1, HIGH + 2, HIGH + 3]

    def test_moved(self, client: Client, network: Network, *, has_source: bool) -> None:
        source = any_port(client, has_source=has_source)
        client.fill(FIRST, source)
        network.port_range(MOVED[0], MOVED[-1])
        client.fill(FIRST, source)
        assert client.ports(FIRST) == PORTS + MOVED

    def test_narrowed(self, client: Client, network: Network, *, has_source: bool) -> None:
        source = any_port(client, has_source=has_source)
        client.fill(FIRST, source)
        network.port_range(LOW, LOW + 1)
        with pytest.raises(PortsExhausted) as caught:
            client.open(FIRST, source)
        assert f"the range {LOW}-{LOW + 1}" in caught.value.explain()

    def test_no_longer_reserved(
        self, client: Client, network: Network, *, has_source: bool
    ) -> None:
        network.reserved_ports(f"{LOW},{HIGH}")
        source = any_port(client, has_source=has_source)
        client.fill(FIRST, source)
        assert client.ports(FIRST) == PORTS[1:-1]
        network.reserved_ports("")
        client.fill(FIRST, source)
        assert client.ports(FIRST) == PORTS

    def test_all_reserved(self, client: Client, network: Network, *, has_source: bool) -> None:
        source = any_port(client, has_source=has_source)
        client.fill(FIRST, source)
        network.reserved_ports(f"{LOW}-{HIGH}")
        client.close(client.opened[0])
        client.close(client.opened[0])
        if is_stream(client.transport):
            with pytest.raises(PortsExhausted):
                client.open(FIRST, source)


@with_or_without_source
@pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED, MPTCP], ids=str)
def test_streams_never_leave_the_range(
    client: Client, network: Network, *, has_source: bool
) -> None:
    """The kernel sees to it, whatever is known here: an end outside is replaced."""
    source = any_port(client, has_source=has_source)
    client.open(FIRST, source)
    network.port_range(MOVED[0], MOVED[-1])
    client.fill(SECOND, source)
    assert client.ports(SECOND) == MOVED
    network.port_range(LOW, HIGH)
    client.fill(THIRD, source)
    assert client.ports(THIRD) == PORTS


@with_or_without_source
@every_transport
class TestWithinASecond:
    def test_moved(
        self, client: Client, network: Network, put_forward: PutForward, *, has_source: bool
    ) -> None:
        source = any_port(client, has_source=has_source)
        client.open(FIRST, source)
        network.port_range(MOVED[0], MOVED[-1])
        put_forward(1.01)
        for _ in MOVED:
            assert port_of(client.open(FIRST, source)) in MOVED
        with pytest.raises(PortsExhausted):
            client.open(FIRST, source)

    def test_narrowed(
        self, client: Client, network: Network, put_forward: PutForward, *, has_source: bool
    ) -> None:
        source = any_port(client, has_source=has_source)
        client.open(FIRST, source)
        network.port_range(LOW + 1, LOW + 2)
        put_forward(1.01)
        client.fill(SECOND, source)
        assert client.ports(SECOND) == [LOW + 1, LOW + 2]

    def test_reserved(
        self, client: Client, network: Network, put_forward: PutForward, *, has_source: bool
    ) -> None:
        source = any_port(client, has_source=has_source)
        client.open(FIRST, source)
        network.reserved_ports(f"{LOW},{HIGH}")
        put_forward(1.01)
        client.fill(SECOND, source)
        assert client.ports(SECOND) == PORTS[1:-1]

    def test_unchanged(self, client: Client, put_forward: PutForward, *, has_source: bool) -> None:
        source = any_port(client, has_source=has_source)
        for _ in PORTS:
            client.open(FIRST, source)
            put_forward(1.01)
        assert client.ports(FIRST) == PORTS
        for _ in range(3):
            with pytest.raises(PortsExhausted):
                client.open(FIRST, source)
            put_forward(1.01)
        closed = client.close(client.opened[2])
        put_forward(1.01)
        assert port_of(client.open(FIRST, source)) == closed

    def test_long_unused(
        self, client: Client, put_forward: PutForward, *, has_source: bool
    ) -> None:
        source = any_port(client, has_source=has_source)
        client.fill(FIRST, source)
        put_forward(3600)
        with pytest.raises(PortsExhausted):
            client.open(FIRST, source)
        client.fill(SECOND, source)
        for sock in client.toward(FIRST):
            client.close(sock)
        put_forward(3600)
        client.fill(FIRST, source)
        assert client.ports(FIRST) == PORTS


@every_transport
class TestAskedPort:
    """A port asked for is the port one gets, wherever the range has gone meanwhile."""

    def test_now_outside(self, client: Client, network: Network) -> None:
        host = client.transport.source
        client.open(FIRST, (host, LOW))
        network.port_range(MOVED[0], MOVED[-1])
        assert port_of(client.open(SECOND, (host, LOW))) == LOW
        assert port_of(client.open(FIRST, (host, LOW + 1))) == LOW + 1

    def test_now_inside(self, client: Client, network: Network) -> None:
        host = client.transport.source
        client.open(FIRST, (host, MOVED[0]))
        network.port_range(MOVED[0], MOVED[-1])
        assert port_of(client.open(SECOND, (host, MOVED[0]))) == MOVED[0]
        assert port_of(client.open(FIRST, (host, MOVED[1]))) == MOVED[1]

    def test_now_reserved(self, client: Client, network: Network) -> None:
        host = client.transport.source
        client.open(FIRST, (host, LOW))
        network.reserved_ports(str(LOW))
        assert port_of(client.open(SECOND, (host, LOW))) == LOW

    def test_now_outside_and_held(
        self, client: Client, network: Network, closing: contextlib.ExitStack
    ) -> None:
        host = client.transport.source
        client.open(FIRST, (host, LOW))
        network.port_range(MOVED[0], MOVED[-1])
        holder = closing.enter_context(client.transport.socket())
        holder.bind((host, LOW + 1))
        with pytest.raises(PortHeld):
            client.open(FIRST, (host, LOW + 1))


@pytest.mark.parametrize("call", ["connectx"], indirect=True)
@every_transport
@with_or_without_source
def test_an_owners_window_that_the_range_has_left(
    transport: Transport,
    client: Client,
    network: Network,
    closing: contextlib.ExitStack,
    *,
    has_source: bool,
) -> None:
    """The kernel would silently connect from elsewhere."""
    source = any_port(client, has_source=has_source)
    for error in (None, RangeNotHonoured):
        sock = closing.enter_context(transport.socket())
        sockopts.set_ip_local_port_range(sock, LOW, LOW + 1)
        if error is None:
            connectx.connectx(sock, source, (transport.source, FIRST))
            assert port_of(sock) in {LOW, LOW + 1}
            network.port_range(MOVED[0], MOVED[-1])
        else:
            with pytest.raises(error):
                connectx.connectx(sock, source, (transport.source, FIRST))
            assert sock.getsockname()[1] not in MOVED


class TestDevicesWithoutPrivilege:
    @pytest.mark.parametrize("call", ["connectx"], indirect=True)
    @pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
    def test_a_device_once_set_cannot_be_set_again(
        self, client: Client, network: Network, closing: contextlib.ExitStack
    ) -> None:
        """Without CAP_NET_RAW, SO_BINDTODEVICE is for sockets that have none (since 5.7)."""
        with without_capability(CAP_NET_RAW):
            for _ in range(len(PORTS) + 2):
                sock = closing.enter_context(client.transport.socket())
                sockopts.set_so_bindtoifindex(sock, socket.if_nametoindex("lo"))
                if len(client.opened) == len(PORTS):
                    network.port_range(LOW, HIGH + 2)
                connectx.connectx(sock, None, (client.transport.source, FIRST))
                client.opened.append(sock)
                assert sockopts.get_so_bindtoifindex(sock) == socket.if_nametoindex("lo")


@pytest.mark.parametrize("transport", [UDP, UDP6], ids=str)
class TestRoutedSource:
    """The source of a datagram socket is looked up by us."""

    @pytest.fixture(autouse=True)
    def _device(self, network: Network, transport: Transport) -> None:
        network.add_device_pair("one", "one-peer")
        for host in addresses(transport):
            network.add_address(host, 24 if "." in host else 64, "one")

    def test_its_address_goes(self, client: Client) -> None:
        first, second = addresses(client.transport)
        away = first.replace(".1.1", ".1.9").replace("::1", "::9")
        before = client.open(FIRST, host=away).getsockname()[0]
        (after,) = {first, second} - {before}
        # IPv4 deletes the others of the network along with the first one.
        ip("address", "flush", "dev", "one", "scope", "global")
        with pytest.raises(OSError, match="unreachable"):
            client.open(FIRST, host=away)
        prefix = 24 if "." in after else 64
        ip(
            "address",
            "add",
            f"{after}/{prefix}",
            "dev",
            "one",
            *(["nodad"] if ":" in after else []),
        )
        assert client.open(FIRST, host=away).getsockname()[0] == after
        with pytest.raises(SourceNotLocal):
            client.open(FIRST, (before, 0), host=away)

    def test_the_route_prefers_another(self, client: Client, put_forward: PutForward) -> None:
        away, version, network = {
            UDP: ("198.51.100.9", "-4", "198.51.100.0/24"),
            UDP6: ("2001:db8:100::9", "-6", "2001:db8:100::/64"),
        }[client.transport]
        for host in addresses(client.transport):
            ip(version, "route", "replace", network, "dev", "one", "src", host)
            put_forward(1.01)
            assert client.open(FIRST, host=away).getsockname()[0] == host


def addresses(transport: Transport) -> tuple[str, str]:
    return ("10.0.1.1", "10.0.1.2") if transport is UDP else ("fd00:1::1", "fd00:1::2")
