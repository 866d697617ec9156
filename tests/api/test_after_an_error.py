"""A socket that connectx() could not connect is as it was found, and good for another call."""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

import pytest

import connectx
from connectx import (
    NotSupported,
    PortHeld,
    PortsExhausted,
    RangeNotHonoured,
    SourceNotLocal,
    TupleInUse,
)
from connectx.linux import sockopts, uapi
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import TCP_MAPPED, UDP_MAPPED, foreign_host, is_stream
from tests.kernel.raw import (
    FIRST,
    MPTCP,
    SECOND,
    TCP,
    TCP6,
    THIRD,
    UDP,
    UDP6,
    UDPLITE,
    Transport,
)

LOW, HIGH = 20001, 20004
INSIDE, OUTSIDE = 20003, 30003
SILENT: Final = 9999

every_transport = pytest.mark.parametrize(
    "transport", [TCP, TCP6, TCP_MAPPED, MPTCP, UDP, UDP6, UDP_MAPPED, UDPLITE], ids=str
)
streams = pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED, MPTCP], ids=str)
with_or_without_options = pytest.mark.parametrize("options", ["fresh", "set up"])

OPTIONS: Final = {
    "SO_REUSEADDR": (socket.SOL_SOCKET, uapi.SO_REUSEADDR, 4),
    "SO_REUSEPORT": (socket.SOL_SOCKET, uapi.SO_REUSEPORT, 4),
    "SO_BINDTOIFINDEX": (socket.SOL_SOCKET, uapi.SO_BINDTOIFINDEX, 4),
    "SO_MARK": (socket.SOL_SOCKET, uapi.SO_MARK, 4),
    "IP_LOCAL_PORT_RANGE": (uapi.IPPROTO_IP, uapi.IP_LOCAL_PORT_RANGE, 4),
    "IP_BIND_ADDRESS_NO_PORT": (uapi.IPPROTO_IP, uapi.IP_BIND_ADDRESS_NO_PORT, 4),
    "IP_FREEBIND": (uapi.IPPROTO_IP, uapi.IP_FREEBIND, 4),
    "IP_TRANSPARENT": (uapi.IPPROTO_IP, uapi.IP_TRANSPARENT, 4),
}


def options_of(sock: socket.socket) -> dict[str, str]:
    return {name: sock.getsockopt(*option).hex() for name, option in OPTIONS.items()}


def state_of(sock: socket.socket) -> dict[str, object]:
    """What a socket's owner can see of it."""
    return {
        "getsockname()": sock.getsockname(),
        "gettimeout()": sock.gettimeout(),
        **options_of(sock),
    }


class Rig:
    """One of the test's own sockets, and what is in its way."""

    def __init__(self, transport: Transport, network: Network, stack: contextlib.ExitStack) -> None:
        self.transport = transport
        self.network = network
        self.host = transport.source
        self._stack = stack

    def new(self, options: str = "fresh") -> socket.socket:
        sock = self._stack.enter_context(self.transport.socket())
        if options == "set up":
            sock.settimeout(limits.LIMIT)
            sockopts.set_so_mark(sock, 7)
            sockopts.set_so_bindtoifindex(sock, socket.if_nametoindex("lo"))
            sockopts.set_ip_local_port_range(sock, LOW, LOW + 1)
        return sock

    def connected(self, port: int, destination: int = FIRST, host: str = "") -> socket.socket:
        sock = self.new()
        connectx.connectx(sock, (host or self.host, port), (self.host, destination))
        return sock

    def bound(self, port: int) -> socket.socket:
        sock = self._stack.enter_context(
            socket.socket(self.transport.family, self.transport.type, self.transport.protocol)
        )
        sock.bind((self.host, port))
        return sock

    def fill(self, destination: int = FIRST) -> None:
        for port in range(LOW, HIGH + 1):
            self.connected(port, destination)


@pytest.fixture
def rig(
    transport: Transport, network: Network, servers: Servers, closing: contextlib.ExitStack
) -> Rig:
    network.port_range(LOW, HIGH)
    if is_stream(transport):
        for port in (FIRST, SECOND, THIRD):
            servers.listen(transport.source, port, protocol=transport.protocol)
    return Rig(transport, network, closing)


def assert_as_found(
    rig: Rig,
    sock: socket.socket,
    error: type[OSError] | type[ValueError],
    call: Callable[[], object],
) -> None:
    """The call fails, nothing about the socket has changed, and it can connect elsewhere."""
    before = state_of(sock)
    with pytest.raises(error):
        call()
    assert state_of(sock) == before
    # The same once more: neither the socket nor what is known has been spoilt.
    with pytest.raises(error):
        call()
    assert state_of(sock) == before
    connectx.connectx(sock, None, (rig.host, THIRD))
    assert sock.getpeername()[:2] == (rig.host, THIRD)
    assert LOW <= sock.getsockname()[1] <= HIGH


@with_or_without_options
@every_transport
class TestAsFound:
    @pytest.mark.parametrize("has_source", [False, True], ids=["no source", "source address"])
    def test_no_port_left(self, rig: Rig, options: str, *, has_source: bool) -> None:
        rig.fill()
        sock = rig.new(options)
        source = (rig.host, 0) if has_source else None
        assert_as_found(
            rig,
            sock,
            PortsExhausted,
            lambda: connectx.connectx(sock, source, (rig.host, FIRST)),
        )

    @pytest.mark.parametrize("port", [INSIDE, OUTSIDE], ids=["in range", "out of range"])
    def test_the_tuple_is_in_use(self, rig: Rig, options: str, port: int) -> None:
        rig.connected(port)
        sock = rig.new(options)
        assert_as_found(
            rig,
            sock,
            TupleInUse,
            lambda: connectx.connectx(sock, (rig.host, port), (rig.host, FIRST)),
        )

    @pytest.mark.parametrize("port", [INSIDE, OUTSIDE], ids=["in range", "out of range"])
    def test_the_port_is_held(self, rig: Rig, options: str, port: int) -> None:
        rig.bound(port)
        sock = rig.new(options)
        assert_as_found(
            rig,
            sock,
            PortHeld,
            lambda: connectx.connectx(sock, (rig.host, port), (rig.host, FIRST)),
        )

    @pytest.mark.parametrize("port", [0, INSIDE, OUTSIDE])
    def test_the_source_is_not_local(self, rig: Rig, options: str, port: int) -> None:
        sock = rig.new(options)
        assert_as_found(
            rig,
            sock,
            SourceNotLocal,
            lambda: connectx.connectx(sock, (foreign_host(rig.transport), port), (rig.host, FIRST)),
        )

    def test_there_is_no_such_strategy(self, rig: Rig, options: str) -> None:
        sock = rig.new(options)
        assert_as_found(
            rig,
            sock,
            ValueError,
            lambda: connectx.connectx(sock, None, (rig.host, FIRST), strategy="luck"),  # type: ignore[arg-type] # a name that no type checker knows
        )

    def test_the_strategy_is_not_for_it(self, rig: Rig, options: str) -> None:
        sock = rig.new(options)
        assert_as_found(
            rig,
            sock,
            NotSupported,
            lambda: connectx.connectx(sock, None, (rig.host, FIRST), strategy="explicit-bind"),
        )

    def test_there_is_no_route(self, rig: Rig, options: str) -> None:
        sock = rig.new(options)
        before = state_of(sock)
        if options == "set up":
            # With a device, no route is needed: as if all were in its network.
            sockopts.set_so_bindtoifindex(sock, 0)
            before = state_of(sock)
        with pytest.raises(OSError, match=os.strerror(errno.ENETUNREACH)) as caught:
            connectx.connectx(sock, None, (foreign_host(rig.transport), FIRST))
        assert type(caught.value) is OSError
        assert state_of(sock) == before
        connectx.connectx(sock, None, (rig.host, THIRD))

    def test_the_source_has_no_route(self, rig: Rig, options: str) -> None:
        sock = rig.new(options)
        if options == "set up":
            sockopts.set_so_bindtoifindex(sock, 0)
        before = state_of(sock)
        with pytest.raises(OSError) as caught:  # noqa: PT011 -- compared with the kernel's own
            connectx.connectx(sock, (rig.host, 0), (foreign_host(rig.transport), FIRST))
        plain = rig.new()
        sockopts.set_ip_bind_address_no_port(plain, on=True)
        plain.bind((rig.host, 0))
        with pytest.raises(OSError) as expected:  # noqa: PT011
            plain.connect((foreign_host(rig.transport), FIRST))
        assert caught.value.errno == expected.value.errno
        assert state_of(sock) == before
        connectx.connectx(sock, None, (rig.host, THIRD))


@pytest.mark.parametrize("data", [b"", b"hello"], ids=["", "data"])
@pytest.mark.parametrize("fast_open", [0, 3])
@pytest.mark.parametrize("port", [0, INSIDE, OUTSIDE], ids=["any", "in range", "out of range"])
@streams
def test_it_can_listen(rig: Rig, port: int, fast_open: int, data: bytes) -> None:
    """On the very port that it did not get toward its destination, which it never bound."""
    rig.network.sysctl("net.ipv4.tcp_fastopen", fast_open)
    for number in [port] if port else range(LOW, HIGH + 1):
        other = rig.new()
        sockopts.set_so_reuseaddr(other, on=True)
        connectx.connectx(other, (rig.host, number), (rig.host, FIRST))
    sock = rig.new()
    sockopts.set_so_reuseaddr(sock, on=True)
    with pytest.raises(TupleInUse if port else PortsExhausted):
        connectx.connectx(sock, (rig.host, port), (rig.host, FIRST), data=data)
    sock.bind((rig.host, port or INSIDE))
    sock.listen()
    client = rig.new()
    client.connect((rig.host, port or INSIDE))
    accepted, _ = limits.accept(sock)
    accepted.close()


@every_transport
def test_a_range_that_is_not_honoured(rig: Rig) -> None:
    sock = rig.new()
    sockopts.set_ip_local_port_range(sock, 30001, 30004)
    before = state_of(sock)
    with pytest.raises(RangeNotHonoured):
        connectx.connectx(sock, None, (rig.host, FIRST))
    assert state_of(sock) == before
    sockopts.set_ip_local_port_range(sock, 0, 0)
    connectx.connectx(sock, None, (rig.host, THIRD))


@every_transport
def test_bound_to_an_address_by_its_owner(rig: Rig) -> None:
    rig.fill()
    sock = rig.new()
    sockopts.set_ip_bind_address_no_port(sock, on=True)
    sock.bind((rig.host, 0))
    assert_as_found(
        rig,
        sock,
        PortsExhausted,
        lambda: connectx.connectx(sock, None, (rig.host, FIRST)),
    )
    assert sock.getsockname()[0] == rig.host


@every_transport
def test_so_reuseaddr_set_by_its_owner_stays(rig: Rig) -> None:
    rig.fill()
    sock = rig.new()
    sockopts.set_so_reuseaddr(sock, on=True)
    assert_as_found(
        rig,
        sock,
        PortsExhausted,
        lambda: connectx.connectx(sock, None, (rig.host, FIRST)),
    )


@pytest.mark.parametrize("transport", [TCP6, UDP6], ids=str)
def test_a_link_local_source_leaves_no_device_behind(rig: Rig) -> None:
    """bind() and connect() to a link-local address set the socket's device, which stays set."""
    rig.network.add_address("fe80::1", None, "lo")
    lo = socket.if_nametoindex("lo")
    link_local = ("fe80::1", 0, 0, lo)
    for port in range(LOW, HIGH + 1):
        sock = rig.new()
        connectx.connectx(sock, ("fe80::1", port, 0, lo), ("fe80::1", SILENT, 0, lo)) if (
            not is_stream(rig.transport)
        ) else rig.bound(port)
    sock = rig.new()
    before = state_of(sock)
    with pytest.raises(PortsExhausted):
        connectx.connectx(sock, link_local, ("fe80::1", SILENT, 0, lo))
    assert state_of(sock) == before


@streams
class TestRefused:
    """No more than connect() itself leaves behind."""

    @pytest.mark.parametrize("has_source", [False, True], ids=["no source", "source address"])
    def test_the_socket_can_connect_again(self, rig: Rig, *, has_source: bool) -> None:
        source = (rig.host, 0) if has_source else None
        sock = rig.new()
        with pytest.raises(ConnectionRefusedError):
            connectx.connectx(sock, source, (rig.host, SILENT))
        with pytest.raises(ConnectionRefusedError):
            connectx.connectx(sock, source, (rig.host, SILENT))
        connectx.connectx(sock, source, (rig.host, FIRST))
        assert sock.getpeername()[1] == FIRST

    @pytest.mark.parametrize("has_source", [False, True], ids=["no source", "source address"])
    def test_after_connect_was_refused_as_well(self, rig: Rig, *, has_source: bool) -> None:
        source = (rig.host, 0) if has_source else None
        sock = rig.new()
        with pytest.raises(ConnectionRefusedError):
            sock.connect((rig.host, SILENT))
        connectx.connectx(sock, source, (rig.host, FIRST))
        assert sock.getpeername()[1] == FIRST

    def test_and_connect_itself_works_again(self, rig: Rig) -> None:
        sock = rig.new()
        with pytest.raises(ConnectionRefusedError):
            connectx.connectx(sock, None, (rig.host, SILENT))
        sock.connect((rig.host, FIRST))

    def test_the_options_are_as_found(self, rig: Rig) -> None:
        sock = rig.new("set up")
        before = options_of(sock)
        with pytest.raises(ConnectionRefusedError):
            connectx.connectx(sock, None, (rig.host, SILENT))
        assert options_of(sock) == before

    def test_the_port_is_free_again(self, rig: Rig) -> None:
        rig.network.port_range(LOW, LOW)
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                connectx.connectx(rig.new(), None, (rig.host, SILENT))
            with rig.bound(LOW):
                pass


@every_transport
class TestAfterSuccess:
    def test_the_owners_options_are_kept(self, rig: Rig) -> None:
        sock = rig.new("set up")
        before = state_of(sock)
        connectx.connectx(sock, (rig.host, 0), (rig.host, FIRST))
        after = state_of(sock)
        kept = {"gettimeout()", "SO_MARK", "SO_BINDTOIFINDEX", "IP_FREEBIND", "IP_TRANSPARENT"}
        if rig.transport is not MPTCP:
            # Which takes no more options of this kind once it is connected.
            kept.add("IP_LOCAL_PORT_RANGE")
        assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
        assert LOW <= sock.getsockname()[1] <= LOW + 1

    def test_so_reuseaddr_is_on(self, rig: Rig) -> None:
        sock = rig.new()
        connectx.connectx(sock, None, (rig.host, FIRST))
        assert sockopts.get_so_reuseaddr(sock)

    def test_a_later_connect_is_not_bound_to_the_port(self, rig: Rig) -> None:
        if rig.transport is MPTCP:
            pytest.skip("kernel: MPTCP takes no window once it is connected")
        sock = rig.new()
        connectx.connectx(sock, None, (rig.host, FIRST))
        assert struct.unpack("@HH", sock.getsockopt(*OPTIONS["IP_LOCAL_PORT_RANGE"])) == (0, 0)


@pytest.mark.parametrize("transport", [UDP, UDP6, UDP_MAPPED], ids=str)
@pytest.mark.parametrize("port", [0, INSIDE, OUTSIDE], ids=["any port", "in range", "out of range"])
def test_a_datagram_that_cannot_be_sent_leaves_the_socket_unconnected(rig: Rig, port: int) -> None:
    sock = rig.new()
    before = state_of(sock)
    with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
        connectx.connectx(sock, (rig.host, port), (rig.host, FIRST), data=bytes(70_000))
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        sock.getpeername()
    if port != OUTSIDE:
        assert state_of(sock) == before
