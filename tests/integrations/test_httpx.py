"""httpx, httpcore and their successors: what goes beyond the checks of all integrations."""

from __future__ import annotations

import functools
import importlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import pytest

import connectx
from connectx.errors import PortsExhausted
from tests import limits
from tests.integrations import frame, http_server, servers
from tests.integrations.checks import HOST_6, HOSTS, PORT, SOURCES, SOURCES_6

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from connectx.sandbox.networks import Network


class Library(NamedTuple):
    """The modules of one library and of what it stands on: ours, and its own."""

    httpx: Any
    httpcore: Any
    plain: Any
    plain_core: Any


@pytest.fixture(params=["", "2"], ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Library:
    """httpx and httpcore, and their successors."""
    names = f"httpx{request.param}", f"httpcore{request.param}"
    ours = (importlib.import_module(f"connectx.integrations.{each}") for each in names)
    return Library(*ours, *map(importlib.import_module, names))


def source(answer: Any) -> str:
    """Where a request came from."""
    text: str = answer.text
    return text.split(maxsplit=1)[0]


def number(answer: Any) -> str:
    """Which of the server's connections it came by."""
    text: str = answer.text
    return text.split()[2]


def awaited(work: Callable[[], Coroutine[Any, Any, None]], backend: str = "asyncio") -> None:
    """Run what is to be awaited."""
    anyio.run(work, backend=backend)


class TestErrors:
    @pytest.fixture
    def full(self, web: str, closing: contextlib.ExitStack) -> connectx.Dialer:
        """A dialer without a port toward the web server."""
        dialer = connectx.Dialer(ports=(PORT, PORT))
        closing.enter_context(dialer.create_connection((web, 80)))
        return dialer

    def test_say_what_ours_say(self, web: str, full: connectx.Dialer, library: Library) -> None:
        with (
            library.httpx.Client(dialer=full) as client,
            pytest.raises(library.plain.ConnectError) as caught,
        ):
            client.get(f"http://{web}/")
        between = caught.value.__cause__
        assert isinstance(between, library.plain_core.ConnectError)
        assert isinstance(between.__cause__, PortsExhausted)
        assert str(caught.value) == str(between.__cause__)

    def test_are_tried_again_where_that_is_asked_for(
        self, web: str, full: connectx.Dialer, library: Library
    ) -> None:
        transport = library.httpx.HTTPTransport(retries=1, dialer=full)
        with (
            library.plain.Client(transport=transport) as client,
            pytest.raises(library.plain.ConnectError),
        ):
            client.get(f"http://{web}/")
        assert full.stats().attempts == 1 + 2

    def test_the_same_awaited(self, web: str, full: connectx.Dialer, library: Library) -> None:
        async def scenario() -> None:
            transport = library.httpx.AsyncHTTPTransport(retries=1, dialer=full)
            async with library.plain.AsyncClient(transport=transport) as client:
                with pytest.raises(library.plain.ConnectError):
                    await client.get(f"http://{web}/")

        awaited(scenario)
        assert full.stats().attempts == 1 + 2

    def test_too_late(self, web: str, closing: contextlib.ExitStack, library: Library) -> None:
        servers.silence(closing, web, 81)
        with (
            library.httpx.Client(timeout=0.1) as client,
            pytest.raises(library.plain.ConnectTimeout),
        ):
            client.get(f"http://{web}:81/")

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_too_late_awaited(
        self, web: str, closing: contextlib.ExitStack, library: Library, backend: str
    ) -> None:
        servers.silence(closing, web, 81)

        async def scenario() -> None:
            async with library.httpx.AsyncClient(timeout=0.1) as client:
                with pytest.raises(library.plain.ConnectTimeout):
                    await client.get(f"http://{web}:81/")

        awaited(scenario, backend)

    def test_a_name_that_is_none(self, network: Network, library: Library) -> None:
        del network
        with (
            library.httpx.Client() as client,
            pytest.raises(library.plain.ConnectError) as caught,
        ):
            client.get("http://nowhere/")
        assert isinstance(caught.value.__cause__.__context__, socket.gaierror)

    def test_a_source_that_is_not_the_dialers(self, web: str, library: Library) -> None:
        transport = library.httpx.HTTPTransport(local_address=SOURCES[1], sources=[SOURCES[0]])
        with (
            library.plain.Client(transport=transport) as client,
            pytest.raises(ValueError, match="none of the dialer's sources"),
        ):
            client.get(f"http://{web}/")


class TestArguments:
    @pytest.mark.parametrize("local,seen", [(SOURCES[1], SOURCES[1]), ("0.0.0.0", SOURCES[0])])
    def test_local_address(self, web: str, library: Library, local: str, seen: str) -> None:
        sources = SOURCES if local == seen else [SOURCES[0], SOURCES_6[0]]
        transport = library.httpx.HTTPTransport(local_address=local, sources=sources)
        with library.plain.Client(transport=transport) as client:
            assert source(client.get(f"http://{web}/")) == seen

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_local_address_awaited(self, web: str, library: Library, backend: str) -> None:
        async def scenario() -> None:
            transport = library.httpx.AsyncHTTPTransport(local_address=SOURCES[1], sources=SOURCES)
            async with library.plain.AsyncClient(transport=transport) as client:
                assert source(await client.get(f"http://{web}/")) == SOURCES[1]

        awaited(scenario, backend)

    def test_socket_options_come_first(self, web: str, library: Library) -> None:
        """httpcore sets them once there is a connection, when some come too late."""
        options = [(socket.IPPROTO_IP, socket.IP_TOS, 0x20)]
        transport = library.httpx.HTTPTransport(socket_options=options, sources=[SOURCES[1]])
        with library.plain.Client(transport=transport) as client:
            answer = client.get(f"http://{web}/")
            sock = answer.extensions["network_stream"].get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0x20
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert source(answer) == SOURCES[1]

    @pytest.mark.parametrize("backend", frame.LOOPS)
    def test_sockets_do_not_delay(self, web: str, library: Library, backend: str) -> None:
        async def scenario() -> None:
            async with library.httpx.AsyncClient() as client:
                answer = await client.get(f"http://{web}/")
                sock = answer.extensions["network_stream"].get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

        frame.run(backend, scenario)

    @pytest.mark.parametrize("backend", ["blocking", "asyncio", "trio"])
    def test_unix_sockets_have_no_source(
        self, tmp_path: Path, network: Network, library: Library, backend: str
    ) -> None:
        del network
        dialer = connectx.Dialer([SOURCES[0]])
        path = str(tmp_path / "socket")

        async def scenario() -> None:
            transport = library.httpx.AsyncHTTPTransport(uds=path, dialer=dialer)
            async with library.plain.AsyncClient(transport=transport) as client:
                assert (await client.get("http://server/")).text == "unix"

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            thread = threading.Thread(target=answer_once, args=(listener,))
            thread.start()
            if backend == "blocking":
                transport = library.httpx.HTTPTransport(uds=path, dialer=dialer)
                with library.plain.Client(transport=transport) as client:
                    assert client.get("http://server/").text == "unix"
            else:
                awaited(scenario, backend)
            limits.join(thread)
        assert dialer.stats().attempts == 0

    def test_a_network_backend_of_the_programs_own(self, library: Library) -> None:
        backend = library.plain_core.MockBackend([b"HTTP/1.1 204 No Content\r\n\r\n"])
        with library.httpcore.ConnectionPool(network_backend=backend) as pool:
            assert pool.request("GET", "http://192.0.2.1/").status == 204
        with pytest.raises(TypeError, match="not both"):
            library.httpcore.ConnectionPool(network_backend=backend, sources=SOURCES)

    def test_a_transport_of_the_programs_own(self, library: Library) -> None:
        transport = library.plain.MockTransport(lambda _: library.plain.Response(204))
        with library.httpx.Client(transport=transport) as client:
            assert client.get("http://192.0.2.1/").status_code == 204
        for kind in (library.httpx.Client, library.httpx.AsyncClient):
            with pytest.raises(TypeError, match="give a dialer to that"):
                kind(transport=transport, dialer=connectx.Dialer())

    def test_mounts_stay_what_they_are(self, web: str, library: Library) -> None:
        transport = library.plain.MockTransport(lambda _: library.plain.Response(204))
        mounts = {f"all://{HOSTS[1]}": transport}
        with library.httpx.Client(mounts=mounts, sources=[SOURCES[1]]) as client:
            assert client.get(f"http://{HOSTS[1]}/").status_code == 204
            assert source(client.get(f"http://{web}/")) == SOURCES[1]

    def test_proxies_of_the_environment(
        self, web: str, library: Library, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", f"http://{web}/")
        with library.httpx.Client(sources=[SOURCES[1]]) as client:
            assert source(client.get(f"http://{HOSTS[1]}:1/")) == SOURCES[1]


class TestProxies:
    @pytest.fixture
    def socks(self, web: str, closing: contextlib.ExitStack) -> str:
        """A SOCKS proxy, which answers for all destinations."""
        serve = functools.partial(http_server.answer, socks=True)
        servers.start(closing, web, 1080, serve)
        return f"socks5://{web}:1080"

    def test_socks(self, socks: str, library: Library) -> None:
        with library.httpx.Client(proxy=socks, sources=[SOURCES[1]]) as client:
            assert source(client.get(f"http://{HOSTS[1]}/")) == SOURCES[1]
        proxy = library.plain_core.Proxy(socks)
        with library.httpcore.ConnectionPool(proxy=proxy, sources=[SOURCES[1]]) as pool:
            answer = pool.request("GET", f"http://{HOSTS[1]}/")
            assert answer.content.startswith(SOURCES[1].encode())

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_socks_awaited(self, socks: str, library: Library, backend: str) -> None:
        async def scenario() -> None:
            async with library.httpx.AsyncClient(proxy=socks, sources=[SOURCES[1]]) as client:
                assert source(await client.get(f"http://{HOSTS[1]}/")) == SOURCES[1]

        awaited(scenario, backend)


class TestTurns:
    """Of sources, where the dialer has them take turns."""

    @pytest.fixture
    def dialer(self) -> connectx.Dialer:
        """A dialer with two sources."""
        return connectx.Dialer(SOURCES, rotate="round-robin")

    def test_with_less_room_than_sources_each_connects_anew(
        self, web: str, dialer: connectx.Dialer, library: Library
    ) -> None:
        allowed = library.plain.Limits(max_connections=1)
        with library.httpx.Client(limits=allowed, dialer=dialer) as client:
            answers = [client.get(f"http://{web}/") for _ in range(6)]
        assert [source(each) for each in answers[2:]] == [source(each) for each in answers[:4]]
        assert {source(each) for each in answers} == set(SOURCES)
        assert len({number(each) for each in answers}) == 6

    def test_of_a_prefix_as_many_as_there_is_room_for(self, web: str, library: Library) -> None:
        dialer = connectx.Dialer(["127.2.0.0/16"], rotate="round-robin")
        allowed = library.plain.Limits(max_connections=3)
        with library.httpx.Client(limits=allowed, dialer=dialer) as client:
            numbers = [number(client.get(f"http://{web}/")) for _ in range(9)]
        assert numbers[:3] == numbers[3:6] == numbers[6:]
        assert len(set(numbers)) == 3

    def test_connections_in_use_count(
        self, web: str, dialer: connectx.Dialer, library: Library
    ) -> None:
        with (
            library.httpx.Client(dialer=dialer) as client,
            client.stream("GET", f"http://{web}/") as first,
        ):
            second = client.get(f"http://{web}/")
            third = client.get(f"http://{web}/")
            first.read()
        # One source's connection is at work, so it is the other one's turn again.
        assert number(third) == number(second) != number(first)
        assert dialer.stats().opened == 2

    def test_with_all_connections_in_use_a_request_waits(
        self, web: str, dialer: connectx.Dialer, library: Library
    ) -> None:
        allowed = library.plain.Limits(max_connections=1)
        timeout = library.plain.Timeout(30, pool=0)
        with (
            library.httpx.Client(limits=allowed, timeout=timeout, dialer=dialer) as client,
            client.stream("GET", f"http://{web}/"),
            pytest.raises(library.plain.PoolTimeout),
        ):
            client.get(f"http://{web}/")
        assert dialer.stats().opened == 1

    @pytest.mark.parametrize("rotate", ["most-free", "sticky"])
    def test_only_then(self, web: str, library: Library, rotate: Any) -> None:
        with library.httpx.Client(dialer=connectx.Dialer(SOURCES, rotate=rotate)) as client:
            assert len({number(client.get(f"http://{web}/")) for _ in range(6)}) == 1

    def test_each_family_has_as_many_as_it_has_sources(
        self, network: Network, web: str, closing: contextlib.ExitStack, library: Library
    ) -> None:
        for address in (*SOURCES_6, HOST_6):
            network.add_address(address)
        servers.start(closing, HOST_6, 80)
        dialer = connectx.Dialer([SOURCES[0], *SOURCES_6], rotate="round-robin")
        with library.httpx.Client(dialer=dialer) as client:
            for host in (web, f"[{HOST_6}]"):
                for _ in range(4):
                    client.get(f"http://{host}/")
        assert dialer.stats().opened == 1 + 2

    def test_of_threads_at_once(self, web: str, dialer: connectx.Dialer, library: Library) -> None:
        # With room for all: when a pool is full, httpcore closes connections that threads use.
        with (
            library.httpx.Client(timeout=None, dialer=dialer) as client,
            ThreadPoolExecutor(8) as threads,
        ):
            asked = [threads.submit(client.get, f"http://{web}/") for _ in range(200)]
            seen = [source(each.result(limits.LIMIT)) for each in asked]
        assert {each: seen.count(each) > 50 for each in SOURCES} == dict.fromkeys(SOURCES, True)
        assert dialer.stats().opened <= 8

    def test_of_tasks_at_once(self, web: str, dialer: connectx.Dialer, library: Library) -> None:
        seen: list[str] = []

        async def scenario() -> None:
            allowed = library.plain.Limits(max_connections=4)
            client = library.httpx.AsyncClient(limits=allowed, timeout=None, dialer=dialer)

            async def ask() -> None:
                seen.append(source(await client.get(f"http://{web}/")))

            async with client, anyio.create_task_group() as tasks:
                for _ in range(200):
                    tasks.start_soon(ask)

        awaited(scenario)
        assert {each: seen.count(each) > 50 for each in SOURCES} == dict.fromkeys(SOURCES, True)
        assert dialer.stats().opened <= 4


def answer_once(listener: socket.socket) -> None:
    """Answer one request over HTTP."""
    sock, _ = limits.accept(listener)
    with sock:
        limits.receive(sock, 65536)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nunix")
