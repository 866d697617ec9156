"""Ports that were in use a moment ago, so that they come back late.

A peer or a firewall may remember a closed connection for a minute. It drops the first packet of
another one on the same 4-tuple without a word, or a late datagram reaches the wrong socket. So a
port rests for a minute, as long as there are others (RFC 6056, section 3.3; "ports are reused as
late as possible").

A busy destination's ledger keeps its own resting ports, 4 octets each. Most destinations have few,
and no ledger after their last connection. `Rest` is what all ledgers of a namespace have in common.
It keeps the few ports itself, and bounds what the ledgers keep; the oldest goes first.
"""

from __future__ import annotations

import contextlib
from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Protocol

    class Resting(Protocol):
        """What has ports that rest: a ledger."""

        def wake_all(self) -> None:
            """Have them all again."""


#: Seconds for which a port rests.
MINUTE: Final = 60

#: Octets that ledgers keep for ports that rest, in all.
MOST: Final = 12 << 20

#: Octets of a ledger that is kept for them alone, but for its map: with its references, its
#: array, and a few ports that it has drawn.
LEDGER: Final = 1_500

#: Destinations with few such ports that are kept, twice: those closed to last, and those before.
#: Each takes some 100 octets, 4 MiB in all. To forget them all at once takes a millisecond.
MOST_FEW: Final = 16_384


class Rest:
    """The ledgers that have ports which rest, in the order in which their last one was closed.

    Attributes:
        clock: Gives the time in seconds.
        octets: What is kept for them, as of the last second.
        few: The ports of destinations that have few, by what names the destination: one number
            of 32 bits for each port, its second in the upper half, the last one lowest.
        former: The same, of those closed to before.
    """

    __slots__ = ("_ledgers", "_since", "clock", "few", "former", "octets")

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with none; clock: gives the time in seconds."""
        self.clock = clock
        # Numbers, so that the garbage collector has no business with them.
        self.few: dict[int, int] = {}
        self.former: dict[int, int] = {}
        # The second in which the first of them came.
        self._since = self.now()
        # With the second in which the last port was closed, and the octets.
        self._ledgers: OrderedDict[Resting, tuple[int, int]] = OrderedDict()
        self.octets = 0

    def __len__(self) -> int:
        return len(self._ledgers)

    def now(self) -> int:
        """Return the time in whole seconds, which begins anew every 18 hours."""
        return int(self.clock()) & 0xFFFF

    def note(self, name: int, closed: int, most: int) -> bool:
        """Note one of the few ports of a destination; False if there are more than `most` now.

        closed: the second and the port. Of threads that are here at once for one destination,
        one may be in vain: its port comes back early.
        """
        few = self.few
        enough = most > 0
        if name in few or name in self.former:
            ports = (few.get(name) or self.former.get(name, 0)) << 32 | closed
            if ports.bit_length() > 32 * most:
                # More than these, unless some have rested long enough.
                ports = _joined(_resting(ports, closed >> 16))
                enough = ports.bit_length() <= 32 * most
            few[name] = ports
        else:
            few[name] = closed
        if len(few) >= MOST_FEW:
            self._begin(closed >> 16)
        return enough

    def few_of(self, name: int) -> set[int]:
        """Return the few ports of a destination that rest."""
        ports = self.few.get(name) or self.former.get(name, 0)
        return {closed & 0xFFFF for closed in _resting(ports, self.now())}

    def take_few(self, name: int) -> list[int]:
        """Return the few ports of a destination that rest, and keep them here no more."""
        former = self.former.pop(name, 0)
        return _resting(self.few.pop(name, former), self.now())

    def tidy(self) -> None:
        """Forget what has rested for a minute; to be called once a second."""
        now = self.now()
        if age(self._since, now) > MINUTE:
            self._begin(now)

    def add(self, ledger: Resting, octets: int, now: int) -> None:
        """Note that a port of a ledger rests from now on; octets: what all of its ports take."""
        ledgers = self._ledgers
        then, before = ledgers.get(ledger, (-1, 0))
        self.octets += octets - before
        ledgers[ledger] = now, octets
        # Another thread may forget it, or change the first one, at any moment.
        if then != now:
            with contextlib.suppress(KeyError):
                ledgers.move_to_end(ledger)
        # Two at most, so that no call pays for all.
        for _ in range(2):
            try:
                oldest, (then, before) = next(iter(ledgers.items()), (ledger, (now, 0)))
            except RuntimeError:
                break
            if age(then, now) <= MINUTE and self.octets <= MOST:
                break
            if ledgers.pop(oldest, None) is not None:
                self.octets -= before
                oldest.wake_all()

    def _begin(self, now: int) -> None:
        """Begin another generation of destinations with few."""
        self.former, self.few, self._since = self.few, {}, now


class RestingPorts:
    """The ports of one ledger that rest, the oldest first.

    Attributes:
        closed: The second in which each was closed, in the upper half, and the port.
        noted: The second for which `Rest.add` was called last; -1 before.
    """

    __slots__ = ("_first", "closed", "noted")

    def __init__(self, closed: Iterable[int] = ()) -> None:
        """Begin with some ports; closed: as `Rest.take_few` returns them."""
        self.closed = array("I", closed)
        self.noted = -1
        # The first that is left.
        self._first = 0

    def __len__(self) -> int:
        return max(0, len(self.closed) - self._first)

    def __iter__(self) -> Iterator[int]:
        """Go through the ports."""
        return (each & 0xFFFF for each in self.closed[self._first :])

    def take_oldest(self) -> int:
        """Return the port that has rested longest, which rests no more; 0 if there is none."""
        closed, first = self.closed, self._first
        try:
            port = closed[first] & 0xFFFF
        except IndexError:
            # None, or another thread was quicker.
            return 0
        self._first = first + 1
        if self._first * 2 > len(closed):
            # So that each port is moved once, on the average. An interrupt in between leaves
            # ports that were taken: the map says that they do not rest.
            self._first = 0
            del closed[: first + 1]
        return port

    def take_rested(self, now: int) -> list[int]:
        """Return the ports that have rested for a minute, which rest no more."""
        closed, end = self.closed, self._first
        while end < len(closed) and age(closed[end] >> 16, now) > MINUTE:
            end += 1
        return self._take(end)

    def _take(self, end: int) -> list[int]:
        """Return the ports before an index, which rest no more."""
        taken = [each & 0xFFFF for each in self.closed[self._first : end]]
        self._first = end
        if end * 2 > len(self.closed):
            # So that each port is moved once, on the average.
            del self.closed[:end]
            self._first = 0
        return taken


def _joined(closed: list[int]) -> int:
    """Return the seconds and ports as one number, 32 bits each."""
    number = 0
    for each in closed:
        number = number << 32 | each
    return number


def _resting(number: int, now: int) -> list[int]:
    """Return those of a number that have not rested for a minute, the oldest first."""
    closed = []
    while number:
        each = number & 0xFFFFFFFF
        # age(), written out.
        if (now - (each >> 16)) & 0xFFFF > MINUTE:
            break
        closed.append(each)
        number >>= 32
    closed.reverse()
    return closed


def age(then: int, now: int) -> int:
    """Return the seconds between two times as `Rest.now` gives them."""
    return (now - then) & 0xFFFF
