"""urllib.request: an opener makes a connection for each request, and closes it."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, ClassVar

from tests.integrations.frame import Adapter, Client, Options, Server

if TYPE_CHECKING:
    from types import ModuleType


class _Client(Client):
    def __init__(self, library: ModuleType, options: Options) -> None:
        self._timeout = options.timeout
        self._kept: list[Any] = []
        proxies = {"http": options.proxy, "https": options.proxy} if options.proxy else {}
        handlers: list[Any] = [urllib.request.ProxyHandler(proxies)]
        if options.ca:
            context = ssl.create_default_context(cafile=options.ca)
            handlers.append(library.HTTPSHandler(context=context, **options.given))
        self._opener = library.build_opener(*handlers, **options.given)

    async def ask(self, server: Server) -> str:
        response = self._opener.open(server.url, timeout=self._timeout)
        self._kept.append(response)
        # When all is read the connection is closed.
        body: bytes = response.read(int(response.headers["Content-Length"]) - 1)
        return body.decode()

    async def close(self) -> None:
        for each in self._kept:
            each.close()


class _Adapter(Adapter):
    name = "urllib.request"
    plain = "urllib.request"
    errors = (urllib.error.URLError, OSError)
    tls_errors = (urllib.error.URLError,)
    lacks: ClassVar = {
        "turns": "it keeps no connections",
        "copies": "an opener cannot be copied",
    }

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Client(library, options)


ADAPTERS = [_Adapter()]
