"""Whatever goes wrong, no descriptor and no port is left behind.

That no descriptor is left is checked after every test there is (connectx.testing.fixtures);
here also between the calls of one, and with each way a call can end.
"""

import contextlib
import errno
import gc
import signal
import socket
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

import connectx
from connectx import (
    NotSupported,
    PortHeld,
    PortsExhausted,
    SourceNotLocal,
    TupleInUse,
)
from connectx._connect.namespace import NAMESPACES
from connectx.linux import uapi
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.socket_dump import Filter, records
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.api.calls import (
    CALLS,
    TCP_MAPPED,
    UDP_MAPPED,
    Call,
    Client,
    foreign_host,
    is_stream,
    limited_descriptors,
    reset_on_close,
)
from tests.kernel.raw import FIRST, MPTCP, SECOND, TCP, TCP6, UDP, UDP6, UDPLITE, Transport

LOW, HIGH = 20001, 20004
SIZE: Final = HIGH - LOW + 1
INSIDE, OUTSIDE = 20003, 30003
CLOSED, SILENT = 9998, 9999

TRANSPORTS: Final = (TCP, TCP6, TCP_MAPPED, MPTCP, UDP, UDP6, UDP_MAPPED, UDPLITE)
every_transport = pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
streams = pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED, MPTCP], ids=str)


@pytest.fixture(autouse=True)
def _four_ports(network: Network) -> None:
    network.port_range(LOW, HIGH)


def descriptors() -> dict[str, str]:
    """What the process has open, netlink sockets apart, which the library keeps."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(link.readlink())
            if target.startswith("socket:"):
                sock = socket.socket(fileno=int(link.name))
                family = sock.family
                sock.detach()
                if family == socket.AF_NETLINK:
                    continue
            if not target.startswith("/proc/"):
                found[link.name] = target
    return found


def sockets_here(transport: Transport) -> set[tuple[int, bytes, int, int]]:
    """Every socket of the protocol in this namespace: state, address, port, peer's port."""
    found = set()
    with NetlinkSocket(uapi.NETLINK_SOCK_DIAG) as netlink:
        for family in (uapi.AF_INET, uapi.AF_INET6):
            for record in records(netlink, Filter(transport.protocol, family=family)):
                found.add(
                    (record.state, record.source, record.source_port, record.destination_port)
                )
    return found


@contextlib.contextmanager
def nothing_left(transport: Transport) -> Iterator[None]:
    """Check that a block opens nothing in this process, and leaves no socket in the namespace."""
    before = descriptors(), sockets_here(transport)
    yield
    assert descriptors() == before[0]
    assert sockets_here(transport) == before[1]


@every_transport
class TestErrorPaths:
    def check(
        self, client: Client, error: type[BaseException], attempt: Callable[[], object]
    ) -> None:
        for _ in range(3):
            with nothing_left(client.transport), pytest.raises(error):
                attempt()

    @pytest.mark.parametrize("has_source", [False, True])
    def test_no_port_left(self, client: Client, *, has_source: bool) -> None:
        source = (client.transport.source, 0) if has_source else None
        client.fill(FIRST, source)
        self.check(client, PortsExhausted, lambda: client.open(FIRST, source))

    @pytest.mark.parametrize("port", [INSIDE, OUTSIDE])
    def test_taken(self, client: Client, port: int) -> None:
        source = (client.transport.source, port)
        client.open(FIRST, source)
        self.check(client, TupleInUse, lambda: client.open(FIRST, source))

    @pytest.mark.parametrize("port", [INSIDE, OUTSIDE])
    def test_held(self, client: Client, closing: contextlib.ExitStack, port: int) -> None:
        source = (client.transport.source, port)
        closing.enter_context(client.transport.socket()).bind(source)
        self.check(client, PortHeld, lambda: client.open(FIRST, source))

    @pytest.mark.parametrize("port", [0, INSIDE, OUTSIDE])
    def test_not_local(self, client: Client, port: int) -> None:
        source = (foreign_host(client.transport), port)
        self.check(client, SourceNotLocal, lambda: client.open(FIRST, source))

    def test_no_route(self, client: Client) -> None:
        host = foreign_host(client.transport)
        self.check(client, OSError, lambda: client.open(FIRST, host=host))

    def test_unknown_strategy(self, client: Client) -> None:
        self.check(client, ValueError, lambda: client.open(FIRST, strategy="luck"))

    def test_unserved_strategy(self, client: Client) -> None:
        if is_stream(client.transport):
            # Which serves with sockets of its own.
            with nothing_left(client.transport), contextlib.suppress(NotSupported):
                client.close(client.open(FIRST, strategy="explicit-bind"))
            return
        self.check(client, NotSupported, lambda: client.open(FIRST, strategy="one-port"))

    def test_wrong_arguments(self, client: Client) -> None:
        self.check(client, ValueError, lambda: client.open(70_000))
        self.check(client, ValueError, lambda: client.open(FIRST, ("", 70_000)))

    def test_no_descriptor_left(self, client: Client, call: Call) -> None:
        """EMFILE at each place where one is opened: the first, the second, …"""
        transport = client.transport
        client.fill(FIRST)
        client.close(client.opened[0])
        for spare in range(4):
            with nothing_left(transport), limited_descriptors(spare):
                try:
                    sock = call(transport, None, (transport.source, FIRST), "auto")
                except OSError as error:
                    assert error.errno == errno.EMFILE  # noqa: PT017 -- or it succeeds
                else:
                    close(sock, transport)
        client.open(FIRST)


def close(sock: socket.socket, transport: Transport) -> None:
    if is_stream(transport):
        reset_on_close(sock)
    sock.close()


@streams
class TestStreams:
    @pytest.mark.parametrize("port", [0, INSIDE, OUTSIDE])
    def test_refused(self, client: Client, port: int) -> None:
        for _ in range(SIZE + 1):
            with nothing_left(client.transport), pytest.raises(ConnectionRefusedError):
                client.open(CLOSED, (client.transport.source, port))

    @pytest.mark.parametrize("port", [0, INSIDE, OUTSIDE])
    def test_timed_out(self, transport: Transport, servers: Servers, port: int) -> None:
        servers.listen(transport.source, SILENT, protocol=transport.protocol, backlog=0)
        with transport.socket() as filler:
            filler.bind((transport.source, 29999))
            filler.connect((transport.source, SILENT))
            for _ in range(SIZE + 1):
                with nothing_left(transport), pytest.raises(TimeoutError):
                    connectx.create_connection(
                        (transport.source, SILENT),
                        0.01,
                        (transport.source, port),
                        proto=transport.protocol,
                    )

    def test_non_blocking(self, transport: Transport, client: Client) -> None:
        """create_connection() cannot return what is in progress, so it closes it."""
        del client
        before = descriptors()
        for _ in range(SIZE):
            with pytest.raises(BlockingIOError):
                connectx.create_connection((transport.source, FIRST), 0, proto=transport.protocol)
        assert descriptors() == before


class TestNames:
    @pytest.mark.parametrize("all_errors", [False, True])
    def test_every_address_fails(
        self, monkeypatch: pytest.MonkeyPatch, *, all_errors: bool
    ) -> None:
        found = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", CLOSED, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", CLOSED)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.77", CLOSED)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
        expected = ExceptionGroup if all_errors else OSError
        for _ in range(SIZE + 1):
            with nothing_left(TCP), pytest.raises(expected):
                connectx.create_connection(("many", CLOSED), all_errors=all_errors)


class Interrupt(BaseException):
    """Like KeyboardInterrupt, from anywhere."""


def raise_at(number: int) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that raises at the given line executed within the library."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        del argument
        if "/connectx/" not in frame.f_code.co_filename or "/testing/" in frame.f_code.co_filename:
            return None
        if event == "line":
            count += 1
            if count == number:
                raise Interrupt
        return trace

    return trace


# What is interrupted before it is anybody's to close is closed by its finalizer, which says so.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("transport", [TCP, TCP6, UDP, UDP_MAPPED], ids=str)
@pytest.mark.parametrize("port", [0, INSIDE, OUTSIDE], ids=["any port", "in range", "out of range"])
@pytest.mark.parametrize("crowded", [False, True])
class TestInterrupted:
    """As by a signal handler that raises: nothing is left, and the next call is none the worse."""

    def test_at_every_line(
        self,
        transport: Transport,
        client: Client,
        call: Call,
        closing: contextlib.ExitStack,
        port: int,
        *,
        crowded: bool,
    ) -> None:
        # Streams are refused: one that was connected would leave a TIME_WAIT to the test.
        destination = (transport.source, CLOSED)
        holders = closing.enter_context(contextlib.ExitStack())
        if crowded:
            # So that what is proposed first is refused.
            for taken in set(range(LOW, HIGH + 1)) - {INSIDE}:
                holders.enter_context(transport.socket()).bind((transport.source, taken))
        self.connect(transport, call, port, destination)
        # The netlink sockets of the test before are closed now, and not by an interrupted call.
        for netlink in (NAMESPACES.here().diag, NAMESPACES.here().route):
            assert not netlink.closed
        line = 0
        finished = False
        with nothing_left(transport):
            while not finished:
                line += 1
                previous = sys.gettrace()
                sys.settrace(raise_at(line))
                try:
                    finished = self.connect(transport, call, port, destination)
                except Interrupt:
                    pass
                finally:
                    sys.settrace(previous)
            # An interrupted clean-up may leave a cycle behind.
            gc.collect()
        assert line > 20
        self.connect(transport, call, port, destination)
        holders.close()
        # Every port that was proposed to an interrupted call is there again.
        client.fill(FIRST)
        assert client.ports(FIRST) == list(range(LOW, HIGH + 1))
        client.fill(SECOND)
        assert client.ports(SECOND) == list(range(LOW, HIGH + 1))

    @staticmethod
    def connect(transport: Transport, call: Call, port: int, destination: tuple[str, int]) -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            call(transport, (transport.source, port), destination, "auto").close()
        return True


def interrupt_within(function: str) -> Callable[[int, FrameType | None], None]:
    """A signal handler that raises KeyboardInterrupt within a function of the library."""

    def handler(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_name == function and "/connectx/" in frame.f_code.co_filename:
                signal.default_int_handler(number, frame)
            frame = frame.f_back

    return handler


# A socket that is returned at the very moment is closed by its finalizer, which says so.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
@pytest.mark.parametrize("function", ["create_connection", "connectx"])
def test_interrupted_by_a_signal(transport: Transport, client: Client, function: str) -> None:
    """Between any two instructions, with Python's own exception for it."""
    call, destination = CALLS[function], (transport.source, CLOSED)
    TestInterrupted.connect(transport, call, 0, destination)
    interrupted = 0
    with nothing_left(transport):
        # Not SIGALRM, which the suite's time limit has: the last one may be delivered late, by
        # way of another thread.
        signal.signal(signal.SIGVTALRM, interrupt_within(function))
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.0003, 0.0003)
            while interrupted < 50:
                try:
                    TestInterrupted.connect(transport, call, 0, destination)
                except KeyboardInterrupt:
                    interrupted += 1
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, signal.SIG_IGN)
    client.fill(FIRST)
    assert client.ports(FIRST) == list(range(LOW, HIGH + 1))


class Local:
    """Something that a caller's frame holds."""


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "transport, failure",
    [
        (transport, failure)
        for transport in TRANSPORTS
        for failure in ("exhausted", "taken", "held", "not local", "no route", "refused")
        if failure != "refused" or is_stream(transport)
    ],
    ids=str,
)
def test_an_error_keeps_no_frame_alive(
    transport: Transport,
    call: Call,
    client: Client,
    closing: contextlib.ExitStack,
    failure: str,
) -> None:
    """An exception in a cycle with the frames it passed would keep all that callers hold.

    Until the next garbage collection, that is; socket.create_connection() takes care not to.
    """
    host = transport.source
    if failure == "exhausted":
        client.fill(FIRST)
    elif failure == "taken":
        client.open(FIRST, (host, INSIDE))
    elif failure == "held":
        closing.enter_context(transport.socket()).bind((host, INSIDE))
    source, destination = {
        "exhausted": (None, (host, FIRST)),
        "taken": ((host, INSIDE), (host, FIRST)),
        "held": ((host, INSIDE), (host, FIRST)),
        "not local": ((foreign_host(transport), 0), (host, FIRST)),
        "no route": (None, (foreign_host(transport), FIRST)),
        "refused": (None, (host, CLOSED)),
    }[failure]

    def fail() -> weakref.ref[Local]:
        local = Local()
        with contextlib.suppress(OSError):
            call(transport, source, destination, "auto")
            raise AssertionError("it should fail")
        return weakref.ref(local)

    fail()
    with without_garbage_collection():
        assert fail()() is None


@every_transport
def test_many_calls_keep_nothing(client: Client, call: Call) -> None:
    transport = client.transport
    with nothing_left(transport):
        for number in range(200):
            destination = (transport.source, (FIRST, SECOND)[number % 2])
            close(call(transport, None, destination, "auto"), transport)
