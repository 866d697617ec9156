"""What the calls of one dialer have in common: where from, how long to wait, and the time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from connectx._dial.sources import MOST_FREE

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from typing import Protocol

    from connectx._dial.slots import Destinations
    from connectx._dial.sources import Sources
    from connectx.addresses import PortRange

    class Unreported(Protocol):
        """The sockets of a dialer that do not report their end."""

        def sweep(self, most: int) -> None:
            """Look at so many of them, and give back the slots of closed ones."""

        def look(self) -> None:
            """Look at all of them, before a call is refused."""


class Terms:
    """What the calls of one dialer have in common.

    Attributes:
        destinations: What is open, and which calls wait.
        sources, ranges: Where from.
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
        self.chooses = sources.rotate == MOST_FREE and any(
            len(sources.hosts(version)) > 1 for version in (4, 6)
        )

    def spread(self, seconds: float) -> float:
        """Return about so long: or all the dialers of a machine would look at once."""
        return seconds * (0.5 + self.jitter())
