"""redis-py's client for asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tests.integrations.adapters.redis import Answers, RedisAdapter, keywords
from tests.integrations.frame import Client, Options, Server, settle

if TYPE_CHECKING:
    from types import ModuleType


class _Client(Client):
    def __init__(self, library: ModuleType, options: Options) -> None:
        self._library = library
        self._options = options
        self._clients: dict[Server, Any] = {}
        self._answers = Answers()

    async def ask(self, server: Server) -> str:
        if server not in self._clients:
            self._clients[server] = self._make(server)
        return self._answers.of(server, await self._clients[server].client_info())

    def _make(self, server: Server) -> Any:
        return self._library.Redis(host=server.host, port=server.port, **keywords(self._options))

    async def close(self) -> None:
        for each in self._clients.values():
            await each.aclose()
        await settle()


class _Pooled(_Client):
    def _make(self, server: Server) -> Any:
        given = {**keywords(self._options), "max_connections": self._options.pool}
        given.pop("ssl", None)
        kind = self._library.SSLConnection if server.tls else self._library.Connection
        pool = self._library.BlockingConnectionPool(
            connection_class=kind, host=server.host, port=server.port, **given
        )
        return self._library.Redis.from_pool(pool)


class _Adapter(RedisAdapter):
    name = "redis.asyncio"
    plain = "redis.asyncio"
    backends = ("asyncio", "uvloop")
    lacks: ClassVar = {**RedisAdapter.lacks, "copies": "its pool has a lock of a loop"}

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Client(library, options)


class _Pool(_Adapter):
    name = "redis.asyncio's BlockingConnectionPool"

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Pooled(library, options)


ADAPTERS = [_Adapter(), _Pool()]
