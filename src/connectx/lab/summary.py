"""What a fill's samples say: by how full the range was, by parity, and altogether."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from connectx.lab.latency import Latency, Samples

#: How full the range is, from the first share up to the second.
OCCUPANCIES: Final = ((0.0, 0.5), (0.5, 0.9), (0.9, 0.99), (0.99, 1.0))


class Percentiles(NamedTuple):
    """Microseconds of some connections; all NaN where there are none.

    connections: how many there are.
    """

    connections: int
    mean: float
    half: float
    ninety: float
    ninety_nine: float
    longest: float

    def as_json(self) -> dict[str, Any]:
        """The same as plain values, null where there are none."""
        return {
            name: None if math.isnan(value) else value for name, value in self._asdict().items()
        }


class Occupied(NamedTuple):
    """The connections tried while the range was so full.

    low, high: shares of all 4-tuples.
    microseconds: of those that were opened.
    errors: how many were refused. retries: tries refused within the calls.
    """

    low: float
    high: float
    microseconds: Percentiles
    errors: int
    retries: int


class Summary(NamedTuple):
    """A fill at a glance.

    tried, opened, errors, retries: counts.
    seconds: what all of it took, refusals included.
    per_second: connections opened in each of them.
    even, odd: microseconds of the connections with such source ports.
    slope: microseconds that a connection took more than the one before it, on the
    line through all of them; start: where that line begins.
    occupied: by how full the range was.
    churn: microseconds of the connections opened in the place of others.
    churn_errors, churn_retries: counts.
    """

    tried: int
    opened: int
    errors: int
    retries: int
    seconds: float
    per_second: float
    even: Percentiles
    odd: Percentiles
    slope: float
    start: float
    occupied: tuple[Occupied, ...]
    churn: Percentiles
    churn_errors: int
    churn_retries: int

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            **self._asdict(),
            "even": self.even.as_json(),
            "odd": self.odd.as_json(),
            "churn": self.churn.as_json(),
            "occupied": [
                {**occupied._asdict(), "microseconds": occupied.microseconds.as_json()}
                for occupied in self.occupied
            ],
        }


def summarise(latency: Latency) -> Summary:
    """The summary of a fill."""
    fill, churn = latency.fill, latency.churn
    opened = [number for number, port in enumerate(fill.port) if port]
    seconds = sum(fill.nanoseconds) / 1e9
    slope, start = _line(opened, [fill.nanoseconds[number] / 1000 for number in opened])
    return Summary(
        tried=len(fill.port),
        opened=len(opened),
        errors=len(fill.port) - len(opened),
        retries=sum(fill.retries),
        seconds=seconds,
        per_second=len(opened) / seconds if opened else 0.0,
        even=percentiles(fill.nanoseconds[n] for n in opened if fill.port[n] % 2 == 0),
        odd=percentiles(fill.nanoseconds[n] for n in opened if fill.port[n] % 2),
        slope=slope,
        start=start,
        occupied=tuple(_by_occupancy(fill, latency.settings.capacity)),
        churn=percentiles(_of_opened(churn)),
        churn_errors=sum(map(bool, churn.errno)),
        churn_retries=sum(churn.retries),
    )


def as_json(latency: Latency) -> dict[str, Any]:
    """All of it, every sample included, as `connectx lab latency --help` describes it."""
    settings = latency.settings
    return {
        "way": settings.way,
        "protocol": settings.protocol,
        "family": settings.family,
        "ports": list(settings.ports),
        "sources": settings.sources,
        "destinations": settings.destinations,
        "finished": latency.finished,
        "summary": summarise(latency).as_json(),
        "fill": {name: list(column) for name, column in latency.fill._asdict().items()},
        "churn": {name: list(column) for name, column in latency.churn._asdict().items()},
    }


def percentiles(nanoseconds: Iterable[int]) -> Percentiles:
    """The mean and the percentiles of some times."""
    times = sorted(nanoseconds)
    if not times:
        return Percentiles(0, *[math.nan] * 5)
    # The nearest rank: the least time that so many in a hundred do not exceed.
    ranks = (math.ceil(len(times) * share / 100) - 1 for share in (50, 90, 99, 100))
    return Percentiles(
        len(times), statistics.fmean(times) / 1000, *(times[rank] / 1000 for rank in ranks)
    )


def _of_opened(samples: Samples) -> list[int]:
    return [time for time, port in zip(samples.nanoseconds, samples.port, strict=True) if port]


def _by_occupancy(fill: Samples, capacity: int) -> Iterator[Occupied]:
    tries: list[list[int]] = [[] for _ in OCCUPANCIES]
    opened = 0
    stage = 0
    for number, port in enumerate(fill.port):
        # A refused try belongs to the stage that it found.
        while stage < len(OCCUPANCIES) - 1 and opened >= OCCUPANCIES[stage][1] * capacity:
            stage += 1
        tries[stage].append(number)
        opened += port != 0
    for (low, high), numbers in zip(OCCUPANCIES, tries, strict=True):
        yield Occupied(
            low,
            high,
            percentiles(fill.nanoseconds[n] for n in numbers if fill.port[n]),
            sum(1 for n in numbers if not fill.port[n]),
            sum(fill.retries[n] for n in numbers),
        )


def _line(numbers: Sequence[int], microseconds: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    if len(numbers) < 2:
        return 0.0, microseconds[0] if microseconds else 0.0
    slope, start = statistics.linear_regression(numbers, microseconds)
    return slope, start
