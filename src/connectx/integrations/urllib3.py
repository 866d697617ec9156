"""urllib3 through a Dialer: connections, pools of them, and managers of pools.

What connects is `HTTPConnection._new_conn()`. Everything else is about getting the dialer there:
a manager hands what it was made with on to its pools, and these to their connections.
"""

from __future__ import annotations

import functools
import queue
import socket
import sys
from typing import TYPE_CHECKING, Any, Final, cast

from connectx.integrations import _dialers

with _dialers.library("urllib3", "2.0"):
    import urllib3
    from urllib3 import connection, connectionpool, poolmanager
    from urllib3.connection import port_by_scheme
    from urllib3.exceptions import (
        ConnectTimeoutError,
        LocationParseError,
        MaxRetryError,
        NameResolutionError,
        NewConnectionError,
    )
    from urllib3.util import Retry, parse_url

if TYPE_CHECKING:
    from connectx._dial.policy import AnyDialer
    from connectx.dialer import Dialer

__all__ = [
    "HTTPConnection",
    "HTTPConnectionPool",
    "HTTPSConnection",
    "HTTPSConnectionPool",
    "PoolManager",
    "ProxyManager",
    "connection_from_url",
    "proxy_from_url",
]


class Dialling:
    """What connects: the first base of a connection's class."""

    # Of urllib3's classes.
    _dns_host: str
    host: str
    port: int
    timeout: float | None
    source_address: tuple[str, int] | None
    socket_options: Any

    def __init__(self, *arguments: Any, dialer: AnyDialer | None = None, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._dialer = _dialers.blocking(dialer)

    def _new_conn(self) -> socket.socket:
        """Connect, with the errors that urllib3 has for it."""
        connection_at_hand = cast("connection.HTTPConnection", self)
        try:
            sock = self._dial(self._dns_host, self.port)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, connection_at_hand, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(
                connection_at_hand,
                f"Connection to {self.host} timed out. (connect timeout={self.timeout})",
            ) from error
        except OSError as error:
            raise NewConnectionError(
                connection_at_hand, f"Failed to establish a new connection: {error}"
            ) from error
        sys.audit("http.client.connect", self, self.host, self.port)
        return sock

    def _dial(self, host: str, port: int) -> socket.socket:
        if host.startswith("["):
            host = host.strip("[]")
        try:
            host.encode("idna")
        except UnicodeError:
            raise LocationParseError(f"{host!r}, label empty or too long") from None
        return _dialers.connect(
            self._dialer, (host, port), self.timeout, self.source_address, self.socket_options
        )


class HTTPConnection(Dialling, connection.HTTPConnection):
    """urllib3.connection.HTTPConnection, which connects by a dialer."""


class HTTPSConnection(Dialling, connection.HTTPSConnection):
    """urllib3.connection.HTTPSConnection, which connects by a dialer."""


class SOCKSDialling(Dialling):
    """What connects by a SOCKS proxy."""

    _socks_options: dict[str, Any]

    def _dial(self, host: str, port: int) -> socket.socket:
        # PySocks is there, or urllib3 had no such connection.
        from connectx.integrations import _socks  # noqa: PLC0415 - as said

        options = self._socks_options
        version = options["socks_version"]
        proxy = options["proxy_host"], _socks.port_of(version, options["proxy_port"])
        return _socks.negotiate(
            super()._dial(*proxy),
            proxy,
            self.timeout,
            version,
            by_name=options["rdns"],
            user=options["username"],
            password=options["password"],
            destination=(host.rstrip("."), port),
        )


class _AtOnce(Retry):
    """What urllib3 retries unasked, but not for lack of a port.

    Its three retries would follow each other at once, and find what the first one has found.
    """

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: Any = None,
        error: Exception | None = None,
        _pool: Any = None,
        _stacktrace: Any = None,
    ) -> Any:
        if error is not None and _dialers.own_error(error):
            raise MaxRetryError(_pool, url or "", error) from error
        return super().increment(method, url, response, error, _pool, _stacktrace)


class Turns(queue.LifoQueue[Any]):
    """The idle connections of a pool, and a None for each one that there might be.

    urllib3 takes the one that was used last. Where sources take turns, it is the one that has
    been idle longest, and a new one as long as there are fewer than sources.
    """

    #: None where sources do not take turns.
    dialer: Dialer | None = None

    def _get(self) -> Any:
        if self.dialer is None:
            return super()._get()
        oldest: Any = next((each for each in self.queue if each is not None), None)
        sock = getattr(oldest, "sock", None)
        turns = _dialers.turns(self.dialer, sock.family, self.maxsize) if sock is not None else 0
        if not turns:
            return super()._get()
        open_now = self.maxsize - self.queue.count(None)
        if open_now < turns:
            if None in self.queue:
                oldest = None
            else:
                # No more may be kept than there are, so this one connects anew.
                oldest.close()
        self.queue.remove(oldest)
        return oldest


class Pooling:
    """What makes connections: the first base of a pool's class."""

    QueueCls = Turns

    # Of urllib3's classes.
    conn_kw: dict[str, Any]
    pool: queue.LifoQueue[Any] | None
    retries: Any

    def __init__(
        self,
        *arguments: Any,
        dialer: AnyDialer | None = None,
        sources: _dialers.Sources = None,
        ports: _dialers.Ports = None,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        by = self.conn_kw["dialer"] = _dialers.blocking(dialer, sources, ports)
        if _dialers.in_turns(by):
            cast("Turns", self.pool).dialer = by
        if self.retries is Retry.DEFAULT:
            self.retries = _AtOnce(Retry.DEFAULT.total)


class HTTPConnectionPool(Pooling, connectionpool.HTTPConnectionPool):
    """urllib3.HTTPConnectionPool, whose connections are made by a dialer.

    Args:
        arguments, keywords: As urllib3.HTTPConnectionPool takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    ConnectionCls = HTTPConnection


class HTTPSConnectionPool(Pooling, connectionpool.HTTPSConnectionPool):
    """urllib3.HTTPSConnectionPool, whose connections are made by a dialer.

    Args:
        arguments, keywords: As urllib3.HTTPSConnectionPool takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    ConnectionCls = HTTPSConnection


#: Our pools, by those that they stand for.
_POOLS: Final[dict[type, type]] = {
    connectionpool.HTTPConnectionPool: HTTPConnectionPool,
    connectionpool.HTTPSConnectionPool: HTTPSConnectionPool,
}


@functools.cache
def pool_like(kind: Any) -> Any:
    """Return a class of pools like another one, such as a program's own, that uses a dialer."""
    if kind in _POOLS or issubclass(kind, Pooling):
        return _POOLS.get(kind, kind)
    connects = kind.ConnectionCls
    by_socks = any(each.__module__ == "urllib3.contrib.socks" for each in connects.__mro__)
    made = type(connects.__name__, (SOCKSDialling if by_socks else Dialling, connects), {})
    return type(kind.__name__, (Pooling, kind), {"ConnectionCls": made})


def manage(manager: poolmanager.PoolManager, dialer: Dialer) -> None:
    """Have a manager of pools connect by a dialer, whatever kind of manager it is."""
    manager.connection_pool_kw["dialer"] = dialer
    manager.pool_classes_by_scheme = {
        scheme: pool_like(pool) for scheme, pool in manager.pool_classes_by_scheme.items()
    }
    manager.key_fn_by_scheme = {
        scheme: functools.partial(_key, key) for scheme, key in manager.key_fn_by_scheme.items()
    }


def _key(key: Any, context: dict[str, Any]) -> Any:
    """Name a pool: the connections of two dialers are never in the same one."""
    known = {name: value for name, value in context.items() if name != "dialer"}
    return key(known), context.get("dialer")


class Managing:
    """What makes pools: the first base of a manager's class."""

    def __init__(
        self,
        *arguments: Any,
        dialer: AnyDialer | None = None,
        sources: _dialers.Sources = None,
        ports: _dialers.Ports = None,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        by = _dialers.blocking(dialer, sources, ports)
        manage(cast("poolmanager.PoolManager", self), by)


class PoolManager(Managing, urllib3.PoolManager):
    """urllib3.PoolManager, whose connections are made by a dialer.

    Args:
        arguments, keywords: As urllib3.PoolManager takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """


class ProxyManager(Managing, urllib3.ProxyManager):
    """urllib3.ProxyManager, which is connected to the proxy by a dialer.

    Args:
        arguments, keywords: As urllib3.ProxyManager takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """


def proxy_from_url(url: str, **keywords: Any) -> ProxyManager:
    """Do what urllib3.proxy_from_url does; the keywords are those of ProxyManager."""
    return ProxyManager(url, **keywords)


def connection_from_url(url: str, **keywords: Any) -> HTTPConnectionPool | HTTPSConnectionPool:
    """Do what urllib3.connection_from_url does; the keywords are those of the pools."""
    found = parse_url(url)
    pool = HTTPSConnectionPool if found.scheme == "https" else HTTPConnectionPool
    port = found.port or port_by_scheme[found.scheme or "http"]
    return pool(found.host, port=port, **keywords)
