import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectx.observe.trend import Trend, trend


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
def test_samples(samples: list[tuple[float, int]], capacity: int, expected: Trend) -> None:
    assert trend(samples, capacity) == expected


@given(
    st.floats(-1000, 1000),
    st.integers(0, 1000),
    st.lists(st.integers(0, 10_000), min_size=2, max_size=50, unique=True),
)
def test_a_straight_line(rate: float, start: int, times: list[int]) -> None:
    samples = [(float(time), round(start + rate * time)) for time in sorted(times)]
    assert trend(samples, 1000).rate == pytest.approx(rate, abs=1.01)
