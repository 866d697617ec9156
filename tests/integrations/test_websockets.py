"""What is websockets' own: iterating over connections, SOCKS proxies, Unix sockets."""

from __future__ import annotations

import asyncio
import functools
import itertools
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
import websockets
from websockets.sync.server import unix_serve

import connectx
from connectx.integrations.websockets import connect, sync, unix_connect
from tests import limits
from tests.integrations import checks, frame, http_server
from tests.integrations.websocket_server import socks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from connectx.sandbox.networks import Network
    from tests.integrations.frame import Server


@pytest.fixture
def case(network: Network, tmp_path: Path) -> Iterator[checks.Case]:
    row = next(row for row in frame.rows() if row.name == "websockets.sync")
    with checks.Case(row, network, tmp_path) as made:
        yield made


@pytest.fixture
def dialer() -> connectx.Dialer:
    return connectx.Dialer(checks.SOURCES, rotate="round-robin")


def address(server: Server) -> str:
    return f"ws://{server.host}:{server.port}/"


def test_iterating_connects_anew(case: checks.Case, dialer: connectx.Dialer) -> None:
    server = case.server()

    async def scenario() -> list[str]:
        found = []
        async for connection in connect(address(server), proxy=None, dialer=dialer):
            await connection.send("who?")
            found.append(str(await connection.recv()).split()[0])
            if len(found) == 4:
                break
        return found

    found = asyncio.run(limits.ended(scenario))
    assert sorted(found) == sorted(checks.SOURCES * 2)


def test_iterating_tries_again_when_ports_are_exhausted(case: checks.Case) -> None:
    server = case.server()
    dialer = connectx.Dialer(ports=(checks.PORT, checks.PORT))
    errors = []
    holder = dialer.create_connection(server.address)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, http_server.ABORT)

    def give_back(error: Exception) -> None:
        errors.append(error)
        holder.close()

    async def scenario() -> str:
        connecting = connect(
            address(server),
            proxy=None,
            dialer=dialer,
            process_exception=give_back,
            reconnect_delays=lambda: itertools.repeat(0.0),
        )
        async for connection in connecting:
            await connection.send("who?")
            return str(await connection.recv())
        raise AssertionError

    assert asyncio.run(limits.ended(scenario)).split()[1] == str(checks.PORT)
    assert [type(error) for error in errors] == [connectx.PortsExhausted]


def test_the_blocking_client_connects_anew(case: checks.Case, dialer: connectx.Dialer) -> None:
    server = case.server()
    found = []
    for connection in sync.reconnect(address(server), proxy=None, dialer=dialer):
        connection.send("who?")
        found.append(str(connection.recv(limits.LIMIT)).split()[0])
        if len(found) == 4:
            break
    assert sorted(found) == sorted(checks.SOURCES * 2)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_socks_proxy_is_reached_by_the_dialer(
    case: checks.Case, dialer: connectx.Dialer, scheme: str
) -> None:
    server = case.server()
    # The server answers with what the proxy was connected from.
    proxy = case.serving(functools.partial(socks, server.address), checks.HOSTS[1])
    url = f"{scheme}://{proxy.host}:{proxy.port}"
    with sync.connect(address(server), proxy=url, dialer=dialer) as connection:
        connection.send("who?")
        assert str(connection.recv(limits.LIMIT)).split()[0] in checks.SOURCES

    async def scenario() -> str:
        async with connect(address(server), proxy=url, dialer=dialer) as connection:
            await connection.send("who?")
            return str(await connection.recv())

    assert asyncio.run(limits.ended(scenario)).split()[0] in checks.SOURCES
    assert dialer.stats().opened == 2


def test_unix_sockets_need_no_dialer(tmp_path: Path, dialer: connectx.Dialer) -> None:
    path = str(tmp_path / "socket")

    def answer(connection: Any) -> None:
        connection.send("here")

    with unix_serve(answer, path) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with sync.unix_connect(path, dialer=dialer) as connection:
            assert connection.recv(limits.LIMIT) == "here"

        async def scenario() -> object:
            async with unix_connect(path, dialer=dialer) as connection:
                return await connection.recv()

        assert asyncio.run(limits.ended(scenario)) == "here"
        server.shutdown()
        limits.join(thread)
    assert dialer.stats().attempts == 0


def test_the_librarys_own_classes_stay_as_they_are(case: checks.Case) -> None:
    server = case.server()
    with websockets.sync.client.reconnect(address(server), proxy=None) as connection:
        assert type(connection.socket) is socket.socket
