"""How users of trio and anyio have connections: our socket, wrapped by their library.

The blocking call in a thread works everywhere; test_trio.py has those that trio awaits itself.
"""

import asyncio
import socket
from typing import Any

import anyio
import anyio.abc
import pytest
import trio

import connectx
from connectx import PortsExhausted, aio
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.aio.here import HIGH, LOW, PORTS

ECHO = ("127.0.0.1", 9100)


@pytest.fixture(autouse=True)
def _echo(network: Network, servers: Servers, trio_threads: None) -> None:
    del trio_threads
    network.port_range(LOW, HIGH)
    servers.echo(servers.listen(*ECHO))


def plain(sock: socket.socket) -> socket.socket:
    """The same as a socket.socket and no subclass of it, which is all that trio takes.

    A dialer goes on counting it, until its descriptor is closed.
    """
    return socket.socket(fileno=sock.detach())


async def by_trio(dialer: connectx.Dialer) -> None:
    for call in (connectx.create_connection, dialer.create_connection):
        sock = await trio.to_thread.run_sync(call, ECHO)
        with pytest.raises(TypeError, match="OwnSocket"):
            trio.socket.from_stdlib_socket(sock)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(plain(sock)))
        async with stream:
            assert stream.socket.getsockname()[1] in PORTS
            await stream.send_all(b"by trio")
            assert await stream.receive_some(7) == b"by trio"
            if call != connectx.create_connection:
                with pytest.raises(PortsExhausted):
                    await trio.to_thread.run_sync(call, ECHO)


async def by_anyio() -> None:
    sock = await anyio.to_thread.run_sync(connectx.create_connection, ECHO)
    await talk(await anyio.abc.SocketStream.from_socket(plain(sock)))


def test_trio() -> None:
    """Its threads live on for some seconds, in this test's network, so there is one test only."""
    trio.run(by_trio, connectx.Dialer(["127.0.0.2"], limit=1))
    anyio.run(by_anyio, backend="trio")


@pytest.mark.parametrize("missing", ["lowlevel", "lowlevel.in_trio_run"])
def test_asyncio_beside_a_trio_that_is_old_or_being_imported(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(f"trio.{missing}")

    async def scenario() -> None:
        (await aio.create_connection(ECHO)).close()

    asyncio.run(scenario())


def test_a_trio_that_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("trio.lowlevel.in_trio_run")

    async def scenario() -> None:
        (await aio.create_connection(ECHO)).close()

    trio.run(scenario)


async def talk(stream: anyio.abc.SocketStream) -> None:
    async with stream:
        assert stream.extra(anyio.abc.SocketAttribute.local_port) in PORTS  # noqa: S610 -- not SQL
        await stream.send(b"by anyio")
        assert await stream.receive(8) == b"by anyio"


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
def test_anyio_with_a_thread(backend: str) -> None:
    async def scenario() -> None:
        sock = await anyio.to_thread.run_sync(connectx.create_connection, ECHO)
        await talk(await anyio.abc.SocketStream.from_socket(sock))

    anyio.run(scenario, **backend_of(backend))


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
def test_anyio_over_asyncio_without_one(backend: str) -> None:
    async def scenario() -> None:
        for sock in (
            await aio.create_connection(ECHO),
            await aio.Dialer(["127.0.0.2"]).create_connection(ECHO),
        ):
            await talk(await anyio.abc.SocketStream.from_socket(sock))

    anyio.run(scenario, **backend_of(backend))


def backend_of(name: str) -> dict[str, Any]:
    if name == "uvloop":
        return {"backend": "asyncio", "backend_options": {"use_uvloop": True}}
    return {"backend": name}
