"""Blocking, with a timeout, and non-blocking: as socket.connect() does on the same socket."""

import contextlib
import errno
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Final, NoReturn

import pytest

import connectx
from connectx.linux import sockopts
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import TCP_MAPPED, UDP_MAPPED, is_stream, port_of, reset_on_close
from tests.kernel.raw import FIRST, MPTCP, MPTCP6, SECOND, TCP, TCP6, UDP, UDP6, Transport

LOW, HIGH = 20001, 20008
#: Nobody listens there.
CLOSED: Final = 9998
#: A listener is there whose accept queue is full: a SYN gets no answer.
SILENT: Final = 9999

streams = pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED, MPTCP, MPTCP6], ids=str)
datagrams = pytest.mark.parametrize("transport", [UDP, UDP6, UDP_MAPPED], ids=str)
every_source = pytest.mark.parametrize("source", ["none", "address", "address and port"])


class Peer:
    """One socket to connect with connectx(), and one like it for socket.connect()."""

    def __init__(self, transport: Transport, source: str, stack: contextlib.ExitStack) -> None:
        self.transport = transport
        self.host = transport.source
        self._source = source
        self._stack = stack

    def new(self, timeout: float | None = None) -> socket.socket:
        sock = self._stack.enter_context(self.transport.socket())
        sock.settimeout(timeout)
        return sock

    def connectx(self, sock: socket.socket, port: int) -> None:
        source = {
            "none": None,
            "address": (self.host, 0),
            "address and port": (self.host, LOW),
        }[self._source]
        assert connectx.connectx(sock, source, (self.host, port)) == 0
        if self._source == "address and port":
            assert port_of(sock) == LOW

    def connect(self, sock: socket.socket, port: int) -> None:
        if not port_of(sock):
            # So that the kernel does not choose the port that the other socket asks for.
            sockopts.set_ip_local_port_range(sock, LOW + 1, HIGH)
        sock.connect((self.host, port))


@pytest.fixture
def peer(
    transport: Transport,
    source: str,
    network: Network,
    servers: Servers,
    closing: contextlib.ExitStack,
) -> Peer:
    network.port_range(LOW, HIGH)
    transport.socket().close()
    if is_stream(transport):
        for port in (FIRST, SECOND):
            servers.listen(transport.source, port, protocol=transport.protocol)
        servers.listen(transport.source, SILENT, protocol=transport.protocol, backlog=0)
    peer = Peer(transport, source, closing)
    if is_stream(transport):
        peer.connect(peer.new(), SILENT)
    return peer


def same_error(first: Callable[[], object], second: Callable[[], object]) -> OSError:
    """The error that both calls raise: of the same class and with the same errno and text."""
    with pytest.raises(OSError) as expected:  # noqa: PT011 -- it is what the kernel says
        first()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        second()
    assert type(caught.value) is type(expected.value)
    assert caught.value.args == expected.value.args
    return expected.value


@every_source
@streams
class TestStreams:
    @pytest.mark.parametrize("timeout", [None, 5.0])
    def test_connected(self, peer: Peer, timeout: float | None) -> None:
        sock = peer.new(timeout)
        peer.connectx(sock, FIRST)
        assert sock.getpeername()[:2] == (peer.host, FIRST)
        assert sock.gettimeout() == timeout

    @pytest.mark.parametrize("timeout", [None, 5.0])
    def test_refused(self, peer: Peer, timeout: float | None) -> None:
        plain, sock = peer.new(timeout), peer.new(timeout)
        error = same_error(lambda: peer.connect(plain, CLOSED), lambda: peer.connectx(sock, CLOSED))
        assert isinstance(error, ConnectionRefusedError)
        assert sock.gettimeout() == timeout

    def test_timed_out(self, peer: Peer) -> None:
        plain, sock = peer.new(0.02), peer.new(0.02)
        error = same_error(lambda: peer.connect(plain, SILENT), lambda: peer.connectx(sock, SILENT))
        assert isinstance(error, TimeoutError)
        assert sock.gettimeout() == 0.02
        # Both are still under way, and say so.
        error = same_error(lambda: peer.connect(plain, SILENT), lambda: peer.connect(sock, SILENT))
        assert error.errno == errno.EALREADY

    def test_in_progress(self, peer: Peer) -> None:
        plain, sock = peer.new(0), peer.new(0)
        error = same_error(lambda: peer.connect(plain, FIRST), lambda: peer.connectx(sock, FIRST))
        assert isinstance(error, BlockingIOError)
        assert error.errno == errno.EINPROGRESS
        for each in (plain, sock):
            assert select.select([], [each], [], limits.LIMIT)[1] == [each]
            assert each.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            assert each.getpeername()[:2] == (peer.host, FIRST)
            assert each.gettimeout() == 0

    def test_in_progress_and_then_refused(self, peer: Peer) -> None:
        sock = peer.new(0)
        with pytest.raises(BlockingIOError):
            peer.connectx(sock, CLOSED)
        select.select([], [sock], [], limits.LIMIT)
        refused = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        assert refused == errno.ECONNREFUSED

    def test_in_progress_called_again(self, peer: Peer) -> None:
        sock = peer.new(0)
        with pytest.raises(BlockingIOError):
            peer.connectx(sock, SILENT)
        # Like a connected one: it has a port already.
        with pytest.raises(ValueError, match="bound to a port or connected"):
            peer.connectx(sock, SILENT)

    def test_in_progress_the_port_is_taken(self, peer: Peer) -> None:
        for _ in range(HIGH - LOW + 1):
            with pytest.raises(BlockingIOError):
                connectx.connectx(peer.new(0), None, (peer.host, SECOND))
        with pytest.raises(connectx.PortsExhausted) as caught:
            connectx.connectx(peer.new(0), None, (peer.host, SECOND))
        assert not isinstance(caught.value, BlockingIOError)


@every_source
@datagrams
@pytest.mark.parametrize("timeout", [None, 5.0, 0])
def test_datagrams_never_wait(peer: Peer, timeout: float | None) -> None:
    sock = peer.new(timeout)
    peer.connectx(sock, FIRST)
    assert sock.getpeername()[:2] == (peer.host, FIRST)
    assert sock.gettimeout() == timeout


@pytest.mark.parametrize("source", ["none"])
@datagrams
@pytest.mark.parametrize("timeout", [None, 5.0, 0])
def test_no_datagram_port_left_is_never_in_progress(peer: Peer, timeout: float | None) -> None:
    for _ in range(HIGH - LOW + 1):
        peer.connectx(peer.new(timeout), FIRST)
    with pytest.raises(connectx.PortsExhausted) as caught:
        peer.connectx(peer.new(timeout), FIRST)
    assert caught.value.errno == errno.EAGAIN
    assert not isinstance(caught.value, BlockingIOError)


class Interrupt(Exception):  # noqa: N818 -- not an error but a signal
    pass


@pytest.fixture
def alarms() -> Iterator[list[int]]:
    """SIGALRM every few milliseconds, counted."""
    counted: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: counted.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        yield counted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupt(*_: object) -> NoReturn:
    raise Interrupt


@every_source
@pytest.mark.parametrize("transport", [TCP, TCP6, MPTCP], ids=str)
class TestSignals:
    """EINTR: handlers run, and the call goes on or ends with what they raise (PEP 475)."""

    def test_with_a_timeout_it_goes_on(self, peer: Peer, alarms: list[int]) -> None:
        for connect in (peer.connect, peer.connectx):
            alarms.clear()
            with pytest.raises(TimeoutError):
                connect(peer.new(0.1), SILENT)
            assert len(alarms) >= 2

    @pytest.mark.parametrize("timeout", [None, 5.0])
    def test_what_the_handler_raises_ends_it(self, peer: Peer, timeout: float | None) -> None:
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            for connect in (peer.connect, peer.connectx):
                sock = peer.new(timeout)
                # Not before it has begun to wait, on a busy machine either.
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                with pytest.raises(Interrupt):
                    connect(sock, SILENT)
                assert sock.gettimeout() == timeout
                # As after connect(): still under way.
                sock.settimeout(0)
                with pytest.raises(OSError) as caught:  # noqa: PT011
                    sock.connect((peer.host, SILENT))
                assert caught.value.errno == errno.EALREADY
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("source", ["none", "address and port"])
@pytest.mark.parametrize("transport", [TCP], ids=str)
def test_signals_while_blocking(peer: Peer, alarms: list[int], servers: Servers) -> None:
    listener = servers.listen(peer.host, 9100, backlog=0)
    peer.connect(peer.new(), 9100)

    def make_room() -> None:
        # For the SYN's retransmission, which comes after a second, whatever one does.
        while len(alarms) < 3:
            signal.sigtimedwait([], 0.001)
        limits.accept(listener)[0].close()

    alarms.clear()
    acceptor = threading.Thread(target=make_room)
    acceptor.start()
    sock = peer.new()
    peer.connectx(sock, 9100)
    limits.join(acceptor)
    assert sock.getpeername()[:2] == (peer.host, 9100)
    assert len(alarms) >= 3


@pytest.mark.parametrize("source", ["none"])
@pytest.mark.parametrize("transport", [UDP, TCP], ids=str)
def test_many_signals_during_many_calls(peer: Peer, alarms: list[int]) -> None:
    """Whatever is interrupted, netlink exchanges among it, comes out right."""
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    while len(alarms) < 50:
        socks = [peer.new() for _ in range(HIGH - LOW + 1)]
        for sock in socks:
            peer.connectx(sock, FIRST)
        assert sorted(map(port_of, socks)) == list(range(LOW, HIGH + 1))
        with pytest.raises(connectx.PortsExhausted):
            peer.connectx(peer.new(), FIRST)
        for sock in socks:
            if is_stream(peer.transport):
                reset_on_close(sock)
            sock.close()
