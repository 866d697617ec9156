"""What the report draws: each fill on the same axis, and a line that stays on the data."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from connectx.lab.report import figures
from connectx.lab.report.experiments import STRATEGIES
from connectx.lab.report.figures import Times, common_times
from connectx.lab.summary import summarise
from tests.lab.report.findings import LOW, fill

QUICK, SLOW = [1.0] * 100, [1_000.0] * 100
FILLS = {
    "rising": QUICK + SLOW,
    "falling": SLOW + QUICK,
    "rising slowly": [20 + number / 10 for number in range(200)],
    "falling slowly": [40 - number / 10 for number in range(200)],
    "flat": [20.0] * 200,
}


def rows(figure: Any, layer: int) -> list[dict[str, str]]:
    drawn = figure.to_dict()
    name = drawn["layer"][layer]["data"]["name"]
    return list(csv.DictReader(io.StringIO(drawn["datasets"][name])))


class TestRegressionLine:
    @pytest.mark.parametrize("microseconds", FILLS.values(), ids=FILLS)
    def test_is_drawn_on_the_data_only(self, microseconds: list[float]) -> None:
        one = fill(microseconds)
        times = common_times([one])
        found = rows(figures.latency(one, times), layer=1)
        summary = summarise(one)
        assert len(found) > 10
        for point in found:
            number, milliseconds = float(point["number"]), float(point["ms"])
            expected = (summary.start + summary.slope * number) / 1000
            assert milliseconds == pytest.approx(expected, abs=1e-4)
            assert 0 <= number <= len(microseconds) - 1
            assert times.low <= milliseconds * 1.001
            assert milliseconds <= times.high * 1.001

    @pytest.mark.parametrize("name", ["flat", "rising slowly", "falling slowly"])
    def test_reaches_from_the_first_connection_to_the_last(self, name: str) -> None:
        numbers = [
            number for number, _ in figures.regression(fill(FILLS[name]), Times(0.001, 10.0))
        ]
        assert numbers[0] == 0
        assert numbers[-1] == pytest.approx(199)

    def test_does_not_go_on_over_refused_connections(self) -> None:
        one = fill([20.0] * 200, [*range(LOW, LOW + 100), *[0] * 100])
        assert figures.regression(one, Times(0.001, 10.0))[-1][0] == pytest.approx(99)

    def test_of_no_connection_is_none(self) -> None:
        assert figures.regression(fill([20.0] * 9, [0] * 9), Times(0.001, 10.0)) == []


class TestAxis:
    def test_has_room_for_every_fill(self) -> None:
        times = common_times([fill(FILLS["flat"]), fill(FILLS["rising"])])
        assert times.low <= 0.001
        assert times.high >= 1.0

    def test_a_flat_fill_stays_flat_beside_a_slow_one(self) -> None:
        flat = fill([20.0, 24.0] * 100)
        times = common_times([flat, fill(FILLS["rising"])])
        drawn = figures.latency(flat, times).to_dict()
        scale = drawn["layer"][0]["encoding"]["y"]["scale"]
        assert scale["type"] == "log"
        assert scale["domain"] == list(times)
        # Less than a tenth of the height of the axis, in powers of ten.
        assert times.high / times.low > (24 / 20) ** 10

    def test_its_labels_are_on_it(self) -> None:
        assert Times(0.002, 0.7).ticks == [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5]

    @pytest.mark.parametrize(
        "microseconds, low", [(1.0, 0.0005), (2.5, 0.002), (10.0, 0.005), (13.0, 0.01)]
    )
    def test_begins_at_a_round_number(self, microseconds: float, low: float) -> None:
        assert common_times([fill([microseconds] * 9)]).low == pytest.approx(low)


class TestWays:
    def test_differ_in_shape_and_in_colour(self) -> None:
        fills = {way: fill(FILLS["flat"], way=way) for way in STRATEGIES}
        encoding = figures.strategies(fills).to_dict()["encoding"]
        for channel in ("shape", "color"):
            scale = encoding[channel]["scale"]
            assert scale["domain"] == list(STRATEGIES)
            assert len(set(scale["range"])) == len(STRATEGIES)


class TestKinds:
    def test_differ_in_shape_and_in_colour(self) -> None:
        one = fill([20.0] * 3, [LOW, LOW + 1, 0])
        encoding = figures.latency(one, Times(0.001, 1.0)).to_dict()["layer"][0]["encoding"]
        for channel in ("shape", "color"):
            scale = encoding[channel]["scale"]
            assert scale["domain"] == ["even port", "odd port", "refused"]
            assert len(set(scale["range"])) == 3
        kinds = [row["kind"] for row in rows(figures.latency(one, Times(0.001, 1.0)), layer=0)]
        assert kinds == ["even port", "odd port", "refused"]
