"""aiohttp: a connector in the library's own session."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, ClassVar

import aiohttp

from tests.integrations.frame import Adapter, Client, Options, Server

if TYPE_CHECKING:
    from types import ModuleType


class _Client(Client):
    def __init__(self, library: ModuleType, options: Options) -> None:
        tls: Any = ssl.create_default_context(cafile=options.ca) if options.ca else True
        self._proxy = options.proxy
        self._session = aiohttp.ClientSession(
            connector=library.TCPConnector(limit=options.pool, ssl=tls, **options.given),
            timeout=aiohttp.ClientTimeout(connect=options.timeout, sock_read=30),
        )

    async def ask(self, server: Server) -> str:
        async with self._session.get(server.url, proxy=self._proxy) as response:
            return await response.text()

    async def close(self) -> None:
        await self._session.close()


class _Adapter(Adapter):
    name = "aiohttp"
    plain = "aiohttp"
    backends = ("asyncio", "uvloop")
    errors = (aiohttp.ClientError,)
    tls_errors = (aiohttp.ClientConnectorCertificateError,)
    lacks: ClassVar = {"copies": "a connector cannot be copied"}

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Client(library, options)


ADAPTERS = [_Adapter()]
