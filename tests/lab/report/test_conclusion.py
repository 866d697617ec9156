"""The sentences on top of the report, for findings made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from connectx.lab.report.conclusion import conclusion
from tests.lab.report.findings import fill

if TYPE_CHECKING:
    from connectx.lab.latency import Latency

SLOW_HALF = [20.0] * 100 + [2_000.0] * 100
FLAT = [20.0] * 200


def conclude(plain: Latency, ours: Latency, *, disagreements: int = 0) -> str:
    techniques = SimpleNamespace(disagreements=disagreements, compared=[None] * 1000)
    findings: Any = SimpleNamespace(
        strategies={"kernel": plain, "auto": ours}, techniques=techniques
    )
    return conclusion(findings)


class TestConclusion:
    def test_where_connectx_is_faster(self) -> None:
        assert conclude(fill(SLOW_HALF), fill(FLAT)) == (
            "connectx is 50 times as fast as plain connect() here: 200 TCP connections to one "
            "destination took 0.004 s, and 200 by plain connect() took 0.2 s. As the range fills "
            "up, the mean cost of a plain connect() rises from 20 µs to 2,000 µs; that of connectx "
            "stays at 20 µs."
        )

    @pytest.mark.parametrize(
        "microseconds, verdict",
        [
            (20.0, "connectx is as fast as plain connect() here: "),
            (22.0, "connectx is as fast as plain connect() here: "),
            (18.0, "connectx is as fast as plain connect() here: "),
            (50.0, "connectx is 2.5 times as fast as plain connect() here: "),
            (5.0, "Plain connect() is 4 times as fast as connectx here: "),
        ],
    )
    def test_where_it_is_not(self, microseconds: float, verdict: str) -> None:
        assert conclude(fill([microseconds] * 200), fill(FLAT)).startswith(verdict)

    def test_where_the_time_limit_ended_a_fill(self) -> None:
        text = conclude(fill(SLOW_HALF, finished=False), fill(FLAT))
        assert (
            "The time limit of 300 s ended the fill by plain connect() before the range was full."
        ) in text
        assert "by connectx before" not in text

    def test_where_all_were_refused(self) -> None:
        none, all_of_them = fill(FLAT, [0] * 200), fill([20.0, 24.0] * 100)
        assert conclude(none, all_of_them) == (
            "Plain connect() opened 0 of 200 TCP connections to one destination, and connectx "
            "200 of 200. As the range fills up, the mean cost of a plain connect() is unknown, for "
            "none was opened; that of connectx stays at 22 µs."
        )
        assert "and connectx 0 of 200." in conclude(all_of_them, none)

    def test_where_the_cost_varies_a_little(self) -> None:
        text = conclude(fill(FLAT), fill([30.0] * 100 + [40.0] * 100))
        assert text.endswith("that of connectx stays between 30 and 40 µs.")

    def test_where_a_technique_behaves_otherwise(self) -> None:
        text = conclude(fill(SLOW_HALF), fill(FLAT), disagreements=3)
        assert text.endswith("3 of 1,000 findings on techniques are not as expected.")
