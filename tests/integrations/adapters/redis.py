"""redis-py's client that blocks, and what is common to both of its clients: Debian's Redis."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import redis

from tests.integrations.frame import Client, Options, ProgramAdapter, Server

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import ModuleType


def keywords(options: Options) -> dict[str, Any]:
    found = {"socket_connect_timeout": options.timeout, **options.given}
    if not options.retries:
        found["retry"] = None
    return found | ({"ssl": True, "ssl_ca_certs": options.ca} if options.ca else {})


class Answers:
    """What servers know of a client. They number all, the one that looked for them included."""

    def __init__(self) -> None:
        self._first: dict[Server, int] = {}

    def of(self, server: Server, info: Any) -> str:
        """A server's answer; the first connection is number 0."""
        host, _, port = info["addr"].rpartition(":")
        number = int(info["id"])
        return f"{host.strip('[]')} {port} {number - self._first.setdefault(server, number)}"


class RedisAdapter(ProgramAdapter):
    """What both clients have in common."""

    errors = (redis.ConnectionError, redis.TimeoutError)
    tls_errors = (redis.ConnectionError,)
    lacks: ClassVar = {"proxy": "Redis has none"}

    def program(self, server: Server, pem: Path | None, directory: Path) -> Sequence[str]:
        port, other = ("--tls-port", "--port") if server.tls else ("--port", "--tls-port")
        found = ["redis-server", "--bind", server.host, port, str(server.port), other, "0"]
        found += ["--save", "", "--protected-mode", "no", "--dir", str(directory)]
        if pem:
            found += ["--tls-cert-file", str(pem), "--tls-key-file", str(pem)]
            found += ["--tls-ca-cert-file", str(pem), "--tls-auth-clients", "no"]
        return found


class _Client(Client):
    def __init__(self, library: ModuleType, options: Options, clients: Any = None) -> None:
        self.library = library
        self.options = options
        self.clients: dict[Server, Any] = clients or {}
        self.answers = Answers()

    async def ask(self, server: Server) -> str:
        if server not in self.clients:
            client = self.library.Redis(*server.address, **keywords(self.options))
            self.clients[server] = client
        return self.answers.of(server, self.clients[server].client_info())

    async def close(self) -> None:
        for each in self.clients.values():
            each.close()


class _Pooled(_Client):
    async def ask(self, server: Server) -> str:
        if server not in self.clients:
            given = {**keywords(self.options), "max_connections": self.options.pool}
            given.pop("ssl", None)
            kind = self.library.SSLConnection if server.tls else self.library.Connection
            host, port = server.address
            pool = self.library.BlockingConnectionPool(
                connection_class=kind, host=host, port=port, **given
            )
            self.clients[server] = self.library.Redis.from_pool(pool)
        return await super().ask(server)


class _Adapter(RedisAdapter):
    name = "redis-py"
    plain = "redis"

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Client(library, options)

    def copies(self, client: Client) -> Sequence[Client]:
        assert isinstance(client, _Client)
        # Its pool has a lock, so it can be copied no deeper.
        clients = {server: copy.copy(each) for server, each in client.clients.items()}
        return [_Client(client.library, client.options, clients)]


class _Pool(_Adapter):
    name = "redis-py's BlockingConnectionPool"
    lacks: ClassVar = {
        **RedisAdapter.lacks,
        "turns": "it is a queue, out of which the last one comes first",
        "copies": "a pool cannot be copied",
    }

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Pooled(library, options)


ADAPTERS = [_Adapter(), _Pool()]
