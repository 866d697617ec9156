"""What the last snapshots counted, for the fullest pairs only."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.observe.trend import Trend, trend

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from connectx.addresses import Endpoint
    from connectx.observe.usage import Row

#: How many of the latest samples make a trend: a minute of them, every 2 seconds. More, and
#: a burst shows late; fewer, and what comes and goes looks like one.
RECENT: Final = 30


class Pair(NamedTuple):
    """Whose ports are counted together: the fields that a Row has of them."""

    protocol: str
    source: str
    destination: Endpoint

    @classmethod
    def of(cls, row: Row) -> Pair:
        """The pair that a row counts."""
        return cls(row.protocol, row.source, row.destination)

    def __str__(self) -> str:
        return f"{self.protocol} {self.source} to {self.destination}"


class History:
    """Ports taken over time: those in use, but for TIME_WAITs that a connect() may take over.

    pairs: how many pairs are followed, the fullest. samples: how many each keeps, the latest.
    So what it needs is bounded, by about 40 bytes times both, however many pairs there are.
    """

    def __init__(self, pairs: int = 500, samples: int = 150) -> None:
        self._pairs = pairs
        # When; the counts of each pair belong to the last ones of these.
        self._times: deque[float] = deque(maxlen=samples)
        self._counts: dict[Pair, deque[int]] = {}

    def record(self, seconds: float, rows: Iterable[Row], also: Container[Pair] = ()) -> None:
        """Add a snapshot's rows, the fullest first.

        seconds: when they were counted, by a clock that is never set back.
        also: pairs to follow however empty they are: few, since they come on top.

        A pair that is not followed any more, or has no port in use, is forgotten.
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
        """Forget everything: what comes next is about something else."""
        self._times.clear()
        self._counts.clear()

    def samples(self, pair: Pair) -> list[tuple[float, int]]:
        """(seconds, ports taken), the oldest first; none for a pair that is not followed."""
        counts = self._counts.get(pair, ())
        return list(zip(islice(self._times, len(self._times) - len(counts), None), counts,
                        strict=True))  # fmt: skip

    def trend(self, row: Row) -> Trend | None:
        """Where a pair is going, by its latest `RECENT` samples; None before there are two."""
        samples = self.samples(Pair.of(row))[-RECENT:]
        return trend(samples, row.capacity) if len(samples) > 1 else None

    def __len__(self) -> int:
        """How many pairs are followed."""
        return len(self._counts)
