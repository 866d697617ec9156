"""What redis-py's clients have in common, the one that blocks and the one for asyncio.

What connects is `Connection._connect()`. A pool hands what it was made with on to its connections;
a client makes a pool.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, cast

from connectx.integrations import _dialers
from connectx.integrations._rebinding import rebound

with _dialers.library("redis", "5.0"):
    import redis.exceptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx._dial.policy import AnyDialer
    from connectx.errors import ConnectxError

#: What redis-py raises where there is no connection.
ERRORS = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)


@functools.cache
def default_retry(client: Any, at_once: Callable[[type], type]) -> Any:
    """Return what a client tries again unasked, but not for lack of a port.

    Kept, since to look at a signature of 60 arguments takes as long as connecting. Each
    connection has a copy.

    Args:
        client: Its class.
        at_once: Makes a class of retries that tries nothing again for lack of a port.
    """
    default = inspect.signature(client.__init__).parameters["retry"].default
    if default is None:
        return None
    return at_once(type(default))(default._backoff, default._retries)  # noqa: SLF001 - as set


class Explaining:
    """What says why there is no connection: a base of our connections.

    Attributes:
        why: The error of ours that the last try to connect ended with.
    """

    why: ConnectxError | None = None

    def explain(self, error: Exception) -> None:
        """Give an error of redis-py the one that it was made of."""
        if self.why is not None and error.__context__ is self.why:
            error.__cause__ = self.why
        self.why = None


class Turns(list[Any]):
    """The idle connections of a pool.

    redis-py takes the one that was used last. Where sources take turns, it is the one that has
    been idle longest, and a new one as long as there are fewer than sources.
    """

    def __init__(self, pool: Any, idle: list[Any]) -> None:
        super().__init__(idle)
        self._pool = pool

    def pop(self, *place: Any) -> Any:
        """Take one; IndexError if there is to be a new one."""
        family = self and self[0].socket_family
        if not family or place:
            return super().pop(*place)
        pool = self._pool
        turns = _dialers.turns(pool.dialer, family, pool.max_connections)
        if not turns:
            return super().pop()
        open_now = len(self) + len(pool._in_use_connections)  # noqa: SLF001 - the pool's
        if open_now < min(turns, pool.max_connections):
            raise IndexError
        return super().pop(0)


class Pooling:
    """What makes connections: the first base of a pool's class."""

    #: Our connections' class, and what makes a dialer of the keywords.
    Connects: Any
    dialer_of: Callable[..., Any]

    # Of redis-py's classes.
    connection_class: Any
    connection_kwargs: dict[str, Any]

    def __init__(
        self,
        *arguments: Any,
        dialer: AnyDialer | None = None,
        sources: _dialers.Sources = None,
        ports: _dialers.Ports = None,
        **keywords: Any,
    ) -> None:
        self.dialer = type(self).dialer_of(dialer, sources, ports)
        self._idle: Turns | list[Any] = []
        super().__init__(*arguments, **keywords)
        self.connection_class = dialling(self.connection_class, self.Connects)
        if issubclass(self.connection_class, self.Connects):
            self.connection_kwargs["dialer"] = self.dialer
            if _dialers.in_turns(self.dialer):
                self._idle = Turns(self, self._idle)

    @property
    def _available_connections(self) -> list[Any]:
        return self._idle

    @_available_connections.setter
    def _available_connections(self, idle: list[Any]) -> None:
        self._idle = Turns(self, idle) if isinstance(self._idle, Turns) else idle


@functools.cache
def dialling(kind: Any, connects: Any) -> Any:
    """Return a class of connections like another one, such as a program's own, that dials.

    Args:
        kind: The class.
        connects: Ours, which is derived from the library's for TCP.
    """
    plain = connects.__mro__[2]
    if issubclass(kind, connects) or not issubclass(kind, plain):
        return kind
    return connects if kind is plain else type(kind.__name__, (kind, connects), {})


def begin(client: Any, kind: Any, pools: Any, arguments: Any, keywords: dict[str, Any]) -> None:
    """Initialise a client of a library's class `kind`, with a pool of ours.

    Raises:
        TypeError: There is a pool already, and a dialer.
    """
    given = {name: keywords.pop(name, None) for name in ("dialer", "sources", "ports")}
    if keywords.get("connection_pool") is not None and given != dict.fromkeys(given):
        raise TypeError("give the dialer, sources or ports to the pool")
    initialise = rebound(
        inspect.unwrap(kind.__init__), ConnectionPool=functools.partial(pools, **given)
    )
    initialise(client, *arguments, **keywords)


def from_url(client: Any, kind: Any, pools: Any, arguments: Any, keywords: Any) -> Any:
    """Make a client as the library's class `kind` does it from a URL, with a pool of ours."""
    making = rebound(
        cast("Any", kind.from_url).__func__,
        ConnectionPool=pools,
    )
    return making(client, *arguments, **keywords)
