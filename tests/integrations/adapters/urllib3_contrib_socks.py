"""urllib3 through a SOCKS proxy: each server is a proxy, which answers for all destinations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import urllib3.exceptions

from tests.integrations import http_server
from tests.integrations.adapters.urllib3 import keywords_for
from tests.integrations.frame import Adapter, Client, Options, Server

if TYPE_CHECKING:
    from types import ModuleType


class _Client(Client):
    def __init__(self, library: ModuleType, options: Options) -> None:
        self._keywords = keywords_for(options)
        self._library = library
        self._managers: dict[Server, Any] = {}

    async def ask(self, server: Server) -> str:
        if server not in self._managers:
            proxy = Server(*server.address).url.replace("http", "socks5h")
            self._managers[server] = self._library.SOCKSProxyManager(proxy, **self._keywords)
        body: bytes = self._managers[server].request("GET", server.url).data
        return body.decode()

    async def close(self) -> None:
        for each in self._managers.values():
            each.clear()


class _Adapter(Adapter):
    name = "urllib3, SOCKS"
    plain = "urllib3.contrib.socks"
    errors = (urllib3.exceptions.HTTPError,)
    tls_errors = (urllib3.exceptions.MaxRetryError,)
    lacks: ClassVar = {
        "proxy": "it is one for SOCKS",
        "copies": "a SOCKSProxyManager cannot be copied",
    }

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Client(library, options)

    def serve(self, listener: Any, tls: Any, pipe: Any) -> None:
        http_server.answer(listener, tls, pipe, socks=True)


ADAPTERS = [_Adapter()]
