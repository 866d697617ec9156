"""One call of a dialer: which source it tries, and how it waits for a port.

In words:

- A call tries at once if nobody waits for the destination, and otherwise waits behind
  those who do. Only the first in a queue tries.
- A call that may have one source only waits for that with others of its kind, in a queue
  of their own, or those who wait for another source would be in its way. With a limit all
  wait for the same slots, hence in one queue.
- It tries all sources and ranges before it gives up or waits, in the order that
  connectx._dial.sources has.
- A waiting call is woken by the end of a connection of this dialer. The first in a queue
  also learns from the kernel of others' ends, and looks by itself now and then, since not
  all ends are reported.
- Once the first in a queue has a port, the next one is woken: one end may have been the
  first of several.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from connectx._connect.waits import Handshake, NewWaiter, Pause
from connectx._dial.destination import Slot
from connectx.errors import PortsExhausted

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence
    from typing import Protocol

    from connectx._connect.waits import Steps, Waiter
    from connectx._dial.destination import Destination, Destinations
    from connectx._dial.sources import Sources
    from connectx.addresses import PortRange

    class Opening(Protocol):
        """A connection in the making; connectx._connect.connection.Connection."""

        @property
        def retries(self) -> int:
            """How many ports were refused."""

        def begin(self) -> Steps[None] | None:
            """Make the first proposal; None if it is connected, else what is left to do."""

    class Ending(Protocol):
        """The end of a connection, or what may have been one."""

        @property
        def host(self) -> str | None:
            """The source address; None for any."""

        @property
        def certain(self) -> bool:
            """Whether it was one, and has freed a 4-tuple."""

    class Endings(Protocol):
        """How the ends of connections to one destination are noticed."""

        def fileno(self) -> int:
            """Readable when there is something to take."""

        def take(self) -> Sequence[Ending]:
            """What has ended since the last call."""

        def close(self) -> None:
            """Notice no more."""

    class Unreported(Protocol):
        """The sockets of a dialer that do not report their end."""

        def sweep(self, most: int) -> None:
            """Look at so many of them, and give back the slots of closed ones."""

        def look(self) -> None:
            """Look at all of them, before a call is refused."""


OpeningT = TypeVar("OpeningT", bound="Opening")

#: How many of the unreported sockets a call that waits looks at each time.
SWEPT_BY_A_WAITER: Final = 256

#: Seconds until the first in a queue looks by itself: at first, at most, and how much
#: longer each time. Nobody reports the end of a TIME_WAIT.
_POLL_FIRST: Final = 0.05
_POLL_LONGEST: Final = 1.0
_POLL_GROWTH: Final = 2.0

#: Seconds after which it looks if something has ended that may have been a connection to
#: the destination; they grow alike. What ends may be others' sockets that were refused as
#: this one was, and calls that woke each other by that would go on for ever.
_HINT_FIRST: Final = 0.01

#: How many times as long as a search in vain has taken the next one has to wait. A search
#: of a full range takes milliseconds, and connections may end far more often than that
#: without giving a port back, into TIME_WAIT.
_REST: Final = 9.0
_REST_SHORTEST: Final = 0.001
_REST_LONGEST: Final = 1.0


class LimitReached(Exception):  # noqa: N818 - what happened
    """As many connections are open to the destination as the dialer allows."""


class TurnMissed(Exception):  # noqa: N818 - as above
    """Others were waiting for the destination all the time that the call could wait."""


class Rules:
    """What the calls of one dialer have in common.

    Attributes:
        destinations: What is open, and who waits.
        sources, ranges: Where from.
        wait: Seconds to wait for a port; 0 for not at all.
        clock: Gives the time in seconds.
        jitter: Gives a number from 0 to 1.
        on_wait: Called with the destination when a call begins to wait.
        unreported: The sockets that do not report their end.
    """

    __slots__ = (
        "clock",
        "destinations",
        "jitter",
        "on_wait",
        "ranges",
        "sources",
        "unreported",
        "wait",
    )  # fmt: skip

    def __init__(
        self,
        destinations: Destinations,
        sources: Sources,
        ranges: Sequence[PortRange | None],
        *,
        wait: float,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        on_wait: Callable[[Hashable], object] | None,
        unreported: Unreported,
    ) -> None:
        self.destinations = destinations
        self.sources = sources
        self.ranges = ranges
        self.wait = wait
        self.clock = clock
        self.jitter = jitter
        self.on_wait = on_wait
        self.unreported = unreported

    def spread(self, seconds: float) -> float:
        """Return about so long: or all the dialers of a machine would look at once."""
        return seconds * (0.5 + self.jitter())


class Call(Generic[OpeningT]):
    """One call; go through `steps`.

    Attributes:
        slot: The place of the connection that was made, or is being tried.
        queue: The destination that it waits for in a queue; None if it does not.
    """

    __slots__ = (
        "_connect",
        "_deadline",
        "_endings",
        "_failure",
        "_hears",
        "_hint",
        "_hinted",
        "_joined",
        "_key",
        "_lane",
        "_listen",
        "_only",
        "_poll",
        "_rules",
        "_version",
        "_wait",
        "_waiter",
        "queue",
        "slot",
    )  # fmt: skip

    def __init__(
        self,
        rules: Rules,
        key: Hashable,
        version: int,
        only: str,
        connect: Callable[[str, PortRange | None, bool], OpeningT],
        listen: Callable[[], Endings | None],
        *,
        wait: bool = True,
    ) -> None:
        """Begin a call.

        key: names the destination. version: of IP, 4 or 6. only: the one source that it
        may have; "" for any of them. connect: makes a connection from an address ("" for
        routing's choice), within ports (None for any); the third argument says whether
        somebody has to learn when it has a port. listen: begins to notice ends.
        wait: whether it may wait, if the dialer has it so.
        """
        self._rules = rules
        self._key = key
        self._version = version
        self._only = only
        self._lane = "" if rules.destinations.limit else only
        self._connect = connect
        self._listen = listen
        self._wait = rules.wait if wait else 0.0
        self.slot: Slot | None = None
        self.queue: Destination | None = None
        # The same when it has left the queue, and its place there.
        self._joined: Destination | None = None
        self._waiter: Waiter | None = None
        self._deadline = 0.0
        self._failure: Exception | None = None
        self._poll, self._hint = _POLL_FIRST, _HINT_FIRST
        self._endings: Endings | None = None
        # Whether ends were noticed since before the search at hand; and whether something
        # has ended during this pause that may have been a connection there.
        self._hears = False
        self._hinted = False

    def __repr__(self) -> str:
        where = f"from {self.slot.host or 'any source'}" if self.slot else "no source"
        return f"<Call to {self._key!r}, {where}, {'queued' if self.queued else 'not queued'}>"

    @property
    def queued(self) -> bool:
        """Whether it stands in a queue."""
        return self.queue is not None

    def steps(self) -> Steps[OpeningT]:
        """Return a connection; raises what the last try met with.

        LimitReached and TurnMissed where it has not come to a try.
        """
        try:
            while True:
                begun = self._rules.clock()
                connection = yield from self._round(begun)
                if connection is not None:
                    return connection
                yield from self._wait_turn(begun)
        except BaseException:
            if self.slot is not None:
                self.slot.release()
                self.slot = None
            raise
        finally:
            # Its traceback refers to a frame that refers to us: break the cycle.
            self._failure = None
            try:
                self._end()
            except BaseException:
                # A signal's handler has raised in the middle of it.
                self._end()
                raise

    def _round(self, now: float) -> Steps[OpeningT | None]:
        """Try every source and range once, if it is this call's turn."""
        known = self.queue or self._rules.destinations.find(self._key)
        if known.queues and known.first(self._lane) not in (None, self._waiter):
            return None
        for host, ports in self._candidates(known, now):
            slot = self._reserve(host)
            if slot is None:
                self._failure = LimitReached()
                break
            try:
                return (yield from self._try(slot, ports))
            except PortsExhausted as error:
                self._failure = error
        return None

    def _wait_turn(self, begun: float) -> Steps[None]:
        """Wait until it is worth another round; raises what the last one met with.

        begun: when that round began.
        """
        rules = self._rules
        now = rules.clock()
        if self._wait and self.queue is None:
            yield from self._join(now)
        if not self._wait or now >= self._deadline:
            raise self._failure or TurnMissed
        first = self.queue is not None and self.queue.first(self._lane) is self._waiter
        rest = min(_REST * (now - begun), _REST_LONGEST)
        if first and rest > _REST_SHORTEST:
            yield Pause(min(self._deadline - now, rest))
        seconds = max(0.0, self._deadline - rules.clock())
        if first:
            seconds = min(seconds, rules.spread(self._poll))
            self._poll = min(self._poll * _POLL_GROWTH, _POLL_LONGEST)
            self._hint = min(self._hint * _POLL_GROWTH, _POLL_LONGEST)
        yield from self._pause(seconds, first=first)
        rules.unreported.sweep(SWEPT_BY_A_WAITER)

    def _try(self, slot: Slot, ports: PortRange | None) -> Steps[OpeningT]:
        """Try one source and range."""
        rules, destination, host = self._rules, slot.destination, slot.host
        destination.last = host
        destination.searching.add(host)
        begun = rules.clock()
        try:
            connection = self._connect(host, ports, self.queued)
            steps = connection.begin()
            if steps is not None:
                yield from self._watch(steps) if self.queued else steps
        except PortsExhausted as error:
            now = rules.clock()
            self.slot = None
            rules.destinations.refused(slot, error.errno or 0, error.attempts, now - begun)
            self._take_endings()
            # Not if something has ended meanwhile, or may have with nobody to notice: a
            # call that waits would pass over a range that is not full any more.
            if not rules.wait or (self._hears and host in destination.searching):
                destination.fill(host, ports, now, begun)
            raise
        except BaseException as error:
            rules.destinations.failed(error)
            raise
        finally:
            destination.searching.discard(host)
        rules.destinations.opened(connection.retries)
        return connection

    def _watch(self, steps: Steps[None]) -> Steps[None]:
        """Go on with a connection, and leave the queue as soon as it has a port."""
        wait = next(steps, None)
        while wait is not None:
            if isinstance(wait, Handshake):
                self._leave()
            try:
                answer = yield wait
            except BaseException as error:  # noqa: BLE001 - the connection's to handle
                resume: partial[Any] = partial(steps.throw, error)
            else:
                resume = partial(steps.send, answer)
            try:
                wait = resume()
            except StopIteration:
                return
            finally:
                del resume

    def _candidates(self, known: Destination, now: float) -> Iterator[tuple[str, PortRange | None]]:
        """Yield sources and ranges in their order; those that were full a moment ago come last.

        A call that waits passes over them, until something ends there, or that moment is
        past, or this is the last round.
        """
        rules = self._rules
        later = []
        if known.seen and known.seen_until < now:
            known.seen = {}
        hosts: Iterator[str] = iter((self._only,))
        if not self._only:
            hosts = rules.sources.order(self._version, known.load, known.last)
        for host in hosts:
            for ports in rules.ranges:
                if known.full and known.full.get((host, ports), 0.0) > now:
                    later.append((host, ports))
                else:
                    yield host, ports
        if self.queue is None or rules.clock() >= self._deadline:
            yield from later

    def _reserve(self, host: str) -> Slot | None:
        """Return a slot for a try; None at the limit."""
        rules = self._rules
        slot = self.slot = Slot(host)
        if rules.destinations.reserve(self._key, slot):
            return slot
        rules.unreported.look()
        return slot if rules.destinations.reserve(self._key, slot) else None

    # The wait queue.

    def _join(self, now: float) -> Steps[None]:
        """Stand at the end of the queue, for as long as the call may wait altogether."""
        rules, waiter = self._rules, self._waiter
        # It may have left the queue for a port that was another's in the end.
        again = waiter is not None
        if waiter is None:
            self._deadline = now + self._wait
            waiter = self._waiter = yield NewWaiter()
        rules.destinations.join(self, self._key, waiter, self._lane, again=again)
        self._joined = self.queue
        if not again and rules.on_wait is not None:
            rules.on_wait(self._key)

    def _leave(self) -> None:
        """Let the next in the queue try: the port is taken, whatever becomes of the handshake."""
        queue, waiter = self.queue, self._waiter
        if queue is not None and waiter is not None:
            self._rules.destinations.leave(queue, waiter, self._lane)
            self.queue = None

    def _pause(self, seconds: float, *, first: bool) -> Steps[None]:
        """Wait to be woken, for the end of a connection to the destination, or so long."""
        rules = self._rules
        if first and self._endings is None and self._joined is not None:
            # What the last one has handed on, so that no end is missed in between.
            self._endings = rules.destinations.take_over(self._joined) or self._listen()
        descriptor = -1 if self._endings is None else self._endings.fileno()
        self._hinted = False
        deadline = rules.clock() + seconds
        while seconds > 0:
            woken = yield Pause(seconds, self._waiter, descriptor)
            if self._take_endings() or woken:
                break
            if self._hinted:
                deadline = min(deadline, rules.clock() + self._hint)
            seconds = deadline - rules.clock()
        self._hears |= first

    def _take_endings(self) -> bool:
        """Note what has ended toward the destination; whether that has freed a 4-tuple."""
        return self._endings is not None and self._note(self._endings)

    def _note(self, endings: Endings) -> bool:
        certain = False
        known = self.queue or self._rules.destinations.find(self._key)
        for ending in endings.take():
            certain |= ending.certain
            self._hinted |= not ending.certain
            known.clear(ending.host)
            if self.queue is None:
                # Its own turn is over: the next in the queue is to know.
                known.wake(ending.host)
        return certain

    # The end.

    def _end(self) -> None:
        """The call is over; may be called again."""
        self._leave()
        if self._waiter is not None:
            self._waiter.close()
        endings, self._endings = self._endings, None
        if self._joined is not None:
            for each in (endings, self._rules.destinations.take_over(self._joined)):
                if each is not None:
                    self._pass_on(each, self._joined)

    def _pass_on(self, endings: Endings, joined: Destination) -> None:
        """Take what has ended by now, and leave what is to come to the next in the queue."""
        try:
            self._note(endings)
            if self._rules.destinations.hand_on(joined, endings):
                return
        except BaseException:
            endings.close()
            raise
        endings.close()
