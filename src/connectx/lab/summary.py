"""A fill at a glance: by how full the range was, by the parity of ports, and altogether."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

from connectx.lab.occupancy import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from connectx.lab.latency import Latency, Samples
    from connectx.lab.occupancy import Stage


class Percentiles(NamedTuple):
    """Microseconds of some connections; NaN where there are none.

    Attributes:
        connections: How many there are.
        mean: Their mean.
        half: What half of them take at most.
        ninety: What 90 % of them take at most.
        ninety_nine: What 99 % of them take at most.
        longest: What all of them take at most.
    """

    connections: int
    mean: float
    half: float
    ninety: float
    ninety_nine: float
    longest: float

    def as_json(self) -> dict[str, Any]:
        """Return the same in JSON's types, with null for NaN."""
        return {
            name: None if math.isnan(value) else value for name, value in self._asdict().items()
        }


class Occupied(NamedTuple):
    """The connections that were tried while the range was so full.

    Attributes:
        stage: How full.
        microseconds: Those of the connections that were opened.
        errors: How many were refused.
        retries: How many tries were refused within the calls.
    """

    stage: Stage
    microseconds: Percentiles
    errors: int
    retries: int

    def as_json(self) -> dict[str, Any]:
        """Return the same in JSON's types."""
        return {
            **self.stage._asdict(),
            "microseconds": self.microseconds.as_json(),
            "errors": self.errors,
            "retries": self.retries,
        }


class Summary(NamedTuple):
    """A fill at a glance.

    Attributes:
        tried: How many connections were tried.
        opened: How many were opened.
        errors: How many were refused.
        retries: How many tries were refused within the calls.
        seconds: How long it took, refusals included.
        per_second: How many connections were opened in a second.
        even: Microseconds of the connections from even ports.
        odd: Microseconds of the connections from odd ports.
        slope: On the regression line, microseconds that each connection takes more than the
            one before it.
        start: Where that line begins, in microseconds.
        occupied: The connections by how full the range was.
        churn: Microseconds of the connections that churn opened.
        churn_errors: How many connections churn could not open.
        churn_retries: How many tries were refused within the calls of churn.
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
        """Return the same in JSON's types."""
        return {
            **self._asdict(),
            "even": self.even.as_json(),
            "odd": self.odd.as_json(),
            "churn": self.churn.as_json(),
            "occupied": [occupied.as_json() for occupied in self.occupied],
        }


def summarise(latency: Latency) -> Summary:
    """Return the summary of a fill."""
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
        churn=percentiles(
            time for time, port in zip(churn.nanoseconds, churn.port, strict=True) if port
        ),
        churn_errors=sum(map(bool, churn.errno)),
        churn_retries=sum(churn.retries),
    )


def as_json(latency: Latency) -> dict[str, Any]:
    """Return a fill in JSON's types, as the schema lab-latency describes it."""
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
    """Return the mean and the percentiles of some times."""
    times = sorted(nanoseconds)
    if not times:
        return Percentiles(0, *[math.nan] * 5)
    # The nearest rank: the least time that so many per cent do not exceed.
    ranks = (math.ceil(len(times) * share / 100) - 1 for share in (50, 90, 99, 100))
    return Percentiles(
        len(times), statistics.fmean(times) / 1000, *(times[rank] / 1000 for rank in ranks)
    )


def _by_occupancy(fill: Samples, capacity: int) -> Iterator[Occupied]:
    tries: list[list[int]] = [[] for _ in STAGES]
    opened = 0
    at = 0
    for number, port in enumerate(fill.port):
        # A refused try belongs to the stage that it found.
        while at < len(STAGES) - 1 and opened >= STAGES[at].high * capacity:
            at += 1
        tries[at].append(number)
        opened += port != 0
    for stage, numbers in zip(STAGES, tries, strict=True):
        yield Occupied(
            stage,
            percentiles(fill.nanoseconds[n] for n in numbers if fill.port[n]),
            sum(1 for n in numbers if not fill.port[n]),
            sum(fill.retries[n] for n in numbers),
        )


def _line(numbers: Sequence[int], microseconds: Sequence[float]) -> tuple[float, float]:
    """Return slope and intercept of the least-squares line."""
    if len(numbers) < 2:
        return 0.0, microseconds[0] if microseconds else 0.0
    slope, start = statistics.linear_regression(numbers, microseconds)
    return slope, start
