"""Sandboxes that refuse AF_NETLINK: all of TCP works, and UDP up to the sharing of ports."""

import asyncio
import contextlib
import errno
import socket
from dataclasses import replace
from functools import partial

import pytest

import connectx
from connectx import Dialer, NotSupported, PortHeld, PortsExhausted, TupleInUse, aio
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import (
    by_create_connection,
    errno_of_exhaustion,
    ip,
    is_stream,
    port_of,
    reset_on_close,
)
from tests.dialer.drivers import kind_of
from tests.kernel.raw import FIRST, SECOND, TCP, TCP6, UDP, Transport
from tests.sandboxed.client import (
    DATAGRAMS,
    LOW,
    PORTS,
    STREAMS,
    Client,
    Sandbox,
    asked_ports,
    calls,
    calls_with_a_source,
    datagrams,
    streams,
)
from tests.sandboxed.threads import without_netlink

every_errno = pytest.mark.parametrize(
    "refusal",
    [errno.EAFNOSUPPORT, errno.EPERM, errno.EACCES, errno.EPROTONOSUPPORT],
    ids=errno.errorcode.get,
)


@pytest.fixture
def refusal() -> int:
    return errno.EAFNOSUPPORT


@pytest.fixture
def sandbox(refusal: int) -> Sandbox:
    return partial(without_netlink, refusal)


@every_errno
@calls
@streams
def test_every_port_of_tcp_and_then_exhaustion(client: Client) -> None:
    for port in (FIRST, SECOND):
        assert sorted(port_of(client.open(port)) for _ in PORTS) == PORTS
        with pytest.raises(PortsExhausted) as caught:
            client.open(port)
        assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize(
    "strategy", ["one-port", "explicit-bind", "full-range", "kernel", "shifting-window:2"]
)
@pytest.mark.parametrize("name", ["create_connection", "Dialer", "asyncio"])
@streams
def test_every_strategy_of_tcp(client: Client, strategy: str) -> None:
    """Those that read the kernel's list of sockets near exhaustion try every port instead."""
    count = len(PORTS) if strategy != "shifting-window:2" else 1
    ports = [port_of(client.open(FIRST, strategy=strategy)) for _ in range(count)]
    assert len(set(ports)) == count
    for _ in range(len(PORTS) - count):
        with contextlib.suppress(PortsExhausted):
            client.open(FIRST, strategy="auto")
    with pytest.raises(PortsExhausted):
        client.open(FIRST, strategy=strategy)


@calls_with_a_source
@asked_ports
@streams
def test_a_tcp_port_asked_for_twice(client: Client, port: int) -> None:
    assert port_of(client.open(FIRST, port)) == port
    with pytest.raises(TupleInUse):
        client.open(FIRST, port)
    assert port_of(client.open(SECOND, port)) == port


@calls_with_a_source
@streams
def test_a_tcp_port_that_a_listener_holds(client: Client) -> None:
    client.plain(LOW).listen()
    with pytest.raises(PortHeld):
        client.open(FIRST, LOW)


@calls_with_a_source
@pytest.mark.parametrize("transport", [TCP, TCP6], ids=str)
def test_a_time_wait_is_taken_over(
    client: Client, place: Transport, network: Network, servers: Servers
) -> None:
    network.sysctl("net.ipv4.tcp_tw_reuse", 0)
    server = servers.listen(place.source, 9010)
    first = client.open(9010, LOW)
    accepted, _ = limits.accept(server)
    with accepted:
        first.close()
        assert limits.receive(accepted) == b""
    assert port_of(client.open(9010, LOW)) == LOW


@every_errno
@calls
@datagrams
def test_udp_ports_that_nobody_has(client: Client) -> None:
    assert sorted(port_of(client.open(FIRST)) for _ in PORTS) == PORTS
    with pytest.raises(NotSupported, match="AF_NETLINK"):
        client.open(SECOND)


@calls
@datagrams
def test_udp_passes_over_ports_that_others_have(client: Client) -> None:
    for port in PORTS[1:]:
        client.plain(port, share=port % 2 == 0)
    assert port_of(client.open(FIRST)) == LOW


@calls
@datagrams
def test_udp_ports_that_nobody_shares_are_exhausted(client: Client) -> None:
    """Netlink would not help: that is not what is missing."""
    for port in PORTS:
        client.plain(port)
    with pytest.raises(PortsExhausted) as caught:
        client.open(FIRST)
    assert caught.value.errno == errno_of_exhaustion(client.place)


@calls_with_a_source
@asked_ports
@datagrams
def test_a_udp_port_asked_for(client: Client, port: int) -> None:
    assert port_of(client.open(FIRST, port)) == port
    with pytest.raises(NotSupported, match=r"NETLINK_SOCK_DIAG.*AF_NETLINK"):
        client.open(SECOND, port)


@calls_with_a_source
@asked_ports
@datagrams
def test_a_udp_port_that_is_held(client: Client, port: int) -> None:
    client.plain(port)
    with pytest.raises(PortHeld):
        client.open(FIRST, port)


@pytest.mark.parametrize("name", ["connectx"])
@pytest.mark.parametrize("transport", [*STREAMS, *DATAGRAMS], ids=str)
def test_a_callers_socket_can_be_used_again(client: Client, place: Transport) -> None:
    """Whatever the call could not do, the socket is as it was."""
    for port in PORTS:
        client.open(FIRST, port)
    with place.socket() as sock:
        for source in (None, (place.source, LOW)):
            call = partial(connectx.connectx, sock, source, (place.source, FIRST))
            with pytest.raises((NotSupported, PortsExhausted, TupleInUse)):
                without_netlink(errno.EPERM, call)
        assert port_of(sock) == 0
        connectx.connectx(sock, (place.source, LOW), (place.source, SECOND))
        assert port_of(sock) == LOW


@pytest.mark.parametrize("name", ["create_connection"])
@pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
def test_explain_says_what_it_could_not_see(client: Client, place: Transport) -> None:
    for port in PORTS:
        client.plain(port)

    def explanation() -> str:
        with pytest.raises(PortsExhausted) as caught:
            by_create_connection(place, None, (place.source, FIRST))
        return caught.value.explain()

    assert "NETLINK_SOCK_DIAG is refused" in without_netlink(errno.EPERM, explanation)


@pytest.mark.parametrize("name", ["create_connection"])
@pytest.mark.parametrize("transport", [TCP], ids=str)
def test_a_route_that_is_prohibited_is_no_refusal_of_netlink(client: Client) -> None:
    """It has one of the same errnos, and is connect()'s own error."""
    client.place = replace(TCP, source="192.0.2.1")
    ip("route", "add", "prohibit", "192.0.2.0/24")
    with pytest.raises(PermissionError):
        client.open(FIRST)


@pytest.mark.parametrize("name", ["Dialer"])
@pytest.mark.parametrize("transport", [*STREAMS, *DATAGRAMS], ids=str)
class TestDialer:
    """The sockets of a Dialer whose owner has changed, as TLS libraries do it."""

    def test_goes_on_and_keeps_its_limit(self, place: Transport, client: Client) -> None:
        dialer = Dialer(limit=2)
        kind = kind_of(place)
        to = (place.source, FIRST)

        def scenario() -> None:
            kept = []
            for _ in range(2):
                detached = dialer.create_connection(to, **kind)
                kept.append(client.stack.enter_context(socket.socket(fileno=detached.detach())))
            with pytest.raises(PortsExhausted, match="limit"):
                dialer.create_connection(to, **kind)
            if is_stream(place):
                reset_on_close(kept[0])
            kept[0].close()
            dialer.create_connection(to, **kind).close()

        without_netlink(errno.EAFNOSUPPORT, scenario)

    @pytest.mark.usefixtures("client")
    def test_goes_on_with_asyncio(self, place: Transport) -> None:
        to = (place.source, FIRST)

        async def scenario() -> None:
            dialer = aio.Dialer(limit=1)
            kind = kind_of(place)
            for _ in range(3):
                sock = await dialer.create_connection(to, **kind)
                with socket.socket(fileno=sock.detach()) as detached:
                    with pytest.raises(PortsExhausted, match="limit"):
                        await dialer.create_connection(to, **kind)
                    if is_stream(place):
                        reset_on_close(detached)

        without_netlink(errno.EAFNOSUPPORT, lambda: asyncio.run(scenario()))

    def test_waits_for_a_port(self, place: Transport, client: Client) -> None:
        to = (place.source, FIRST)
        kind = kind_of(place)

        def scenario() -> None:
            for _ in PORTS:
                client.stack.enter_context(Dialer().create_connection(to, **kind))
            error = PortsExhausted if is_stream(place) else NotSupported
            with pytest.raises(error):
                Dialer(wait=0.01).create_connection(to, **kind)

        without_netlink(errno.EACCES, scenario)

    @pytest.mark.usefixtures("client")
    def test_capacity_says_what_it_needs(self, place: Transport) -> None:
        def scenario() -> None:
            kind = kind_of(place)
            with pytest.raises(NotSupported, match="AF_NETLINK"):
                Dialer().capacity((place.source, FIRST), **kind)

        without_netlink(errno.EACCES, scenario)
