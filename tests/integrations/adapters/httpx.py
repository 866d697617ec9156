"""httpx and httpx2: clients, and transports in the library's own client."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, ClassVar

import httpx

from tests.integrations.frame import LOOPS, Adapter, Client, Options, Server

if TYPE_CHECKING:
    from types import ModuleType


class _Client(Client):
    def __init__(self, client: Any) -> None:
        self._client = client

    async def ask(self, server: Server) -> str:
        text: str = self._client.get(server.url).text
        return text

    async def close(self) -> None:
        self._client.close()


class _AsyncClient(_Client):
    async def ask(self, server: Server) -> str:
        text: str = (await self._client.get(server.url)).text
        return text

    async def close(self) -> None:
        await self._client.aclose()


class ByClient(Adapter):
    """For both libraries: each has its own errors."""

    own: Any = httpx
    name = "httpx"
    plain = "httpx"
    errors: ClassVar[Any] = (httpx.TransportError,)
    tls_errors: ClassVar[Any] = (httpx.ConnectError,)
    lacks: ClassVar = {"copies": "a client cannot be copied"}

    def keywords(self, options: Options) -> dict[str, Any]:
        """What clients and transports take."""
        keywords: dict[str, Any] = {"limits": self.own.Limits(max_connections=options.pool)}
        if options.ca:
            keywords["verify"] = ssl.create_default_context(cafile=options.ca)
        if options.proxy:
            keywords["proxy"] = options.proxy
        return keywords | dict(options.given)

    def timeout(self, options: Options) -> Any:
        """What clients take."""
        return self.own.Timeout(30.0, connect=options.timeout)

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Client(library.Client(timeout=self.timeout(options), **self.keywords(options)))


class ByAsyncClient(ByClient):
    """The same where it is awaited."""

    backends = LOOPS

    def client(self, library: ModuleType, options: Options) -> Client:
        client = library.AsyncClient(timeout=self.timeout(options), **self.keywords(options))
        return _AsyncClient(client)


class ByTransport(ByClient):
    """A transport of ours in the library's own client."""

    name = "httpx's HTTPTransport"

    def client(self, library: ModuleType, options: Options) -> Client:
        transport = library.HTTPTransport(**self.keywords(options))
        return _Client(self.own.Client(timeout=self.timeout(options), transport=transport))


class ByAsyncTransport(ByClient):
    """The same where it is awaited."""

    name = "httpx's AsyncHTTPTransport"
    backends = LOOPS

    def client(self, library: ModuleType, options: Options) -> Client:
        transport = library.AsyncHTTPTransport(**self.keywords(options))
        client = self.own.AsyncClient(timeout=self.timeout(options), transport=transport)
        return _AsyncClient(client)


ADAPTERS = [ByClient(), ByAsyncClient(), ByTransport(), ByAsyncTransport()]
