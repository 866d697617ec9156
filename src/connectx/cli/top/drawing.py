"""Numbers as a few characters: bars, sparklines, rates and times left."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx._diagnosis.finding import FILLING, FULL
from connectx.cli.output import percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Piece(NamedTuple):
    """A piece of a line, and a style as rich names it.

    Only the terminal's own colours, so that it is readable on any background; and nothing
    that only the colour says.
    """

    text: str
    style: str = ""


#: Of a bar's last character, by eighths that are full.
_EIGHTHS: Final = "▏▎▍▌▋▊▉█"
_HEIGHTS: Final = "▁▂▃▄▅▆▇█"
_EMPTY: Final = "·"

#: Seconds left, from which on it is urgent, and soon.
_URGENT: Final = 600
SOON: Final = 3600

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86400


def bar(share: float, width: int) -> list[Piece]:
    """A bar of a width in characters, full to a share; anything above nothing is visible."""
    eighths = min(8 * width, int(share * 8 * width))
    if share > 0:
        eighths = max(1, eighths)
    whole, part = divmod(eighths, 8)
    filled = _EIGHTHS[-1] * whole + (_EIGHTHS[part - 1] if part else "")
    return [Piece(filled, colour(share)), Piece(_EMPTY * (width - len(filled)), "dim")]


def colour(share: float) -> str:
    """The style of a share in use."""
    return "bold red" if share >= FULL else "yellow" if share >= FILLING else "green"


def short_percent(share: float) -> str:
    """A share in up to six characters: "97.3 %", "100 %"."""
    return percent(share) if share < 1 else f"{int(share * 100)} %"


def rate(per_second: float) -> str:
    """Ports per second in up to six characters: "+0.4", "-1,204", "+28.2k"; "0" for none."""
    size = abs(per_second)
    if size < 0.05:
        return "0"
    if size < 99.95:
        return f"{per_second:+.1f}"
    if size < 9999.5:
        return f"{per_second:+,.0f}"
    return f"{per_second / 1000:+.1f}k" if size < 99_950 else f"{per_second / 1000:+.0f}k"


def duration(seconds: float) -> str:
    """A time in up to six characters: "40 s", "12 min", "13 h", "4 d"."""
    for limit, unit, name in (
        (2 * _MINUTE, 1, "s"),
        (2 * _HOUR, _MINUTE, "min"),
        (2 * _DAY, _HOUR, "h"),
    ):
        if seconds < limit:
            # Down: who reads it has at least as much time.
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds // _DAY)} d"


def time_left(free: int, seconds: float | None) -> Piece:
    """How long until none of the free ports is left, in up to six characters."""
    if not free:
        return Piece("now", "bold red")
    if seconds is None or seconds >= 100 * _DAY:
        return Piece("")
    style = "bold red" if seconds < _URGENT else "yellow" if seconds < SOON else ""
    return Piece(duration(seconds), style)


def sparkline(values: Sequence[int], width: int, capacity: int) -> str:
    """Values over time, the newest on the right, in a width of characters.

    From the lowest to the highest, but by at least a fiftieth of the capacity: a connection
    more or less is no mountain.
    """
    if not values:
        return " " * width
    columns = min(width, len(values))
    edges = [len(values) * column // columns for column in range(columns + 1)]
    highest = [max(values[start:end]) for start, end in pairwise(edges)]
    low = min(values)
    span = max(max(values) - low, capacity / 50, 1)
    line = "".join(_HEIGHTS[int((value - low) / span * 7)] for value in highest)
    return line.rjust(width)


def histogram(ports: Iterable[int], low: int, high: int, width: int) -> str:
    """How densely a range of ports is in use, in a width of characters."""
    size = high - low + 1
    width = min(width, size)
    counts = [0] * width
    for port in ports:
        counts[(port - low) * width // size] += 1
    line = []
    for cell, count in enumerate(counts):
        # Cells differ by one port in what they stand for.
        there = -((cell + 1) * -size // width) + cell * -size // width
        line.append(_HEIGHTS[min(7, (count * 8 - 1) // there)] if count else _EMPTY)
    return "".join(line)


def runs(ports: Sequence[int]) -> list[str]:
    """Ports in order as ranges: "32768", "32770-32799"."""
    found: list[str] = []
    start = 0
    for index, port in enumerate(ports):
        if index + 1 == len(ports) or ports[index + 1] != port + 1:
            first = ports[start]
            found.append(f"{first}" if first == port else f"{first}-{port}")
            start = index + 1
    return found


def shortened(text: str, width: int) -> str:
    """A text without its middle where it is too long; an address tells most at its ends."""
    if len(text) <= width:
        return text
    head = max(0, width - 1) // 2
    tail = max(0, width - 1 - head)
    return f"{text[:head]}…{text[len(text) - tail :]}"[:width]
