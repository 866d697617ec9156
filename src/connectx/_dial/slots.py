"""The slots of a dialer's connections: what is open to each destination, and which calls wait.

- A `Slot` is one connection's place, for as long as a socket has it. A socket that connectx
  makes gives it back when it is closed; how the end of any other is noticed is in
  connectx._dial.endings.
- What is open is counted by sets, to which a slot is added and from which it is discarded.
  Each is one step that nothing can interrupt, and that may come twice. So a slot is given
  back without a lock, at any moment: a socket may be closed by a signal handler, or be
  collected as garbage, in the middle of anything.
- Everything else changes under one lock, which is held while something is changed and never
  while something is tried, waited for, or called that could come back. It is reentrant: a
  signal handler may use the dialer that it has interrupted.
- Calls that wait for a destination stand in wait queues, one for each source that they
  are bound to, and one for those that may have any. The first of a queue is the only one
  that tries.

`OwnSocket._real_close` (connectx._connect.own_socket) calls `Slot.closed`. Tests:
tests/_dial/test_call.py, tests/dialer/test_limit.py.
"""

from __future__ import annotations

import errno
import itertools
from collections import OrderedDict, deque
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from connectx.addresses import Endpoint, text

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Hashable, Mapping
    from typing import Protocol

    from connectx._connect.request import Request
    from connectx._connect.steps import Waiter
    from connectx.addresses import PortRange

    class Queued(Protocol):
        """A call that waits."""

        queue: Destination | None


#: Connections of a destination from which on others' are counted as well: reading the
#: list of sockets costs as much as opening some of them.
WORTH_COUNTING: Final = 32

#: Seconds after which a range that was full is tried in its turn again, or a call that waits
#: for one of many would search them all each second: this many times as long as the search
#: took, for each that is full, and within these bounds. An end there ends it sooner.
_FULL_REST: Final = 50.0
_FULL_SHORTEST: Final = 1.0
_FULL_LONGEST: Final = 10.0

#: Seconds for which others' connections are believed to be there still.
_SEEN_FOR: Final = 10.0


#: After so many tries one counts what was good, and forgets what is idle.
_TIDY_AFTER: Final = 64

#: Paths without a connection that are kept, since the next one may come soon; and how many
#: are forgotten at once of those that are more: twice as many as have come, which takes a tenth
#: of a millisecond.
_MOST_IDLE: Final = 64
_FORGOTTEN_AT_ONCE: Final = 2 * _TIDY_AFTER

#: Full sources of a destination from which on those are forgotten whose time is up. Those of
#: a large prefix are others at each call.
_MOST_FULL: Final = 64

#: What most destinations have of most things.
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

#: The flowinfo and the scope of an IPv4 address.
_NO_SCOPE: Final = (0, 0)

#: Names each end of a connection. No number comes twice, whichever threads take one.
_ENDS: Final = itertools.count(1)


def key_of(to: Request) -> tuple[str, Endpoint]:
    """Return what names the destination of a request: those that share its ports have the same.

    So have MPTCP and TCP, and an IPv4 address and its IPv4-mapped form.
    """
    origin, address = to.origin, to.address
    if origin.family != origin.wire_family:
        address = text(to.wire_destination), *address[1:]
    if len(address) == 2:
        address += _NO_SCOPE
    # Not Endpoint(), which takes twice the time.
    place = tuple.__new__(Endpoint, address)
    return (origin.protocol if origin.protocol != "mptcp" else "tcp"), place


class Counters:
    """What a dialer has done since it was made; see `connectx._dial.policy.Stats`.

    Attributes:
        failures: How many tries ended with each errno.
    """

    __slots__ = (
        "attempts",
        "failures",
        "opened",
        "retries",
        "search_seconds",
        "unserved",
        "waiting",
        "waits",
    )  # fmt: skip

    def __init__(self) -> None:
        self.attempts = 0
        self.opened = 0
        self.retries = 0
        self.waits = 0
        self.waiting = 0
        self.failures: dict[int, int] = {}
        self.search_seconds = 0.0
        self.unserved = 0


class Path:
    """From one source address to one destination.

    Attributes:
        destination, host: Its ends.
        slots: The slots of the connections that are open, or being tried, by id().
        ended: Which end was the last one here; 0 if there was none.
        idle: Whether it is noted to be looked at, since its last slot was given back.
    """

    __slots__ = ("destination", "ended", "host", "idle", "slots")

    def __init__(self, destination: Destination, host: str) -> None:
        self.destination = destination
        self.host = host
        self.slots: set[int] = set()
        self.ended = 0
        self.idle = False


class Destination:
    """What is open toward one destination, and which calls wait.

    Attributes:
        key: Names it.
        paths: Where connections come from, by source address.
        slots: The slots of all of them, by id().
        seen: Others' connections by source address, as the kernel said last.
        queues: The calls that wait, by the source waited for ("" for any); none is empty.
        endings: How ends are noticed, left by one first in a queue for the next.
        full: Until when a source's range need not be tried before others, nor by a call
            that waits; by source, then by range.
        last: The source address that was tried last.
    """

    # With a dictionary each would take 400 octets more.
    __slots__ = (
        "_most_full",
        "endings",
        "full",
        "key",
        "last",
        "paths",
        "queues",
        "seen",
        "seen_until",
        "slots",
    )

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.paths: dict[str, Path] = {}
        self.slots: set[int] = set()
        self.last = ""
        self.seen: Mapping[str, int] = _NOTHING
        self.seen_until = 0.0
        self.queues: Mapping[str, OrderedDict[Waiter, None]] = _NOTHING
        self.endings: Any = None
        self.full: Mapping[str, Mapping[PortRange | None, float]] = _NOTHING
        self._most_full = _MOST_FULL

    def __repr__(self) -> str:
        waiting = sum(map(len, self.queues.values()))
        return f"<Destination {self.key!r}: {len(self.slots)} open, {waiting} waiting>"

    @property
    def open(self) -> dict[str, int]:
        """Connections by source address."""
        paths = tuple(self.paths.values())
        return {path.host: len(path.slots) for path in paths if path.slots}

    @property
    def growing(self) -> bool:
        """Whether it is time to ask the kernel for others' connections: with each doubling."""
        total = len(self.slots)
        return total >= WORTH_COUNTING and not total & (total - 1)

    def ends(self, host: str) -> list[int]:
        """Return what changes when something ends there."""
        paths = self.paths
        # Routing may have chosen it, or chooses any.
        near = [paths.get(host), paths.get("")] if host else list(paths.values())
        return [path.ended for path in near if path is not None]

    def clear(self, host: str | None) -> None:
        """Note that something has ended there, so its range may not be full; None: anywhere."""
        full, self.full = self.full, _NOTHING if host is None else self.full
        # Routing may have chosen it.
        for each in tuple(self.paths) if host is None else (host, ""):
            path = self.paths.get(each)
            if path is not None:
                path.ended = next(_ENDS)
            if isinstance(full, dict):
                full.pop(each, None)

    def fill(self, host: str, ports: PortRange | None, now: float, begun: float) -> None:
        """Note that a search that began then has found no port there."""
        full = self.full
        if not isinstance(full, dict):
            full = self.full = {}
        if len(full) >= self._most_full:
            for other, ranges in tuple(full.items()):
                if max(ranges.values()) < now:
                    full.pop(other, None)
            self._most_full = max(_MOST_FULL, 2 * len(full))
        ranges = full.get(host, {})
        seconds = _FULL_REST * (len(full) + (not ranges)) * (now - begun)
        until = now + min(max(seconds, _FULL_SHORTEST), _FULL_LONGEST)
        # Replaced, since others may be reading it.
        full[host] = {**ranges, ports: until}

    def is_full(self, host: str, ports: PortRange | None, now: float) -> bool:
        """Return whether a source's range was full a moment ago."""
        ranges = self.full.get(host)
        return ranges is not None and ranges.get(ports, 0.0) > now

    def first(self, lane: str) -> Waiter | None:
        """Return who is first in a queue of those that will look, if anybody is."""
        queue = self.queues.get(lane)
        while queue:
            try:
                for waiter in queue:
                    if not waiter.gone:
                        return waiter
            except RuntimeError:
                # Somebody has come or gone in this very moment.
                continue
            return None
        return None

    def wake(self, host: str | None) -> None:
        """Have those look again who are first in a queue for a source; None: for any of them."""
        for lane in tuple(self.queues) if host is None else {"", host}:
            first = self.first(lane)
            if first is not None:
                first.wake()


#: A destination of which nothing is known.
_UNKNOWN: Final = Destination(None)


class Slot:
    """One connection's place, for as long as a socket has it.

    Ends with `release`, or when nobody has it any more: a socket thrown away unclosed
    is closed, too.

    Attributes:
        owner: Where it counts; None when it does no more.
        path: What it counts for.
    """

    __slots__ = ("_others", "owner", "path")

    owner: Destinations | None

    def __init__(self, owner: Destinations, path: Path) -> None:
        self.path = path
        self._others = 0
        self.owner = owner

    def release(self, *, ended: bool = True) -> None:
        """Give the place back; may be called again, and at any moment.

        ended: whether a connection has ended, so that those who wait are woken.
        """
        try:
            owner = self.owner
        except AttributeError:
            return  # An interrupt came in the middle of making it.
        if owner is None:
            return
        path, key = self.path, id(self)
        destination, slots = path.destination, path.slots
        slots.discard(key)
        destination.slots.discard(key)
        if not slots and not path.idle:
            path.idle = True
            owner.idle.append(path)
        if ended:
            path.ended = next(_ENDS)
            if destination.full:
                destination.clear(path.host)
            if destination.queues:
                destination.wake(path.host)
        # Last of all: after an interrupt in between `__del__` does it again.
        self.owner = None

    __del__ = release

    def shared(self) -> None:
        """Have one more socket have it, after dup()."""
        self._others += 1

    def closed(self) -> None:
        """Note that one of the sockets is closed; the last one gives the place back."""
        if self._others:
            self._others -= 1
        else:
            self.release()

    def detached(self, sock: Any) -> None:
        """Go on without the socket, whose descriptor gets an owner such as an SSLSocket.

        From now on the place ends when the socket is found to be gone.
        """
        if self.owner is not None:
            self.owner.on_detached(self, sock)


class Destinations:
    """The destinations of one dialer, and all that is counted.

    Attributes:
        limit: Connections to one destination at most; 0 for no limit.
        counters: What was done.
        on_detached: Called with a slot and a socket whose end nobody will report.
        idle: Where the last slot was given back, to be forgotten.
        good: Tries that were good, for each how many ports were refused before; a call adds
            its own, and they are counted later.
    """

    def __init__(
        self,
        limit: int,
        lock: threading.RLock,
        clock: Callable[[], float],
        on_detached: Callable[[Slot, Any], None],
    ) -> None:
        self.limit = limit
        self.on_detached = on_detached
        self.idle: deque[Path] = deque()
        self.good: deque[int] = deque()
        self._counters = Counters()
        self._attempts = 0
        self._lock = lock
        self._clock = clock
        self._known: dict[Hashable, Destination] = {}

    def __len__(self) -> int:
        return len(self._known)

    @property
    def counters(self) -> Counters:
        """What was done."""
        with self._lock:
            self._count_good()
            self._counters.attempts = self._attempts
        return self._counters

    def find(self, key: Hashable) -> Destination:
        """Return what is known of a destination; nothing at all, if there is nothing."""
        return self._known.get(key, _UNKNOWN)

    def open_to(self, key: Hashable) -> dict[str, int]:
        """Return how many connections are open to a destination now, by source address."""
        found = self._known.get(key)
        return {} if found is None else found.open

    def everything(self) -> list[Destination]:
        """Return all destinations that something is open to, or waited for."""
        with self._lock:
            self._forget_idle(len(self.idle))
            return list(self._known.values())

    def saw(self, key: Hashable, counts: Mapping[str, int]) -> None:
        """Take from the kernel how many connections each source has to a destination in all."""
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                ours = found.open
                seen = {host: count - ours.get(host, 0) for host, count in counts.items()}
                found.seen = {host: count for host, count in seen.items() if count > 0}
                found.seen_until = self._clock() + _SEEN_FOR

    # Slots.

    def reserve(self, key: Hashable, host: str, lane: str | None = None) -> Slot | None:
        """Return a slot that counts, for a connection that is about to be tried.

        None at the limit, or if somebody waits in the queue that `lane` names.
        """
        with self._lock:
            destination = self._known.get(key)
            if destination is None:
                destination = self._known[key] = Destination(key)
            elif lane is not None and lane in destination.queues:
                self._drop_gone(destination, lane)
                if lane in destination.queues:
                    return None
            if self.limit and len(destination.slots) >= self.limit:
                return None
            path = destination.paths.get(host)
            if path is None:
                path = destination.paths[host] = Path(destination, host)
            slot = Slot(self, path)
            number = id(slot)
            path.slots.add(number)
            destination.slots.add(number)
            destination.last = host
            attempts = self._attempts = self._attempts + 1
            if not attempts % _TIDY_AFTER:
                self._count_good()
                self._forget_idle(min(len(self.idle) - _MOST_IDLE, _FORGOTTEN_AT_ONCE))
        return slot

    def refused(self, slot: Slot, number: int, retries: int, seconds: float) -> None:
        """Take a place back, since the try has found no port.

        Wakes nobody, unlike the end of a connection.

        number: its errno. retries, seconds: how many ports were refused, in what time.
        """
        slot.release(ended=False)
        with self._lock:
            self._counters.retries += retries
            self._counters.search_seconds += seconds
            self._count_failure(number)

    def failed(self, error: BaseException) -> None:
        """Count a try that met with an error; not if it was called off."""
        number = error.errno if isinstance(error, OSError) else 0
        if not number and isinstance(error, TimeoutError):
            # Those that Python raises itself have none.
            number = errno.ETIMEDOUT
        with self._lock:
            self._count_failure(number or 0)

    def unserved(self) -> None:
        """Count a call that has not come to a try."""
        with self._lock:
            self._counters.unserved += 1

    # Wait queues.

    def join(self, call: Queued, key: Hashable, waiter: Waiter, lane: str, *, again: bool) -> None:
        """Have a call wait at the end of one of a destination's queues.

        again: whether it has waited before.
        """
        with self._lock:
            destination = self._known.get(key)
            if destination is None:
                destination = self._known[key] = Destination(key)
            # First, so that an interrupt leaves nobody in the queue who does not know of it.
            call.queue = destination
            queues = destination.queues
            if not isinstance(queues, dict):
                queues = destination.queues = {}
            queue = queues.get(lane) or OrderedDict()
            self._counters.waits += not again
            self._counters.waiting += 1
            queue[waiter] = None
            # Last: whatever a signal handler does meanwhile, nobody meets an empty queue.
            queues[lane] = queue

    def leave(self, destination: Destination, waiter: Waiter, lane: str) -> None:
        """Have a call wait no longer; the next one is woken, since there may be more.

        May be called again, if it was interrupted.
        """
        with self._lock:
            queue = destination.queues.get(lane)
            if queue is not None and waiter in queue:
                self._counters.waiting -= 1
                del queue[waiter]
            self._close_empty(destination, lane)
            self._forget(destination)
        destination.wake(lane)

    def hand_on(self, destination: Destination, endings: object) -> bool:
        """Keep how ends are noticed for who is next; False if nobody is, or has its own."""
        with self._lock:
            if not destination.queues or destination.endings is not None:
                return False
            destination.endings = endings
            return True

    def take_over(self, destination: Destination) -> Any:
        """Return what the last one to notice ends has handed on; None if that is nothing."""
        with self._lock:
            endings, destination.endings = destination.endings, None
        return endings

    # With the lock held.

    def _count_good(self) -> None:
        good = self.good
        while good:
            self._counters.retries += good[0]
            self._counters.opened += 1
            good.popleft()

    def _forget_idle(self, most: int) -> None:
        """Keep nothing of so many of the paths that were given up, if they still are."""
        for _ in range(min(most, len(self.idle))):
            path = self.idle.popleft()
            # First of all, so that what is given back from now on is noted again.
            path.idle = False
            if not path.slots:
                destination = path.destination
                destination.paths.pop(path.host, None)
                if not destination.paths:
                    self._forget(destination)

    def _drop_gone(self, destination: Destination, lane: str) -> None:
        """Have those wait no longer at the head of a queue who will never look."""
        queue = destination.queues[lane]
        while queue:
            waiter = next(iter(queue))
            if not waiter.gone:
                return
            del queue[waiter]
            self._counters.waiting -= 1
        self._close_empty(destination, lane)

    def _close_empty(self, destination: Destination, lane: str) -> None:
        """Have no queue where nobody waits any more."""
        queues = destination.queues
        if isinstance(queues, dict) and lane in queues and not queues[lane]:
            del queues[lane]

    def _count_failure(self, number: int) -> None:
        if number:
            failures = self._counters.failures
            failures[number] = failures.get(number, 0) + 1

    def _forget(self, destination: Destination) -> None:
        """Keep nothing of a destination that is idle."""
        if destination.slots or destination.paths or destination.queues:
            return
        if self._known.get(destination.key) is destination:
            del self._known[destination.key]
