"""Numbers in a few characters: bars, sparklines, rates and times left."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from connectx._diagnosis.finding import FILLING, FULL
from connectx.cli.output import percent
from connectx.cli.page import Piece

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


#: The last character of a bar, by how many eighths of it are full.
_EIGHTHS: Final = "▏▎▍▌▋▊▉█"
_HEIGHTS: Final = "▁▂▃▄▅▆▇█"
_EMPTY: Final = "·"

#: Fewer seconds left than these are urgent, and soon.
_URGENT: Final = 600
SOON: Final = 3600

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86400


def bar(share: float, width: int) -> list[Piece]:
    """Return a bar of so many characters; any share above 0 is visible."""
    eighths = min(8 * width, int(share * 8 * width))
    if share > 0:
        eighths = max(1, eighths)
    whole, part = divmod(eighths, 8)
    filled = _EIGHTHS[-1] * whole + (_EIGHTHS[part - 1] if part else "")
    return [Piece(filled, colour(share)), Piece(_EMPTY * (width - len(filled)), "dim")]


def colour(share: float) -> str:
    """Return the style for a share in use."""
    return "bold red" if share >= FULL else "yellow" if share >= FILLING else "green"


def short_percent(share: float) -> str:
    """Return a share in up to six characters: "97.3 %", "100 %"."""
    return percent(share) if share < 1 else f"{int(share * 100)} %"


def rate(per_second: float) -> str:
    """Return ports per second in up to six characters: "+0.4", "-1,204", "+28.2k", "0"."""
    size = abs(per_second)
    if size < 0.05:
        return "0"
    if size < 99.95:
        return f"{per_second:+.1f}"
    if size < 9999.5:
        return f"{per_second:+,.0f}"
    return f"{per_second / 1000:+.1f}k" if size < 99_950 else f"{per_second / 1000:+.0f}k"


def duration(seconds: float) -> str:
    """Return a time in up to six characters: "40 s", "12 min", "13 h", "4 d"."""
    for limit, unit, name in (
        (2 * _MINUTE, 1, "s"),
        (2 * _HOUR, _MINUTE, "min"),
        (2 * _DAY, _HOUR, "h"),
    ):
        if seconds < limit:
            # Rounded down: the reader has at least this much time.
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds // _DAY)} d"


def time_left(free: int, seconds: float | None) -> Piece:
    """Return the time until the free ports are used up, in up to six characters."""
    if not free:
        return Piece("now", "bold red")
    if seconds is None or seconds >= 100 * _DAY:
        return Piece("")
    style = "bold red" if seconds < _URGENT else "yellow" if seconds < SOON else ""
    return Piece(duration(seconds), style)


def sparkline(values: Sequence[int], width: int, capacity: int) -> str:
    """Return values over time, the latest on the right, in so many characters.

    Its height spans the values, or a fiftieth of the capacity if that is more: one connection
    more or less must not look like a mountain.
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
    """Return how densely a range of ports is in use, in so many characters."""
    size = high - low + 1
    width = min(width, size)
    counts = [0] * width
    for port in ports:
        counts[(port - low) * width // size] += 1
    line = []
    for cell, count in enumerate(counts):
        # How many ports the cell covers: cells differ by at most one.
        covered = -((cell + 1) * -size // width) + cell * -size // width
        line.append(_HEIGHTS[min(7, (count * 8 - 1) // covered)] if count else _EMPTY)
    return "".join(line)


def runs(ports: Sequence[int]) -> list[str]:
    """Return ascending ports as ranges: "32768", "32770-32799"."""
    found: list[str] = []
    start = 0
    for index, port in enumerate(ports):
        if index + 1 == len(ports) or ports[index + 1] != port + 1:
            first = ports[start]
            found.append(f"{first}" if first == port else f"{first}-{port}")
            start = index + 1
    return found


def shortened(text: str, width: int) -> str:
    """Return a text without its middle if it is too long: an address differs at its ends."""
    if len(text) <= width:
        return text
    head = max(0, width - 1) // 2
    tail = max(0, width - 1 - head)
    return f"{text[:head]}…{text[len(text) - tail :]}"[:width]
