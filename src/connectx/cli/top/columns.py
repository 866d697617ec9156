"""The columns of the table of pairs, fitted to the width of the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.cli.page import Piece
from connectx.cli.top.drawing import (
    bar,
    colour,
    rate,
    short_percent,
    shortened,
    sparkline,
    time_left,
)
from connectx.cli.top.model import Sort

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectx.cli.top.model import Entry

#: The width of a column of numbers: "28,232", "97.3 %", "+1,204".
_NUMBER: Final = 6
#: The width of "full in", the title; the times below it are shorter.
_LEFT: Final = 7
#: The number of pieces that identify a pair: protocol, source and destination.
WHO: Final = 3
_LEAST_BAR, _LARGEST_BAR = 3, 30
_LEAST_TREND, _LARGEST_TREND = 5, 40
#: What a destination on a line of its own begins with.
_TO: Final = "  to "


class Columns(NamedTuple):
    """The widths of the columns in characters; 0 for one that is left out.

    Attributes:
        lines: The number of lines of a pair: 2 if the destination has one of its own.
    """

    protocol: int
    source: int
    destination: int
    bar: int
    in_use: int
    capacity: int
    rate: int
    left: int
    trend: int
    lines: int = 1


def columns(width: int, entries: Sequence[Entry]) -> Columns:
    """Return the widths that fill `width` characters.

    Addresses and the share in use come first, the addresses unabridged: where they do not fit
    into one line, each has its own. The other numbers follow, then the protocol, and at last
    what only decorates, the bar and the sparkline. What is left goes to the capacity, and to
    these two.
    """
    source = max((len(entry.row.source) for entry in entries), default=0)
    destination = max((len(entry.destination) for entry in entries), default=0)
    source, destination = max(source, len("source")), max(destination, len("destination"))
    # A blank follows each column, and none the last one.
    room = width + 1 - (_NUMBER + 1)
    lines = 1 if source + 1 + destination + 1 <= room else 2
    if lines == 2:
        # Even so, a very small terminal has no room for the longest addresses of IPv6.
        source = max(4, min(source, room - 1))
        destination = max(4, min(destination, width - len(_TO)))
    room -= source + 1 + (destination + 1 if lines == 1 else 0)
    widths = dict.fromkeys(("in_use", "left", "rate", "protocol", "bar", "trend"), 0)
    wanted = {
        "in_use": _NUMBER,
        "left": _LEFT,
        "rate": _NUMBER,
        "protocol": max((len(entry.row.protocol) for entry in entries), default=3),
        "bar": _LEAST_BAR,
        "trend": _LEAST_TREND,
    }
    for name, least in wanted.items():
        if least + 1 > room:
            break
        widths[name] = least
        room -= least + 1
    capacity = 0
    if widths["trend"]:
        if room >= _NUMBER + 1 + 12:
            capacity = _NUMBER
            room -= _NUMBER + 1
        longer = min(_LARGEST_BAR - _LEAST_BAR, (room + 1) // 2)
        widths["bar"] += longer
        widths["trend"] = min(_LARGEST_TREND, _LEAST_TREND + room - longer)
    return Columns(source=source, destination=destination, capacity=capacity, lines=lines, **widths)


def titles(widths: Columns, sort: Sort) -> list[Piece]:
    """Return the line above the table, in which the column that it is sorted by is marked."""
    cells = [
        ("", widths.protocol, None),
        (f"{'source':{widths.source}}", widths.source, Sort.NAME),
        (f"{'destination':{widths.destination}}", widths.destination * (widths.lines == 1), None),
        (f"{'full':{widths.bar}}", widths.bar, None),
        (f"{'%':>{_NUMBER}}", _NUMBER, Sort.UTILISATION),
        (f"{'in use':>{_NUMBER}}", widths.in_use, Sort.IN_USE),
        (f"{'of':>{_NUMBER}}", widths.capacity, None),
        (f"{'per s':>{_NUMBER}}", widths.rate, Sort.RATE),
        (f"{'full in':>{_LEFT}}", widths.left, None),
        ("trend", widths.trend, None),
    ]
    pieces = []
    for title, width, by in cells:
        if not width:
            continue
        text = shortened(title, width)
        blank = text[: len(text) - len(text.lstrip())]
        marked = "bold underline" if by is sort else "bold"
        pieces += [Piece(blank), Piece(text.strip(), marked)]
        pieces.append(Piece(" " * (width - len(blank) - len(text.strip()) + 1)))
    return pieces


def cells(entry: Entry, samples: Sequence[int], widths: Columns) -> list[list[Piece]]:
    """Return the lines of a pair; `samples` are the ports taken over time, the latest last.

    The first pieces of a first line identify the pair, and so do all of a second.
    """
    row, trend = entry.row, entry.trend
    left = time_left(row.free, trend.seconds_left if trend else None)
    style = colour(row.utilisation)
    moving = trend is not None and abs(trend.rate) >= 0.05
    destination = shortened(entry.destination, widths.destination)
    who = [
        Piece(f"{row.protocol:{widths.protocol}} " if widths.protocol else ""),
        Piece(f"{shortened(row.source, widths.source):{widths.source}} "),
        Piece(f"{destination:{widths.destination}} " if widths.lines == 1 else ""),
    ]
    line = [*who]
    if widths.bar:
        line += [*bar(row.utilisation, widths.bar), Piece(" ")]
    line.append(Piece(f"{short_percent(row.utilisation):>{_NUMBER}} ", style))
    if widths.in_use:
        line.append(Piece(f"{row.in_use:>{_NUMBER},} "))
    if widths.capacity:
        line.append(Piece(f"{row.capacity:>{_NUMBER},} ", "dim"))
    if widths.rate:
        per_second = rate(trend.rate) if trend else ""
        line.append(Piece(f"{per_second:>{_NUMBER}} ", "" if moving else "dim"))
    if widths.left:
        line.append(Piece(f"{left.text:>{_LEFT}} ", left.style))
    if widths.trend:
        line.append(Piece(sparkline(samples, widths.trend, row.capacity), "cyan"))
    return [line] if widths.lines == 1 else [line, [Piece(_TO + destination)]]
