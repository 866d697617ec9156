import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectx.cli.page import Piece
from connectx.cli.top import drawing


def plain(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize(
    "share, expected",
    [(0, "····"), (0.001, "▏···"), (0.5, "██··"), (0.9, "███▌"), (1, "████"), (1.2, "████")],
)
def test_bar(share: float, expected: str) -> None:
    assert plain(drawing.bar(share, 4)) == expected


@pytest.mark.parametrize(
    "share, style", [(0.69, "green"), (0.94, "yellow"), (0.95, "bold red"), (1, "bold red")]
)
def test_colour(share: float, style: str) -> None:
    assert drawing.colour(share) == style


@pytest.mark.parametrize(
    "per_second, expected",
    [
        (0, "0"),
        (-0.04, "0"),
        (0.42, "+0.4"),
        (-99.9, "-99.9"),
        (99.96, "+100"),
        (1204, "+1,204"),
        (28_232, "+28.2k"),
        (-123_456, "-123k"),
    ],
)
def test_rate(per_second: float, expected: str) -> None:
    assert drawing.rate(per_second) == expected


@pytest.mark.parametrize(
    "seconds, expected",
    [
        (0.5, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (172_799, "47 h"),
        (172_800, "2 d"),
    ],
)
def test_duration(seconds: float, expected: str) -> None:
    assert drawing.duration(seconds) == expected


@pytest.mark.parametrize(
    "free, seconds, expected",
    [
        (0, None, Piece("now", "bold red")),
        (1, None, Piece("")),
        (1, 599, Piece("9 min", "bold red")),
        (1, 600, Piece("10 min", "yellow")),
        (1, 3600, Piece("60 min")),
        (1, 1e9, Piece("")),
    ],
)
def test_time_left(free: int, seconds: float | None, expected: Piece) -> None:
    assert drawing.time_left(free, seconds) == expected


class TestSparkline:
    @pytest.mark.parametrize(
        "values, expected",
        [
            ([], "    "),
            ([5], "   ▁"),
            ([0, 50, 100], " ▁▄█"),
            ([100] * 9, "▁▁▁▁"),
            ([0, 1], "  ▁▄"),
            ([0, 0, 0, 90, 0, 0, 0, 0], "▁█▁▁"),
        ],
    )
    def test_shape(self, values: list[int], expected: str) -> None:
        assert drawing.sparkline(values, 4, 100) == expected

    @given(st.lists(st.integers(0, 70_000)), st.integers(1, 50), st.integers(0, 65_535))
    def test_always_has_its_width(self, values: list[int], width: int, capacity: int) -> None:
        assert len(drawing.sparkline(values, width, capacity)) == width


class TestHistogram:
    @pytest.mark.parametrize(
        "ports, expected",
        [([], "····"), ([0], "▁···"), (range(50), "██··"), ([99], "···▁"), (range(75, 87), "···▄")],
    )
    def test_shape(self, ports: list[int], expected: str) -> None:
        assert drawing.histogram(ports, 0, 99, 4) == expected

    @given(st.integers(1, 300), st.integers(1, 100), st.data())
    def test_all_are_in_use(self, size: int, width: int, data: st.DataObject) -> None:
        low = data.draw(st.integers(1, 65_536 - size))
        found = drawing.histogram(range(low, low + size), low, low + size - 1, width)
        assert found == "█" * min(size, width)


@pytest.mark.parametrize(
    "ports, expected",
    [((), []), ((7,), ["7"]), ((7, 8, 9), ["7-9"]), ((1, 3, 4, 9), ["1", "3-4", "9"])],
)
def test_runs(ports: tuple[int, ...], expected: list[str]) -> None:
    assert drawing.runs(ports) == expected


@given(st.text(min_size=1), st.integers(1, 30))
def test_a_shortened_text_fits(text: str, width: int) -> None:
    found = drawing.shortened(text, width)
    assert len(found) == min(len(text), width)
    assert (found == text) == (len(text) <= width)


def test_a_shortened_address_keeps_its_port() -> None:
    assert drawing.shortened("[2001:db8::1:2:3:4]:443", 12) == "[2001…4]:443"
