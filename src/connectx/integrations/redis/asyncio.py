"""redis.asyncio through a Dialer."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, cast

from connectx.errors import ConnectxError
from connectx.integrations import _dialers, _redis
from connectx.integrations._rebinding import Instead, rebound

with _dialers.library("redis", "5.0"):
    from redis.asyncio.client import Redis as _Redis
    from redis.asyncio.connection import BlockingConnectionPool as _BlockingConnectionPool
    from redis.asyncio.connection import Connection as _Connection
    from redis.asyncio.connection import ConnectionPool as _ConnectionPool
    from redis.asyncio.connection import SSLConnection as _SSLConnection

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
    """redis.asyncio.Connection, which connects by a dialer.

    Args:
        arguments, keywords: As redis.asyncio.Connection takes them.
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
        self._dialer = _dialers.awaiting(dialer, sources, ports)
        super().__init__(*arguments, **keywords)

    async def connect(self) -> None:
        """Do what redis-py does; where no port is left, its error has ours as the cause."""
        try:
            await super().connect()  # type: ignore[no-untyped-call] # the library's
        except _redis.ERRORS as error:
            self.explain(error)
            raise

    async def connect_check_health(self, *arguments: Any, **keywords: Any) -> None:
        """Do what redis-py does; see `connect`."""
        try:
            await super().connect_check_health(*arguments, **keywords)
        except _redis.ERRORS as error:
            self.explain(error)
            raise

    async def _connect(self) -> None:
        opening = Instead(asyncio, open_connection=self._dialer.open_connection)
        try:
            await rebound(_Connection._connect, asyncio=opening)(self)  # noqa: SLF001 - the base's
        except ConnectxError as error:
            self.why = error
            raise

    @property
    def socket_family(self) -> int:
        """The family of the socket; 0 where there is none."""
        if self._writer is None:
            return 0
        sock = self._writer.get_extra_info("socket")
        return int(sock.family) if sock is not None else 0


class SSLConnection(_SSLConnection, Connection):
    """redis.asyncio.SSLConnection, which connects by a dialer.

    Args:
        arguments, keywords: As redis.asyncio.SSLConnection takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """


class ConnectionPool(_redis.Pooling, _ConnectionPool):
    """redis.asyncio.ConnectionPool, whose connections are made by a dialer.

    Args:
        arguments, keywords: As redis.asyncio.ConnectionPool takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    Connects = Connection
    dialer_of = staticmethod(_dialers.awaiting)


class BlockingConnectionPool(_redis.Pooling, _BlockingConnectionPool):
    """redis.asyncio.BlockingConnectionPool, whose connections are made by a dialer.

    Args:
        arguments, keywords: As redis.asyncio.BlockingConnectionPool takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    Connects = Connection
    dialer_of = staticmethod(_dialers.awaiting)


@functools.cache
def _at_once(kind: Any) -> Any:
    class AtOnce(kind):  # type: ignore[misc] # redis-py's
        """What is tried again, but not for lack of a port: it would be missing again."""

        async def call_with_retry(self, do: Any, fail: Any, *more: Any, **keywords: Any) -> Any:
            async def failing(error: Exception, *count: int) -> None:
                await fail(error, *count)
                if _dialers.own_error(error):
                    raise error

            return await super().call_with_retry(do, failing, *more, **keywords)

    return AtOnce


class Redis(_Redis):
    """redis.asyncio.Redis, whose connections are made by a dialer.

    Where `retry` is not given, nothing is tried again for lack of a port.

    Args:
        arguments, keywords: As redis.asyncio.Redis takes them. A connection pool has its own
            dialer.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        keywords.setdefault("retry", _redis.default_retry(_Redis, _at_once))
        _redis.begin(self, _Redis, ConnectionPool, arguments, keywords)

    @classmethod
    def from_url(cls, url: str, *arguments: Any, **keywords: Any) -> Redis:
        """Do what redis.asyncio.Redis.from_url does; the keywords are those of the class."""
        return cast(
            "Redis", _redis.from_url(cls, _Redis, ConnectionPool, (url, *arguments), keywords)
        )


def from_url(url: str, **keywords: Any) -> Redis:
    """Do what redis.asyncio.from_url does; the keywords are those of `Redis`."""
    return Redis.from_url(url, **keywords)
