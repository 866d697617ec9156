"""redis-py through a Dialer; `connectx.integrations.redis.asyncio` has its asynchronous twins."""

from __future__ import annotations

import functools
import socket
from typing import TYPE_CHECKING, Any, cast

from connectx.errors import ConnectxError
from connectx.integrations import _dialers, _redis

with _dialers.library("redis", "5.0"):
    from redis.client import Redis as _Redis
    from redis.connection import BlockingConnectionPool as _BlockingConnectionPool
    from redis.connection import Connection as _Connection
    from redis.connection import ConnectionPool as _ConnectionPool
    from redis.connection import SSLConnection as _SSLConnection

if TYPE_CHECKING:
    from connectx._dial.policy import AnyDialer

__all__ = [
    "BlockingConnectionPool",
    "Connection",
    "ConnectionPool",
    "Redis",
    "SSLConnection",
    "from_url",
]


class Connection(_redis.Explaining, _Connection):
    """redis.Connection, which connects by a dialer.

    Args:
        arguments, keywords: As redis.Connection takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    def __init__(
        self,
        *arguments: Any,
        dialer: AnyDialer | None = None,
        sources: _dialers.Sources = None,
        ports: _dialers.Ports = None,
        **keywords: Any,
    ) -> None:
        self._dialer = _dialers.blocking(dialer, sources, ports)
        super().__init__(*arguments, **keywords)  # type: ignore[no-untyped-call] # as below

    def connect(self) -> None:
        """Do what redis-py does; where no port is left, its error has ours as the cause."""
        try:
            super().connect()  # type: ignore[no-untyped-call] # the library's
        except _redis.ERRORS as error:
            self.explain(error)
            raise

    def connect_check_health(self, *arguments: Any, **keywords: Any) -> None:
        """Do what redis-py does; see `connect`."""
        try:
            super().connect_check_health(*arguments, **keywords)
        except _redis.ERRORS as error:
            self.explain(error)
            raise

    def _connect(self) -> socket.socket:
        options: list[tuple[Any, ...]] = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
        if self.socket_keepalive:
            options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
            options += [
                (socket.IPPROTO_TCP, *each) for each in self.socket_keepalive_options.items()
            ]
        addresses: list[Any] = [(self.host, self.port)]
        if self.socket_type:
            # What redis-py calls the type is the family.
            infos = socket.getaddrinfo(self.host, self.port, self.socket_type, socket.SOCK_STREAM)
            addresses = [sockaddr for *_, sockaddr in infos]
        while True:
            address = addresses.pop(0)
            try:
                sock = _dialers.connect(
                    self._dialer, address, self.socket_connect_timeout, None, options
                )
            except OSError as error:
                if addresses:
                    continue
                if isinstance(error, ConnectxError):
                    self.why = error
                raise
            sock.settimeout(self.socket_timeout)
            return sock

    @property
    def socket_family(self) -> int:
        """The family of the socket; 0 where there is none."""
        return self._sock.family if self._sock is not None else 0


class SSLConnection(_SSLConnection, Connection):
    """redis.SSLConnection, which connects by a dialer.

    Args:
        arguments, keywords: As redis.SSLConnection takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """


class ConnectionPool(_redis.Pooling, _ConnectionPool):
    """redis.ConnectionPool, whose connections are made by a dialer.

    Args:
        arguments, keywords: As redis.ConnectionPool takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    Connects = Connection
    dialer_of = staticmethod(_dialers.blocking)


class BlockingConnectionPool(_redis.Pooling, _BlockingConnectionPool):
    """redis.BlockingConnectionPool, whose connections are made by a dialer.

    It takes the connection that was used last, also where sources take turns.

    Args:
        arguments, keywords: As redis.BlockingConnectionPool takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    Connects = Connection
    dialer_of = staticmethod(_dialers.blocking)


@functools.cache
def _at_once(kind: Any) -> Any:
    class AtOnce(kind):  # type: ignore[misc] # redis-py's
        """What is tried again, but not for lack of a port: it would be missing again."""

        def call_with_retry(self, do: Any, fail: Any, *more: Any, **keywords: Any) -> Any:
            def failing(error: Exception, *count: int) -> None:
                fail(error, *count)
                if _dialers.own_error(error):
                    raise error

            return super().call_with_retry(do, failing, *more, **keywords)

    return AtOnce


class Redis(_Redis):
    """redis.Redis, whose connections are made by a dialer.

    Where `retry` is not given, nothing is tried again for lack of a port.

    Args:
        arguments, keywords: As redis.Redis takes them. A connection pool has its own dialer.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        keywords.setdefault("retry", _redis.default_retry(_Redis, _at_once))
        _redis.begin(self, _Redis, ConnectionPool, arguments, keywords)

    @classmethod
    def from_url(cls, url: str, **keywords: Any) -> Redis:
        """Do what redis.Redis.from_url does; the keywords are those of the class."""
        return cast("Redis", _redis.from_url(cls, _Redis, ConnectionPool, (url,), keywords))


def from_url(url: str, **keywords: Any) -> Redis:
    """Do what redis.from_url does; the keywords are those of `Redis`."""
    return Redis.from_url(url, **keywords)
