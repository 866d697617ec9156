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

import struct
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

#: Octets that ledgers keep for ports that rest, in all.
MOST: Final = 12 << 20

#: Octets of a ledger that is kept for them alone, but for its map: with its references, its
#: array, and a few ports that it has drawn.
LEDGER: Final = 1_500

#: Destinations with few such ports that are kept, twice: those closed to last, and those before.
#: Each takes some 120 octets, 4 MiB in all. To forget them all at once takes a millisecond.
MOST_FEW: Final = 16_384

#: The second in which a port was closed, in the upper half, and the port.
_CLOSED: Final = struct.Struct("I")


class Rest:
    """The ledgers that have ports which rest, in the order in which their last one was closed.

    Attributes:
        clock: Gives the time in seconds.
        octets: What is kept for them, as of the last second.
        few: The ports of destinations that have few, by what names the destination: for each
            port the second in which it was closed, and the port.
        former: The same, of those closed to before.
    """

    __slots__ = ("_ledgers", "_since", "clock", "few", "former", "octets")

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with none; clock: gives the time in seconds."""
        self.clock = clock
        # The garbage collector has no business with octets, nor with a dictionary of these.
        self.few: dict[int, bytes] = {}
        self.former: dict[int, bytes] = {}
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
        now = closed >> 16
        if len(self.few) >= MOST_FEW or (now - self._since) & 0xFFFF > MINUTE:
            self._begin(now)
        few = self.few
        ports = few.get(name) or self.former.get(name)
        if ports is None:
            few[name] = _CLOSED.pack(closed)
            return most > 0
        ports += _CLOSED.pack(closed)
        if len(ports) > most * _CLOSED.size:
            ports = b"".join(map(_CLOSED.pack, _resting(ports, now)))
        few[name] = ports
        return len(ports) <= most * _CLOSED.size

    def few_of(self, name: int) -> set[int]:
        """Return the few ports of a destination that rest."""
        ports = self.few.get(name) or self.former.get(name, b"")
        return {closed & 0xFFFF for closed in _resting(ports, self.now())}

    def take_few(self, name: int) -> bytes:
        """Return the few ports of a destination as they are kept, and keep them no more."""
        former = self.former.pop(name, b"")
        return self.few.pop(name, former)

    def add(self, ledger: Resting, octets: int, now: int) -> None:
        """Note that a port of a ledger rests from now on; octets: what all of its ports take."""
        ledgers = self._ledgers
        then, before = ledgers.get(ledger, (-1, 0))
        self.octets += octets - before
        ledgers[ledger] = now, octets
        if then != now:
            ledgers.move_to_end(ledger)
        if age(self._since, now) > MINUTE:
            self._begin(now)
        # Two at most, so that no call pays for all.
        for _ in range(2):
            oldest, (then, before) = next(iter(ledgers.items()), (ledger, (now, 0)))
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

    def __init__(self, closed: bytes = b"") -> None:
        """Begin with some ports; closed: as `Rest.take_few` returns them."""
        self.closed = array("I", closed)
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


def _resting(ports: bytes, now: int) -> Iterator[int]:
    """Yield those that have not rested for a minute, with the second in which each was closed."""
    return (closed for (closed,) in _CLOSED.iter_unpack(ports) if age(closed >> 16, now) <= MINUTE)


def age(then: int, now: int) -> int:
    """Return the seconds between two times as `Rest.now` gives them."""
    return (now - then) & 0xFFFF
