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
from typing import TYPE_CHECKING, Any, Final

from connectx._connect.steps import Handshake, NewWaiter, Pause
from connectx._dial.sources import MOST_FREE
from connectx.errors import PortsExhausted

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
    from typing import Protocol

    from connectx._connect.steps import Steps, Waiter, Work
    from connectx._dial.slots import Destination, Destinations, Slot
    from connectx._dial.sources import Sources
    from connectx.addresses import PortRange

    class Opening(Protocol):
        """A connection in the making; connectx._connect.connection.Connection."""

        sock: socket.socket

        @property
        def reports(self) -> bool:
            """Whether the socket reports its end to the slot that it has."""

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
        single: The same as a pair, for versions of IP with one source and range.
        chooses: Whether there are sources to choose between by how many connections they
            have.
        wait: Seconds to wait for a port; 0 for not at all.
        clock: Gives the time in seconds.
        jitter: Gives a number from 0 to 1.
        on_wait: Called with the destination when a call begins to wait.
        unreported: The sockets that do not report their end.
    """

    __slots__ = (
        "chooses",
        "clock",
        "destinations",
        "jitter",
        "on_wait",
        "ranges",
        "single",
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
        self.single = {
            version: (host, ranges[0])
            for version in (4, 6)
            if (host := sources.single(version)) is not None and len(ranges) == 1
        }
        self.chooses = sources.rotate == MOST_FREE and any(
            len(sources.hosts(version)) > 1 for version in (4, 6)
        )

    def spread(self, seconds: float) -> float:
        """Return about so long: or all the dialers of a machine would look at once."""
        return seconds * (0.5 + self.jitter())


class Call:
    """One call: `begin` makes the first try, with which nearly every call ends.

    What is left after that is a generator, as of connectx._connect.connection.Connection.
    A subclass knows how to connect.

    Attributes:
        slot: The place of the connection that was made, or is being tried.
        queue: The destination that it waits for in a queue; None if it does not.
    """

    # As of the class until they are set, which most calls never do.
    slot: Slot | None = None
    queue: Destination | None = None
    # The connection at hand, its ports, and when its try began.
    _opening: Opening | None = None
    _ports: PortRange | None = None
    _began = 0.0
    # The destination when the call has left the queue, and the place there.
    _joined: Destination | None = None
    _waiter: Waiter | None = None
    _deadline = 0.0
    _poll, _hint = _POLL_FIRST, _HINT_FIRST
    _failure: Exception | None = None
    _endings: Endings | None = None
    # Whether ends were noticed since before the search at hand; and whether something
    # has ended during this pause that may have been a connection there.
    _hears = _hinted = False

    # What a subclass sets: what the calls of the dialer have in common; what names the
    # destination, and its version of IP, 4 or 6; the one source that the call may have, ""
    # for any; and how many seconds it may wait.
    _rules: Rules
    _key: Hashable
    _version: int
    _only: str
    _wait: float

    def __repr__(self) -> str:
        where = f"from {self.slot.host or 'any source'}" if self.slot else "no source"
        return f"<Call to {self._key!r}, {where}, {'queued' if self.queue else 'not queued'}>"

    # What a subclass does.

    def _connect(self, host: str, ports: PortRange | None) -> Opening:
        """Return a connection from an address ("" for routing's choice), within ports."""
        raise NotImplementedError

    def _count_others(self) -> Work:
        """Return the work of counting others' connections to the destination."""
        raise NotImplementedError

    def _listen(self) -> Endings | None:
        """Begin to notice ends; None where that is not possible."""
        raise NotImplementedError

    def _unserved(self, error: LimitReached | TurnMissed) -> Exception:
        """Return the error of a call that has not come to a try."""
        raise NotImplementedError

    # The call.

    def begin(self) -> Steps[None] | None:
        """Try the first source; returns None if that is connected, else what is left.

        Whatever is raised, here or there, leaves nothing behind.
        """
        rules = self._rules
        candidates: Iterator[tuple[str, PortRange | None]] = iter(())
        try:
            if not self._only and (single := rules.single.get(self._version)):
                # Nearly all dialers: there is nothing to choose between.
                host, ports = single
            else:
                known = rules.destinations.find(self._key)
                candidates = iter(self._candidates(known))
                host, ports = next(candidates)
            slot = self.slot = rules.destinations.reserve(self._key, host, self._lane)
            if slot is None:
                # Somebody waits, or the limit is reached.
                return self._steps(None, None)
            steps = self._start(slot, ports)
            if steps is not None:
                return self._steps(candidates, steps)
            work = self._adopt()
        except BaseException:
            self._give_back()
            raise
        return None if work is None else _do(work)

    def _steps(
        self,
        candidates: Iterator[tuple[str, PortRange | None]] | None,
        pending: Steps[None] | None,
    ) -> Steps[None]:
        """Go on until there is a connection; raises what the last try met with.

        candidates, pending: what is left of the first round, and of the try at hand.
        """
        try:
            while True:
                begun = self._rules.clock()
                if (yield from self._round(candidates, pending)):
                    break
                candidates = pending = None
                yield from self._wait_turn(begun)
            work = self._adopt()
            if work is not None:
                yield work
        except BaseException:
            self._give_back()
            raise
        finally:
            # Its traceback refers to a frame that refers to us: break the cycle.
            self._failure = None
            if self._waiter is not None:
                try:
                    self._end()
                except BaseException:
                    # A signal's handler has raised in the middle of it.
                    self._end()
                    raise

    def _round(
        self,
        candidates: Iterator[tuple[str, PortRange | None]] | None,
        pending: Steps[None] | None,
    ) -> Steps[bool]:
        """Try every source and range once, if it is this call's turn; whether one is open."""
        if candidates is None:
            known = self.queue or self._rules.destinations.find(self._key)
            if known.queues and known.first(self._lane) not in (None, self._waiter):
                return False
            candidates = iter(self._candidates(known))
        while True:
            try:
                if pending is None:
                    candidate = next(candidates, None)
                    if candidate is None:
                        return False
                    pending = self._open(*candidate)
                if pending is not None:
                    yield from self._finish(pending)
            except LimitReached as limit:
                self._failure = limit
                return False
            except PortsExhausted as error:
                self._failure = error
                self._refused(error)
                pending = None
            else:
                return True

    def _open(self, host: str, ports: PortRange | None) -> Steps[None] | None:
        """Begin a try; returns None if it is connected, else what is left of it."""
        destinations = self._rules.destinations
        slot = self.slot = destinations.reserve(self._key, host)
        if slot is None:
            self._rules.unreported.look()
            slot = self.slot = destinations.reserve(self._key, host)
        if slot is None:
            raise LimitReached
        return self._start(slot, ports)

    def _start(self, slot: Slot, ports: PortRange | None) -> Steps[None] | None:
        """Begin a try that has a slot."""
        rules = self._rules
        if rules.wait:
            slot.destination.searching |= {slot.host}
        self._ports = ports
        self._began = rules.clock()
        try:
            opening = self._opening = self._connect(slot.host, ports)
            steps = opening.begin()
        except BaseException as error:
            rules.destinations.failed(error)
            raise
        if steps is None:
            rules.destinations.opened(0)
        return steps

    def _adopt(self) -> Work | None:
        """Have a connected socket keep the slot; returns work that is left to do."""
        opening, slot = self._opening, self.slot
        if opening is None or slot is None:
            return None
        if opening.reports:
            opening.sock.slot = slot  # type: ignore[attr-defined] # as said
        else:
            slot.detached(opening.sock)
        # Not of the socket: its handshake may not be done yet, or its peer gone.
        if self._rules.chooses and slot.destination.growing:
            return self._count_others()
        return None

    def _finish(self, steps: Steps[None]) -> Steps[None]:
        """Go on with a try."""
        destinations = self._rules.destinations
        try:
            yield from steps if self.queue is None else self._watch(steps)
        except PortsExhausted:
            raise
        except BaseException as error:
            destinations.failed(error)
            raise
        destinations.opened(self._opening.retries if self._opening else 0)

    def _refused(self, error: PortsExhausted) -> None:
        """Note that a try has found no port."""
        rules, slot = self._rules, self.slot
        self.slot = None
        if slot is None:
            return
        now, destination = rules.clock(), slot.destination
        rules.destinations.refused(slot, error.errno or 0, error.attempts, now - self._began)
        self._take_endings()
        # Not if something has ended meanwhile, or may have with nobody to notice: a call
        # that waits would pass over a range that is not full any more.
        if not rules.wait or (self._hears and slot.host in destination.searching):
            destination.fill(slot.host, self._ports, now, self._began)

    def _give_back(self) -> None:
        """Give the slot back, of a call that has failed."""
        slot, self.slot = self.slot, None
        if slot is not None:
            slot.release()

    @property
    def _lane(self) -> str:
        """Which queue it stands in."""
        return (self._only and not self._rules.destinations.limit and self._only) or ""

    def _wait_turn(self, begun: float) -> Steps[None]:
        """Wait until it is worth another round; raises what the last one met with.

        begun: when that round began.
        """
        rules = self._rules
        now = rules.clock()
        if self._wait and self.queue is None:
            yield from self._join(now)
        if not self._wait or now >= self._deadline:
            raise self._error()
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

    def _error(self) -> Exception:
        """Return what the call ends with."""
        failure = self._failure or TurnMissed()
        if isinstance(failure, LimitReached | TurnMissed):
            return self._unserved(failure)
        return failure

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

    def _candidates(self, known: Destination) -> Iterable[tuple[str, PortRange | None]]:
        """Return sources and ranges in the order in which to try them."""
        rules = self._rules
        hosts: Iterable[str] = (self._only,)
        if not self._only:
            if known.seen and known.seen_until < rules.clock():
                known.seen = {}
            hosts = rules.sources.order(self._version, known.load, known.last)
        return self._in_order(known, hosts)

    def _in_order(
        self, known: Destination, hosts: Iterable[str]
    ) -> Iterator[tuple[str, PortRange | None]]:
        """Yield those that were full a moment ago last.

        A call that waits passes over them, until something ends there, or that moment is
        past, or this is the last round.
        """
        rules = self._rules
        later = []
        now = rules.clock() if known.full else 0.0
        for host in hosts:
            for ports in rules.ranges:
                if known.full and known.full.get((host, ports), 0.0) > now:
                    later.append((host, ports))
                else:
                    yield host, ports
        if self.queue is None or rules.clock() >= self._deadline:
            yield from later

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


def _do(work: Work) -> Steps[None]:
    yield work
