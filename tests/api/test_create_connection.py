"""create_connection() in place of socket.create_connection(): the same arguments, the same ends."""

import contextlib
import errno
import inspect
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, NoReturn, TypeAlias

import pytest

import connectx
from connectx import PortsExhausted, SourceNotLocal
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import port_of
from tests.kernel.raw import FIRST, SECOND

LOW, HIGH = 20001, 20004
PORTS: Final = list(range(LOW, HIGH + 1))
CLOSED, SILENT = 9998, 9999
GLOBAL_DEFAULT: Final[Any] = socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]

AddressInfo: TypeAlias = tuple[int, int, int, str, tuple[Any, ...]]
Found: TypeAlias = Sequence[AddressInfo]


@pytest.fixture(autouse=True)
def _servers(network: Network, servers: Servers, closing: contextlib.ExitStack) -> None:
    """FIRST answers on IPv4 and IPv6, SECOND on IPv4 alone, SILENT never."""
    servers.listen("127.0.0.1", FIRST)
    servers.listen("::1", FIRST)
    servers.listen("127.0.0.1", SECOND)
    servers.listen("127.0.0.1", SILENT, backlog=0)
    closing.enter_context(socket.create_connection(("127.0.0.1", SILENT)))
    network.port_range(LOW, HIGH)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What names resolve to; the resolver gives the addresses in this order."""
    known = {
        "both": ["::1", "127.0.0.1"],
        "four": ["127.0.0.1"],
        "six": ["::1"],
        "away": ["192.0.2.77"],
        "nothing": [],
    }
    original = socket.getaddrinfo

    def getaddrinfo(
        host: str | bytes | None, port: str | int | None, family: int = 0, *rest: int, **more: int
    ) -> Found:
        addresses = known.get(host) if isinstance(host, str) else None
        if addresses is None:
            return original(host, port, family, *rest, **more)
        found: list[AddressInfo] = []
        for address in addresses:
            with contextlib.suppress(socket.gaierror):
                found += original(address, port, family, *rest, **more)
        if addresses and not found:
            raise socket.gaierror(socket.EAI_ADDRFAMILY, "no address of that family")
        return found

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.fixture
def _default_timeout() -> Iterator[None]:
    yield
    socket.setdefaulttimeout(None)


class TestSignature:
    def test_it_begins_as_the_standard_one(self) -> None:
        standard = inspect.signature(socket.create_connection).parameters
        ours = inspect.signature(connectx.create_connection).parameters
        for (name, wanted), (own_name, own) in zip(standard.items(), ours.items(), strict=False):
            assert own_name == name
            assert own.kind is wanted.kind
            assert own.default == wanted.default

    def test_what_it_adds_is_by_keyword_alone(self) -> None:
        standard = inspect.signature(socket.create_connection).parameters
        ours = inspect.signature(connectx.create_connection).parameters
        added = {name: ours[name] for name in ours if name not in standard}
        assert {name: parameter.default for name, parameter in added.items()} == {
            "type": socket.SOCK_STREAM,
            "proto": 0,
            "strategy": "auto",
            "socket_options": None,
            "fallback": None,
        }
        assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in added.values())

    def test_by_position(self, closing: contextlib.ExitStack) -> None:
        sock = closing.enter_context(
            connectx.create_connection(("127.0.0.1", FIRST), 5.0, ("127.0.0.1", LOW))
        )
        assert sock.gettimeout() == 5.0
        assert sock.getsockname() == ("127.0.0.1", LOW)

    def test_by_keyword(self, closing: contextlib.ExitStack) -> None:
        sock = closing.enter_context(
            connectx.create_connection(
                address=("127.0.0.1", FIRST),
                timeout=5,
                source_address=("127.0.0.1", LOW),
                all_errors=True,
            )
        )
        assert sock.gettimeout() == 5.0
        assert sock.getsockname() == ("127.0.0.1", LOW)

    def test_the_address_may_be_a_list(self, closing: contextlib.ExitStack) -> None:
        address: Any = ["127.0.0.1", FIRST]
        sock = closing.enter_context(connectx.create_connection(address))
        assert sock.getpeername() == ("127.0.0.1", FIRST)

    def test_the_result_is_a_socket_like_the_standard_ones(
        self, closing: contextlib.ExitStack
    ) -> None:
        ours = closing.enter_context(connectx.create_connection(("127.0.0.1", FIRST)))
        standard = closing.enter_context(socket.create_connection(("127.0.0.1", FIRST)))
        assert isinstance(ours, socket.socket)
        assert (ours.family, ours.type) == (standard.family, standard.type)
        assert ours.get_inheritable() is standard.get_inheritable() is False
        assert ours.getblocking() is standard.getblocking() is True

    def test_it_can_be_read_as_a_file_and_closed_as_usual(self) -> None:
        with connectx.create_connection(("127.0.0.1", FIRST)) as sock:
            file = sock.makefile("rwb")
            sock.close()
            file.write(b"still open")
            file.flush()
            file.close()
            with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
                sock.getsockname()


class TestTimeout:
    def test_of_its_own(self, closing: contextlib.ExitStack) -> None:
        for timeout in (3.5, 0.5, None):
            sock = closing.enter_context(
                connectx.create_connection(("127.0.0.1", FIRST), timeout=timeout)
            )
            assert sock.gettimeout() == timeout

    @pytest.mark.usefixtures("_default_timeout")
    @pytest.mark.parametrize("default", [None, 4.5])
    @pytest.mark.parametrize("host", ["127.0.0.1", "both"])
    @pytest.mark.usefixtures("names")
    def test_the_default_of_the_process(
        self, closing: contextlib.ExitStack, default: float | None, host: str
    ) -> None:
        socket.setdefaulttimeout(default)
        sock = closing.enter_context(connectx.create_connection((host, FIRST)))
        assert sock.gettimeout() == default
        sock = closing.enter_context(connectx.create_connection((host, FIRST), GLOBAL_DEFAULT))
        assert sock.gettimeout() == default
        # None is no default but a wish: to block.
        sock = closing.enter_context(connectx.create_connection((host, FIRST), None))
        assert sock.gettimeout() is None

    @pytest.mark.parametrize("source", [None, ("127.0.0.1", 0), ("127.0.0.1", 30001)])
    def test_it_runs_out(self, source: tuple[str, int] | None) -> None:
        with pytest.raises(TimeoutError, match="timed out") as caught:
            connectx.create_connection(("127.0.0.1", SILENT), 0.02, source)
        assert type(caught.value) is TimeoutError

    @pytest.mark.usefixtures("_default_timeout")
    def test_the_default_runs_out(self) -> None:
        socket.setdefaulttimeout(0.02)
        with pytest.raises(TimeoutError):
            connectx.create_connection(("127.0.0.1", SILENT))

    def test_it_is_for_each_address(
        self, closing: contextlib.ExitStack, names: dict[str, list[str]], servers: Servers
    ) -> None:
        servers.listen("127.0.0.2", SILENT)
        names["second"] = ["127.0.0.1", "127.0.0.2"]
        sock = closing.enter_context(connectx.create_connection(("second", SILENT), 0.05))
        assert sock.getpeername() == ("127.0.0.2", SILENT)

    def test_zero_is_non_blocking_which_cannot_succeed(self) -> None:
        for create_connection in (socket.create_connection, connectx.create_connection):
            with pytest.raises(BlockingIOError):
                create_connection(("127.0.0.1", FIRST), 0)

    @pytest.mark.parametrize("timeout, error", [(-1, ValueError), ("soon", TypeError)])
    def test_nonsense(self, timeout: Any, error: type[Exception]) -> None:
        # The standard one raises the same, and leaves its socket open.
        with pytest.raises(error):
            connectx.create_connection(("127.0.0.1", FIRST), timeout)


@pytest.mark.usefixtures("names")
class TestNames:
    def test_the_first_address_that_answers(self, closing: contextlib.ExitStack) -> None:
        sock = closing.enter_context(connectx.create_connection(("both", FIRST)))
        assert sock.getpeername()[:2] == ("::1", FIRST)
        sock = closing.enter_context(connectx.create_connection(("both", SECOND)))
        assert sock.getpeername() == ("127.0.0.1", SECOND)

    def test_ports_run_out_by_address(self, closing: contextlib.ExitStack) -> None:
        peers = [
            closing.enter_context(connectx.create_connection(("both", FIRST))).getpeername()[0]
            for _ in range(2 * len(PORTS))
        ]
        assert peers == ["::1"] * len(PORTS) + ["127.0.0.1"] * len(PORTS)
        with pytest.raises(PortsExhausted) as caught:
            connectx.create_connection(("both", FIRST))
        assert caught.value.destination.host == "127.0.0.1"

    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
    @pytest.mark.parametrize("port", ["9000", b"9000", 9000])
    def test_ports_as_text(
        self, closing: contextlib.ExitStack, port: Any, kind: socket.SocketKind
    ) -> None:
        for host in ("four", "127.0.0.1", b"127.0.0.1"):
            sock = closing.enter_context(
                connectx.create_connection((host, port), type=kind)  # type: ignore[arg-type]  # as the resolver takes it
            )
            assert sock.getpeername() == ("127.0.0.1", FIRST)
            assert sock.type == kind

    def test_services_by_name(
        self, closing: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Not every machine has /etc/services; the resolver is asked, whatever it knows.
        resolve = socket.getaddrinfo

        def getaddrinfo(host: str, port: str | int, *rest: int) -> Found:
            return resolve(host, FIRST if port == "first" else port, *rest)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        sock = closing.enter_context(connectx.create_connection(("127.0.0.1", "first")))
        assert sock.getpeername() == ("127.0.0.1", FIRST)

    def test_no_host_is_this_one(self, closing: contextlib.ExitStack) -> None:
        sock = closing.enter_context(connectx.create_connection((None, FIRST)))
        assert sock.getpeername()[0] in {"::1", "127.0.0.1"}

    def test_a_wildcard_host_is_this_one(self, closing: contextlib.ExitStack) -> None:
        for host, loopback in (("0.0.0.0", "127.0.0.1"), ("::", "::1")):
            sock = closing.enter_context(connectx.create_connection((host, FIRST)))
            assert sock.getpeername()[0] == loopback

    def test_a_name_without_addresses(self) -> None:
        same_error(("nothing", FIRST), match="getaddrinfo returns an empty list")

    def test_a_name_nobody_knows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def getaddrinfo(*_: object) -> NoReturn:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        same_error(("nobody.invalid", FIRST), match="Name or service not known")

    def test_the_resolver_is_the_one_patched_in(
        self, closing: contextlib.ExitStack, names: dict[str, list[str]]
    ) -> None:
        names["mine"] = ["127.0.0.1"]
        sock = closing.enter_context(connectx.create_connection(("mine", FIRST)))
        assert sock.getpeername() == ("127.0.0.1", FIRST)

    def test_literals_need_no_resolver(
        self, closing: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def getaddrinfo(*_: object) -> NoReturn:
            raise AssertionError("asked for a literal")

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
            source = (host, 0)
            closing.enter_context(connectx.create_connection((host, FIRST), None, source))


@pytest.mark.usefixtures("names")
class TestErrors:
    def test_refused(self) -> None:
        error = same_error(("127.0.0.1", CLOSED))
        assert isinstance(error, ConnectionRefusedError)

    def test_refused_by_all(self) -> None:
        error = same_error(("both", CLOSED))
        assert isinstance(error, ConnectionRefusedError)

    def test_no_route(self) -> None:
        error = same_error(("192.0.2.77", FIRST))
        assert error.errno == errno.ENETUNREACH

    @pytest.mark.parametrize("host", ["both", "127.0.0.1", "four"])
    def test_all_of_them(self, host: str) -> None:
        groups = []
        for create_connection in (socket.create_connection, connectx.create_connection):
            with pytest.raises(ExceptionGroup) as caught:
                create_connection((host, CLOSED), all_errors=True)
            groups.append(caught.value)
        standard, ours = groups
        assert ours.args[0] == standard.args[0] == "create_connection failed"
        assert [type(each) for each in ours.exceptions] == [
            type(each) for each in standard.exceptions
        ]
        assert len(ours.exceptions) == (2 if host == "both" else 1)

    def test_all_of_them_when_ports_run_out(self, closing: contextlib.ExitStack) -> None:
        for _ in PORTS:
            closing.enter_context(connectx.create_connection(("four", FIRST)))
        with pytest.raises(ExceptionGroup) as caught:
            connectx.create_connection(("four", FIRST), all_errors=True)
        (error,) = caught.value.exceptions
        assert isinstance(error, PortsExhausted)

    def test_all_of_them_succeed_in_silence(self, closing: contextlib.ExitStack) -> None:
        closing.enter_context(connectx.create_connection(("both", SECOND), all_errors=True))

    def test_the_last_one(self) -> None:
        """::1 refuses, and 127.0.0.1 does not answer."""
        with pytest.raises(TimeoutError):
            connectx.create_connection(("both", SILENT), 0.02)

    @pytest.mark.parametrize("address", [("127.0.0.1",), ("127.0.0.1", FIRST, 0, 0), ()])
    def test_an_address_is_a_pair(self, address: Any) -> None:
        for create_connection in (socket.create_connection, connectx.create_connection):
            with pytest.raises(ValueError):  # noqa: PT011 -- each in its own words
                create_connection(address)


def same_error(
    address: tuple[str, int], source: tuple[str, int] | None = None, *, match: str = "."
) -> OSError:
    """What both raise: of one class, with one errno."""
    errors = []
    calls: list[Callable[..., socket.socket]] = [
        socket.create_connection,
        connectx.create_connection,
    ]
    for create_connection in calls:
        with pytest.raises(OSError, match=match) as caught:
            create_connection(address, source_address=source)
        errors.append(caught.value)
    standard, ours = errors
    assert type(ours) is type(standard)
    assert ours.errno == standard.errno
    return ours


@pytest.mark.usefixtures("names")
class TestSourceAddress:
    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
    def test_a_name(self, kind: int) -> None:
        for port in (LOW, 30001, 0):
            with connectx.create_connection(
                ("127.0.0.1", FIRST), source_address=("four", port), type=kind
            ) as sock:
                assert sock.getsockname()[0] == "127.0.0.1"
                assert port_of(sock) == port or port == 0

    def test_a_name_of_several_families_is_taken_in_the_destinations(
        self, closing: contextlib.ExitStack
    ) -> None:
        for host, source in (("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("both", "::1")):
            sock = closing.enter_context(
                connectx.create_connection((host, FIRST), source_address=("both", 0))
            )
            assert sock.getsockname()[0] == source

    @pytest.mark.parametrize("source", ["127.0.0.1", "four"])
    @pytest.mark.parametrize("port", [0, LOW, 30001])
    def test_it_decides_among_the_destinations_families(self, source: str, port: int) -> None:
        """The first address is IPv6, to which one cannot connect from there: try the next.

        As socket.create_connection() does, where bind() raises socket.gaierror.
        """
        with connectx.create_connection(("both", FIRST), source_address=(source, port)) as sock:
            assert sock.getsockname()[0] == "127.0.0.1"
            assert sock.getpeername() == ("127.0.0.1", FIRST)

    def test_of_another_family_than_every_address(self) -> None:
        error = same_error(("six", FIRST), ("127.0.0.1", 0))
        assert isinstance(error, socket.gaierror)
        with pytest.raises(socket.gaierror):
            connectx.create_connection(("six", FIRST), source_address=("four", 0))

    def test_of_another_family_than_some(self) -> None:
        with pytest.raises(ExceptionGroup) as caught:
            connectx.create_connection(
                ("both", CLOSED), source_address=("127.0.0.1", 0), all_errors=True
            )
        wrong_family, refused = caught.value.exceptions
        assert isinstance(wrong_family, OSError)
        assert isinstance(refused, ConnectionRefusedError)

    def test_not_local(self) -> None:
        with pytest.raises(SourceNotLocal) as caught:
            connectx.create_connection(("127.0.0.1", FIRST), source_address=("away", 0))
        assert caught.value.errno == errno.EADDRNOTAVAIL
        assert caught.value.source.host == "192.0.2.77"

    def test_a_name_nobody_knows(self) -> None:
        with pytest.raises(socket.gaierror):
            connectx.create_connection(("127.0.0.1", FIRST), source_address=("nobody.invalid", 0))

    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
    @pytest.mark.parametrize("host", ["", "0.0.0.0"])
    def test_any_address_with_a_port_asked_for(
        self, closing: contextlib.ExitStack, host: str, kind: int
    ) -> None:
        for port in (LOW, 30001):
            sock = closing.enter_context(
                connectx.create_connection(
                    ("127.0.0.1", FIRST), source_address=(host, port), type=kind
                )
            )
            assert sock.getsockname() == ("127.0.0.1", port)

    def test_any_address_for_several_families(self, closing: contextlib.ExitStack) -> None:
        sock = closing.enter_context(
            connectx.create_connection(("both", SECOND), source_address=("", LOW))
        )
        assert sock.getsockname() == ("127.0.0.1", LOW)

    def test_one_family_is_out_of_ports(self, closing: contextlib.ExitStack) -> None:
        for port in PORTS:
            closing.enter_context(
                connectx.create_connection(("::1", FIRST), source_address=("::1", port))
            )
        sock = closing.enter_context(connectx.create_connection(("both", FIRST)))
        assert sock.getpeername() == ("127.0.0.1", FIRST)


@pytest.mark.usefixtures("names")
class TestDatagrams:
    def test_by_name(self, closing: contextlib.ExitStack, servers: Servers) -> None:
        receiver = servers.receive("127.0.0.1", SECOND)
        sock = closing.enter_context(
            connectx.create_connection(("four", SECOND), type=socket.SOCK_DGRAM)
        )
        sock.send(b"there")
        data, sender = limits.receive_from(receiver, 16)
        assert (data, sender) == (b"there", sock.getsockname())

    def test_to_the_last_port_by_name(self, closing: contextlib.ExitStack) -> None:
        socks = [
            closing.enter_context(
                connectx.create_connection(("four", FIRST), type=socket.SOCK_DGRAM)
            )
            for _ in PORTS
        ]
        assert sorted(map(port_of, socks)) == PORTS
        with pytest.raises(PortsExhausted) as caught:
            connectx.create_connection(("four", FIRST), type=socket.SOCK_DGRAM)
        assert caught.value.errno == errno.EAGAIN

    def test_no_route(self) -> None:
        with pytest.raises(OSError, match=os.strerror(errno.ENETUNREACH)):
            connectx.create_connection(("192.0.2.77", FIRST), type=socket.SOCK_DGRAM)


def test_an_ipv6_address_keeps_its_scope_where_all_errors_are_asked_for(servers: Servers) -> None:
    servers.listen("::1", 9100)
    address: Any = ("::1", 9100, 0, 1)
    with connectx.create_connection(address, all_errors=True) as sock:
        assert sock.getpeername()[:2] == ("::1", 9100)


@pytest.mark.parametrize("source", [(), "", None])
def test_an_empty_source_is_none(servers: Servers, source: Any) -> None:
    servers.listen("127.0.0.1", 9100)
    with connectx.create_connection(("127.0.0.1", 9100), source_address=source) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("kind", [float, Fraction, Decimal])
def test_a_port_that_only_equals_one_is_refused_and_not_remembered(kind: Any) -> None:
    """What was refused is no answer for the number that is equal to it."""
    port = 9200 + len(kind.__name__)
    with pytest.raises(TypeError, match="port is an integer"):
        connectx.create_connection(("127.0.0.1", kind(port)))
    with pytest.raises(ConnectionRefusedError):
        connectx.create_connection(("127.0.0.1", port))
