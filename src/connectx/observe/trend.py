"""Where a number of ports in use is going: its rate, and the time until none is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Trend(NamedTuple):
    """How a number changes.

    rate: ports per second; negative while they become fewer.
    seconds_left: until the capacity is reached at that rate; None where it never is.
    """

    rate: float
    seconds_left: float | None


def trend(samples: Sequence[tuple[float, int]], capacity: int) -> Trend:
    """The trend of (seconds, ports in use), in order of time, toward a capacity.

    A straight line through all of them (least squares): a jump between two samples
    says less than what led there. Less than two samples have no trend.
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
