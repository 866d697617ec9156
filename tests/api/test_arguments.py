"""Wrong arguments: told at once, by name, and before anything has happened to a socket."""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeAlias

import pytest

import connectx
from connectx.linux import uapi
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.api.test_after_an_error import state_of
from tests.kernel.raw import FIRST, MPTCP, SECOND, TCP, TCP6, UDP, UDP6, Transport

LOW, HIGH = 20001, 20008

every_transport = pytest.mark.parametrize("transport", [TCP, TCP6, MPTCP, UDP, UDP6], ids=str)
#: One of each kind is enough where the values are many.
some_transports = pytest.mark.parametrize("transport", [TCP, UDP6], ids=str)


class Audit:
    """The audit events of a block. A hook cannot be taken back, so there is one for all."""

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] | None = None

    def install(self) -> None:
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.events is not None and event.startswith("socket."):
            self.events.append((event, arguments[0] if arguments else None))


@pytest.fixture(scope="session")
def _audit() -> Audit:
    audit = Audit()
    audit.install()
    return audit


#: Checks that in a block nothing is done with a socket, or if none is named, that none is made.
Audited: TypeAlias = Callable[..., contextlib.AbstractContextManager[None]]


@pytest.fixture
def audited(_audit: Audit) -> Audited:
    @contextlib.contextmanager
    def watch(sock: socket.socket | None = None) -> Iterator[None]:
        _audit.events = []
        try:
            yield
            assert [
                event
                for event, subject in _audit.events
                if (subject is sock if sock is not None else event == "socket.__new__")
            ] == []
        finally:
            _audit.events = None

    return watch


@pytest.fixture(autouse=True)
def _servers(network: Network, servers: Servers) -> None:
    network.port_range(LOW, HIGH)
    for host in ("127.0.0.1", "::1"):
        servers.listen(host, FIRST)
        servers.listen(host, SECOND, protocol=uapi.IPPROTO_MPTCP)


def destination_of(transport: Transport) -> tuple[str, int]:
    return transport.source, SECOND if transport is MPTCP else FIRST


class Wrong(NamedTuple):
    """A value, the error due for it, and what its text has to say."""

    value: Any
    error: type[Exception]
    says: str


def wrong(value: Any, error: type[Exception], says: str) -> Any:
    return pytest.param(Wrong(value, error, says), id=repr(value))


#: Wrong in either place, on sockets of either family.
ENDPOINTS: Final = [
    wrong("127.0.0.1:9000", TypeError, "tuple"),
    wrong(9000, TypeError, "tuple"),
    wrong(["127.0.0.1", 9000], TypeError, "tuple"),
    wrong({"host": "127.0.0.1"}, TypeError, "tuple"),
    wrong(b"127.0.0.1", TypeError, "tuple"),
    wrong((), ValueError, "host, port"),
    wrong(("127.0.0.1",), ValueError, "host, port"),
    wrong(("127.0.0.1", 9000, 0), ValueError, "host, port"),
    wrong(("127.0.0.1", 9000, 0, 0, 0), ValueError, "host, port"),
    wrong((None, 9000), TypeError, "host"),
    wrong((2130706433, 9000), TypeError, "host"),
    wrong((["127.0.0.1"], 9000), TypeError, "host"),
    wrong(("127.0.0.1", "9000"), TypeError, "port"),
    wrong(("127.0.0.1", None), TypeError, "port"),
    wrong(("127.0.0.1", 9000.0), TypeError, "port"),
    wrong(("127.0.0.1", True), TypeError, "port"),
    wrong(("127.0.0.1", [9000]), TypeError, "port"),
    wrong(("127.0.0.1", -1), ValueError, "port"),
    wrong(("127.0.0.1", 65536), ValueError, "port"),
    wrong(("127.0.0.1", 1 << 70), ValueError, "port"),
    wrong(("localhost", 9000), ValueError, r"create_connection\(\)"),
    wrong(("example.org", 9000), ValueError, r"create_connection\(\)"),
    wrong(("127.1", 9000), ValueError, r"create_connection\(\)"),
    wrong(("0x7f000001", 9000), ValueError, r"create_connection\(\)"),
    wrong(("127.0.0.1 ", 9000), ValueError, "IP address"),
    wrong(("127.0.0.1\0", 9000), ValueError, "IP address"),
    wrong(("127.0.0.256", 9000), ValueError, "IP address"),
    wrong(("[::1]", 9000), ValueError, "IP address"),
    wrong(("::1::", 9000), ValueError, "IP address"),
    wrong(("\N{FULLWIDTH DIGIT ONE}27.0.0.1", 9000), ValueError, "IP address"),
    wrong(("::1", 9000, -1, 0), ValueError, "flowinfo"),
    wrong(("::1", 9000, 0x100000, 0), ValueError, "flowinfo"),
    wrong(("::1", 9000, "0", 0), TypeError, "flowinfo"),
    wrong(("::1", 9000, 0, -1), ValueError, "scope_id"),
    wrong(("::1", 9000, 0, 1 << 32), ValueError, "scope_id"),
    wrong(("::1", 9000, 0, None), TypeError, "scope_id"),
    wrong(("fe80::1%nowhere", 9000), ValueError, "nowhere"),
]

STRATEGIES: Final = [
    wrong("", ValueError, "auto"),
    wrong("fastest", ValueError, "auto.*kernel.*full-range.*shifting-window.*one-port"),
    wrong("Auto", ValueError, "unknown strategy"),
    wrong("auto:500", ValueError, "no window size"),
    wrong("kernel:1", ValueError, "no window size"),
    wrong("shifting-window:", ValueError, "1 to 65535"),
    wrong("shifting-window:0", ValueError, "1 to 65535"),
    wrong("shifting-window:65536", ValueError, "1 to 65535"),
    wrong("shifting-window:-5", ValueError, "1 to 65535"),
    wrong("shifting-window:many", ValueError, "1 to 65535"),
    wrong("shifting-window:5.5", ValueError, "1 to 65535"),
    wrong("shifting-window:5:5", ValueError, "1 to 65535"),
    wrong("shifting-window:\N{SUPERSCRIPT FIVE}", ValueError, "1 to 65535"),
    wrong(None, TypeError, "strategy"),
    wrong(5, TypeError, "strategy"),
    wrong(b"auto", TypeError, "strategy"),
    wrong(["auto"], TypeError, "strategy"),
]


class Caller:
    """A socket of the test's own, and a call of connectx() with one argument wrong."""

    def __init__(self, transport: Transport, sock: socket.socket, audited: Audited) -> None:
        self.transport = transport
        self.sock = sock
        self._audited = audited

    def refuses(
        self, expected: Wrong, source: Any = None, destination: Any = None, **more: Any
    ) -> None:
        before = state_of(self.sock)
        destination = destination_of(self.transport) if destination is None else destination
        with self._audited(self.sock), pytest.raises(expected.error, match=expected.says) as caught:
            connectx.connectx(self.sock, source, destination, **more)
        assert type(caught.value) is expected.error
        assert state_of(self.sock) == before

    def works(self) -> None:
        connectx.connectx(self.sock, None, destination_of(self.transport))
        assert self.sock.getpeername()[:2] == destination_of(self.transport)


@pytest.fixture
def caller(transport: Transport, closing: contextlib.ExitStack, audited: Audited) -> Caller:
    return Caller(transport, closing.enter_context(transport.socket()), audited)


@some_transports
class TestValues:
    @pytest.mark.parametrize("value", ENDPOINTS)
    def test_destination(self, caller: Caller, value: Wrong) -> None:
        caller.refuses(value, destination=value.value)
        caller.works()

    @pytest.mark.parametrize("value", ENDPOINTS)
    def test_source(self, caller: Caller, value: Wrong) -> None:
        caller.refuses(value, source=value.value)
        caller.works()

    @pytest.mark.parametrize("value", STRATEGIES)
    def test_strategy(self, caller: Caller, value: Wrong) -> None:
        caller.refuses(value, strategy=value.value)
        caller.works()


@every_transport
class TestConnectx:
    def test_the_message_names_the_argument(self, caller: Caller) -> None:
        for port in (-1, 65536):
            caller.refuses(Wrong(None, ValueError, "source"), source=("", port))
            caller.refuses(
                Wrong(None, ValueError, "destination"), destination=(caller.transport.source, port)
            )

    def test_a_destination_needs_host_and_port(self, caller: Caller) -> None:
        caller.refuses(Wrong(None, ValueError, "host"), destination=("", 9000))
        caller.refuses(Wrong(None, ValueError, "port"), destination=(caller.transport.source, 0))
        with pytest.raises(TypeError, match="tuple"):
            connectx.connectx(caller.sock, None, None)  # type: ignore[arg-type]
        caller.works()

    def test_of_another_family(self, caller: Caller) -> None:
        if caller.transport.family == socket.AF_INET:
            other, says = "::1", "IPv4"
        else:
            other, says = "127.0.0.1", "IPv6.*::ffff:"
        caller.refuses(Wrong(None, ValueError, f"destination.*{says}"), destination=(other, 9000))
        caller.refuses(Wrong(None, ValueError, f"source.*{says}"), source=(other, 0))
        caller.works()

    @pytest.mark.parametrize(
        "value",
        [
            wrong("hello", TypeError, "bytes"),
            wrong(None, TypeError, "bytes"),
            wrong(5, TypeError, "bytes"),
            wrong([b"hello"], TypeError, "bytes"),
        ],
    )
    def test_data(self, caller: Caller, value: Wrong) -> None:
        caller.refuses(value, data=value.value)
        caller.works()

    def test_data_that_no_system_call_takes_in_one_piece(self, caller: Caller) -> None:
        data = memoryview(b"hello")[::2]
        caller.refuses(Wrong(data, ValueError, "contiguous"), data=data)
        caller.works()

    def test_the_extras_are_by_keyword(self, caller: Caller) -> None:
        destination: Any = destination_of(caller.transport)
        with pytest.raises(TypeError):
            connectx.connectx(caller.sock, None, destination, b"hello")  # type: ignore[call-arg]
        caller.works()

    @pytest.mark.parametrize("number", [9000.0, True])
    def test_what_equals_a_good_port_is_none(self, caller: Caller, number: Any) -> None:
        """Values that compare equal must not be taken for each other by whoever remembers them."""
        good = 1 if number is True else FIRST
        with caller.transport.socket() as first, contextlib.suppress(ConnectionError):
            connectx.connectx(first, None, (caller.transport.source, good))
        caller.refuses(
            Wrong(None, TypeError, "port"), destination=(caller.transport.source, number)
        )


@pytest.mark.parametrize("transport", [TCP6, UDP6], ids=str)
class TestIPv4Mapped:
    def test_both_ends_or_neither(self, caller: Caller) -> None:
        says = "IPv4-mapped"
        caller.refuses(Wrong(None, ValueError, says), source=("::ffff:127.0.0.1", 0))
        caller.refuses(
            Wrong(None, ValueError, says),
            source=("::1", 0),
            destination=("::ffff:127.0.0.1", FIRST),
        )
        caller.works()


@pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
class TestIPv4:
    def test_it_has_no_scope(self, caller: Caller) -> None:
        says = "no flowinfo or scope_id"
        caller.refuses(Wrong(None, ValueError, says), destination=("127.0.0.1", 9000, 0, 0))
        caller.refuses(Wrong(None, ValueError, says), source=("127.0.0.1", 0, 0, 0))
        caller.works()


class Port(IntEnum):
    SERVER = FIRST


class Name(str):
    __slots__ = ()


class Pair(NamedTuple):
    host: str
    port: int


@pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
class TestAccepted:
    """Subclasses, and the several ways to say "any"."""

    @pytest.mark.parametrize(
        "destination",
        [Pair("127.0.0.1", FIRST), ("127.0.0.1", Port.SERVER), (Name("127.0.0.1"), FIRST)],
    )
    def test_destination(self, caller: Caller, destination: Any) -> None:
        connectx.connectx(caller.sock, None, destination)
        assert caller.sock.getpeername() == ("127.0.0.1", FIRST)

    @pytest.mark.parametrize("source", [None, ("", 0), ("0.0.0.0", 0), Pair("", 0)])
    def test_any_source(self, caller: Caller, source: Any) -> None:
        connectx.connectx(caller.sock, source, ("127.0.0.1", FIRST))
        assert LOW <= caller.sock.getsockname()[1] <= HIGH

    def test_a_wildcard_destination_is_this_host_as_for_connect(self, caller: Caller) -> None:
        connectx.connectx(caller.sock, None, ("0.0.0.0", FIRST))
        assert caller.sock.getpeername() == ("127.0.0.1", FIRST)


@pytest.mark.parametrize("transport", [TCP6, UDP6], ids=str)
class TestAcceptedIPv6:
    @pytest.mark.parametrize(
        "destination",
        [
            ("::1", FIRST),
            ("::1", FIRST, 0, 0),
            ("0:0:0:0:0:0:0:1", FIRST),
            ("::0.0.0.1", FIRST),
            ("::", FIRST),
            ("::ffff:127.0.0.1", FIRST),
            ("::FFFF:7f00:1", FIRST),
            ("::ffff:0.0.0.0", FIRST),
        ],
    )
    @pytest.mark.parametrize("source", [None, ("", 0), ("::", 0), ("::", 0, 0, 0)])
    def test_every_spelling(self, caller: Caller, destination: Any, source: Any) -> None:
        with caller.transport.socket() as plain:
            plain.connect(destination)
            expected = plain.getpeername()
        connectx.connectx(caller.sock, source, destination)
        assert caller.sock.getpeername() == expected


class TestSockets:
    """What is no socket, or not one that is free to be connected."""

    @pytest.mark.parametrize("value", [None, 3, "socket", object(), socket.socket])
    def test_something_else(self, value: Any) -> None:
        with pytest.raises(TypeError, match="socket"):
            connectx.connectx(value, None, ("127.0.0.1", FIRST))

    @pytest.mark.parametrize("transport", [TCP, UDP, MPTCP], ids=str)
    def test_closed(self, transport: Transport) -> None:
        sock = transport.socket()
        sock.close()
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as caught:
            connectx.connectx(sock, None, ("127.0.0.1", FIRST))
        assert caught.value.errno == errno.EBADF

    @pytest.mark.parametrize(
        "family, kind",
        [
            (socket.AF_UNIX, socket.SOCK_STREAM),
            (socket.AF_UNIX, socket.SOCK_DGRAM),
            (socket.AF_NETLINK, socket.SOCK_RAW),
            (socket.AF_INET, socket.SOCK_RAW),
            (socket.AF_INET6, socket.SOCK_RAW),
        ],
    )
    def test_other_kinds(
        self, closing: contextlib.ExitStack, audited: Audited, family: int, kind: int
    ) -> None:
        protocol = socket.IPPROTO_UDP if kind == socket.SOCK_RAW and family in (2, 10) else 0
        sock = closing.enter_context(socket.socket(family, kind, protocol))
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        with audited(sock), pytest.raises(ValueError, match="sockets, not"):
            connectx.connectx(sock, None, (host, FIRST))

    def test_sctp(self, closing: contextlib.ExitStack) -> None:
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
        except OSError as error:
            pytest.skip(f"kernel: no SCTP: {error}")
        closing.enter_context(sock)
        with pytest.raises(ValueError, match="132"):
            connectx.connectx(sock, None, ("127.0.0.1", FIRST))

    @every_transport
    def test_bound(self, transport: Transport, closing: contextlib.ExitStack) -> None:
        for port in (0, 30001):
            sock = closing.enter_context(transport.socket())
            sock.bind((transport.source, port))
            before = state_of(sock)
            with pytest.raises(ValueError, match="bound"):
                connectx.connectx(sock, None, destination_of(transport))
            assert state_of(sock) == before
            sock.connect(destination_of(transport))

    @every_transport
    @pytest.mark.parametrize("connect", ["connect()", "connectx()"])
    def test_connected(
        self, transport: Transport, closing: contextlib.ExitStack, connect: str
    ) -> None:
        sock = closing.enter_context(transport.socket())
        if connect == "connect()":
            sock.connect(destination_of(transport))
        else:
            connectx.connectx(sock, None, destination_of(transport))
        before = state_of(sock)
        with pytest.raises(ValueError, match="connected"):
            connectx.connectx(sock, None, destination_of(transport))
        assert state_of(sock) == before
        assert sock.getpeername()[:2] == destination_of(transport)

    @pytest.mark.parametrize("transport", [TCP, TCP6, MPTCP], ids=str)
    def test_listening(self, transport: Transport, closing: contextlib.ExitStack) -> None:
        sock = closing.enter_context(transport.socket())
        sock.listen()
        name = sock.getsockname()
        with pytest.raises(ValueError, match="bound"):
            connectx.connectx(sock, None, destination_of(transport))
        assert sock.getsockname() == name
        with transport.socket() as client:
            client.connect((transport.source, name[1]))


class TestCreateConnection:
    @pytest.mark.parametrize(
        "value",
        [
            wrong(None, TypeError, ""),
            wrong(9000, TypeError, ""),
            wrong("127.0.0.1", TypeError, "tuple"),
            wrong(("127.0.0.1",), ValueError, ""),
            wrong(("127.0.0.1", FIRST, 0), ValueError, ""),
            wrong(("127.0.0.1", -1), ValueError, "port"),
            wrong(("127.0.0.1", 0), ValueError, "port"),
            wrong(("127.0.0.1", 65536), ValueError, "port"),
            wrong(("127.0.0.1", True), TypeError, "port"),
            wrong((127, FIRST), TypeError, ""),
        ],
    )
    def test_address(self, value: Wrong, audited: Audited) -> None:
        with audited(), pytest.raises(value.error, match=value.says or "."):
            connectx.create_connection(value.value)

    @pytest.mark.parametrize("port", [-1, 65536, 70000])
    def test_a_port_that_the_resolver_would_cut_off(self, port: int) -> None:
        """getaddrinfo(3) takes it modulo 65536 and says nothing: it would go somewhere else."""
        with pytest.raises((ValueError, OverflowError), match="port"):
            connectx.create_connection(("localhost", port))

    @pytest.mark.parametrize(
        "value",
        [
            wrong("127.0.0.1", TypeError, "source"),
            wrong(9000, TypeError, "source"),
            wrong(("127.0.0.1",), ValueError, "source"),
            wrong(("127.0.0.1", -1), ValueError, "source"),
            wrong(("127.0.0.1", 65536), ValueError, "source"),
            wrong(("127.0.0.1", "0"), TypeError, "source"),
            wrong(("127.0.0.1", None), TypeError, "source"),
            wrong((None, 0), TypeError, "source"),
        ],
    )
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_source_address(
        self,
        value: Wrong,
        host: str,
        audited: Audited,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        resolve = socket.getaddrinfo

        def getaddrinfo(name: str, *rest: Any) -> Any:
            return resolve("127.0.0.1" if name == "localhost" else name, *rest)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        with audited(), pytest.raises(value.error, match=value.says):
            connectx.create_connection((host, FIRST), source_address=value.value)

    def test_literals_of_two_families(self, audited: Audited) -> None:
        with audited(), pytest.raises(ValueError, match="IPv6"):
            connectx.create_connection(("::1", FIRST), source_address=("127.0.0.1", 0))
        with audited(), pytest.raises(ValueError, match="IPv4"):
            connectx.create_connection(("127.0.0.1", FIRST), source_address=("::1", 0))

    @pytest.mark.parametrize(
        "kind, proto",
        [
            (socket.SOCK_RAW, 0),
            (socket.SOCK_SEQPACKET, 0),
            (99, 0),
            (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
            (socket.SOCK_STREAM, socket.IPPROTO_UDP),
            (socket.SOCK_DGRAM, socket.IPPROTO_TCP),
            (socket.SOCK_DGRAM, uapi.IPPROTO_MPTCP),
            (socket.SOCK_STREAM, uapi.IPPROTO_UDPLITE),
            (socket.SOCK_STREAM, -1),
            (socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0),
        ],
    )
    def test_type_and_proto(self, kind: int, proto: int, audited: Audited) -> None:
        with audited(), pytest.raises(ValueError, match=r"TCP, MPTCP, UDP,? (and|or) UDP-Lite"):
            connectx.create_connection(("127.0.0.1", FIRST), type=kind, proto=proto)

    @pytest.mark.parametrize("value", STRATEGIES)
    def test_strategy(self, value: Wrong) -> None:
        with pytest.raises(value.error, match=value.says):
            connectx.create_connection(("127.0.0.1", FIRST), strategy=value.value)

    def test_the_extras_are_by_keyword(self) -> None:
        with pytest.raises(TypeError):
            connectx.create_connection(
                ("127.0.0.1", FIRST),
                None,
                None,
                True,  # type: ignore[call-arg]  # noqa: FBT003
            )
