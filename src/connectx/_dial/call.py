"""One call of a dialer: which sources it tries, in which order, and when it gives up.

In words:

- A call tries at once if nobody waits for the destination, and otherwise waits behind
  those who do. Only the first in a queue tries.
- A call that may have one source only waits for that with others of its kind, in a queue
  of their own, or those who wait for another source would be in its way. With a limit all
  wait for the same slots, hence in one queue.
- It tries all sources and ranges before it gives up or waits, in the order that
  connectx._dial.sources has.
- How it waits is in connectx._dial.wait_queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from connectx._dial.wait_queue import Turn
from connectx.errors import PortsExhausted

if TYPE_CHECKING:
    import socket
    from collections.abc import Container, Hashable, Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from typing import Protocol, TypeAlias

    from connectx._connect.steps import Steps, Work
    from connectx._dial.slots import Destination, Path, Slot
    from connectx._dial.terms import Terms
    from connectx._dial.wait_queue import Endings
    from connectx.addresses import PortRange

    #: A source address and a range of ports.
    Candidate: TypeAlias = tuple[str, PortRange | None]

    class AnyTarget(Protocol):
        """A destination: connectx._dial.connecting.Target, which describes these."""

        @property
        def key(self) -> Hashable: ...
        @property
        def version(self) -> int: ...
        @property
        def only(self) -> str: ...
        @property
        def lane(self) -> str: ...
        @property
        def single(self) -> Candidate | None: ...

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


#: How many of the unreported sockets a call looks at each time that it has waited.
SWEPT_BY_A_WAITER: Final = 256


#: After so many refusals in a round, a call asks the kernel once which of all the sources are
#: full. Each further try would have to ask about its own.
_SURVEYED_AFTER: Final = 2


class LimitReached(Exception):  # noqa: N818 - what happened
    """As many connections are open to the destination as the dialer allows."""


class TurnMissed(Exception):  # noqa: N818 - as above
    """Others were waiting for the destination all the time that the call could wait."""


class Call:
    """One call: `begin` makes the first try, with which nearly every call ends.

    What is left after that is a generator, as of connectx._connect.connection.Connection.
    A subclass knows how to connect.

    Attributes:
        slot: The place of the connection that was made, or is being tried.
    """

    # As of the class until they are set, which most calls never do.
    slot: Slot | None = None
    # The connection at hand, its ports, and when its try began.
    _opening: Opening | None = None
    _ports: PortRange | None = None
    _began = 0.0
    # What had ended there by then, for a call that waits.
    _ends: Sequence[int] = ()
    # How it waits, once it has to.
    _turn: Turn | None = None
    _failure: Exception | None = None

    # What a subclass sets: what the calls of the dialer have in common, and what those to the
    # destination have; and how many seconds it may wait.
    _terms: Terms
    _target: AnyTarget
    _wait: float

    def __repr__(self) -> str:
        where = f"from {self.slot.path.host or 'any source'}" if self.slot else "no source"
        return (
            f"<Call to {self._target.key!r}, {where}, {'queued' if self.queue else 'not queued'}>"
        )

    @property
    def queue(self) -> Destination | None:
        """The destination that it waits for in a queue; None if it does not."""
        return self._turn.queue if self._turn is not None else None

    # What a subclass does.

    def _connect(self, host: str, ports: PortRange | None) -> Opening:
        """Return a connection from an address ("" for routing's choice), within ports."""
        raise NotImplementedError

    def _count_others(self) -> Work | None:
        """Return the work of counting others' connections to the destination, if it is time."""
        raise NotImplementedError

    def _find_full(self) -> Work:
        """Return the work of finding out which sources and ranges are full: a set of these."""
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
        target, destinations = self._target, self._terms.destinations
        try:
            # Nearly all dialers have a single one.
            host, ports = target.single or self._first(destinations.find(target.key))
            slot = self.slot = destinations.reserve(target.key, host, target.lane)
            if slot is None:
                # Somebody waits, or the limit is reached.
                return self._steps(None)
            steps = self._start(slot.path, ports)
            if steps is not None:
                return self._steps(steps)
            work = self._adopt()
        except BaseException:
            self._give_back()
            raise
        return None if work is None else _do(work)

    def _steps(self, pending: Steps[None] | None) -> Steps[None]:
        """Go on until there is a connection; raises what the last try met with.

        pending: what is left of the first try.
        """
        terms = self._terms
        try:
            while True:
                begun = terms.clock()
                if (yield from self._round(pending)):
                    break
                pending = None
                turn = self._turn
                if turn is None:
                    turn = self._turn = Turn(
                        terms, self._target.key, self._target.lane, self._wait, self._listen
                    )
                if not (yield from turn.wait(begun)):
                    raise self._error()  # noqa: TRY301 - of this call, as any other
                terms.unreported.sweep(SWEPT_BY_A_WAITER)
            work = self._adopt()
            if work is not None:
                yield work
        except BaseException:
            self._give_back()
            raise
        finally:
            # Its traceback refers to a frame that refers to us: break the cycle.
            self._failure = None
            turn, self._turn = self._turn, None
            if turn is not None:
                try:
                    turn.end()
                except BaseException:
                    # A signal's handler has raised in the middle of it.
                    turn.end()
                    raise

    def _round(self, pending: Steps[None] | None) -> Steps[bool]:
        """Try every source and range once, if it is this call's turn; whether one is open.

        pending: what is left of the round's first try, which is made already.
        """
        known = self.queue or self._terms.destinations.find(self._target.key)
        passed: set[Candidate] = set()
        if pending is not None and self.slot is not None:
            passed.add((self.slot.path.host, self._ports))
        elif self._is_behind(known):
            return False
        candidates = self._candidates(known, passed)
        refused = 0
        while True:
            try:
                if pending is None:
                    candidate = yield from self._next(candidates, passed, refused)
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
                refused += 1
                pending = None
            else:
                return True

    def _next(
        self, candidates: Iterator[Candidate], passed: set[Candidate], refused: int
    ) -> Steps[Candidate | None]:
        """Return what to try next; None if nothing is left.

        passed: what candidates leaves out. refused: how many tries of this round have been.
        """
        candidate = next(candidates, None)
        if candidate is not None and refused == _SURVEYED_AFTER and not self._target.only:
            passed |= yield from self._survey()
            if candidate in passed:
                candidate = next(candidates, None)
        return candidate

    def _is_behind(self, known: Destination) -> bool:
        """Return whether others wait in front of this call."""
        if not known.queues:
            return False
        waiter = self._turn.waiter if self._turn is not None else None
        return known.first(self._target.lane) not in (None, waiter)

    def _survey(self) -> Steps[AbstractSet[Candidate]]:
        """Find out which sources are full, by one look at all of them."""
        terms, turn = self._terms, self._turn
        known = terms.destinations.find(self._target.key)
        began = terms.clock()
        before = {host: known.ends(host) for host in tuple(known.paths)}
        full = cast("AbstractSet[Candidate]", (yield self._find_full()))
        if turn is not None:
            turn.take_endings()
        # As in `_refused`; and nothing is known of a destination that was forgotten meanwhile.
        if full and known.paths and (not terms.wait or (turn is not None and turn.hears)):
            now = terms.clock()
            # As long as each of them has taken.
            began = now - (now - began) / len(full)
            for host, ports in full:
                known.fill(host, ports, now, began)
                if known.ends(host) != before.get(host, []):
                    known.clear(host)
        return full

    def _open(self, host: str, ports: PortRange | None) -> Steps[None] | None:
        """Begin a try; returns None if it is connected, else what is left of it."""
        destinations = self._terms.destinations
        slot = self.slot = destinations.reserve(self._target.key, host)
        if slot is None:
            self._terms.unreported.look()
            slot = self.slot = destinations.reserve(self._target.key, host)
        if slot is None:
            raise LimitReached
        return self._start(slot.path, ports)

    def _start(self, path: Path, ports: PortRange | None) -> Steps[None] | None:
        """Begin a try that has a slot."""
        terms = self._terms
        if terms.wait:
            self._ends = path.destination.ends(path.host)
        self._ports = ports
        self._began = terms.clock()
        try:
            opening = self._opening = self._connect(path.host, ports)
            steps = opening.begin()
        except BaseException as error:
            terms.destinations.failed(error)
            raise
        if steps is None:
            terms.destinations.good.append(0)
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
        if self._terms.chooses and slot.path.destination.growing:
            return self._count_others()
        return None

    def _finish(self, steps: Steps[None]) -> Steps[None]:
        """Go on with a try."""
        destinations = self._terms.destinations
        try:
            turn = self._turn
            yield from steps if turn is None or turn.queue is None else turn.watch(steps)
        except PortsExhausted:
            raise
        except BaseException as error:
            destinations.failed(error)
            raise
        destinations.good.append(self._opening.retries if self._opening else 0)

    def _refused(self, error: PortsExhausted) -> None:
        """Note that a try has found no port."""
        terms, slot, turn = self._terms, self.slot, self._turn
        self.slot = None
        if slot is None:
            return
        now, host, known = terms.clock(), slot.path.host, slot.path.destination
        if turn is not None:
            turn.take_endings()
        if not terms.wait:
            known.fill(host, self._ports, now, self._began)
        elif turn is not None and turn.hears:
            known.fill(host, self._ports, now, self._began)
            if known.ends(host) != self._ends:
                # A call that waits would pass over a range that is not full any more.
                known.clear(host)
        # Last, since nothing may be known of the source when its last slot is given back.
        terms.destinations.refused(slot, error.errno or 0, error.attempts, now - self._began)

    def _give_back(self) -> None:
        """Give the slot back, of a call that has failed."""
        slot, self.slot = self.slot, None
        if slot is not None:
            slot.release()

    def _error(self) -> Exception:
        """Return what the call ends with."""
        failure = self._failure or TurnMissed()
        if isinstance(failure, LimitReached | TurnMissed):
            return self._unserved(failure)
        return failure

    def _first(self, known: Destination) -> Candidate:
        """Return the source and range to try first."""
        terms, target = self._terms, self._target
        if known.full or known.seen or target.only:
            return next(self._candidates(known, ()))
        # Without the generators: to end one that is not exhausted takes a microsecond.
        return terms.sources.first(target.version, known), terms.ranges[0]

    def _candidates(self, known: Destination, passed: Container[Candidate]) -> Iterator[Candidate]:
        """Yield sources and ranges in the order in which to try them, but for those passed over.

        Those come last that were full a moment ago. A call that waits passes over them, until
        something ends there, or that moment is past, or this is the last round.
        """
        terms, target = self._terms, self._target
        if known.seen and known.seen_until < terms.clock():
            known.seen = {}
        hosts = (target.only,) if target.only else terms.sources.order(target.version, known)
        later = []
        now = terms.clock() if known.full else 0.0
        for host in hosts:
            for ports in terms.ranges:
                if (host, ports) in passed:
                    continue
                if known.full and known.is_full(host, ports, now):
                    later.append((host, ports))
                else:
                    yield host, ports
        if self._turn is None or self._turn.is_last:
            yield from (candidate for candidate in later if candidate not in passed)


def _do(work: Work) -> Steps[None]:
    yield work
