"""create_connection(), open_connection() and create_datagram_endpoint() on both loops."""

import asyncio
import contextlib
import errno
import math
import random
import socket
import ssl
import threading
import warnings
from typing import Any, cast

import pytest
import trustme

from connectx import PortsExhausted, SourceNotLocal, TupleInUse, aio
from connectx.addresses import Address, Endpoint
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.aio.conftest import Run
from tests.aio.here import LOW, PORTS, SILENT, SIZE, client_sockets, descriptors, names, silent
from tests.api.calls import port_of, reset_on_close
from tests.dialer.drivers import nothing_open
from tests.dialer.waiting import both_kinds
from tests.kernel.raw import FIRST

HERE = ("127.0.0.1", FIRST)
ECHO = 9100


class TestCreateConnection:
    @both_kinds
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "named"])
    def test_gives_a_connected_socket_that_does_not_block(
        self, run: Run, serving: Network, closing: contextlib.ExitStack, host: str, kind: int
    ) -> None:
        del serving

        async def scenario() -> None:
            with names(named=("127.0.0.1",)):
                sock = closing.enter_context(await aio.create_connection((host, FIRST), type=kind))
            assert sock.gettimeout() == 0
            assert not sock.getblocking()
            assert port_of(sock) in PORTS
            assert sock.getpeername()[:2] == (host.replace("named", "127.0.0.1"), FIRST)
            assert not sock.get_inheritable()

        run(scenario)

    @both_kinds
    @pytest.mark.parametrize("source", [None, ("127.0.0.2", 0), ("127.0.0.2", LOW), ("", LOW)])
    def test_source_address(
        self,
        run: Run,
        serving: Network,
        closing: contextlib.ExitStack,
        kind: int,
        source: Address | None,
    ) -> None:
        del serving

        async def scenario() -> None:
            with names(named=("127.0.0.1",)):
                for host in ("127.0.0.1", "named"):
                    sock = await aio.create_connection((host, FIRST), None, source, type=kind)
                    name = sock.getsockname()
                    assert name[0] == (source and source[0]) or "127.0.0.1"
                    if source and source[1]:
                        assert name[1] == LOW
                    reset_on_close(sock)
                    sock.close()
            if source and source[1]:
                closing.enter_context(await aio.create_connection(HERE, None, source, type=kind))
                with pytest.raises(TupleInUse):
                    await aio.create_connection(HERE, None, source, type=kind)

        run(scenario)

    @both_kinds
    @pytest.mark.parametrize("source", [None, ("127.0.0.2", 0)])
    def test_exhaustion_is_an_error_at_once(
        self,
        run: Run,
        serving: Network,
        closing: contextlib.ExitStack,
        kind: int,
        source: Address | None,
    ) -> None:
        """EAGAIN among them, which must not be read as "in progress"."""
        del serving

        async def scenario() -> None:
            opened = [
                closing.enter_context(await aio.create_connection(HERE, None, source, type=kind))
                for _ in PORTS
            ]
            assert sorted(map(port_of, opened)) == PORTS
            stream = kind == socket.SOCK_STREAM
            with names(named=("127.0.0.1",)):
                for host in ("127.0.0.1", "named"):
                    with pytest.raises(PortsExhausted) as caught:
                        await aio.create_connection((host, FIRST), None, source, type=kind)
                    number = errno.EADDRNOTAVAIL if stream else errno.EAGAIN
                    assert caught.value.errno == number
                    assert not isinstance(caught.value, BlockingIOError)
                    assert "127.0.0.1" in caught.value.explain()
            if not stream:
                with pytest.raises(PortsExhausted):
                    await aio.create_datagram_endpoint(asyncio.DatagramProtocol, HERE, source)

        run(scenario)

    def test_errors_are_the_kernels_own(self, run: Run, serving: Network) -> None:
        del serving

        async def scenario() -> None:
            with pytest.raises(ConnectionRefusedError):
                await aio.create_connection(("127.0.0.1", 9999))
            with pytest.raises(OSError, match="unreachable") as caught:
                await aio.create_connection(("192.0.2.1", FIRST))
            assert caught.value.errno == errno.ENETUNREACH
            with pytest.raises(SourceNotLocal):
                await aio.create_connection(HERE, None, ("192.0.2.1", 0))
            for host in ("127.0.0.1", "named"):
                with names(named=("127.0.0.1",)), pytest.raises(ValueError, match="luck"):
                    await aio.create_connection((host, FIRST), strategy="luck")  # type: ignore[arg-type] # a name that no type checker knows

        run(scenario)
        assert client_sockets() == []

    def test_wrong_arguments(self, run: Run, serving: Network) -> None:
        del serving

        async def scenario() -> None:
            wrong: list[tuple[Any, type[Exception]]] = [
                ("127.0.0.1", TypeError),
                (("127.0.0.1", 70000), ValueError),
                (("127.0.0.1", -1), ValueError),
                (("127.0.0.1", 0), ValueError),
                ((5, FIRST), TypeError),
            ]
            for address, kind in wrong:
                with pytest.raises(kind):
                    await aio.create_connection(address)
            with pytest.raises(ValueError, match="serves"):
                await aio.create_connection(HERE, type=socket.SOCK_RAW)
            with pytest.raises(socket.gaierror):
                await aio.create_connection(("256.256.256.256.", FIRST))

        run(scenario)

    def test_lists_are_taken_for_tuples(
        self, run: Run, serving: Network, closing: contextlib.ExitStack
    ) -> None:
        del serving

        async def scenario() -> None:
            address: Any = ["127.0.0.1", FIRST]
            closing.enter_context(await aio.create_connection(address))

        run(scenario)

    @pytest.mark.parametrize("wrong", [-1, math.nan, "soon"])
    def test_what_is_no_timeout(self, run: Run, serving: Network, wrong: Any) -> None:
        """Refused as the blocking call refuses it, and nothing is left."""
        del serving

        async def scenario() -> None:
            before = descriptors()
            dialer = aio.Dialer()
            with names(there=("127.0.0.1", "::1")):
                for host in ("127.0.0.1", "there"):
                    for call in (aio.create_connection, dialer.create_connection):
                        with pytest.raises((ValueError, TypeError)):
                            await call((host, FIRST), wrong)
            assert descriptors() == before
            assert client_sockets() == []
            assert nothing_open(dialer._policy)

        run(scenario)

    def test_timeout(self, run: Run, serving: Network, closing: contextlib.ExitStack) -> None:
        del serving
        host = silent(closing, "127.0.0.9")

        async def scenario() -> None:
            with names(one=(host,), two=(host, "::1")):
                for name in (host, "one"):
                    with pytest.raises(TimeoutError):
                        await aio.create_connection((name, SILENT), 0.05)
                # For each address: the second is refused.
                with pytest.raises(OSError):  # noqa: PT011 -- either
                    await aio.create_connection(("two", SILENT), 0.05, happy_eyeballs_delay=None)

        run(scenario)
        assert client_sockets() == []

    def test_a_socket_that_is_thrown_away_is_closed(self, run: Run, serving: Network) -> None:
        del serving

        async def scenario() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                for _ in range(2 * SIZE):
                    sock = await aio.create_connection(HERE)
                    reset_on_close(sock)
                    del sock
                    await asyncio.sleep(0)

        run(scenario)


class TestLinkLocal:
    """uvloop's own sock_connect() drops the scope."""

    @both_kinds
    @pytest.mark.parametrize("form", ["4-tuple", "percent"])
    def test_scope_ids(
        self, run: Run, network: Network, servers: Servers, form: str, kind: int
    ) -> None:
        network.add_device_pair("one", "peer")
        network.add_address("fe80::1", 64, "one")
        network.add_address("fe80::1", 64, "lo")
        servers.listen("::", FIRST)
        index = socket.if_nametoindex("lo")
        # Through the resolver, like any name, where the scope is in the text.
        address: Any = ("fe80::1", FIRST, 0, index) if form == "4-tuple" else ("fe80::1%lo", FIRST)

        async def scenario() -> None:
            with await aio.create_connection(address, type=kind) as sock:
                assert sock.getpeername() == ("fe80::1", FIRST, 0, index)
                assert sock.getsockname()[3] == index
            with await aio.Dialer(["fe80::1"]).create_connection(address, type=kind) as sock:
                assert sock.getsockname()[0] == "fe80::1"
            if kind == socket.SOCK_STREAM and form == "percent":
                _, writer = await aio.open_connection("fe80::1%lo", FIRST)
                assert writer.get_extra_info("peername")[3] == index
                writer.close()
                await writer.wait_closed()

        run(scenario)


class TestStreams:
    def test_data_comes_and_goes(self, run: Run, servers: Servers) -> None:
        servers.echo(servers.listen("127.0.0.1", ECHO))

        async def scenario() -> None:
            for opened in (
                aio.open_connection("127.0.0.1", ECHO, source_address=("127.0.0.2", 0)),
                aio.Dialer(["127.0.0.2"]).open_connection("127.0.0.1", ECHO),
            ):
                reader, writer = await opened
                assert writer.get_extra_info("sockname")[0] == "127.0.0.2"
                writer.write(b"there and back")
                assert await reader.readexactly(14) == b"there and back"
                writer.close()
                await writer.wait_closed()

        run(scenario)

    def test_little_data_is_sent_at_once(self, run: Run, serving: Network) -> None:
        """As it is by the loop's own open_connection()."""
        del serving

        async def scenario() -> None:
            for opened in (
                asyncio.open_connection(*HERE),
                aio.open_connection(*HERE),
                aio.Dialer().open_connection(*HERE),
            ):
                _, writer = await opened
                sock = writer.get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                writer.close()
                await writer.wait_closed()

        run(scenario)

    def test_datagrams(self, run: Run, servers: Servers) -> None:
        servers.echo(servers.receive("127.0.0.1", ECHO))

        class Keep(asyncio.DatagramProtocol):
            def __init__(self) -> None:
                self.came: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

            def datagram_received(self, data: bytes, _: Any) -> None:
                self.came.set_result(data)

        async def scenario() -> None:
            address = ("127.0.0.1", ECHO)
            for made in (
                aio.create_datagram_endpoint(Keep, address, ("127.0.0.2", 0)),
                aio.Dialer(["127.0.0.2"]).create_datagram_endpoint(Keep, address),
            ):
                transport, protocol = await made
                assert transport.get_extra_info("sockname")[0] == "127.0.0.2"
                transport.sendto(b"a question")
                assert await protocol.came == b"a question"
                transport.close()

        run(scenario)

    def test_a_factory_that_raises_leaves_nothing(self, run: Run, serving: Network) -> None:
        del serving

        async def scenario() -> None:
            before = descriptors()

            def fail() -> asyncio.DatagramProtocol:
                raise LookupError

            for _ in range(3):
                with pytest.raises(LookupError):
                    await aio.create_datagram_endpoint(fail, HERE)
            await asyncio.sleep(0)
            assert descriptors() == before

        run(scenario)
        assert client_sockets() == []

    def test_an_endpoint_that_is_cancelled_while_it_has_data_to_send(
        self, run: Run, servers: Servers
    ) -> None:
        """The loop has its descriptor, and another one is to have it next."""
        servers.receive("127.0.0.1", ECHO)

        class Eager(asyncio.DatagramProtocol):
            def __init__(self) -> None:
                self.task: asyncio.Future[Any]
                self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                sock = transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
                self.task.cancel()

                def full(*_: object) -> None:
                    raise BlockingIOError

                # As a socket does whose buffer is full.
                if hasattr(transport, "_sock"):
                    transport._sock = Full(transport._sock, full)
                cast("asyncio.DatagramTransport", transport).sendto(b"a question")

            def connection_lost(self, _: Exception | None) -> None:
                self.lost.set_result(None)

        class Full:
            def __init__(self, sock: Any, send: Any) -> None:
                self._sock = sock
                self.send = send

            def __getattr__(self, name: str) -> Any:
                return getattr(self._sock, name)

        async def scenario() -> None:
            before = descriptors()
            protocol = Eager()
            protocol.task = asyncio.ensure_future(
                aio.create_datagram_endpoint(lambda: protocol, ("127.0.0.1", ECHO))
            )
            with pytest.raises(asyncio.CancelledError):
                await protocol.task
            await protocol.lost
            await asyncio.sleep(0)
            assert descriptors() == before
            loop = asyncio.get_running_loop()
            with await aio.create_connection(("127.0.0.1", ECHO), type=socket.SOCK_DGRAM) as sock:
                # Refuses a descriptor that a transport has.
                loop.add_writer(sock.fileno(), loop.stop)
                loop.remove_writer(sock.fileno())

        run(scenario)


class TestTls:
    """The loop's own machinery; the server is a thread with blocking sockets."""

    @pytest.fixture
    def trusting(
        self, network: Network, servers: Servers, closing: contextlib.ExitStack
    ) -> ssl.SSLContext:
        """A client's context; the server's certificate is for "named" and 127.0.0.1."""
        del network
        authority = trustme.CA()
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("named", "127.0.0.1").configure_cert(server)
        client = ssl.create_default_context()
        authority.configure_trust(client)
        listener = servers.listen("127.0.0.1", ECHO)

        def serve() -> None:
            while True:
                try:
                    accepted, _ = limits.accept(listener)
                except OSError:
                    return
                with accepted, contextlib.suppress(OSError):
                    accepted.settimeout(limits.LIMIT)
                    with server.wrap_socket(accepted, server_side=True) as secured:
                        secured.sendall(limits.receive(secured, 100))
                        # Until the client has closed.
                        limits.receive(secured)

        thread = threading.Thread(target=serve)
        thread.start()
        closing.callback(limits.join, thread)
        closing.callback(listener.shutdown, socket.SHUT_RDWR)
        return client

    @pytest.mark.parametrize("by", ["open_connection", "Dialer"])
    @pytest.mark.parametrize("host", ["127.0.0.1", "named"])
    def test_the_host_is_the_servers_name(
        self, run: Run, trusting: ssl.SSLContext, host: str, by: str
    ) -> None:
        async def scenario() -> None:
            opening = (
                aio.open_connection
                if by == "open_connection"
                else aio.Dialer(["127.0.0.2"]).open_connection
            )
            with names(named=("127.0.0.1",)):
                reader, writer = await opening(host, ECHO, ssl=trusting)
            assert writer.get_extra_info("ssl_object").server_hostname == host
            writer.write(b"secret")
            assert await reader.readexactly(6) == b"secret"
            writer.close()
            await writer.wait_closed()

        run(scenario)

    def test_the_wrong_name_is_refused_and_the_socket_closed(
        self, run: Run, trusting: ssl.SSLContext
    ) -> None:
        async def scenario() -> None:
            with names(other=("127.0.0.1",)):
                before = sockets_open()
                place = ("tcp", Endpoint("127.0.0.1", ECHO))
                for host, name in (("other", None), ("127.0.0.1", "other")):
                    with pytest.raises(ssl.SSLCertVerificationError):
                        await aio.open_connection(host, ECHO, ssl=trusting, server_hostname=name)
                    to = aio.Dialer(limit=1)
                    for _ in range(2):
                        with pytest.raises(ssl.SSLCertVerificationError):
                            await to.open_connection(host, ECHO, ssl=trusting, server_hostname=name)
                        # uvloop closes it a little later, and the place is free then.
                        while to._policy.destinations.open_to(place):  # noqa: ASYNC110 -- nothing tells
                            await asyncio.sleep(0)
                # Their transports close them in the loop's next turns, the server when it sees it.
                while sockets_open() != before:  # noqa: ASYNC110 -- nothing tells
                    await asyncio.sleep(0)

        run(scenario)

    @pytest.mark.parametrize("by", ["open_connection", "Dialer"])
    def test_cancelled_as_the_handshake_ends(
        self,
        run: Run,
        trusting: ssl.SSLContext,
        monkeypatch: pytest.MonkeyPatch,
        by: str,
    ) -> None:
        """The transport would go on reading, and keep the next one from its descriptor."""

        async def scenario() -> None:
            original = asyncio.StreamReaderProtocol.connection_made
            to = aio.Dialer(limit=1)
            opening = aio.open_connection if by == "open_connection" else to.open_connection
            for turns in range(4):
                task = asyncio.ensure_future(opening("127.0.0.1", ECHO, ssl=trusting))

                def made(
                    protocol: Any,
                    transport: Any,
                    turns: int = turns,
                    task: "asyncio.Future[Any]" = task,
                ) -> None:
                    original(protocol, transport)
                    cancel_after(turns, task)

                with monkeypatch.context() as patch:
                    patch.setattr(asyncio.StreamReaderProtocol, "connection_made", made)
                    (outcome,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(outcome, asyncio.CancelledError):
                    # It gets the same descriptor.
                    (await aio.create_connection(("127.0.0.1", ECHO))).close()
                    assert nothing_open(to._policy)
                else:
                    assert turns, "it was cancelled at once"
                    assert not isinstance(outcome, BaseException)
                    outcome[1].close()
                    await outcome[1].wait_closed()

        run(scenario)

    # The server's own: ssl leaves a socket unclosed whose client has reset it by then.
    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    def test_cancelled_at_any_time(self, run: Run, trusting: ssl.SSLContext) -> None:
        randomly = random.Random(5)  # noqa: S311 -- when to cancel

        async def scenario() -> None:
            loop = asyncio.get_running_loop()
            to = aio.Dialer(["127.0.0.1"])
            cancelled = 0
            while cancelled < 50:
                task = asyncio.ensure_future(to.open_connection("127.0.0.1", ECHO, ssl=trusting))
                loop.call_later(randomly.random() * 0.004, task.cancel)
                (outcome,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(outcome, asyncio.CancelledError):
                    cancelled += 1
                    (await aio.create_connection(("127.0.0.1", ECHO))).close()
                else:
                    assert not isinstance(outcome, BaseException)
                    outcome[1].close()
                    await outcome[1].wait_closed()

        run(scenario)

    @pytest.mark.parametrize(
        "keywords, error, match",
        [
            ({"server_hostname": "named"}, ValueError, "server_hostname is only"),
            ({"ssl_handshake_timeout": 1}, ValueError, "ssl_handshake_timeout is only"),
            ({"local_addr": ("127.0.0.2", 0)}, TypeError, "local_addr.*source_address"),
            ({"family": socket.AF_INET6}, TypeError, "family"),
            ({"flags": 1}, TypeError, "flags"),
            ({"sock": None}, TypeError, "sock"),
        ],
    )
    @pytest.mark.parametrize("by", ["open_connection", "Dialer"])
    def test_what_would_have_no_effect_is_refused_before_anything_is_opened(
        self,
        run: Run,
        serving: Network,
        keywords: dict[str, Any],
        error: type[Exception],
        match: str,
        by: str,
    ) -> None:
        del serving

        async def scenario() -> None:
            to = aio.Dialer()
            opening = aio.open_connection if by == "open_connection" else to.open_connection
            before = descriptors()
            with pytest.raises(error, match=match):
                await opening(*HERE, **keywords)
            assert descriptors() == before
            assert to.stats().attempts == 0

        run(scenario)
        assert client_sockets() == []

    def test_times_of_tls_are_the_loops(self, run: Run, serving: Network) -> None:
        """The server accepts, and never says a word."""
        del serving
        context = ssl.create_default_context()

        async def scenario() -> None:
            with pytest.raises(ConnectionError, match="handshake"):
                await aio.open_connection(*HERE, ssl=context, ssl_handshake_timeout=0.05)

        run(scenario)

    def test_a_dialers_place_is_kept_until_the_stream_is_closed(
        self, run: Run, trusting: ssl.SSLContext
    ) -> None:
        async def scenario() -> None:
            to = aio.Dialer(limit=1, wait=30)
            for _ in range(3):
                _, writer = await to.open_connection("127.0.0.1", ECHO, ssl=trusting)
                waiting = asyncio.ensure_future(to.open_connection("127.0.0.1", ECHO, ssl=trusting))
                while to.stats().waiting == 0:  # noqa: ASYNC110 -- one turn of the loop
                    await asyncio.sleep(0)
                writer.close()
                await writer.wait_closed()
                async with asyncio.timeout(limits.LIMIT):
                    _, writer = await waiting
                writer.close()
                await writer.wait_closed()

        run(scenario)


def cancel_after(turns: int, task: "asyncio.Future[Any]") -> None:
    """Cancel a task after so many turns of the loop."""
    if turns:
        asyncio.get_running_loop().call_soon(cancel_after, turns - 1, task)
    else:
        task.cancel()


def sockets_open() -> set[str]:
    return {target for target in descriptors().values() if target.startswith("socket:")}
