"""urllib3: managers of pools, and pools by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import urllib3.connection
import urllib3.exceptions

from tests.integrations.frame import Adapter, Client, Options, Server

if TYPE_CHECKING:
    from types import ModuleType


def keywords_for(options: Options) -> dict[str, Any]:
    """What pools are made with."""
    timeout = urllib3.Timeout(connect=options.timeout, read=30)
    keywords = {"timeout": timeout, "maxsize": options.pool, **options.given}
    keywords |= {} if options.retries else {"retries": False}
    return keywords | ({"ca_certs": options.ca} if options.ca else {})


class _Managed(Client):
    def __init__(self, library: ModuleType, options: Options) -> None:
        keywords = keywords_for(options)
        self._manager = (
            library.ProxyManager(options.proxy, **keywords)
            if options.proxy
            else library.PoolManager(**keywords)
        )

    async def ask(self, server: Server) -> str:
        body: bytes = self._manager.request("GET", server.url).data
        return body.decode()

    async def close(self) -> None:
        self._manager.clear()


class _Pooled(Client):
    def __init__(self, library: ModuleType, options: Options) -> None:
        self._library = library
        self._keywords = keywords_for(options)
        self._pools: dict[Server, Any] = {}

    async def ask(self, server: Server) -> str:
        if server not in self._pools:
            kind = self._library.HTTPSConnectionPool if server.tls else None
            kind = kind or self._library.HTTPConnectionPool
            self._pools[server] = kind(*server.address, **self._keywords)
        body: bytes = self._pools[server].request("GET", "/").data
        return body.decode()

    async def close(self) -> None:
        for each in self._pools.values():
            each.close()


class _Adapter(Adapter):
    plain = "urllib3"
    errors = (urllib3.exceptions.HTTPError,)
    tls_errors = (urllib3.exceptions.MaxRetryError,)

    def original(self, library: ModuleType, name: str) -> Any:
        in_connection = name in {"HTTPConnection", "HTTPSConnection"}
        return getattr(urllib3.connection if in_connection else library, name)


class _Manager(_Adapter):
    name = "urllib3"
    lacks: ClassVar = {"copies": "a PoolManager cannot be copied"}

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Managed(library, options)


class _Pool(_Adapter):
    name = "urllib3's pools"
    lacks: ClassVar = {"copies": "a pool cannot be copied", "proxy": "that is ProxyManager's"}

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Pooled(library, options)


ADAPTERS = [_Manager(), _Pool()]
