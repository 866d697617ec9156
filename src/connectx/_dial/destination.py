"""What a dialer knows of one destination: what is open, which sources are full, and who waits.

What to make of it is connectx._dial.call's affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Hashable

    from connectx.addresses import PortRange

#: Connections of a destination from which on others' are counted as well: reading the
#: list of sockets costs as much as opening some of them.
WORTH_COUNTING: Final = 32

#: Seconds after which a range that was full is tried in its turn again, or who waits for
#: one of many would search them all each second: this many times as long as the search
#: took, for each that is full, and within these bounds. An end there tells sooner.
_FULL_REST: Final = 50.0
_FULL_SHORTEST: Final = 1.0
_FULL_LONGEST: Final = 10.0


class Turn(Protocol):
    """A place in the line, which a driver makes: how its caller waits."""

    def wake(self) -> None:
        """Have it look again; from any thread, at any moment, several times too."""

    def close(self) -> None:
        """The call is over; it may be woken all the same."""


class Destination:
    """What is open, and who waits, toward one destination.

    open: connections by source address. seen: others' connections by source address,
    as the kernel said last. total: all of `open`.
    lines: who waits, the first one first, by the source waited for; "" for any. None is empty.
    ear: what ends were heard by, for the next in line, while nobody hears.
    full: until when a source's range need not be tried before others, nor by who waits.
    last: the source address that was tried last. searching: those that are tried now, and
    where nothing has ended meanwhile.
    requests: what to ask for, by source address, for a driver in a hurry; names: what
    callers call the destination, for the same.
    """

    __slots__ = (
        "ear",
        "full",
        "key",
        "last",
        "lines",
        "names",
        "open",
        "requests",
        "searching",
        "seen",
        "seen_until",
        "total",
    )  # fmt: skip

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.names: list[Hashable] = []
        self.requests: dict[str, Any] = {}
        self.open: dict[str, int] = {}
        self.seen: dict[str, int] = {}
        self.seen_until = 0.0
        self.full: dict[tuple[str, PortRange | None], float] = {}
        self.last = ""
        self.searching: set[str] = set()
        self.ear: Any = None
        self.total = 0
        self.lines: dict[str, deque[Turn]] = {}

    @property
    def growing(self) -> bool:
        """Whether it is time to ask the kernel for others' connections: with each doubling."""
        total = self.total
        return total >= WORTH_COUNTING and not total & (total - 1)

    def clear(self, host: str | None) -> None:
        """Something has ended there, so that its range may not be full any more; None: anywhere."""
        if host is None:
            self.full = {}
            self.searching.clear()
        else:
            # Routing may have chosen it.
            here = ("", host)
            self.full = {of: until for of, until in self.full.items() if of[0] not in here}
            self.searching.difference_update(here)

    def fill(self, host: str, ports: PortRange | None, now: float, begun: float) -> None:
        """A search that began then has found no port there."""
        number = len(self.full) + ((host, ports) not in self.full)
        seconds = _FULL_REST * number * (now - begun)
        self.full[host, ports] = now + min(max(seconds, _FULL_SHORTEST), _FULL_LONGEST)

    def load(self, host: str) -> int:
        """How many connections there are from a source address."""
        return self.open.get(host, 0) + self.seen.get(host, 0)

    def wake(self, host: str | None) -> None:
        """Have those look again who are first in a line for a source; None: for any of them."""
        for name in tuple(self.lines) if host is None else {"", host}:
            line = self.lines.get(name)
            if line:
                try:
                    first = line[0]
                except IndexError:
                    continue  # It has left in this very moment, and has woken the next one.
                first.wake()
