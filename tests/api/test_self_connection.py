"""No socket is connected to itself, unless somebody has asked for just that port.

The destination's own port lies in the range, and nobody listens there: a source port that is
free toward the destination, and must not be used all the same.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import pytest

import connectx
from connectx import NotSupported, PortsExhausted, aio
from connectx._connect.strategies import STRATEGIES
from connectx.addresses import Address
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import (
    ALL,
    CALLS,
    DATAGRAMS,
    STREAMS,
    TCP_MAPPED,
    Call,
    by_create_connection,
    is_stream,
    port_of,
    reset_on_close,
)
from tests.kernel.raw import TCP, TCP6, UDP, UDP6, Transport

LOW: Final = 20000
SIZE: Final = 4
OWN: Final = LOW + 2
OTHERS: Final = [port for port in range(LOW, LOW + SIZE) if port != OWN]

Way: TypeAlias = Callable[[Transport, Address], socket.socket]


def by_dialer(transport: Transport, destination: Address) -> socket.socket:
    dialer = connectx.Dialer([transport.source])
    return dialer.create_connection(destination[:2], type=transport.type)


def by_dialer_of_any_source(transport: Transport, destination: Address) -> socket.socket:
    return connectx.Dialer().create_connection(destination[:2], type=transport.type)


def by_aio(transport: Transport, destination: Address) -> socket.socket:
    return asyncio.run(aio.create_connection(destination[:2], type=transport.type))


def by_aio_dialer(transport: Transport, destination: Address) -> socket.socket:
    dialer = aio.Dialer([transport.source])
    return asyncio.run(dialer.create_connection(destination[:2], type=transport.type))


def by_non_blocking_connectx(transport: Transport, destination: Address) -> socket.socket:
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(transport.socket())
        sock.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            connectx.connectx(sock, None, destination)
        on_error.pop_all()
    return sock


WAYS: Final[list[Way]] = [
    by_dialer,
    by_dialer_of_any_source,
    by_aio,
    by_aio_dialer,
    by_non_blocking_connectx,
]


@pytest.fixture(autouse=True)
def _four_ports(network: Network) -> None:
    network.port_range(LOW, LOW + SIZE - 1)


@pytest.fixture
def opened() -> Iterator[list[socket.socket]]:
    socks: list[socket.socket] = []
    yield socks
    for sock in socks:
        sock.close()


def ports_until_exhausted(connect: Callable[[], socket.socket]) -> list[int]:
    """The source ports of the connections that there can be."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(SIZE + 1):
            try:
                sock = stack.enter_context(connect())
            except (PortsExhausted, ConnectionRefusedError):
                break
            reset_on_close(sock) if sock.type == socket.SOCK_STREAM else None
            ports.append(port_of(sock))
        return sorted(ports)


@pytest.mark.parametrize("with_source", [False, True], ids=["any source", "source address"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
class TestNobodyListens:
    @pytest.mark.parametrize("transport", STREAMS, ids=str)
    def test_a_stream_is_refused(
        self, transport: Transport, call: Call, *, with_source: bool
    ) -> None:
        transport.socket().close()
        source = (transport.source, 0) if with_source else None
        for _ in range(12):
            with pytest.raises(ConnectionRefusedError):
                call(transport, source, (transport.source, OWN), "auto")

    @pytest.mark.parametrize("transport", DATAGRAMS, ids=str)
    def test_datagrams_have_the_other_ports(
        self, transport: Transport, call: Call, *, with_source: bool
    ) -> None:
        transport.socket().close()
        source = (transport.source, 0) if with_source else None
        for _ in range(4):
            found = ports_until_exhausted(
                lambda: call(transport, source, (transport.source, OWN), "auto")
            )
            assert found == OTHERS


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("strategy", [*STRATEGIES, "shifting-window:2"])
@pytest.mark.parametrize("transport", [TCP, TCP6], ids=str)
def test_with_every_strategy(transport: Transport, strategy: str, call: Call) -> None:
    for _ in range(12):
        with pytest.raises((ConnectionRefusedError, PortsExhausted, NotSupported)):
            call(transport, None, (transport.source, OWN), strategy)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("transport", [TCP, TCP6, UDP, UDP6], ids=str)
def test_whichever_way_it_connects(transport: Transport, way: Way) -> None:
    for _ in range(12):
        with (
            contextlib.suppress(ConnectionRefusedError),
            way(transport, (transport.source, OWN)) as sock,
        ):
            assert port_of(sock) != OWN


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("transport", [TCP, TCP6], ids=str)
def test_with_the_others_in_use_the_last_port_is_not_it(
    transport: Transport, call: Call, servers: Servers, opened: list[socket.socket]
) -> None:
    """Whatever the kernel's search finds in the end."""
    listener = servers.listen(transport.source, OWN)
    for port in OTHERS:
        opened.append(call(transport, (transport.source, port), (transport.source, OWN), "auto"))
        reset_on_close(opened[-1])
        opened.append(limits.accept(listener)[0])
    listener.close()
    for strategy in ("auto", "full-range", "one-port"):
        with pytest.raises(PortsExhausted):
            call(transport, None, (transport.source, OWN), strategy)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("transport", ALL, ids=str)
def test_who_asks_for_it_gets_it(transport: Transport, call: Call) -> None:
    transport.socket().close()
    place = (transport.source, OWN)
    with call(transport, place, place, "auto") as sock:
        assert sock.getsockname() == sock.getpeername()
        if is_stream(transport):
            reset_on_close(sock)


@pytest.mark.parametrize("fast_open", [0, 1, 3])
# MPTCP loses the first octet there, with plain calls too.
@pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED, *DATAGRAMS], ids=str)
def test_who_asks_for_it_with_data_receives_them(
    transport: Transport, network: Network, fast_open: int
) -> None:
    """The SYN crosses itself, whatever it carries."""
    network.sysctl("net.ipv4.tcp_fastopen", fast_open)
    place = (transport.source, OWN)
    with transport.socket() as sock:
        sock.settimeout(limits.LIMIT)
        assert connectx.connectx(sock, place, place, data=b"hello") == 5
        assert sock.getsockname() == sock.getpeername()
        assert limits.receive(sock, 16) == b"hello"
        if is_stream(transport):
            reset_on_close(sock)


def test_another_address_has_the_port() -> None:
    """Only the same address at both ends makes a socket meet itself."""
    found = ports_until_exhausted(
        lambda: connectx.create_connection(
            ("127.0.0.9", OWN), source_address=("127.0.0.1", 0), type=socket.SOCK_DGRAM
        )
    )
    assert found == list(range(LOW, LOW + SIZE))


@pytest.mark.parametrize("transport", [UDP, UDP6], ids=str)
def test_the_explanation_counts_no_port_that_is_free(
    transport: Transport, opened: list[socket.socket]
) -> None:
    def connect() -> socket.socket:
        return by_create_connection(transport, None, (transport.source, OWN))

    opened.extend(connect() for _ in OTHERS)
    with pytest.raises(PortsExhausted) as caught:
        connect()
    assert "4 ports: 3 connected" in caught.value.explain()
    assert "0 free now" in caught.value.explain()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("strategy", [*STRATEGIES, "shifting-window:2"])
@pytest.mark.parametrize("transport", [TCP, TCP6], ids=str)
def test_where_the_range_has_just_come_to_it(
    network: Network, transport: Transport, strategy: str, call: Call
) -> None:
    """For a second nobody but the kernel knows."""
    other = OWN + 1000
    for _ in range(4):
        network.port_range(LOW, LOW + SIZE - 1)
        with contextlib.suppress(ConnectionRefusedError, NotSupported):
            call(transport, None, (transport.source, other), strategy)
        network.port_range(other, other)
        with pytest.raises((ConnectionRefusedError, PortsExhausted, NotSupported)):
            call(transport, None, (transport.source, other), strategy)


@pytest.mark.parametrize("transport", [UDP, UDP6], ids=str)
def test_a_window_that_the_range_has_just_left(network: Network, transport: Transport) -> None:
    """The kernel ignores it then."""
    other = (transport.source, OWN + 1000)
    for _ in range(4):
        network.port_range(LOW, LOW + SIZE - 1)
        with transport.socket() as sock:
            connectx.connectx(sock, None, other)
        network.port_range(other[1], other[1])
        with transport.socket() as sock, pytest.raises(PortsExhausted):
            connectx.connectx(sock, None, other)
