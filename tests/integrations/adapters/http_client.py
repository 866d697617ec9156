"""http.client: a connection object is one connection, made again when it was closed."""

from __future__ import annotations

import http.client
import ssl
from typing import TYPE_CHECKING, Any, ClassVar

from tests.integrations.frame import Adapter, Client, Options, Server

if TYPE_CHECKING:
    from types import ModuleType


class _Client(Client):
    def __init__(self, library: ModuleType, options: Options) -> None:
        self._library = library
        self._options = options
        self._connections: dict[Server, Any] = {}

    async def ask(self, server: Server) -> str:
        if server not in self._connections:
            self._connections[server] = self._connection(server)
        connection = self._connections[server]
        connection.request("GET", server.url if self._options.proxy and not server.tls else "/")
        body: bytes = connection.getresponse().read()
        return body.decode()

    async def close(self) -> None:
        for each in self._connections.values():
            each.close()

    def _connection(self, server: Server) -> Any:
        options = self._options
        keywords = {"timeout": options.timeout, **options.given}
        host, port = server.address
        if options.proxy:
            host, _, proxy_port = options.proxy.strip("/").removeprefix("http://").partition(":")
            port = int(proxy_port)
        if not server.tls:
            return self._library.HTTPConnection(host, port, **keywords)
        context = ssl.create_default_context(cafile=options.ca)
        connection = self._library.HTTPSConnection(host, port, context=context, **keywords)
        if options.proxy:
            connection.set_tunnel(*server.address)
        return connection


class _Adapter(Adapter):
    name = "http.client"
    plain = "http.client"
    errors = (OSError, http.client.HTTPException)
    tls_errors = (ssl.SSLCertVerificationError,)
    lacks: ClassVar = {
        "turns": "an HTTPConnection is one connection",
        "copies": "an HTTPConnection is one connection",
    }

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Client(library, options)


ADAPTERS = [_Adapter()]
