"""The details of one pair: history, states, processes and source ports, as styled text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from connectx.cli.page import Piece
from connectx.cli.top.drawing import (
    bar,
    colour,
    duration,
    histogram,
    rate,
    runs,
    short_percent,
    sparkline,
    time_left,
)
from connectx.observe.usage import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from connectx.cli.top.model import Entry
    from connectx.observe.usage import Detail

_INDENT: Final = "  "
#: The width of a bar beside a state or a process.
_BAR: Final = 20
#: How many processes and lines of ports are listed: there may be thousands.
_PROCESSES: Final = 20
_LINES_OF_PORTS: Final = 8

Lines = list[list[Piece]]


def details(
    entry: Entry | None, samples: Sequence[tuple[float, int]], detail: Detail | None, width: int
) -> Lines:
    """Return the lines about a pair.

    Args:
        entry: None if it has no port in use.
        samples: Its history: seconds, and the ports taken then.
        detail: None if it is not known yet.
        width: The width of the terminal, in characters.
    """
    lines: Lines = _filling(entry, samples, width) if entry else [_note("No port is in use.")]
    if detail is None:
        return [*lines, [], _note("reading states, processes and ports …")]
    if not detail.ports:
        return lines
    return [*lines, *_states(detail), *_processes(detail), *_ports(detail, width)]


def _filling(entry: Entry, samples: Sequence[tuple[float, int]], width: int) -> Lines:
    row, trend = entry.row, entry.trend
    share = short_percent(row.utilisation)
    left = time_left(row.free, trend.seconds_left if trend else None)
    lines: Lines = [
        [
            Piece(_INDENT),
            *bar(row.utilisation, max(10, width - 2 * len(_INDENT) - 7)),
            Piece(f" {share}", colour(row.utilisation)),
        ],
        [
            Piece(f"{_INDENT}{row.in_use:,}", "bold"),
            Piece(f" of {row.capacity:,} ports in use, "),
            Piece(f"{row.free:,}", "bold"),
            Piece(" free"),
            *([Piece(f", {row.reusable:,} of them in TIME-WAIT")] if row.reusable else []),
        ],
    ]
    if not row.free:
        lines.append([Piece(_INDENT), Piece("full", "bold red")])
    elif trend is not None:
        moving = f"{rate(trend.rate)} per second" if rate(trend.rate) != "0" else "steady"
        pieces = [Piece(_INDENT + moving)]
        if left.text:
            pieces += [Piece(", full in "), Piece(left.text, left.style or "bold")]
        lines.append(pieces)
    if len(samples) > 1:
        counts = [used for _, used in samples]
        room = max(10, width - 2 * len(_INDENT))
        spark = sparkline(counts, room, row.capacity).strip()
        past = duration(samples[-1][0] - samples[0][0])
        lines += [
            *_title(f"the last {past}: {min(counts):,} to {max(counts):,}"),
            [Piece(_INDENT + spark, "cyan")],
        ]
    return lines


def _states(detail: Detail) -> Lines:
    return [*_title("states"), *_counted(detail.states)]


def _processes(detail: Detail) -> Lines:
    named = {
        UNKNOWN if process is None else str(process): number
        for process, number in detail.processes.items()
    }
    lines = [*_title("processes"), *_counted(named, _PROCESSES)]
    if detail.hidden and None in detail.processes:
        lines.append(_note(f"{detail.hidden:,} processes are visible only to root"))
    return lines


def _ports(detail: Detail, width: int) -> Lines:
    room = max(10, width - 2 * len(_INDENT))
    low, high = detail.within
    texts = runs(detail.ports)
    lines: Lines = [
        *_title(f"source ports in use within {detail.within}"),
        [Piece(_INDENT + histogram(detail.ports, low, high, room), "cyan")],
    ]
    line = ""
    for number, text in enumerate(texts):
        longer = f"{line}, {text}" if line else text
        if len(longer) < room:
            line = longer
            continue
        lines.append([Piece(f"{_INDENT}{line},")])
        line = text
        if len(lines) > _LINES_OF_PORTS:
            return [*lines, _note(f"and {len(texts) - number:,} more")]
    return [*lines, [Piece(_INDENT + line)]]


def _counted(numbers: Mapping[str, int], most: int = 100) -> Lines:
    """Return a line for each name, with its number and share, the largest first."""
    total = sum(numbers.values())
    ranked = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    lines = [
        [
            Piece(f"{_INDENT}{number:>7,} "),
            *(Piece(piece.text, "dim" if piece.style == "dim" else "cyan")
              for piece in bar(number / total, _BAR)),
            Piece(f" {name}"),
        ]
        for name, number in ranked[:most]
    ]  # fmt: skip
    if len(ranked) > most:
        lines.append(_note(f"and {len(ranked) - most:,} more"))
    return lines


def _title(text: str) -> Lines:
    return [[], [Piece(_INDENT + text, "bold")]]


def _note(text: str) -> list[Piece]:
    return [Piece(_INDENT + text, "dim")]
