"""A Dialer's create_connection() in the place of socket.create_connection()."""

import contextlib
import errno
import http.client
import http.server
import itertools
import socket
import threading
from collections.abc import Iterator
from typing import Any, Final

import pytest
import urllib3.util.connection

import connectx
from connectx import Dialer, PortsExhausted, RangeNotHonoured
from connectx.linux import sockopts
from connectx.linux.uapi import SO_MARK
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import CAP_NET_BIND_SERVICE, without_capability
from tests.dialer.drivers import Driver
from tests.kernel.raw import FIRST

HERE: Final = ("127.0.0.1", FIRST)
SOURCES: Final = ["127.0.0.7", "127.0.0.8"]
KINDS: Final = [socket.SOCK_STREAM, socket.SOCK_DGRAM]
LOW, HIGH = 20000, 20009
SOURCE: Final = ("127.0.0.7", 0)


@pytest.fixture
def listening(network: Network, servers: Servers) -> Network:
    servers.listen(*HERE)
    servers.receive(*HERE)
    return network


every_kind = pytest.mark.parametrize("kind", KINDS, ids=["TCP", "UDP"])


def fill(
    dialer: Dialer, stack: contextlib.ExitStack, kind: int, most: int, **more: Any
) -> list[tuple[str, int]]:
    """Open connections until there is no port; where they come from."""
    names = []
    with contextlib.suppress(PortsExhausted):
        for _ in range(most):
            sock = stack.enter_context(dialer.create_connection(HERE, type=kind, **more))
            names.append(sock.getsockname())
    return sorted(names)


class TestSourceAddress:
    @every_kind
    def test_is_one_of_the_dialers(self, listening: Network, driver: Driver, kind: int) -> None:
        del listening

        async def scenario() -> None:
            dialer = driver.dialer(SOURCES)
            for host in SOURCES:
                # By position, as http.client gives it.
                sock = await dialer.create_connection(HERE, limits.LIMIT, (host, 0), type=kind)
                with sock:
                    assert sock.getsockname()[0] == host
            with pytest.raises(ValueError, match=r"source address is .*, which is none"):
                await dialer.create_connection(HERE, None, ("127.0.0.9", 0), type=kind)
            assert dialer.stats().attempts == 2

        driver.run(scenario)

    @every_kind
    def test_and_a_port_of_the_dialers(
        self, listening: Network, closing: contextlib.ExitStack, kind: int
    ) -> None:
        listening.port_range(LOW, HIGH)
        dialer = Dialer(SOURCES, ports=[(LOW, LOW + 1), (LOW + 4, HIGH)], exclude=[LOW + 5])
        for host, port in itertools.product(("127.0.0.8", ""), (LOW, LOW + 4)):
            sock = closing.enter_context(
                dialer.create_connection(HERE, None, (host, port), type=kind)
            )
            name = sock.getsockname()
            assert name[1] == port
            assert name[0] == host or name[0] == "127.0.0.7"
        with pytest.raises(ValueError, match="20005 is excluded"):
            dialer.create_connection(HERE, None, ("127.0.0.8", LOW + 5), type=kind)
        with pytest.raises(ValueError, match="20002 is none of the dialer's ports"):
            dialer.create_connection(HERE, None, ("127.0.0.8", LOW + 2), type=kind)
        with pytest.raises(connectx.TupleInUse):
            dialer.create_connection(HERE, None, ("127.0.0.8", LOW), type=kind)

    def test_with_a_name(self, listening: Network, monkeypatch: pytest.MonkeyPatch) -> None:
        del listening
        resolve = socket.getaddrinfo

        def getaddrinfo(name: Any, *rest: Any) -> Any:
            return resolve("127.0.0.1" if name == "server.test" else name, *rest)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        dialer = Dialer(SOURCES)
        with dialer.create_connection(("server.test", FIRST), None, ("127.0.0.8", 0)) as sock:
            assert sock.getsockname()[0] == "127.0.0.8"

    def test_not_another_than_its_keys(self, listening: Network) -> None:
        del listening
        dialer = Dialer(SOURCES, rotate="sticky")
        with dialer.create_connection(HERE, key="a") as sock:
            own = sock.getsockname()[0]
        (other,) = {*SOURCES} - {own}
        dialer.create_connection(HERE, None, (own, 0), key="a").close()
        with pytest.raises(ValueError, match="its key to"):
            dialer.create_connection(HERE, None, (other, 0), key="a")

    @pytest.mark.parametrize("source", [None, (), "", ("", 0)])
    def test_any(self, listening: Network, source: Any) -> None:
        del listening
        with Dialer(SOURCES).create_connection(HERE, None, source) as sock:
            assert sock.getsockname()[0] in SOURCES


class TestForms:
    """Addresses and settings as people write them, and what is refused in words."""

    @every_kind
    def test_octets(self, listening: Network, kind: int) -> None:
        del listening
        to: Any = (b"127.0.0.1", FIRST)
        source: Any = (b"127.0.0.7", 0)
        for call in (connectx.create_connection, Dialer().create_connection):
            with call(to, 5, source, type=kind) as sock:
                assert sock.getsockname()[0] == "127.0.0.7"
                assert sock.getpeername() == HERE
        with socket.socket(type=kind) as sock:
            connectx.connectx(sock, source, (bytearray(to[0]), FIRST))  # type: ignore[arg-type]
            assert sock.getpeername() == HERE

    @pytest.mark.parametrize(
        "text, form",
        [
            ("127.0.0.1:443", "('127.0.0.1', 443)"),
            ("[::1]:443", "('::1', 443)"),
            ("example.org:443", "('example.org', 443)"),
            (b"127.0.0.1:443", "('127.0.0.1', 443)"),
            ("127.0.0.1", "(host, port)"),
        ],
    )
    def test_text(self, listening: Network, driver: Driver, text: Any, form: str) -> None:
        del listening

        async def scenario() -> None:
            dialer = driver.dialer()
            for call in (dialer.create_connection, dialer.capacity):
                with pytest.raises(TypeError, match="address tuple") as caught:
                    await call(text)
                assert form in str(caught.value)
            with pytest.raises(TypeError, match="address tuple") as caught:
                await dialer.create_connection(HERE, None, text)
            assert form in str(caught.value)

        driver.run(scenario)
        with socket.socket() as sock, pytest.raises(TypeError, match="address tuple") as caught:
            connectx.connectx(sock, None, text)
        assert form in str(caught.value)

    @pytest.mark.parametrize("timeout", ["5", b"5", [5], {}])
    def test_a_timeout_that_is_no_number(
        self, listening: Network, driver: Driver, timeout: Any
    ) -> None:
        del listening

        async def scenario() -> None:
            dialer = driver.dialer()
            for more in ({}, {"socket_options": [(socket.IPPROTO_IP, socket.IP_TTL, 9)]}):
                with pytest.raises(TypeError, match="timeout is a number of seconds"):
                    await dialer.create_connection(HERE, timeout, **more)

        driver.run(scenario)
        with pytest.raises(TypeError, match="timeout is a number of seconds"):
            connectx.create_connection(HERE, timeout)

    @pytest.mark.parametrize(
        "settings, says",
        [
            ({"sources": []}, "sources names no address"),
            ({"sources": ()}, "sources names no address"),
            ({"sources": iter(())}, "sources names no address"),
            ({"sources": 5}, "sources is a list"),
            ({"sources": b"127.0.0.1"}, "sources is a list"),
            ({"ports": 5}, "ports is a range"),
            ({"ports": "20000-29999"}, "ports is a range"),
            ({"wait": "5"}, "wait is a number"),
            ({"limit": "5"}, "limit is a number"),
        ],
    )
    def test_settings(self, driver: Driver, settings: Any, says: str) -> None:
        with pytest.raises((TypeError, ValueError), match=says):
            driver.dialer(**settings)


class TestSocketOptions:
    MARKED: Final = ((socket.SOL_SOCKET, SO_MARK, 7), (socket.IPPROTO_IP, socket.IP_TTL, 9))

    @every_kind
    def test_are_set_before_it_connects(
        self, listening: Network, driver: Driver, kind: int
    ) -> None:
        del listening

        async def scenario() -> None:
            dialer = driver.dialer(SOURCES, limit=1)
            sock = await dialer.create_connection(HERE, type=kind, socket_options=[*self.MARKED])
            with sock:
                assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 9
                assert sockopts.get_so_mark(sock) == 7
                assert sock.getsockname()[0] in SOURCES
                with pytest.raises(PortsExhausted, match="limit"):
                    await dialer.create_connection(HERE, type=kind)
            # Its end is reported.
            (await dialer.create_connection(HERE, type=kind)).close()

        driver.run(scenario)

    @every_kind
    def test_of_create_connection(self, listening: Network, kind: int) -> None:
        listening.port_range(LOW, LOW)
        for _ in range(3):
            with connectx.create_connection(
                HERE, 5, ("127.0.0.7", 0), type=kind, socket_options=self.MARKED
            ) as sock:
                if kind == socket.SOCK_STREAM:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                assert sock.gettimeout() == 5
                assert sockopts.get_so_mark(sock) == 7
                with pytest.raises(PortsExhausted):
                    connectx.create_connection(
                        HERE, 5, ("127.0.0.7", 0), type=kind, socket_options=self.MARKED
                    )

    def test_reuse_port_makes_no_4_tuple_two_sockets(
        self, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        listening.port_range(LOW, LOW + 3)
        options = [
            (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1),
            (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
        ]
        dialer = Dialer(["127.0.0.7"])
        names = fill(dialer, closing, socket.SOCK_DGRAM, 9, socket_options=options)
        assert [port for _, port in names] == [LOW, LOW + 1, LOW + 2, LOW + 3]

    def test_as_httpx_gives_a_long_one(self, listening: Network) -> None:
        del listening
        options = [(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")]
        with connectx.create_connection(HERE, socket_options=options) as sock:
            assert sockopts.get_so_bindtoifindex(sock) == 1

    @pytest.mark.parametrize("options", ["TCP_NODELAY", 5, [5], [(6, 1)], [("a", 1, 1)]])
    def test_what_is_none(self, listening: Network, options: Any) -> None:
        del listening
        for call in (connectx.create_connection, Dialer().create_connection):
            with pytest.raises(TypeError, match="socket_options is a list"):
                call(HERE, socket_options=options)

    def test_one_that_the_kernel_refuses(self, listening: Network) -> None:
        del listening
        options = [(socket.IPPROTO_IP, 9999, 1)]
        dialer = Dialer(limit=1)
        for call in (connectx.create_connection, dialer.create_connection):
            with pytest.raises(OSError, match="Protocol not available") as caught:
                call(HERE, socket_options=options)
            assert caught.value.errno == errno.ENOPROTOOPT
        dialer.create_connection(HERE).close()


class TestPortsOutsideTheRange:
    """What a firewall demands: explicit binds."""

    @every_kind
    @pytest.mark.parametrize("sources", [None, SOURCES[:1]])
    def test_all_of_them(
        self,
        listening: Network,
        closing: contextlib.ExitStack,
        kind: int,
        sources: list[str] | None,
    ) -> None:
        listening.port_range(40000, 40009)
        dialer = Dialer(sources, ports=(LOW, HIGH))
        total = dialer.capacity(HERE, type=kind).total
        assert total == 10
        names = fill(dialer, closing, kind, 20)
        assert [port for _, port in names] == list(range(LOW, HIGH + 1))
        assert dialer.capacity(HERE, type=kind).free == 0

    @every_kind
    def test_partly_outside(
        self, listening: Network, closing: contextlib.ExitStack, kind: int
    ) -> None:
        listening.port_range(LOW + 5, LOW + 20)
        names = fill(Dialer(ports=(LOW, HIGH)), closing, kind, 20)
        assert [port for _, port in names] == list(range(LOW, HIGH + 1))

    @every_kind
    def test_they_are_shared_between_destinations(
        self, listening: Network, closing: contextlib.ExitStack, servers: Servers, kind: int
    ) -> None:
        listening.port_range(40000, 40009)
        other = ("127.0.0.1", FIRST + 1)
        servers.listen(*other)
        servers.receive(*other)
        dialer = Dialer(ports=(LOW, LOW))
        for to in (HERE, other):
            sock = closing.enter_context(dialer.create_connection(to, type=kind))
            assert sock.getsockname()[1] == LOW

    @every_kind
    def test_those_that_need_a_privilege_are_left_out(
        self, listening: Network, closing: contextlib.ExitStack, kind: int
    ) -> None:
        listening.port_range(40000, 40009)
        dialer = Dialer(ports=(1020, 1027))
        with without_capability(CAP_NET_BIND_SERVICE):
            names = fill(dialer, closing, kind, 9)
            assert [port for _, port in names] == [1024, 1025, 1026, 1027]
            with pytest.raises(PortsExhausted) as caught:
                Dialer(ports=(1020, 1023)).create_connection(HERE, type=kind)
        assert isinstance(caught.value.__cause__, PermissionError)

    @every_kind
    def test_a_socket_made_elsewhere_has_to_stay_inside(
        self, listening: Network, kind: int
    ) -> None:
        listening.port_range(40000, 40009)
        with socket.socket(type=kind) as sock, pytest.raises(RangeNotHonoured) as caught:
            Dialer(ports=(LOW, HIGH)).connectx(sock, HERE)
        told = caught.value.explain()
        assert "  - Have connectx make the socket" in told
        assert 'sysctl -w net.ipv4.ip_local_port_range="20000 40009"' in told
        # Which helps.
        listening.port_range(LOW, 40009)
        with socket.socket(type=kind) as sock:
            Dialer(ports=(LOW, HIGH)).connectx(sock, HERE)
            assert LOW <= sock.getsockname()[1] <= HIGH


class TestExclude:
    @every_kind
    @pytest.mark.parametrize("ports", [None, (LOW, HIGH)])
    @pytest.mark.parametrize("inside", [True, False])
    def test_leaves_ports_out(
        self,
        listening: Network,
        closing: contextlib.ExitStack,
        kind: int,
        ports: tuple[int, int] | None,
        *,
        inside: bool,
    ) -> None:
        low = LOW if inside or ports is None else 40000
        listening.port_range(low, low + HIGH - LOW)
        dialer = Dialer(["127.0.0.7"], ports, exclude=[LOW, (LOW + 4, LOW + 6), 11211])
        left = [LOW + 1, LOW + 2, LOW + 3, LOW + 7, LOW + 8, LOW + 9]
        assert dialer.capacity(HERE, type=kind).total == 6
        names = fill(dialer, closing, kind, 20)
        assert [port for _, port in names] == left

    @every_kind
    def test_of_a_socket_made_elsewhere(
        self, listening: Network, closing: contextlib.ExitStack, kind: int
    ) -> None:
        listening.port_range(LOW, LOW + 3)
        dialer = Dialer(exclude=[LOW + 1])
        names = []
        with contextlib.suppress(PortsExhausted):
            for _ in range(9):
                sock = closing.enter_context(socket.socket(type=kind))
                dialer.connectx(sock, HERE)
                names.append(sock.getsockname()[1])
        assert sorted(names) == [LOW, LOW + 2, LOW + 3]

    def test_is_only_this_dialers(self, listening: Network, closing: contextlib.ExitStack) -> None:
        listening.port_range(LOW, LOW + 1)
        assert len(fill(Dialer(exclude=[LOW]), closing, socket.SOCK_STREAM, 9)) == 1
        assert fill(Dialer(), closing, socket.SOCK_STREAM, 9) == [("127.0.0.1", LOW)]

    def test_what_the_kernel_chooses_cannot_leave_any_out(self, listening: Network) -> None:
        del listening
        for strategy in ("kernel", "full-range", "shifting-window"):
            dialer = Dialer(exclude=[LOW], strategy=strategy)
            with pytest.raises(connectx.NotSupported, match="exclude"):
                dialer.create_connection(HERE)

    def test_what_is_none(self) -> None:
        for wrong in ("11211", 11211, [1.5], [(1, 2, 3)], ["11211"]):
            with pytest.raises(TypeError, match="exclude is a list"):
                Dialer(exclude=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="exclude leaves no port of 20000-20001"):
            Dialer(ports=(20000, 20001), exclude=[20000, 20001])
        with pytest.raises(ValueError, match="1 to 65535"):
            Dialer(exclude=[70000])


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the address of the client."""

    def do_GET(self) -> None:
        body = self.client_address[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class TestLibraries:
    """Each replaces the function that it opens connections with."""

    @pytest.fixture
    def url(self, network: Network) -> Iterator[str]:
        del network
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"127.0.0.1:{server.server_port}"
            server.shutdown()
            limits.join(thread)

    @pytest.fixture(params=["create_connection", "Dialer"])
    def create(self, request: pytest.FixtureRequest) -> Any:
        if request.param == "Dialer":
            return Dialer(["127.0.0.7"]).create_connection, "127.0.0.7"
        return connectx.create_connection, "127.0.0.1"

    def test_http_client(self, url: str, create: Any) -> None:
        connection = http.client.HTTPConnection(url, timeout=limits.LIMIT)
        connection._create_connection = create[0]  # type: ignore[attr-defined]
        with contextlib.closing(connection):
            connection.request("GET", "/")
            with connection.getresponse() as answer:
                assert answer.read().decode() == create[1]

    def test_urllib3(self, url: str, create: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(urllib3.util.connection, "create_connection", create[0])
        with urllib3.PoolManager(retries=False, timeout=limits.LIMIT) as pool:
            assert pool.request("GET", f"http://{url}/").data.decode() == create[1]


class TestFallback:
    """Where NotSupported would be raised, which here is for a strategy that knows no datagrams."""

    WITHOUT: Final[dict[str, Any]] = {"strategy": "explicit-bind"}

    def test_create_connection(self, listening: Network) -> None:
        del listening
        cases: list[dict[str, Any]] = [
            {},
            {"socket_options": [(socket.IPPROTO_IP, socket.IP_TTL, 9)]},
        ]
        for more in cases:
            with pytest.raises(connectx.NotSupported):
                connectx.create_connection(HERE, type=socket.SOCK_DGRAM, **self.WITHOUT, **more)
            sock = connectx.create_connection(
                HERE, 5, SOURCE, type=socket.SOCK_DGRAM, fallback="plain", **self.WITHOUT, **more
            )
            with sock:
                assert sock.getsockname()[0] == SOURCE[0]
                assert sock.getpeername() == HERE
                assert sock.gettimeout() == 5
                assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
                assert not more or sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 9

    def test_of_a_dialer(self, listening: Network, driver: Driver) -> None:
        del listening

        async def scenario() -> None:
            with pytest.raises(connectx.NotSupported):
                await driver.dialer(**self.WITHOUT).create_connection(HERE, type=socket.SOCK_DGRAM)
            dialer = driver.dialer(["127.0.0.7"], limit=2, fallback="plain", **self.WITHOUT)
            opened = [await dialer.create_connection(HERE, type=socket.SOCK_DGRAM) for _ in "ab"]
            for sock in opened:
                assert sock.getsockname()[0] == "127.0.0.7"
                assert sock.getpeername() == HERE
            # Limits hold as ever.
            with pytest.raises(PortsExhausted, match="limit of 2 "):
                await dialer.create_connection(HERE, type=socket.SOCK_DGRAM)
            for sock in opened:
                sock.close()
            (await dialer.create_connection(HERE, type=socket.SOCK_DGRAM)).close()

        driver.run(scenario)

    @pytest.mark.parametrize("timeout", [None, 5.0, 0.0])
    def test_of_a_socket_made_elsewhere(self, listening: Network, timeout: float | None) -> None:
        del listening
        dialer = Dialer(["127.0.0.7"], fallback="plain", **self.WITHOUT)
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout)
            dialer.connectx(sock, HERE)
            assert sock.getsockname()[0] == "127.0.0.7"
            assert sock.getpeername() == HERE
            assert sock.gettimeout() == timeout

    def test_nothing_else_is_hidden(self, listening: Network) -> None:
        listening.port_range(LOW, LOW)
        dialer = Dialer(fallback="plain")
        with dialer.create_connection(HERE), pytest.raises(PortsExhausted):
            dialer.create_connection(HERE)
        with pytest.raises(ConnectionRefusedError):
            connectx.create_connection(("127.0.0.1", 81), fallback="plain")

    @pytest.mark.parametrize("fallback", ["luck", "", True, 5])
    def test_what_is_none(self, listening: Network, fallback: Any) -> None:
        del listening
        for call in (
            lambda: Dialer(fallback=fallback),
            lambda: connectx.create_connection(HERE, fallback=fallback),
        ):
            with pytest.raises((TypeError, ValueError), match='fallback is "plain" or None'):
                call()
