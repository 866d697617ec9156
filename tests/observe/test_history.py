"""Trends, and a history that is bounded and about what was counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectx.addresses import Endpoint
from connectx.observe.history import RECENT, History, Pair, Trend, trend
from connectx.observe.usage import Row


def row(number: int, in_use: int = 10, capacity: int = 100) -> Row:
    return Row("tcp", f"10.0.0.{number}", Endpoint("192.0.2.7", 443), in_use, capacity, {}, {})


def test_samples_in_order_of_time() -> None:
    history = History()
    for second in range(4):
        history.record(10.0 + second, [row(1, in_use=second)])
    assert history.samples(Pair.of(row(1))) == [(10.0, 0), (11.0, 1), (12.0, 2), (13.0, 3)]
    assert history.trend(row(1, in_use=3)) == Trend(1.0, 97.0)


def test_a_pair_that_came_later_has_the_later_times() -> None:
    history = History()
    history.record(1.0, [row(1)])
    history.record(2.0, [row(1), row(2)])
    assert history.samples(Pair.of(row(2))) == [(2.0, 10)]
    assert history.trend(row(2)) is None


def test_only_the_latest_samples_make_the_trend() -> None:
    history = History()
    for second in range(RECENT):
        history.record(second, [row(1, in_use=second)])
    for second in range(RECENT, 2 * RECENT):
        history.record(second, [row(1, in_use=RECENT)])
    assert history.trend(row(1)) == Trend(0.0, None)


def test_only_the_fullest_and_those_asked_for_are_followed() -> None:
    history = History(pairs=2)
    rows = [row(number) for number in range(5)]
    history.record(1.0, rows, {Pair.of(rows[4])})
    assert [bool(history.samples(Pair.of(each))) for each in rows] == [1, 1, 0, 0, 1]
    history.record(2.0, rows)
    assert len(history) == 2
    assert history.samples(Pair.of(rows[4])) == []


def test_a_pair_that_was_gone_begins_anew() -> None:
    history = History()
    for second, rows in enumerate([[row(1)], [], [row(1)]]):
        history.record(second, rows)
    assert history.samples(Pair.of(row(1))) == [(2, 10)]


def test_what_can_be_taken_over_counts_as_free() -> None:
    history = History()
    for second in range(3):
        history.record(second, [row(1, in_use=50 + 10 * second)._replace(reusable=10 * second)])
    assert history.samples(Pair.of(row(1))) == [(0, 50), (1, 50), (2, 50)]
    assert history.trend(row(1)) == Trend(0.0, None)


def test_clear() -> None:
    history = History()
    history.record(1.0, [row(1)])
    history.clear()
    assert len(history) == 0
    history.record(2.0, [row(1)])
    assert history.samples(Pair.of(row(1))) == [(2.0, 10)]


@given(
    st.integers(0, 5),
    st.integers(1, 10),
    st.lists(st.sets(st.integers(0, 8)), max_size=30),
)
def test_is_bounded(pairs: int, samples: int, rounds: list[set[int]]) -> None:
    history = History(pairs, samples)
    for second, numbers in enumerate(rounds):
        rows = [row(number) for number in sorted(numbers)]
        history.record(second, rows, {Pair.of(row(8))})
        assert len(history) <= pairs + 1
        for each in rows:
            found = history.samples(Pair.of(each))
            assert len(found) <= samples
            assert not found or found[-1] == (second, 10)


def test_a_pair_as_text() -> None:
    assert str(Pair.of(row(1))) == "tcp 10.0.0.1 to 192.0.2.7:443"


@pytest.mark.parametrize(
    "samples, capacity, expected",
    [
        ([], 100, Trend(0.0, None)),
        ([(1.0, 50)], 100, Trend(0.0, None)),
        ([(1.0, 50), (1.0, 60)], 100, Trend(0.0, None)),
        ([(0.0, 50), (10.0, 60)], 100, Trend(1.0, 40.0)),
        ([(0.0, 60), (10.0, 50)], 100, Trend(-1.0, None)),
        ([(0.0, 60), (10.0, 60)], 100, Trend(0.0, None)),
        ([(0.0, 90), (10.0, 110)], 100, Trend(2.0, 0.0)),
    ],
)
def test_trends(samples: list[tuple[float, int]], capacity: int, expected: Trend) -> None:
    assert trend(samples, capacity) == expected


@given(
    st.floats(-1000, 1000),
    st.integers(0, 1000),
    st.lists(st.integers(0, 10_000), min_size=2, max_size=50, unique=True),
)
def test_the_trend_of_a_straight_line(rate: float, start: int, times: list[int]) -> None:
    samples = [(float(time), round(start + rate * time)) for time in sorted(times)]
    assert trend(samples, 1000).rate == pytest.approx(rate, abs=1.01)
