"""websockets for asyncio, and what is common to both of its clients: the library's own server."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, ClassVar

import websockets

from tests.integrations import websocket_server
from tests.integrations.frame import Adapter, Client, Options, Server, settle

if TYPE_CHECKING:
    from types import ModuleType


def url(server: Server) -> str:
    return server.url.replace("http", "ws", 1)


def keywords(options: Options, server: Server) -> dict[str, Any]:
    found = {"open_timeout": options.timeout, "proxy": options.proxy, **options.given}
    if server.tls:
        found["ssl"] = ssl.create_default_context(cafile=options.ca)
    return found


class WebSockets(Adapter):
    """What both clients have in common."""

    errors: ClassVar[tuple[type[BaseException], ...]] = (OSError, websockets.WebSocketException)
    tls_errors = (ssl.SSLCertVerificationError,)
    lacks: ClassVar = {
        "turns": "a WebSocket is one connection",
        "copies": "a WebSocket is one connection",
    }

    def serve(self, listener: Any, tls: Any, pipe: Any) -> None:
        websocket_server.answer(listener, tls, pipe)


class _Client(Client):
    def __init__(self, library: ModuleType, options: Options) -> None:
        self._library = library
        self._options = options
        self._connections: dict[Server, Any] = {}

    async def ask(self, server: Server) -> str:
        if server not in self._connections:
            connecting = self._library.connect(url(server), **keywords(self._options, server))
            self._connections[server] = await connecting
        connection = self._connections[server]
        await connection.send("who?")
        answer: str = await connection.recv()
        return answer

    async def close(self) -> None:
        for each in self._connections.values():
            await each.close()
        await settle()


class _Adapter(WebSockets):
    name = "websockets"
    plain = "websockets"
    backends = ("asyncio", "uvloop")

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Client(library, options)


ADAPTERS = [_Adapter()]
