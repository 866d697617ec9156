"""Pools of httpcore and httpcore2 through a Dialer; httpx and httpx2 have such pools.

A pool connects with its network backend, which is ours then, and chooses a connection for each
request that waits for one, which differs where sources take turns.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import math
import socket
from typing import TYPE_CHECKING, Any, cast

from connectx.integrations import _dialers

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

    from connectx._dial.policy import AnyDialer
    from connectx.dialer import Dialer


class _Backend:
    """What a pool connects with.

    Args:
        library: httpcore or httpcore2.
        before: What the pool connected with before; unix sockets are still its business.
    """

    def __init__(self, library: ModuleType, before: Any) -> None:
        self._library = library
        self.connect_unix_socket = before.connect_unix_socket
        self.sleep = before.sleep


class BlockingBackend(_Backend):
    """What connects for ConnectionPool."""

    def __init__(self, library: ModuleType, before: Any, dialer: Dialer) -> None:
        super().__init__(library, before)
        self._dialer = dialer
        self._stream = _module(library, "sync").SyncStream

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Any:
        """Connect, with the errors that httpcore has for it."""
        source = _dialers.local(local_address)
        try:
            sock = _dialers.connect(
                self._dialer, (host, port), timeout, source, socket_options or None
            )
        except TimeoutError as error:
            raise self._library.ConnectTimeout(error) from error
        except OSError as error:
            raise self._library.ConnectError(error) from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._stream(sock)


class AwaitingBackend(_Backend):
    """What connects for AsyncConnectionPool."""

    def __init__(self, library: ModuleType, before: Any, dialer: AnyDialer) -> None:
        super().__init__(library, before)
        self._dialer = _dialers.awaiting(dialer)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - as httpcore has it
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Any:
        """Connect, with the errors that httpcore has for it."""
        from connectx.aio.running import under_trio  # noqa: PLC0415 - asyncio, as in _dialers

        connecting = self._dialer.create_connection(
            (host, port),
            source_address=_dialers.local(local_address),
            socket_options=socket_options or None,
        )
        try:
            return await (self._by_trio if under_trio() else self._by_anyio)(connecting, timeout)
        except TimeoutError as error:
            raise self._library.ConnectTimeout(error) from error
        except OSError as error:
            raise self._library.ConnectError(error) from error

    async def _by_anyio(self, connecting: Any, seconds: float | None) -> Any:
        from connectx.integrations.anyio import stream_over  # noqa: PLC0415 - only where it is used

        async with asyncio.timeout(seconds):
            stream = await stream_over(await connecting)
        return _module(self._library, "anyio").AnyIOStream(stream)

    async def _by_trio(self, connecting: Any, seconds: float | None) -> Any:
        import trio  # noqa: PLC0415 - as above

        from connectx.integrations.trio import stream_over  # noqa: PLC0415 - as above

        with trio.move_on_after(math.inf if seconds is None else seconds):
            stream = stream_over(await connecting)
            return _module(self._library, "trio").TrioStream(stream)
        raise TimeoutError("timed out")


class Pooling:
    """What makes connections, and chooses them: the first base of a pool's class."""

    #: httpcore or httpcore2.
    library: ModuleType

    #: None where sources do not take turns.
    _turning: Dialer | None = None

    # Of httpcore's classes.
    _connections: list[Any]
    _max_connections: int
    _network_backend: Any
    _requests: list[Any]

    def __init__(
        self,
        *arguments: Any,
        dialer: AnyDialer | None = None,
        sources: _dialers.Sources = None,
        ports: _dialers.Ports = None,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        if keywords.get("network_backend") is None:
            self.dial_by(self.library, _dialers.blocking(dialer, sources, ports))
        elif _dialers.given(dialer, sources, ports):
            raise TypeError("network_backend connects, so give it or a dialer, but not both")

    def dial_by(self, library: ModuleType, dialer: Dialer) -> None:
        """Connect by a dialer from now on; library: as in the class."""
        self.library = library
        self._turning = dialer if _dialers.in_turns(dialer) else None
        backend = AwaitingBackend if hasattr(self, "handle_async_request") else BlockingBackend
        self._network_backend = backend(library, self._network_backend, dialer)

    def handle_request(self, request: Any) -> Any:
        """Do what httpcore does; where no port is left, its error has ours as the cause."""
        try:
            return super().handle_request(request)  # type: ignore[misc] # httpcore's
        except self.library.ConnectError as error:
            # httpcore takes the cause away.
            _dialers.with_cause(error)
            raise

    def _assign_requests_to_connections(self) -> list[Any]:
        """Find connections for the requests that wait, one after the other.

        httpcore takes the first connection that is idle. Where sources take turns, it is the one
        that has been idle longest, and a new one as long as there are fewer than sources.

        Returns:
            The connections to close.
        """
        assign = super()._assign_requests_to_connections  # type: ignore[misc] # httpcore's
        if self._turning is None:
            return cast("list[Any]", assign())
        everyone = self._requests
        waiting = [each for each in everyone if each.is_queued()]
        self._requests = [each for each in everyone if not each.is_queued()]
        try:
            closing = assign()
            for each in waiting:
                self._requests.append(each)
                aside = self._set_aside(self._turning, each.request.url.origin, closing)
                try:
                    closing += assign()
                finally:
                    self._connections = [*aside, *self._connections]
                if each.connection is None:
                    break
                self._connections.remove(each.connection)
                self._connections.append(each.connection)
        finally:
            self._requests = everyone
        if any(each.is_queued() for each in waiting):
            # All are in use. Those that take more than one request at a time may take others.
            closing += assign()
        return cast("list[Any]", closing)

    def _set_aside(self, dialer: Dialer, origin: Any, closing: list[Any]) -> list[Any]:
        """Take the connections out that are not to be used, since it is a new one's turn.

        Args:
            dialer: Whose sources take turns.
            origin: Where to.
            closing: Gets the one that has to make room for the new one.
        """
        kept = [each for each in self._connections if each.can_handle_request(origin)]
        family = next(filter(None, map(_family, kept)), 0)
        if len(kept) >= _dialers.turns(dialer, family, self._max_connections):
            return []
        if len(self._connections) >= self._max_connections:
            used = [each.connection for each in self._requests]
            idle = [each for each in kept if each.is_idle() and each not in used]
            if not idle:
                return []
            kept.remove(idle[0])
            self._connections.remove(idle[0])
            closing.append(idle[0])
        self._connections = [each for each in self._connections if each not in kept]
        return kept


class AsyncPooling(Pooling):
    """The same for AsyncConnectionPool."""

    async def handle_async_request(self, request: Any) -> Any:
        """Do what httpcore does; where no port is left, its error has ours as the cause."""
        try:
            return await super().handle_async_request(request)  # type: ignore[misc] # httpcore's
        except self.library.ConnectError as error:
            _dialers.with_cause(error)
            raise


def manage(pool: Any, library: ModuleType, dialer: Dialer) -> None:
    """Have a pool connect by a dialer that somebody else has made; of whatever kind it is."""
    kind: Any = type(pool)
    pool.__class__ = _pool_like(kind)
    pool.dial_by(library, dialer)


@functools.cache
def _pool_like(kind: Any) -> Any:
    base = AsyncPooling if hasattr(kind, "handle_async_request") else Pooling
    return type(kind.__name__, (base, kind), {})


def _family(connection: Any) -> int:
    """Return the family of a pool's connection; 0 if it is not there yet."""
    while (inner := getattr(connection, "_connection", None)) is not None:
        connection = inner
    stream = getattr(connection, "_network_stream", None)
    sock = None if stream is None else stream.get_extra_info("socket")
    return 0 if sock is None else int(sock.family)


@functools.cache
def _module(library: ModuleType, name: str) -> Any:
    return importlib.import_module(f"{library.__name__}._backends.{name}")
