"""httpcore and httpcore2: pools of connections."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, ClassVar

import httpcore

from tests.integrations.frame import LOOPS, Adapter, Client, Options, Server

if TYPE_CHECKING:
    from types import ModuleType


def _keywords(library: ModuleType, options: Options) -> dict[str, Any]:
    keywords: dict[str, Any] = {"max_connections": options.pool, **options.given}
    if options.ca:
        keywords["ssl_context"] = ssl.create_default_context(cafile=options.ca)
    if options.proxy:
        keywords["proxy"] = library.Proxy(options.proxy)
    return keywords


def _extensions(options: Options) -> dict[str, Any]:
    return {"timeout": {"connect": options.timeout, "read": 30.0}}


class _Client(Client):
    def __init__(self, pool: Any, options: Options) -> None:
        self._pool = pool
        self._options = options

    async def ask(self, server: Server) -> str:
        response = self._pool.request("GET", server.url, extensions=_extensions(self._options))
        body: bytes = response.content
        return body.decode()

    async def close(self) -> None:
        self._pool.close()


class _AsyncClient(_Client):
    async def ask(self, server: Server) -> str:
        response = await self._pool.request(
            "GET", server.url, extensions=_extensions(self._options)
        )
        body: bytes = response.content
        return body.decode()

    async def close(self) -> None:
        await self._pool.aclose()


class Pool(Adapter):
    """For both libraries: each has its own errors."""

    own: Any = httpcore
    name = "httpcore"
    plain = "httpcore"
    errors: ClassVar[Any] = (httpcore.NetworkError, httpcore.TimeoutException)
    tls_errors: ClassVar[Any] = (httpcore.ConnectError,)
    lacks: ClassVar = {"copies": "a pool cannot be copied"}

    def client(self, library: ModuleType, options: Options) -> Client:
        pool = library.ConnectionPool(**_keywords(self.own, options))
        return _Client(pool, options)


class AsyncPool(Pool):
    """The same where it is awaited."""

    backends = LOOPS

    def client(self, library: ModuleType, options: Options) -> Client:
        pool = library.AsyncConnectionPool(**_keywords(self.own, options))
        return _AsyncClient(pool, options)


ADAPTERS = [Pool(), AsyncPool()]
