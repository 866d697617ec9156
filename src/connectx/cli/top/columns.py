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


class Columns(NamedTuple):
    """The widths of the columns in characters; 0 for one that is left out."""

    protocol: int
    source: int
    destination: int
    bar: int
    capacity: int
    trend: int


def columns(width: int, entries: Sequence[Entry]) -> Columns:
    """Return the widths that fill `width` characters.

    Addresses come first, unabridged if they fit, which all IPv4 addresses do from 80
    characters on. What is left goes to the capacity, then to the bar and the sparkline.
    """
    protocol = max((len(entry.row.protocol) for entry in entries), default=3)
    source = max((len(entry.row.source) for entry in entries), default=0)
    destination = max((len(entry.destination) for entry in entries), default=0)
    source, destination = max(source, len("source")), max(destination, len("destination"))
    # A blank follows each column but the last.
    numbers = 3 * (_NUMBER + 1) + _LEFT + 1
    room = width - protocol - 1 - numbers - (_LEAST_BAR + 1) - _LEAST_TREND
    addresses = source + destination + 2
    if addresses > room:
        # Both are shortened in proportion.
        source = max(4, (room - 2) * source // (source + destination))
        destination = max(4, room - 2 - source)
    spare = max(0, room - addresses)
    capacity = 0
    if spare >= _NUMBER + 1 + 12:
        capacity = _NUMBER
        spare -= _NUMBER + 1
    longer = min(_LARGEST_BAR - _LEAST_BAR, (spare + 1) // 2)
    trend = min(_LARGEST_TREND, _LEAST_TREND + spare - longer)
    return Columns(protocol, source, destination, _LEAST_BAR + longer, capacity, trend)


def titles(widths: Columns, sort: Sort) -> list[Piece]:
    """Return the line above the table, in which the column that it is sorted by is marked."""
    cells = [
        (f"{'':{widths.protocol}}", None),
        (f"{shortened('source', widths.source):{widths.source}}", Sort.NAME),
        (f"{shortened('destination', widths.destination):{widths.destination}}", None),
        (f"{shortened('full', widths.bar):{widths.bar}}", None),
        (f"{'%':>{_NUMBER}}", Sort.UTILISATION),
        (f"{'in use':>{_NUMBER}}", Sort.IN_USE),
        *([(f"{'of':>{widths.capacity}}", None)] if widths.capacity else []),
        (f"{'per s':>{_NUMBER}}", Sort.RATE),
        (f"{'full in':>{_LEFT}}", None),
        (shortened("trend", widths.trend), None),
    ]
    pieces = []
    for text, by in cells:
        blank = text[: len(text) - len(text.lstrip())]
        marked = "bold underline" if by is sort else "bold"
        pieces += [Piece(blank), Piece(text.strip(), marked)]
        pieces.append(Piece(" " * (len(text) - len(blank) - len(text.strip()) + 1)))
    return pieces


def cells(entry: Entry, samples: Sequence[int], widths: Columns) -> list[Piece]:
    """Return a line of the table; `samples` are the ports taken over time, the latest last."""
    row, trend = entry.row, entry.trend
    left = time_left(row.free, trend.seconds_left if trend else None)
    style = colour(row.utilisation)
    moving = trend is not None and abs(trend.rate) >= 0.05
    return [
        Piece(f"{row.protocol:{widths.protocol}} "),
        Piece(f"{shortened(row.source, widths.source):{widths.source}} "),
        Piece(f"{shortened(entry.destination, widths.destination):{widths.destination}} "),
        *bar(row.utilisation, widths.bar),
        Piece(f" {short_percent(row.utilisation):>{_NUMBER}} ", style),
        Piece(f"{row.in_use:>{_NUMBER},} "),
        *([Piece(f"{row.capacity:>{widths.capacity},} ", "dim")] if widths.capacity else []),
        Piece(f"{rate(trend.rate) if trend else '':>{_NUMBER}} ", "" if moving else "dim"),
        Piece(f"{left.text:>{_LEFT}} ", left.style),
        Piece(sparkline(samples, widths.trend, row.capacity), "cyan"),
    ]
