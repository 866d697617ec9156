"""aiohttp: what goes beyond the checks of all integrations."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import aiohttp as plain
import pytest
from aiohttp.abc import AbstractResolver

import connectx
from connectx.errors import PortsExhausted
from connectx.integrations import aiohttp
from tests.integrations import frame, servers
from tests.integrations.checks import HOST_6, HOSTS, PORT, SOURCES, SOURCES_6

if TYPE_CHECKING:
    import contextlib

    from connectx.sandbox.networks import Network


class Resolver(AbstractResolver):
    """Resolves every name to the same addresses."""

    def __init__(self, *hosts: str) -> None:
        self._hosts = hosts

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[Any]:
        del family
        return [
            {
                "hostname": host,
                "host": each,
                "port": port,
                "family": socket.AF_INET6 if ":" in each else socket.AF_INET,
                "proto": 0,
                "flags": 0,
            }
            for each in self._hosts
        ]

    async def close(self) -> None:
        pass


async def ask(connector: plain.TCPConnector, *urls: str) -> list[list[str]]:
    """What a server sees of requests, one after the other: address, port, and number."""
    answers = []
    async with plain.ClientSession(connector=connector) as session:
        for url in urls:
            async with session.get(url) as response:
                answers.append((await response.text()).split())
    return answers


class TestAddresses:
    """Of a name, which aiohttp resolves and races."""

    def test_the_next_is_tried_beside_one_that_is_silent(
        self, web: str, closing: contextlib.ExitStack
    ) -> None:
        servers.silence(closing, HOSTS[1], 80)
        dialer = connectx.Dialer([SOURCES[1]])

        async def scenario() -> None:
            resolver = Resolver(HOSTS[1], web)
            connector = aiohttp.TCPConnector(
                resolver=resolver, happy_eyeballs_delay=0.01, dialer=dialer
            )
            ((source, *_),) = await ask(connector, "http://name/")
            assert source == SOURCES[1]

        frame.run("asyncio", scenario)
        stats = dialer.stats()
        assert (stats.attempts, stats.opened) == (2, 1)

    def test_without_a_source_of_a_family_the_other_is_used(self, web: str) -> None:
        async def scenario() -> None:
            resolver = Resolver(HOST_6, web)
            connector = aiohttp.TCPConnector(resolver=resolver, sources=[SOURCES[1]])
            ((source, *_),) = await ask(connector, "http://name/")
            assert source == SOURCES[1]

        frame.run("asyncio", scenario)

    def test_the_cause_is_there_when_several_have_no_port(
        self, web: str, closing: contextlib.ExitStack
    ) -> None:
        servers.start(closing, HOSTS[1], 80)
        dialer = connectx.Dialer(ports=(PORT, PORT))
        for host in (web, HOSTS[1]):
            closing.enter_context(dialer.create_connection((host, 80)))

        async def scenario() -> None:
            # That aiohttp goes on with each address but the first is no matter then.
            connector = aiohttp.TCPConnector(
                resolver=Resolver(web, HOSTS[1]), interleave=2, dialer=dialer
            )
            with pytest.raises(plain.ClientConnectorError) as caught:
                await ask(connector, "http://name/")
            assert isinstance(caught.value.os_error.__cause__, PortsExhausted)

        frame.run("asyncio", scenario)


class TestArguments:
    @pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
    def test_a_socket_factory(self, web: str, backend: str) -> None:
        made = []

        def factory(info: Any) -> socket.socket:
            sock = socket.socket(*info[:3])
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x20)
            made.append(sock)
            return sock

        async def scenario() -> None:
            connector = aiohttp.TCPConnector(socket_factory=factory, sources=[SOURCES[1]])
            async with (
                plain.ClientSession(connector=connector) as session,
                session.get(f"http://{web}/") as response,
            ):
                assert (await response.text()).startswith(SOURCES[1])
                (sock,) = made
                assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0x20
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

        frame.run(backend, scenario)

    def test_a_local_address_is_one_of_the_dialers(self, web: str) -> None:
        async def scenario() -> None:
            local = (SOURCES[1], 0)
            connector = aiohttp.TCPConnector(local_addr=local, sources=SOURCES)
            ((source, *_),) = await ask(connector, f"http://{web}/")
            assert source == SOURCES[1]
            connector = aiohttp.TCPConnector(local_addr=local, sources=[SOURCES[0]])
            with pytest.raises(ValueError, match="none of the dialer's sources"):
                await ask(connector, f"http://{web}/")

        frame.run("asyncio", scenario)

    def test_a_local_address_and_port(self, web: str, closing: contextlib.ExitStack) -> None:
        async def scenario() -> None:
            dialer = connectx.Dialer(ports=(PORT, PORT))
            for asked in (0, PORT):
                connector = aiohttp.TCPConnector(local_addr=(SOURCES[1], asked), dialer=dialer)
                ((source, port, _),) = await ask(connector, f"http://{web}:{80 + bool(asked)}/")
                assert (source, port) == (SOURCES[1], str(PORT))

        servers.start(closing, web, 81)
        frame.run("asyncio", scenario)

    def test_a_socket_factory_and_a_local_address(self, web: str) -> None:
        async def scenario() -> None:
            connector = aiohttp.TCPConnector(
                socket_factory=lambda info: socket.socket(*info[:3]),
                local_addr=(SOURCES[1], 0),
                ports=(PORT, PORT),
            )
            ((source, port, _),) = await ask(connector, f"http://{web}/")
            assert (source, port) == (SOURCES[1], str(PORT))

        frame.run("asyncio", scenario)

    def test_a_local_address_of_another_family(self, network: Network) -> None:
        network.add_address(HOST_6)

        async def scenario() -> None:
            connector = aiohttp.TCPConnector(local_addr=(SOURCES[1], 0))
            with pytest.raises(plain.ClientConnectorError, match="Cannot connect to host 2001:db8"):
                await ask(connector, f"http://[{HOST_6}]/")

        frame.run("asyncio", scenario)

    def test_a_name_that_is_none(self, network: Network) -> None:
        del network

        async def scenario() -> None:
            with pytest.raises(plain.ClientConnectorDNSError):
                await ask(aiohttp.TCPConnector(), "http://nowhere/")

        frame.run("asyncio", scenario)

    def test_too_late(self, web: str, closing: contextlib.ExitStack) -> None:
        servers.silence(closing, web, 81)

        async def scenario() -> None:
            timeout = plain.ClientTimeout(sock_connect=0.1)
            connector = aiohttp.TCPConnector()
            async with plain.ClientSession(connector=connector, timeout=timeout) as session:
                with pytest.raises(plain.ConnectionTimeoutError):
                    await session.get(f"http://{web}:81/")

        frame.run("asyncio", scenario)


class TestTurns:
    """Of sources, where the dialer has them take turns."""

    @pytest.fixture
    def dialer(self) -> connectx.Dialer:
        """A dialer with two sources."""
        return connectx.Dialer(SOURCES, rotate="round-robin")

    @pytest.mark.parametrize("limits", [{"limit": 1}, {"limit_per_host": 1}])
    def test_with_less_room_than_sources_each_connects_anew(
        self, web: str, dialer: connectx.Dialer, limits: Any
    ) -> None:
        async def scenario() -> None:
            connector = aiohttp.TCPConnector(**limits, dialer=dialer)
            answers = await ask(connector, *[f"http://{web}/"] * 6)
            sources = [source for source, *_ in answers]
            assert sources[2:] == sources[:4]
            assert set(sources) == set(SOURCES)
            assert len({number for *_, number in answers}) == 6

        frame.run("asyncio", scenario)

    @pytest.mark.parametrize("limit", [0, 3])
    def test_of_a_prefix_as_many_as_there_is_room_for(self, web: str, limit: int) -> None:
        async def scenario() -> None:
            dialer = connectx.Dialer(["127.2.0.0/16"], rotate="round-robin")
            connector = aiohttp.TCPConnector(limit=limit, limit_per_host=3, dialer=dialer)
            numbers = [number for *_, number in await ask(connector, *[f"http://{web}/"] * 9)]
            assert numbers[:3] == numbers[3:6] == numbers[6:]
            assert len(set(numbers)) == 3

        frame.run("asyncio", scenario)

    @pytest.mark.parametrize("rotate", ["most-free", "sticky"])
    def test_only_then(self, web: str, rotate: Any) -> None:
        async def scenario() -> None:
            connector = aiohttp.TCPConnector(dialer=connectx.Dialer(SOURCES, rotate=rotate))
            answers = await ask(connector, *[f"http://{web}/"] * 6)
            assert len({number for *_, number in answers}) == 1

        frame.run("asyncio", scenario)

    def test_each_family_has_as_many_as_it_has_sources(
        self, network: Network, web: str, closing: contextlib.ExitStack
    ) -> None:
        for address in (*SOURCES_6, HOST_6):
            network.add_address(address)
        servers.start(closing, HOST_6, 80)
        dialer = connectx.Dialer([SOURCES[0], *SOURCES_6], rotate="round-robin")

        async def scenario() -> None:
            urls = [f"http://{web}/"] * 4 + [f"http://[{HOST_6}]/"] * 4
            await ask(aiohttp.TCPConnector(dialer=dialer), *urls)

        frame.run("asyncio", scenario)
        assert dialer.stats().opened == 1 + 2
