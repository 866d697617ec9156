"""The ports in use over time, of the fullest pairs, and where their number is going."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from connectx._diagnosis.facts import Row
    from connectx.addresses import Endpoint

#: How many of the latest samples make a trend: a minute of them, every 2 seconds. With more,
#: a burst shows late. With fewer, connections that come and go look like one.
RECENT: Final = 30


class Trend(NamedTuple):
    """How a number of ports changes.

    Attributes:
        rate: Ports per second; negative while they become fewer.
        seconds_left: The time until the capacity is reached at that rate; None for never.
    """

    rate: float
    seconds_left: float | None


def trend(samples: Sequence[tuple[float, int]], capacity: int) -> Trend:
    """Return the trend of (seconds, ports in use), in order of time, toward a capacity.

    The rate is the slope of a straight line through all samples (least squares): a jump
    between the last two says less than what led there. Fewer than two samples have no trend.
    """
    count = len(samples)
    if count < 2:
        return Trend(0.0, None)
    mean_time = sum(time for time, _ in samples) / count
    mean_used = sum(used for _, used in samples) / count
    spread = sum((time - mean_time) ** 2 for time, _ in samples)
    if not spread:
        return Trend(0.0, None)
    rate = sum((time - mean_time) * (used - mean_used) for time, used in samples) / spread
    left = max(0, capacity - samples[-1][1])
    return Trend(rate, left / rate if rate > 0 else None)


class Pair(NamedTuple):
    """A source and a destination whose ports are counted together: the first fields of a Row."""

    protocol: str
    source: str
    destination: Endpoint

    @classmethod
    def of(cls, row: Row) -> Pair:
        """Return the pair that a row counts."""
        return cls(row.protocol, row.source, row.destination)

    def __str__(self) -> str:
        return f"{self.protocol} {self.source} to {self.destination}"


class History:
    """The ports taken over time: those in use, without TIME_WAITs that connect() may take over.

    Needs about 40 bytes times `pairs` times `samples`, however many pairs there are.

    Args:
        pairs: How many pairs to follow, the fullest.
        samples: How many samples to keep of each, the latest.
    """

    def __init__(self, pairs: int = 500, samples: int = 150) -> None:
        self._pairs = pairs
        # The times of all samples. The counts of a pair belong to the last of these.
        self._times: deque[float] = deque(maxlen=samples)
        self._counts: dict[Pair, deque[int]] = {}

    def record(self, seconds: float, rows: Iterable[Row], also: Container[Pair] = ()) -> None:
        """Add a snapshot's rows, and forget pairs that are no longer followed or in use.

        Args:
            seconds: When they were counted, by a clock that is never set back.
            rows: The rows, the fullest first.
            also: Pairs to follow however empty they are, beyond the number of pairs.
        """
        self._times.append(seconds)
        followed = {}
        for number, row in enumerate(rows):
            pair = Pair.of(row)
            if number < self._pairs or pair in also:
                counts = self._counts.get(pair)
                if counts is None:
                    counts = deque(maxlen=self._times.maxlen)
                counts.append(row.taken)
                followed[pair] = counts
        self._counts = followed

    def clear(self) -> None:
        """Forget everything, because what comes next is about something else."""
        self._times.clear()
        self._counts.clear()

    def samples(self, pair: Pair) -> list[tuple[float, int]]:
        """Return (seconds, ports taken), the oldest first; none for a pair not followed."""
        counts = self._counts.get(pair, ())
        times = islice(self._times, len(self._times) - len(counts), None)
        return list(zip(times, counts, strict=True))

    def trend(self, row: Row) -> Trend | None:
        """Return the trend of a pair's latest `RECENT` samples; None before there are two."""
        samples = self.samples(Pair.of(row))[-RECENT:]
        return trend(samples, row.capacity) if len(samples) > 1 else None

    def __len__(self) -> int:
        """The number of pairs that are followed."""
        return len(self._counts)
