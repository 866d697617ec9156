"""Ports that were in use a moment ago, so that they come back late.

A peer or a firewall may remember a closed connection for a minute. It drops the first packet of
another one on the same 4-tuple without a word, or a late datagram reaches the wrong socket. So a
port rests for a minute, as long as there are others (RFC 6056, section 3.3; "ports are reused as
late as possible").

Each ledger keeps its own resting ports, 4 octets each. `Rest` is what all ledgers of a namespace
have in common: it bounds what they keep, and lets the oldest go first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol

    class Resting(Protocol):
        """What has ports that rest: a ledger."""

        def wake_all(self) -> None:
            """Have them all again."""


#: Seconds for which a port rests.
MINUTE: Final = 60

#: Octets that are kept for ports that rest, in all.
MOST: Final = 16 << 20

#: Octets of a ledger that is kept for them alone: with its key, its references and its array.
LEDGER: Final = 800


class Rest:
    """The ledgers that have ports which rest, in the order in which their last one was closed.

    Attributes:
        clock: Gives the time in seconds.
        octets: What is kept for them, as of the last second.
    """

    __slots__ = ("_ledgers", "clock", "octets")

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with none; clock: gives the time in seconds."""
        self.clock = clock
        # With the second in which the last port was closed, and the octets.
        self._ledgers: OrderedDict[Resting, tuple[int, int]] = OrderedDict()
        self.octets = 0

    def __len__(self) -> int:
        return len(self._ledgers)

    def now(self) -> int:
        """Return the time in whole seconds, which begins anew every 18 hours."""
        return int(self.clock()) & 0xFFFF

    def add(self, ledger: Resting, octets: int, now: int) -> None:
        """Note that a port of a ledger rests from now on; octets: what all of its ports take."""
        ledgers = self._ledgers
        then, before = ledgers.get(ledger, (-1, 0))
        self.octets += octets - before
        ledgers[ledger] = now, octets
        if then != now:
            ledgers.move_to_end(ledger)
        # Two at most, so that no call pays for all.
        for _ in range(2):
            oldest, (then, before) = next(iter(ledgers.items()), (ledger, (now, 0)))
            if age(then, now) <= MINUTE and self.octets <= MOST:
                break
            if ledgers.pop(oldest, None) is not None:
                self.octets -= before
                oldest.wake_all()


class RestingPorts:
    """The ports of one ledger that rest, the oldest first.

    Attributes:
        closed: The second in which each was closed, in the upper half, and the port.
        noted: The second for which `Rest.add` was called last; -1 before.
    """

    __slots__ = ("_first", "closed", "noted")

    def __init__(self) -> None:
        self.closed = array("I")
        self.noted = -1
        # The first that is left.
        self._first = 0

    def __len__(self) -> int:
        return len(self.closed) - self._first

    def __iter__(self) -> Iterator[int]:
        """Go through the ports."""
        return (each & 0xFFFF for each in self.closed[self._first :])

    def take_oldest(self) -> int:
        """Return the port that has rested longest, which rests no more; 0 if there is none."""
        if self._first >= len(self.closed):
            return 0
        port = self.closed[self._first] & 0xFFFF
        self._first += 1
        if self._first * 2 > len(self.closed):
            # So that each port is moved once, on the average.
            del self.closed[: self._first]
            self._first = 0
        return port

    def take_rested(self, now: int) -> list[int]:
        """Return the ports that have rested for a minute, which rest no more."""
        rested = []
        while len(self) and age(self.closed[self._first] >> 16, now) > MINUTE:
            rested.append(self.take_oldest())
        return rested


def age(then: int, now: int) -> int:
    """Return the seconds between two times as `Rest.now` gives them."""
    return (now - then) & 0xFFFF
