"""A thread that counts source ports again and again, so that the view never waits for it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from connectx.linux.netlink import MalformedMessage
from connectx.observe.pair import look
from connectx.observe.usage import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from connectx.addresses import PortRange
    from connectx.observe.history import Pair
    from connectx.observe.pair import Detail
    from connectx.observe.usage import Snapshot

#: Rest after each round, in times of what it took: however much there is to count, it takes
#: a fifth of a core at most, and is counted less often instead.
_REST: Final = 4


class Counted(NamedTuple):
    """A snapshot; seconds: when, by time.monotonic(). every: seconds until the next one."""

    seconds: float
    every: float
    snapshot: Snapshot


class Looked(NamedTuple):
    """What was found out about a pair."""

    pair: Pair
    detail: Detail


class Failed(NamedTuple):
    """Why nothing could be counted, and when; it is tried again all the same."""

    seconds: float
    error: Exception


Outcome: TypeAlias = Counted | Looked | Failed


class Watching(Protocol):
    """What the view needs of a `Watcher`, as the tests have one that counts nothing."""

    def start(self, deliver: Callable[[Outcome], object]) -> None:
        """Begin; deliver is called in another thread, and never again after stop()."""

    def look(self, pair: Pair | None) -> None:
        """Find out about a pair too, from now on and at once; None for no pair any more."""

    def stop(self) -> None:
        """Deliver nothing any more; the last round may still be going on."""


class Watcher:
    """A `Watching` that counts in a thread of its own, which alone visits the namespace.

    interval: seconds from one round to the next; where counting is slow, more.
    protocols, netns, port_range: as for `connectx.observe.snapshot`.
    """

    def __init__(
        self,
        interval: float,
        protocols: Sequence[str],
        netns: str | None = None,
        port_range: PortRange | None = None,
    ) -> None:
        self._interval = interval
        self._protocols = protocols
        self._netns = netns
        self._port_range = port_range
        self._thread: threading.Thread | None = None
        # Guards the three below it, and is notified when one of them changes.
        self._changed = threading.Condition()
        self._stopped = False
        self._pair: Pair | None = None
        self._asked = False
        self._crash: BaseException | None = None

    def start(self, deliver: Callable[[Outcome], object]) -> None:
        """Begin, as `Watching` has it."""
        self._thread = threading.Thread(target=self._run, args=(deliver,), name="connectx-top")
        self._thread.start()

    def look(self, pair: Pair | None) -> None:
        """Find out about a pair too, as `Watching` has it."""
        with self._changed:
            self._pair = pair
            self._asked = pair is not None
            self._changed.notify()

    def stop(self) -> None:
        """Deliver nothing any more, as `Watching` has it."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def join(self) -> None:
        """Wait for the last round, after stop(). Raises what ended the thread early, if anything.

        No OSError does: that is delivered.
        """
        if self._thread is not None:
            self._thread.join()
        if self._crash is not None:
            raise self._crash

    def _run(self, deliver: Callable[[Outcome], object]) -> None:
        try:
            rest = 0.0
            while not self._stopped_within(rest):
                rest = self._round(deliver)
        except BaseException as error:  # noqa: BLE001 - join() raises it, in the main thread
            self._crash = error
            self._tell(deliver, Failed(time.monotonic(), RuntimeError(f"a mistake: {error!r}")))

    def _stopped_within(self, seconds: float) -> bool:
        """Wait, for no longer than until somebody asks for something."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._asked, seconds)
            self._asked = False
            return self._stopped

    def _round(self, deliver: Callable[[Outcome], object]) -> float:
        """Look and count once; how many seconds to rest then."""
        start = time.monotonic()
        pair = self._pair
        try:
            if pair is not None:
                # First, since somebody waits for it.
                detail = look(pair, netns=self._netns, port_range=self._port_range)
                self._tell(deliver, Looked(pair, detail))
            counting = time.monotonic()
            taken = snapshot(
                protocols=self._protocols, netns=self._netns, port_range=self._port_range
            )
            every = max(self._interval, (1 + _REST) * (time.monotonic() - start))
            self._tell(deliver, Counted(counting, every, taken))
        except (OSError, MalformedMessage) as error:
            self._tell(deliver, Failed(start, error))
        took = time.monotonic() - start
        return max(self._interval - took, _REST * took)

    def _tell(self, deliver: Callable[[Outcome], object], outcome: Outcome) -> None:
        # With the lock held, so that stop() waits for a delivery that has begun.
        with self._changed:
            if not self._stopped:
                deliver(outcome)
