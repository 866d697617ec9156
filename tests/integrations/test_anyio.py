"""anyio: what goes beyond the checks of all integrations, and its datagrams."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import TYPE_CHECKING, Any

import anyio as plain
import pytest
import trustme

import connectx
from connectx.errors import PortsExhausted
from connectx.integrations import anyio
from connectx.sandbox.servers import listen
from tests import limits
from tests.dialer.drivers import nothing_open
from tests.integrations import frame, http_server, servers
from tests.integrations.checks import HOST_6, HOSTS, PORT, SOURCES, SOURCES_6, descriptors

if TYPE_CHECKING:
    import contextlib

    from connectx.sandbox.networks import Network
    from connectx.sandbox.servers import Servers


@pytest.fixture(params=frame.LOOPS)
def backend(request: pytest.FixtureRequest, trio_threads: None) -> str:
    """Each event loop."""
    del trio_threads
    name: str = request.param
    return name


@pytest.fixture
def echo(network: Network, servers: Servers) -> list[str]:
    """Servers of datagrams at port 53."""
    hosts = [*HOSTS, HOST_6]
    for address in (*SOURCES, *SOURCES_6, *hosts):
        network.add_address(address)
    servers.echo(*(servers.receive(host, 53) for host in hosts))
    return hosts


class TestStreams:
    def test_an_error_is_anyios_with_ours_as_its_cause(self, web: str, backend: str) -> None:
        async def scenario() -> None:
            with pytest.raises(OSError, match="All connection attempts failed") as caught:
                await anyio.connect_tcp(web, 81)
            assert caught.value.errno == errno.ECONNREFUSED
            assert isinstance(caught.value.__cause__, ConnectionRefusedError)

        frame.run(backend, scenario)

    def test_a_name_that_is_none(self, network: Network, backend: str) -> None:
        del network

        async def scenario() -> None:
            with pytest.raises(socket.gaierror):
                await anyio.connect_tcp("nowhere", 80)

        frame.run(backend, scenario)

    def test_local_host_and_port(self, web: str, backend: str) -> None:
        async def scenario() -> None:
            stream = await anyio.connect_tcp(
                web, 80, local_host=SOURCES[1], local_port=PORT, sources=SOURCES
            )
            async with stream:
                address = stream.extra(plain.abc.SocketAttribute.local_address)  # noqa: S610 -- not SQL
                assert address == (SOURCES[1], PORT)
            with pytest.raises(ValueError, match="none of the dialer's sources"):
                await anyio.connect_tcp(web, 80, local_host=SOURCES[1], sources=[SOURCES[0]])

        frame.run(backend, scenario)

    def test_sockets_do_not_delay(self, web: str, backend: str) -> None:
        async def scenario() -> None:
            async with await anyio.connect_tcp(web, 80) as stream:
                sock = stream.extra(plain.abc.SocketAttribute.raw_socket)  # noqa: S610 -- as above
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

        frame.run(backend, scenario)

    def test_the_servers_name(self, web: str, closing: contextlib.ExitStack, backend: str) -> None:
        authority = trustme.CA()
        served, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        authority.issue_cert("example.org").configure_cert(served)
        authority.configure_trust(trusting)
        servers.start(closing, web, 443, tls=served)

        async def scenario() -> None:
            for wrong in (None, "example.com"):
                with pytest.raises(ssl.SSLCertVerificationError):
                    await anyio.connect_tcp(web, 443, ssl_context=trusting, tls_hostname=wrong)
            stream = await anyio.connect_tcp(
                web,
                443,
                ssl_context=trusting,
                tls_hostname="example.org",
                tls_standard_compatible=False,
                sources=[SOURCES[1]],
            )
            async with stream:
                await stream.send(b"GET / HTTP/1.0\r\n\r\n")
                answer = b""
                while SOURCES[1].encode() not in answer:
                    answer += await stream.receive()

        frame.run(backend, scenario)

    def test_reset_as_soon_as_it_is_there(self, network: Network, backend: str) -> None:
        del network

        async def scenario() -> None:
            with listen(port=PORT) as listener:
                sock = connectx.create_connection(listener.getsockname())
                peer, _ = limits.accept(listener)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, http_server.ABORT)
                peer.close()
                with pytest.raises(ConnectionResetError):
                    await anyio.stream_over(sock)
                assert sock.fileno() == -1

        frame.run(backend, scenario)

    def test_cancelled_at_any_time(self, web: str, backend: str) -> None:
        dialer = connectx.Dialer([SOURCES[1]])

        async def scenario() -> None:
            async def connect() -> None:
                async with await anyio.connect_tcp(web, 80, dialer=dialer):
                    finished.append(True)

            finished: list[bool] = []
            for steps in range(12):
                async with plain.create_task_group() as tasks:
                    tasks.start_soon(connect)
                    for _ in range(steps):
                        await plain.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
            # asyncio closes what it is given a turn later.
            await plain.lowlevel.checkpoint()
            assert finished

        before = descriptors()
        frame.run(backend, scenario)
        assert descriptors() == before
        # Those that have lost their class are looked for.
        dialer._policy.unreported.look()
        assert nothing_open(dialer._policy)


class TestDatagrams:
    def test_share_a_port(self, echo: list[str], backend: str) -> None:
        dialer = connectx.Dialer([SOURCES[1]], ports=(PORT, PORT))

        async def scenario() -> None:
            first = await anyio.create_connected_udp_socket(echo[0], 53, dialer=dialer)
            other = await anyio.create_connected_udp_socket(echo[1], 53, dialer=dialer)
            async with first, other:
                for number, each in enumerate((first, other)):
                    name = each.extra(plain.abc.SocketAttribute.local_address)  # noqa: S610 -- as above
                    assert name == (SOURCES[1], PORT)
                    await each.send(b"%d" % number)
                    assert await each.receive() == b"%d" % number

        frame.run(backend, scenario)

    def test_sources_of_each_family(self, echo: list[str], backend: str) -> None:
        async def scenario() -> None:
            sources = [SOURCES[1], SOURCES_6[1]]
            for host, source in ((echo[0], sources[0]), (echo[-1], sources[1])):
                made = await anyio.create_connected_udp_socket(host, 53, sources=sources)
                async with made:
                    assert made.extra(plain.abc.SocketAttribute.local_address)[0] == source  # noqa: S610 -- as above

        frame.run(backend, scenario)

    @pytest.mark.parametrize(
        "given", [{"family": socket.AF_INET}, {"local_host": SOURCES[1]}, {"reuse_port": True}]
    )
    def test_arguments(
        self, echo: list[str], backend: str, given: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resolve = socket.getaddrinfo

        def both(host: Any, port: Any, family: int = 0, *rest: Any, **more: Any) -> Any:
            found: list[Any] = []
            for each in (echo[0], echo[-1]) if host == b"name" else (host,):
                if not family or host != b"name" or (family == socket.AF_INET6) == (":" in each):
                    found += resolve(each, port, family, *rest, **more)
            return found

        monkeypatch.setattr(socket, "getaddrinfo", both)

        async def scenario() -> None:
            made = await anyio.create_connected_udp_socket(
                "name" if backend != "uvloop" else echo[0], 53, sources=[SOURCES[1]], **given
            )
            async with made:
                assert made.extra(plain.abc.SocketAttribute.remote_address) == (echo[0], 53)  # noqa: S610 -- as above
                assert made.extra(plain.abc.SocketAttribute.local_address)[0] == SOURCES[1]  # noqa: S610 -- as above
                sock = made.extra(plain.abc.SocketAttribute.raw_socket)  # noqa: S610 -- as above
                reuse = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
                assert bool(reuse) == ("reuse_port" in given)

        frame.run(backend, scenario)

    def test_without_a_port(self, echo: list[str], backend: str) -> None:
        dialer = connectx.Dialer([SOURCES[1]], ports=(PORT, PORT))

        async def scenario() -> None:
            made = await anyio.create_connected_udp_socket(echo[0], 53, dialer=dialer)
            async with made:
                with pytest.raises(PortsExhausted) as caught:
                    await anyio.create_connected_udp_socket(echo[0], 53, dialer=dialer)
                assert caught.value.errno == errno.EAGAIN
            again = await anyio.create_connected_udp_socket(echo[0], 53, dialer=dialer)
            await again.aclose()

        frame.run(backend, scenario)

    def test_cancelled_while_it_waits(self, echo: list[str], backend: str) -> None:
        dialer = connectx.Dialer([SOURCES[1]], ports=(PORT, PORT), wait=3600.0)

        async def scenario() -> None:
            made = await anyio.create_connected_udp_socket(echo[0], 53, dialer=dialer)
            async with made:
                with plain.move_on_after(0.1) as scope:
                    await anyio.create_connected_udp_socket(echo[0], 53, dialer=dialer)
                assert scope.cancelled_caught
                assert dialer.stats().waiting == 0

        frame.run(backend, scenario)
