"""A thread that counts source ports again and again, so that the view never waits for it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from connectx.linux.netlink import MalformedMessage
from connectx.observe.usage import look_at, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from connectx.addresses import PortRange
    from connectx.observe.history import Pair
    from connectx.observe.usage import Detail, Snapshot

#: The rest after each round, as a multiple of the time that the round took. So the thread uses
#: at most a fifth of a core: where there is more to count, it counts less often.
_REST: Final = 4


class Counted(NamedTuple):
    """A snapshot.

    Attributes:
        seconds: When it was taken, by time.monotonic().
        every: The seconds until the next one.
        snapshot: What was counted.
    """

    seconds: float
    every: float
    snapshot: Snapshot


class Looked(NamedTuple):
    """The details of one pair."""

    pair: Pair
    detail: Detail


class Failed(NamedTuple):
    """The error of a round; the next round tries again.

    Attributes:
        seconds: When the round began, by time.monotonic().
        error: Why nothing was counted.
    """

    seconds: float
    error: Exception


Outcome: TypeAlias = Counted | Looked | Failed


class Watcher:
    """Counts in a thread of its own, the only one that enters another namespace.

    Args:
        interval: The seconds from one round to the next; more where counting is slow.
        protocols: As for `connectx.observe.snapshot`, like `netns` and `port_range`.
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
        # Guards the next three attributes, and is notified when one of them changes.
        self._changed = threading.Condition()
        self._stopped = False
        self._pair: Pair | None = None
        self._asked = False
        self._crash: BaseException | None = None

    def start(self, deliver: Callable[[Outcome], object]) -> None:
        """Begin. `deliver` is called in the thread, and never again once stop() has returned."""
        self._thread = threading.Thread(target=self._run, args=(deliver,), name="connectx-top")
        self._thread.start()

    def look(self, pair: Pair | None) -> None:
        """Read the details of a pair too, at once and in every round; None ends this."""
        with self._changed:
            self._pair = pair
            self._asked = pair is not None
            self._changed.notify()

    def stop(self) -> None:
        """Deliver nothing more; a round that has begun may still be running."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def join(self) -> None:
        """Wait for the last round after stop(), and raise what ended the thread early, if any.

        An OSError does not end it: it is delivered as `Failed`.
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
            self._tell(deliver, Failed(time.monotonic(), RuntimeError(f"a bug: {error!r}")))

    def _stopped_within(self, seconds: float) -> bool:
        """Wait so long, or until stop() or look() is called; return whether it was stop()."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._asked, seconds)
            self._asked = False
            return self._stopped

    def _round(self, deliver: Callable[[Outcome], object]) -> float:
        """Count once, and return how many seconds to rest."""
        start = time.monotonic()
        pair = self._pair
        try:
            if pair is not None:
                # First, since the user is waiting for it.
                detail = look_at(pair, netns=self._netns, port_range=self._port_range)
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
