"""websockets' client that blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests import limits
from tests.integrations.adapters.websockets import WebSockets, keywords, url
from tests.integrations.frame import Client, Options, Server

if TYPE_CHECKING:
    from types import ModuleType


class _Client(Client):
    def __init__(self, library: ModuleType, options: Options) -> None:
        self._library = library
        self._options = options
        self._connections: dict[Server, Any] = {}

    async def ask(self, server: Server) -> str:
        if server not in self._connections:
            connecting = self._library.connect(url(server), **keywords(self._options, server))
            self._connections[server] = connecting.__enter__()
        connection = self._connections[server]
        connection.send("who?")
        answer: str = connection.recv(limits.LIMIT)
        return answer

    async def close(self) -> None:
        for each in self._connections.values():
            each.__exit__(None, None, None)


class _Adapter(WebSockets):
    name = "websockets.sync"
    plain = "websockets.sync.client"

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Client(library, options)


ADAPTERS = [_Adapter()]
