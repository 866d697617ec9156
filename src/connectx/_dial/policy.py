"""The policy of a dialer: all that the blocking face and the awaiting one share.

A policy has settings, and what is open in this process. A forked child begins with
nothing open.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

from connectx._connect.namespace import NAMESPACES
from connectx._connect.plain import not_linux
from connectx._connect.plan import absence, within
from connectx._connect.request import NEW_SOCKET, parse, request_from, scoped
from connectx._connect.steps import Work
from connectx._dial.call import LimitReached
from connectx._dial.capacity import Capacity, count, count_each, full_sources
from connectx._dial.endings import Unreported
from connectx._dial.settings import check
from connectx._dial.slots import Destinations, key_of
from connectx._dial.sources import MOST_FREE, STICKY
from connectx._dial.terms import Terms
from connectx.addresses import HIGHEST_PORT, V4_MAPPED_TEXT, Endpoint
from connectx.errors import PortsExhausted

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence
    from collections.abc import Set as AbstractSet

    from connectx._connect.namespace import Namespace
    from connectx._connect.request import Request
    from connectx._connect.steps import Steps
    from connectx._connect.strategies import StrategyName
    from connectx._dial.call import AnyTarget
    from connectx._dial.settings import Settings
    from connectx._dial.sources import Rotation
    from connectx.addresses import Address, PortRange


class Stats(NamedTuple):
    """What a dialer has done since it was made.

    Attributes:
        attempts: Tries to connect; one for each source and range of ports.
        opened: How many of them got a connection.
        retries: Ports that were refused within tries.
        waits: Calls that had to wait for a port.
        waiting: Calls that wait now.
        failures: Tries that got no connection, by the name of the errno.
        search_seconds: Time spent in tries that found no port.
        unserved: Calls that ended at the limit, or before their turn came.
    """

    attempts: int
    opened: int
    retries: int
    waits: int
    waiting: int
    failures: dict[str, int]
    search_seconds: float
    unserved: int


#: How many times as long as counting others' connections has taken they are not counted again:
#: that takes 1 % of the time at most.
_COUNT_REST: Final = 99.0


class Open:
    """What a process has open.

    Attributes:
        pid: The process.
        count_again: When to count others' connections again, on the monotonic clock.
        destinations, unreported: Its sockets.
        terms: What its calls have in common.
    """

    # No named tuple, whose attributes take longer to load.
    __slots__ = ("count_again", "destinations", "pid", "terms", "unreported")

    def __init__(self, settings: Settings) -> None:
        self.pid = os.getpid()
        self.count_again = 0.0
        self.unreported = Unreported()
        self.destinations = Destinations(
            settings.limit, threading.RLock(), time.monotonic, self.unreported.add
        )
        self.terms = Terms(
            self.destinations,
            settings.sources,
            settings.ranges,
            wait=settings.wait,
            clock=time.monotonic,
            jitter=random.random,
            on_wait=settings.on_wait,
            unreported=self.unreported,
        )


class Policy:
    """Which sources and ports, how many connections, and which calls wait.

    Attributes:
        settings: What the dialer was made with.
        sticks: Whether a call has one source only, by its key.
        versions: Of IP, those that there are sources of.
        targets: What calls have in common, by what they ask for.
        current: What the process had open that looked last; see `open`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        sources = settings.sources
        self.sticks = sources.rotate == STICKY
        self.versions = frozenset(each for each in (4, 6) if sources.serves(each))
        self.targets: dict[Hashable, AnyTarget] = {}
        self._begun: dict[int, Open] = {}
        self.current = self._begin()

    def __deepcopy__(self, _: object) -> Policy:
        """Return the same one: a copy of a dialer shares its limits, counts and wait queue."""
        return self

    def __reduce__(self) -> tuple[type[Policy], tuple[Settings]]:
        """Pickle the settings: in another process nothing is open yet."""
        return Policy, (self.settings,)

    @property
    def open(self) -> Open:
        """What is open; nothing yet in a process that was forked meanwhile."""
        begun = self.current
        return begun if begun.pid == os.getpid() else self._begin()

    @property
    def destinations(self) -> Destinations:
        """What is open, by destination."""
        return self.open.destinations

    @property
    def unreported(self) -> Unreported:
        """The sockets that do not report their end."""
        return self.open.unreported

    def describe(self) -> str:
        """Return the settings and what is open, in a few words."""
        settings = self.settings
        known = self.destinations.everything()
        ranges = ", ".join(str(each) for each in settings.ranges if each) or "any port"
        words = [str(settings.sources), ranges, f"{sum(len(each.slots) for each in known):,} open"]
        if settings.wait:
            words.append(f"{self.destinations.counters.waiting:,} waiting")
        return ", ".join(words)

    # What there is.

    def count(self, address: Address, kind: int, proto: int) -> Steps[Capacity]:
        """Return the ports toward a destination, where counting keeps nobody waiting."""
        if sys.platform != "linux":
            raise not_linux(parse(0, kind, proto, self.settings.strategy, None, address))
        namespace = NAMESPACES.here()
        work = Work(partial(self.capacity, address, kind, proto, namespace))
        return cast("Capacity", (yield work))

    def capacity(self, address: Address, kind: int, proto: int, namespace: Namespace) -> Capacity:
        """Return the ports toward a destination in a namespace; see connectx.Dialer.capacity.

        Raises:
            OSError: EXDEV, in a thread that is in another one.
        """
        # A list is taken, and a scope by name, where create_connection() takes them.
        address = scoped(tuple(address) if isinstance(address, list) else address)
        to = self.serve(parse(0, kind, proto, self.settings.strategy, None, address))
        usable = self._usable(to, namespace, self.settings.ranges)
        sources, version = self.settings.sources, to.origin.version
        only = sources.single(version)
        if only is not None:
            counted = [count(namespace, request_from(to, only, NEW_SOCKET), usable)]
        else:
            hosts, prefixes = sources.hosts(version), sources.prefixes(version)
            counted = count_each(namespace, to, hosts, prefixes, usable)
        self.destinations.saw(
            key_of(to), {each.source: sum(each.in_use.values()) for each in counted}
        )
        total = sum(each.total for each in counted)
        free = sum(each.free for each in counted)
        return Capacity(total, total - free, free, tuple(counted))

    def stats(self) -> Stats:
        """Return what was done; see connectx.Dialer.stats."""
        counters = self.destinations.counters
        return Stats(
            counters.attempts,
            counters.opened,
            counters.retries,
            counters.waits,
            counters.waiting,
            {
                errno.errorcode.get(number, str(number)): count
                for number, count in counters.failures.copy().items()
            },
            counters.search_seconds,
            counters.unserved,
        )

    def count_others(self, to: Request, namespace: Namespace, begun: Open) -> None:
        """Have "most-free" know of connections that are not this dialer's.

        It goes on with what it knew where that cannot be found out, or another thread is at
        it: a source that is full is passed over all the same.
        """
        started = time.monotonic()
        if started < begun.count_again:
            return
        begun.count_again = math.inf
        try:
            with contextlib.suppress(OSError):
                self.capacity(to.address, to.origin.type, to.origin.proto, namespace)
        finally:
            now = time.monotonic()
            begun.count_again = now + _COUNT_REST * (now - started)

    def find_full(
        self, to: Request, namespace: Namespace
    ) -> AbstractSet[tuple[str, PortRange | None]]:
        """Return the sources and ranges of which every port is connected to a destination.

        None where that cannot be found out: each is tried then.
        """
        full: set[tuple[str, PortRange | None]] = set()
        with contextlib.suppress(OSError):
            ranges = self.settings.ranges
            usable = [self._usable(to, namespace, (ports,)) for ports in ranges]
            for ports, hosts in zip(ranges, full_sources(namespace, to, usable), strict=True):
                full.update((host, ports) for host in hosts)
        return full

    # What a call asks for.

    def serve(self, to: Request) -> Request:
        """Return the request if there is a source of its version; OSError (EAFNOSUPPORT) if not."""
        if to.origin.version not in self.versions:
            raise OSError(
                errno.EAFNOSUPPORT,
                f"none of the dialer's sources is IPv{to.origin.version}, as {to.destination} is",
            )
        return to

    def only(self, to: Request, key: str | None) -> str:
        """Return the one source that a call may have; "" for any of them.

        Raises ValueError for a source, which is a socket's that is bound to it, that the
        dialer would not take.
        """
        sources, version = self.settings.sources, to.origin.version
        # The same for an IPv4-mapped address as for the IPv4 address.
        only = sources.only(version, key_of(to)[1].host if key is None else key)
        bound = to.origin.source.host.removeprefix(V4_MAPPED_TEXT)
        if bound and (only not in ("", bound) or not sources.has(version, bound)):
            asked = to.origin.options.replaceable
            who = f"the source address is {bound}" if asked else f"the socket is bound to {bound}"
            raise ValueError(
                f"{who}, which is none of the dialer's sources"
                if not only
                else f"{who}, but its key to {only}"
            )
        return bound or only

    def failure(self, error: Exception, to: Request) -> PortsExhausted:
        """Return the error of a call that has not come to a try."""
        open_now = sum(self.destinations.open_to(key_of(to)).values())
        limit = self.settings.limit
        reason = (
            f"the dialer's limit of {limit} connections to {to.destination} is reached"
            if isinstance(error, LimitReached)
            else f"other calls waited for a port toward {to.destination} ahead of this one, "
            f"for all of its {self.settings.wait:g} seconds"
        )
        return PortsExhausted(
            reason,
            protocol=to.origin.protocol,
            source=Endpoint("", 0),
            destination=to.destination,
            strategy=self.settings.strategy,
            errno=errno.EADDRNOTAVAIL if to.origin.stream else errno.EAGAIN,
            explanation=lambda: (
                f"{open_now} connections of this dialer to {to.destination} were open. Close some, "
                "raise the limit, or wait longer."
            ),
        )

    # Within.

    def _begin(self) -> Open:
        """Start with nothing open: at first, and in a child process."""
        pid = os.getpid()
        # Of threads that come here at once the first one's is everybody's. Not by a lock:
        # the parent's thread that holds it might not be in the child.
        begun = self.current = self._begun.setdefault(pid, Open(self.settings))
        for other in tuple(self._begun):
            if other != pid:
                self._begun.pop(other, None)
        return begun

    def _usable(
        self, to: Request, namespace: Namespace, ranges: Iterable[PortRange | None]
    ) -> bytes:
        """Return 1 for each port number that may be used, else 0; RangeNotHonoured as a call."""
        in_force = namespace.ports
        if in_force is None:
            raise absence(to)
        found = bytearray(HIGHEST_PORT + 1)
        for ports in ranges:
            low, high = within(namespace, to, ports) or in_force
            found[low : high + 1] = b"\1" * (high + 1 - low)
        for low, high in (*namespace.reserved, *self.settings.exclude):
            found[low : high + 1] = bytes(high + 1 - low)
        return bytes(found)


class AnyDialer:
    """What a dialer is made with, and what it has done."""

    _policy: Policy

    def __init__(
        self,
        sources: Iterable[str] | AnyDialer | None = None,
        ports: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
        *,
        exclude: Iterable[int | tuple[int, int]] = (),
        strategy: StrategyName = "auto",
        rotate: Rotation = MOST_FREE,
        limit: int | None = None,
        wait: float | None = None,
        freebind: bool = False,
        on_wait: Callable[[Any], object] | None = None,
        fallback: Literal["plain"] | None = None,
    ) -> None:
        if isinstance(sources, AnyDialer):
            given = (ports, exclude, strategy, rotate, limit, wait, freebind, on_wait, fallback)
            if given != (None, (), "auto", MOST_FREE, None, None, False, None, None):
                raise TypeError(
                    "the settings are those of the dialer that is given: give no others"
                )
            self._policy = sources._policy  # noqa: SLF001 - another face of it
            return
        self._policy = Policy(
            check(
                sources,
                ports,
                exclude=exclude,
                strategy=strategy,
                rotate=rotate,
                limit=limit,
                wait=wait,
                freebind=freebind,
                on_wait=on_wait,
                fallback=fallback,
            )
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._policy.describe()}>"

    def stats(self) -> Stats:
        """Return what this dialer has done since it was made."""
        return self._policy.stats()
