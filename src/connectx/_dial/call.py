"""How many connections go where, who waits for a port, and what to do next.

A dialer keeps one `Budget`. For each call it asks for `Budget.dial`, a generator that
says what to do: `Try` a source and a range of ports, or `Wait`. The drivers do it,
blocking or awaiting, and know nothing of turns, limits and deadlines. In words:

- A call takes its turn: it tries at once if nobody waits for the destination, and
  otherwise waits behind those who do. Only the first in line tries.
- Who may have one source only waits for that with others of its kind, in a line of
  their own, or those who wait for another source would be in its way. With a limit
  all wait for the same places, hence in one line.
- It tries all sources and ranges before it gives up or waits, in the order that
  connectx._dial.sources has.
- Who waits is woken by the end of a connection of this dialer. The first in line also
  looks by itself now and then, since others' connections end as well.
- Once the first in line has a port, the next one is woken: one end may have been the
  first of several.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from connectx._dial.destination import WORTH_COUNTING, Destination

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence

    from connectx._dial.destination import Turn
    from connectx._dial.sources import Sources
    from connectx.addresses import PortRange

    Steps: TypeAlias = Generator["Try | Wait", Exception, None]

#: Seconds until the first in line looks by itself: at first, at most, and how much
#: longer each time. Nobody tells when a TIME_WAIT ends.
_POLL_FIRST: Final = 0.05
_POLL_LONGEST: Final = 1.0
_POLL_GROWTH: Final = 2.0
_HINT_FIRST: Final = 0.01

#: How many times as long as a search in vain has taken the next one has to wait. A search
#: of a full range takes milliseconds, and connections may end far more often than that
#: without giving a port back, into TIME_WAIT.
_REST: Final = 9.0
_REST_SHORTEST: Final = 0.001
_REST_LONGEST: Final = 1.0

#: Seconds for which others' connections are believed to be there still.
_SEEN_FOR: Final = 10.0

#: Destinations to which nothing is open, and which are remembered all the same: whoever
#: opens one connection at a time would start from nothing each time.
_MOST_IDLE: Final = 512


class Try(NamedTuple):
    """Connect from this address ("" for routing's choice), within these ports (None: any)."""

    host: str
    ports: PortRange | None


class Wait(NamedTuple):
    """Wait to be woken, so many seconds at most.

    first: whether it is the first in line, which should hear of others' connections.
    rest: wait all of the seconds, whoever wakes: the last search has cost its share.
    hint: seconds after which to look again if something has ended that may have been a
    connection to the destination. It grows: what ends may be others' sockets that were
    refused as this one was, and who woke each other by that would go on for ever.
    """

    turn: Turn
    seconds: float
    first: bool
    rest: bool = False
    hint: float = 1.0


class LimitReached(Exception):  # noqa: N818 - what happened
    """As many connections are open to the destination as the dialer allows."""


class TurnMissed(Exception):  # noqa: N818 - as above
    """Others were waiting for the destination all the time that the call could wait."""


class Counters:
    """What a dialer has done since it was made.

    attempts: sources and ranges tried. retries: ports refused within them.
    waits: calls that waited. waiting: calls that wait now.
    failures: by errno, what tries ended with.
    search_seconds: time spent in attempts that were refused.
    unserved: calls that ended at the limit, or before their turn came.
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


class Lease:
    """One connection's place in the budget, for as long as a socket has it.

    Ends with `release`, or when nobody has it any more: a socket thrown away unclosed
    is closed, too.

    budget: where it counts; None before and after. Set and unset together with the counts.
    """

    __slots__ = ("_others", "budget", "destination", "host")

    destination: Destination

    def __init__(self, host: str) -> None:
        self.budget: Budget | None = None
        self.host = host
        self._others = 0

    def release(self) -> None:
        """Give the place back; may be called again, and at any moment."""
        # Unset if an interrupt came in the middle of making it.
        budget = getattr(self, "budget", None)
        if budget is not None:
            self.budget = None
            budget.ended.append((self.destination, self.host, True))
            if self.destination.lines:
                self.destination.wake(self.host)

    __del__ = release

    def shared(self) -> None:
        """One more socket has the same descriptor's connection, after dup()."""
        self._others += 1

    def closed(self) -> None:
        """One of the sockets is closed; the last one gives the place back."""
        if self._others:
            self._others -= 1
        else:
            self.release()

    def detached(self, sock: Any) -> None:
        """The socket's descriptor gets an owner who will not tell of its end, such as an SSLSocket.

        From now on the place ends when the budget's owner finds the socket gone.
        """
        if self.budget is not None:
            self.budget.on_detached(self, sock)


class Budget:
    """The connections of one dialer.

    sources, ranges: where from; without ranges, from the range in force.
    limit: connections to one destination at most; 0 for no limit.
    wait: seconds to wait for a port.
    lock: held while something is changed, never while something is tried or waited for.
    clock: gives the time in seconds. jitter: gives a number from 0 to 1.
    on_wait: is called with the destination when a call begins to wait.
    on_detached: is called with the lease and the socket when nobody else will tell of its end.
    on_limit: is called when a limit is reached, to look for those that have ended.
    """

    def __init__(
        self,
        sources: Sources,
        ranges: Sequence[PortRange | None],
        *,
        limit: int,
        wait: float,
        lock: threading.Lock,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        on_wait: Callable[[Hashable], object] | None,
        on_detached: Callable[[Lease, Any], None],
        on_limit: Callable[[], None],
    ) -> None:
        self.on_detached = on_detached
        self.on_limit = on_limit
        self.sources = sources
        self.ranges = ranges
        self.limit = limit
        self.wait = wait
        self.counters = Counters()
        self._lock = lock
        self._clock = clock
        self._jitter = jitter
        self._on_wait = on_wait
        self._destinations: dict[Hashable, Destination] = {}
        self._names: dict[Hashable, Destination] = {}
        # Ends that are yet to be counted, and whether they have freed a port. Appended to
        # without the lock, since a socket may be collected as garbage in the middle of anything.
        self.ended: deque[tuple[Destination, str, bool]] = deque()

    def known_as(self, key: Hashable, name: Hashable, requests: dict[str, Any]) -> None:
        """Remember what to ask for where a caller uses a name, from each of the sources."""
        with self._lock:
            destination = self._destinations.get(key)
            if destination is not None and not destination.requests:
                destination.names.append(name)
                destination.requests = requests
                for host in requests:
                    destination.open.setdefault(host, 0)
                self._names[name] = destination

    def reserve_at_once(self, name: Hashable) -> tuple[Any, Lease] | None:
        """A request and a place for it, if nobody waits and there is nothing to consider.

        Nearly every call ends with its first try. This is that try, without a `Dial`,
        which would cost as much as two system calls. The place counts as opened.
        """
        with self._lock:
            if self.ended:
                self._count_ended()
            destination = self._names.get(name)
            if destination is None or destination.lines:
                return None
            requests, total, counts = destination.requests, destination.total, destination.open
            if destination.full:
                requests = self._not_full(destination)
            if not requests or (self.limit and total >= self.limit):
                return None
            if len(requests) == 1:
                (host,) = requests
            else:
                if not (total + 1) & total and total >= WORTH_COUNTING - 1:
                    return None  # See Destination.growing.
                # Without seen ones, `open` alone tells: its hosts are those of `requests`.
                if len(requests) == 2 and not destination.seen:
                    # As often as not there are two, and min() takes twice the time.
                    host, other = requests
                    if counts[other] < counts[host]:
                        host = other
                else:
                    load = destination.load if destination.seen else counts.__getitem__
                    host = min(requests, key=load)
            lease = Lease(host)
            lease.destination = destination
            destination.total = total + 1
            counts[host] += 1
            lease.budget = self
            counters = self.counters
            counters.attempts += 1
            counters.opened += 1
        return requests[host], lease

    def _not_full(self, destination: Destination) -> dict[str, Any]:
        """The requests from sources that have not been full a moment ago."""
        now = self._clock()
        destination.full = {of: until for of, until in destination.full.items() if until > now}
        full = {host for host, _ in destination.full}
        return {host: each for host, each in destination.requests.items() if host not in full}

    def failed_at_once(self, error: BaseException) -> None:
        """A place that was reserved at once has not been opened; its lease gives it back."""
        with self._lock:
            self.counters.opened -= 1
        self.failed(error)

    def failed(self, error: BaseException) -> None:
        """Count a try that met with an error; not if it was called off."""
        number = error.errno if isinstance(error, OSError) else 0
        if not number and isinstance(error, TimeoutError):
            # Those that Python raises itself have none.
            number = errno.ETIMEDOUT
        if number:
            with self._lock:
                failures = self.counters.failures
                failures[number] = failures.get(number, 0) + 1

    def unserved(self) -> None:
        """Count a call that has not come to a try."""
        with self._lock:
            self.counters.unserved += 1

    def open_to(self, key: Hashable) -> dict[str, int]:
        """How many connections are open to a destination now, by source address."""
        with self._lock:
            self._count_ended()
            found = self._destinations.get(key)
            return {} if found is None else {host: n for host, n in found.open.items() if n}

    def saw(self, key: Hashable, counts: Mapping[str, int]) -> None:
        """Learn from the kernel how many connections each source has to a destination, all told."""
        with self._lock:
            self._count_ended()
            found = self._destinations.get(key)
            if found is not None:
                found.seen = {
                    host: max(0, count - found.open.get(host, 0)) for host, count in counts.items()
                }
                found.seen_until = self._clock() + _SEEN_FOR

    def find(self, key: Hashable) -> Destination:
        """What is known of a destination; a new one where there is nothing."""
        if self.ended:
            with self._lock:
                self._count_ended()
        return self._destinations.get(key) or Destination(key)

    def reserve(self, key: Hashable, lease: Lease) -> bool:
        """Have a lease count, for a connection that is about to be tried; not above the limit."""
        with self._lock:
            self._count_ended()
            destination = self._destinations.get(key)
            if destination is None:
                destination = self._destinations[key] = Destination(key)
            if self.limit and destination.total >= self.limit:
                self._forget(destination)
                return False
            count = destination.open.get(lease.host, 0)
            lease.destination = destination
            destination.total += 1
            destination.open[lease.host] = count + 1
            lease.budget = self
            self.counters.attempts += 1
            return True

    def refused(self, lease: Lease, number: int, retries: int) -> None:
        """Take a place back, since the try has failed; number: its errno, 0 if cancelled.

        Wakes nobody, unlike the end of a connection.
        """
        with self._lock:
            if lease.budget is not None:
                lease.budget = None
                self.ended.append((lease.destination, lease.host, False))
            self._count_ended()
            self.counters.retries += retries
            if number:
                failures = self.counters.failures
                failures[number] = failures.get(number, 0) + 1

    def retried(self, count: int) -> None:
        """Count refused ports."""
        with self._lock:
            self.counters.retries += count

    def searched(self, seconds: float) -> None:
        """Count time spent in a try that was refused."""
        with self._lock:
            self.counters.search_seconds += seconds

    def connected(self) -> None:
        """Count a try that was good."""
        with self._lock:
            self.counters.opened += 1

    def join(
        self, dial: Dial, key: Hashable, place: Turn, lane: str, *, again: bool
    ) -> Destination:
        """Have a call wait at the end of one of a destination's lines, which is its `line` then.

        again: whether it has waited before.
        """
        with self._lock:
            destination = self._destinations.get(key)
            if destination is None:
                destination = self._destinations[key] = Destination(key)
            dial.line = destination
            line = destination.lines.setdefault(lane, deque())
            self.counters.waits += not again
            self.counters.waiting += 1
            line.append(place)
        return destination

    def joined(self, key: Hashable) -> None:
        """Tell that a call waits; raises what the user's function does."""
        if self._on_wait is not None:
            self._on_wait(key)

    def leave(self, destination: Destination, place: Turn, lane: str) -> None:
        """Have a call wait no longer; the next one is woken, since there may be more.

        May be called again, if it was interrupted.
        """
        with self._lock:
            line = destination.lines.get(lane)
            if line and place in line:
                self.counters.waiting -= 1
                line.remove(place)
            if not line:
                destination.lines.pop(lane, None)
            self._forget(destination)
        destination.wake(lane)

    def hand_on(self, destination: Destination, ear: object) -> bool:
        """Keep what ends are heard by for the next in line; False if nobody is, or has another."""
        with self._lock:
            if not destination.lines or destination.ear is not None:
                return False
            destination.ear = ear
            return True

    def take_over(self, destination: Destination) -> Any:
        """What the last in line to hear has handed on; None if that is nothing."""
        with self._lock:
            ear, destination.ear = destination.ear, None
        return ear

    def now(self) -> float:
        """The time, in seconds."""
        return self._clock()

    def spread(self, seconds: float) -> float:
        """About so long: or all the dialers of a machine would look at once."""
        return seconds * (0.5 + self._jitter())

    def _count_ended(self) -> None:
        ended = self.ended
        while ended:
            destination, host, freed = ended[0]
            if freed and (destination.full or destination.searching):
                destination.clear(host)
            count = destination.open[host] - 1
            destination.total -= 1
            destination.open[host] = count
            ended.popleft()
            if not count and host not in destination.requests:
                del destination.open[host]
            if not destination.total and not (
                destination.names and len(self._destinations) <= _MOST_IDLE
            ):
                self._forget(destination)

    def _forget(self, destination: Destination) -> None:
        """Keep nothing of idle destinations, but for the latest that are known by name."""
        if destination.total or destination.lines:
            return
        if not destination.names and self._destinations.get(destination.key) is destination:
            del self._destinations[destination.key]
        if len(self._destinations) <= _MOST_IDLE:
            return
        for idle in [each for each in self._destinations.values() if not each.total]:
            if not idle.lines:
                del self._destinations[idle.key]
                for name in idle.names:
                    self._names.pop(name, None)


class Dial:
    """One call: its steps, and what it has in the budget meanwhile.

    key: names the destination. version: of IP, 4 or 6. only: the one source that it may
    have; "" for any of them.
    turn: makes a place in the line. wait: whether it may wait, if the budget has it so.

    Go through `steps`: do each step, send what a try met with if no port was to be had,
    and close the generator when connected or on any other error. `lease` takes a
    connection's place out of its hands; `leave` ends its turn early.
    """

    __slots__ = (
        "_budget",
        "_deadline",
        "_hears",
        "_joined",
        "_key",
        "_lane",
        "_lease",
        "_only",
        "_place",
        "_turn",
        "_version",
        "_wait",
        "line",
    )  # fmt: skip

    def __init__(
        self,
        budget: Budget,
        key: Hashable,
        version: int,
        only: str,
        turn: Callable[[], Turn],
        *,
        wait: bool = True,
    ) -> None:
        self._wait = budget.wait if wait else 0.0
        self._budget = budget
        self._key = key
        self._version = version
        self._only = only
        self._lane = "" if budget.limit else only
        self._turn = turn
        # The place in the budget of the try at hand.
        self._lease: Lease | None = None
        # Where it waits in a line, and its place there.
        self.line: Destination | None = None
        self._place: Turn | None = None
        self._deadline = 0.0
        # The same when it has left.
        self._joined: Destination | None = None
        # Whether it hears of others' ends, as the first in line.
        self._hears = False

    def lease(self) -> Lease:
        """The place of the connection that the last try has opened."""
        lease, self._lease = self._lease, None
        if lease is None:
            raise RuntimeError("there is no connection to take a lease of")
        self._budget.connected()
        return lease

    @property
    def in_line(self) -> bool:
        """Whether it waits, or has waited, in a line."""
        return self.line is not None

    def retried(self, count: int) -> None:
        """Count ports that were refused in a try that was good in the end."""
        if count:
            self._budget.retried(count)

    def leave(self) -> None:
        """The port is taken: let the next in line try, whatever becomes of the handshake."""
        if self.line is not None and self._place is not None:
            self._budget.leave(self.line, self._place, self._lane)
            self.line = None

    def steps(self) -> Steps:
        """What to do until there is a connection; raises what the last try met with.

        LimitReached and TurnMissed where it has not come to a try.
        """
        budget = self._budget
        poll, hint = _POLL_FIRST, _HINT_FIRST
        failure: Exception = TurnMissed()
        try:
            while True:
                now = budget.now()
                rest = 0.0
                if self._may_try():
                    begun = now
                    failure = yield from self._tries(failure)
                    now = budget.now()
                    rest = min(_REST * (now - begun), _REST_LONGEST)
                if self.line is None:
                    if not self._wait:
                        raise failure
                    line, place = self._join(now)
                if now >= self._deadline:
                    raise failure
                seconds = self._deadline - now
                first = line.lines[self._lane][0] is place
                if first and rest > _REST_SHORTEST:
                    yield Wait(place, min(seconds, rest), first, rest=True)
                    seconds = max(0.0, self._deadline - budget.now())
                if first:
                    seconds = min(seconds, budget.spread(poll))
                    poll = min(poll * _POLL_GROWTH, _POLL_LONGEST)
                    hint = min(hint * _POLL_GROWTH, _POLL_LONGEST)
                yield Wait(place, seconds, first, hint=hint)
                self._hears |= first
        finally:
            try:
                self._end()
            except BaseException:
                # A signal's handler has raised in the middle of it.
                self._end()
                raise
            # Its traceback refers to this frame: break the cycle.
            del failure

    def _end(self) -> None:
        """The call is over; may be called again."""
        # Cancelled, or refused by the server: the place is free for the next in line.
        if self._lease is not None:
            self._lease.release()
            self._lease = None
        self.leave()
        if self._place is not None:
            self._place.close()

    def _join(self, now: float) -> tuple[Destination, Turn]:
        """Take a place at the end of the line, for as long as the call may wait altogether."""
        place = self._place
        # It may have left the line for a port that was another's in the end.
        again = place is not None
        if place is None:
            self._deadline = now + self._wait
            place = self._place = self._turn()
        line = self._joined = self._budget.join(self, self._key, place, self._lane, again=again)
        if not again:
            self._budget.joined(self._key)
        return line, place

    def _may_try(self) -> bool:
        """Whether nobody is in line before it."""
        destination = self.line or self._budget.find(self._key)
        try:
            return destination.lines[self._lane][0] is self._place
        except LookupError:
            return True

    def heard(self, host: str | None) -> None:
        """Somebody's connection from a source address to the destination has ended; None: any.

        Who hears it when its own turn is over tells the next in line.
        """
        known = self.line or self._budget.find(self._key)
        known.clear(host)
        if self.line is None:
            known.wake(host)

    def take_over(self) -> Any:
        """What the last in line to hear has handed on: no end is missed in between."""
        return None if self._joined is None else self._budget.take_over(self._joined)

    def hand_on(self, ear: object) -> bool:
        """Hand it on to whoever is in line; False if nobody wants it."""
        return self._joined is not None and self._budget.hand_on(self._joined, ear)

    def _tries(self, failure: Exception) -> Generator[Try, Exception, Exception]:
        """Every source and range once; returns what the last one met with.

        failure: what the last try before met with. Who waits in line passes over what was
        full a moment ago, until something ends there, or that moment is past, or this is
        the last round.
        """
        budget = self._budget
        known = budget.find(self._key)
        for host, ports in self._candidates(known):
            lease = self._lease = Lease(host)
            if not budget.reserve(self._key, lease):
                budget.on_limit()
                if not budget.reserve(self._key, lease):
                    return LimitReached()
            destination = lease.destination
            destination.last = host
            destination.searching.add(host)
            begun = budget.now()
            try:
                failure = yield Try(host, ports)
                number = failure.errno if isinstance(failure, OSError) else 0
                budget.refused(lease, number or 0, getattr(failure, "attempts", 0))
                quiet = host in destination.searching
            finally:
                destination.searching.discard(host)
            # Not if something has ended meanwhile, or may have with nobody to hear it: whoever
            # waits would pass over a range that is not full any more.
            if not budget.wait or (self._hears and quiet):
                destination.fill(host, ports, budget.now(), begun)
        return failure

    def _candidates(self, known: Destination) -> Iterator[tuple[str, PortRange | None]]:
        """Sources and ranges in their order; those that were full a moment ago come last."""
        budget = self._budget
        later = []
        now = budget.now() if known.full else 0.0
        if known.seen and known.seen_until < budget.now():
            known.seen = {}
        for host in self._hosts(known):
            for ports in budget.ranges:
                if known.full and known.full.get((host, ports), 0.0) > now:
                    later.append((host, ports))
                else:
                    yield host, ports
        if self.line is None or budget.now() >= self._deadline:
            yield from later

    def _hosts(self, known: Destination) -> Iterator[str]:
        if self._only:
            return iter((self._only,))
        return self._budget.sources.order(self._version, known.load, known.last)
