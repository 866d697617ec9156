"""What is websocket-client's own: classes of a program, applications that run again, SOCKS."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import websocket as library

import connectx
from connectx.integrations import websocket
from tests import limits
from tests.integrations import checks, frame
from tests.integrations.test_websockets import address
from tests.integrations.websocket_server import socks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from connectx.sandbox.networks import Network


@pytest.fixture
def case(network: Network, tmp_path: Path) -> Iterator[checks.Case]:
    row = next(row for row in frame.rows() if row.name == "websocket-client")
    with checks.Case(row, network, tmp_path) as made:
        yield made


def test_a_class_of_a_program(case: checks.Case) -> None:
    class Own(library.WebSocket):
        pass

    server = case.server()
    options: dict[str, Any] = {
        "class_": Own,
        "sources": [checks.SOURCES[1]],
        "http_no_proxy": ["*"],
    }
    connection = websocket.create_connection(address(server), **options)
    assert isinstance(connection, Own)
    connection.send("who?")
    assert str(connection.recv()).split()[0] == checks.SOURCES[1]
    connection.close()


def test_an_application_connects_again_by_the_dialer(case: checks.Case) -> None:
    server = case.server()
    dialer = connectx.Dialer(checks.SOURCES, rotate="round-robin")
    found: list[str] = []

    def keep(application: Any, message: Any) -> None:
        found.append(message.split()[0])
        application.close()

    application = websocket.WebSocketApp(
        address(server), on_open=lambda each: each.send("who?"), on_message=keep, dialer=dialer
    )
    while len(found) < 4:
        application.run_forever(http_no_proxy=["*"])
    assert sorted(found) == sorted(checks.SOURCES * 2)


@pytest.mark.parametrize("kind", ["socks5", "socks5h"])
def test_a_socks_proxy_is_reached_by_the_dialer(case: checks.Case, kind: str) -> None:
    server = case.server()
    proxy = case.serving(functools.partial(socks, server.address), checks.HOSTS[1])
    connection = websocket.create_connection(
        address(server),
        limits.LIMIT,
        http_proxy_host=proxy.host,
        http_proxy_port=proxy.port,
        proxy_type=kind,
        sources=[checks.SOURCES[1]],
    )
    connection.send("who?")
    assert str(connection.recv()).split()[0] == checks.SOURCES[1]
    connection.close()
