"""How full a range is, in the stages by which the experiments count connections."""

from __future__ import annotations

from typing import Final, NamedTuple


class Stage(NamedTuple):
    """Shares of all 4-tuples that are in use, from `low` up to `high`."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.0%} to {self.high:.0%}"


#: Most ways are quick until the range is half full, and the last per cent tells them apart.
STAGES: Final = (Stage(0.0, 0.5), Stage(0.5, 0.9), Stage(0.9, 0.99), Stage(0.99, 1.0))
