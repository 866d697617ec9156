"""How a call waits its turn: in a queue, until something ends or it looks by itself.

- A waiting call is woken by the end of a connection of this dialer. The first in a queue
  also learns from the kernel of others' ends, and looks by itself now and then, since not
  all ends are reported.
- Once the first in a queue has a port, the next one is woken: one end may have been the
  first of several.
- A search in vain earns a rest, so that waiting never costs more than a tenth of a CPU.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from connectx._connect.steps import Handshake, NewWaiter, Pause

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from typing import Protocol

    from connectx._connect.steps import Steps, Waiter
    from connectx._dial.slots import Destination
    from connectx._dial.terms import Terms

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


class Turn:
    """One call's turn to try: its places in the wait queues of a destination, one at a time.

    Attributes:
        queue: The destination that the call waits for in a queue; None if it does not.
        waiter: Its place there, once it has one.
        hears: Whether ends were noticed since before the search at hand.
    """

    __slots__ = (
        "_deadline",
        "_endings",
        "_hint",
        "_hinted",
        "_joined",
        "_key",
        "_lane",
        "_listen",
        "_poll",
        "_seconds",
        "_terms",
        "hears",
        "queue",
        "waiter",
    )  # fmt: skip

    def __init__(
        self,
        terms: Terms,
        key: Hashable,
        lane: str,
        seconds: float,
        listen: Callable[[], Endings | None],
    ) -> None:
        """Wait for nothing yet.

        terms: of the dialer. key, lane: name the destination, and a queue there. seconds:
        how long the call may wait altogether. listen: begins to notice ends.
        """
        self.queue: Destination | None = None
        self.waiter: Waiter | None = None
        self.hears = False
        self._terms = terms
        self._key = key
        self._lane = lane
        self._seconds = seconds
        self._listen = listen
        self._deadline = 0.0
        self._poll, self._hint = _POLL_FIRST, _HINT_FIRST
        self._endings: Endings | None = None
        # The destination when the call has left the queue.
        self._joined: Destination | None = None
        # Whether something has ended during this pause that may have been a connection there.
        self._hinted = False

    def __repr__(self) -> str:
        return f"<Turn for {self._key!r}, {'queued' if self.queue else 'not queued'}>"

    @property
    def is_last(self) -> bool:
        """Whether the call may wait no longer, so that this round is its last."""
        return self.queue is None or self._terms.clock() >= self._deadline

    def wait(self, begun: float) -> Steps[bool]:
        """Wait until it is worth another round; returns False if there is no time left.

        begun: when the last round began.
        """
        terms = self._terms
        now = terms.clock()
        if self._seconds and self.queue is None:
            yield from self._join(now)
        if not self._seconds or now >= self._deadline:
            return False
        first = self.queue is not None and self.queue.first(self._lane) is self.waiter
        rest = min(_REST * (now - begun), _REST_LONGEST)
        if first and rest > _REST_SHORTEST:
            yield Pause(min(self._deadline - now, rest))
        seconds = max(0.0, self._deadline - terms.clock())
        if first:
            seconds = min(seconds, terms.spread(self._poll))
            self._poll = min(self._poll * _POLL_GROWTH, _POLL_LONGEST)
            self._hint = min(self._hint * _POLL_GROWTH, _POLL_LONGEST)
        yield from self._pause(seconds, first=first)
        return True

    def watch(self, steps: Steps[None]) -> Steps[None]:
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

    def _join(self, now: float) -> Steps[None]:
        """Stand at the end of the queue, for as long as the call may wait altogether."""
        terms, waiter = self._terms, self.waiter
        # It may have left the queue for a port that was another's in the end.
        again = waiter is not None
        if waiter is None:
            self._deadline = now + self._seconds
            waiter = self.waiter = yield NewWaiter()
        terms.destinations.join(self, self._key, waiter, self._lane, again=again)
        self._joined = self.queue
        if not again and terms.on_wait is not None:
            terms.on_wait(self._key)

    def _leave(self) -> None:
        """Let the next in the queue try: the port is taken, whatever becomes of the handshake."""
        queue, waiter = self.queue, self.waiter
        if queue is not None and waiter is not None:
            self._terms.destinations.leave(queue, waiter, self._lane)
            self.queue = None

    def _pause(self, seconds: float, *, first: bool) -> Steps[None]:
        """Wait to be woken, for the end of a connection to the destination, or so long."""
        terms = self._terms
        if first and self._endings is None and self._joined is not None:
            # What the last one has handed on, so that no end is missed in between.
            self._endings = terms.destinations.take_over(self._joined) or self._listen()
        descriptor = -1 if self._endings is None else self._endings.fileno()
        self._hinted = False
        deadline = terms.clock() + seconds
        while seconds > 0:
            woken = yield Pause(seconds, self.waiter, descriptor)
            if self.take_endings() or woken:
                break
            if self._hinted:
                deadline = min(deadline, terms.clock() + self._hint)
            seconds = deadline - terms.clock()
        self.hears |= first

    def take_endings(self) -> bool:
        """Note what has ended toward the destination; whether that has freed a 4-tuple."""
        return self._endings is not None and self._note(self._endings)

    def _note(self, endings: Endings) -> bool:
        certain = False
        known = self.queue or self._terms.destinations.find(self._key)
        for ending in endings.take():
            certain |= ending.certain
            self._hinted |= not ending.certain
            known.clear(ending.host)
            if self.queue is None:
                # Its own turn is over: the next in the queue is to know.
                known.wake(ending.host)
        return certain

    def end(self) -> None:
        """The call is over; may be called again."""
        self._leave()
        if self.waiter is not None:
            self.waiter.close()
        endings, self._endings = self._endings, None
        if self._joined is not None:
            for each in (endings, self._terms.destinations.take_over(self._joined)):
                if each is not None:
                    self._pass_on(each, self._joined)

    def _pass_on(self, endings: Endings, joined: Destination) -> None:
        """Take what has ended by now, and leave what is to come to the next in the queue."""
        try:
            self._note(endings)
            if self._terms.destinations.hand_on(joined, endings):
                return
        except BaseException:
            endings.close()
            raise
        endings.close()
