"""Flowcharts: read Mermaid, and draw it as SVG.

GitHub draws a ``mermaid`` block by itself. On the site this module does, so that a page needs no
script, no network and no library of 3 MB, and follows the theme's colours. It reads what the
documentation uses of Mermaid and refuses the rest:

    flowchart TB
        above["above<br>what it is for"]
        above --> left & right
        left & right --> below

Each box is one row below the lowest box that points to it. Boxes that nothing points to are one
row above the first box that they point to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_HEADING: Final = "flowchart TB"
_BOX: Final = re.compile(r'(?P<box>\w+)\["(?P<label>[^"]*)"\]')
_ARROWS: Final = re.compile(r"\w+(?: & \w+)*(?: --> \w+(?: & \w+)*)+")

# Pixels. Narrow, so that a phone shows it almost as large.
_WIDTH: Final = 420
_BOX_WIDTH: Final = 122
_BOX_HEIGHT: Final = 42
_ROW: Final = 68
#: At the right edge, for arrows that pass rows by.
_MARGIN: Final = 30
_LANE: Final = 12

_ARROWHEAD: Final = (
    '<marker id="arrowhead" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0 8 4 0 8z"/></marker>'
)


@dataclass
class Flowchart:
    """What a flowchart says.

    labels: the text of each box, a line each. arrows: pairs of boxes, from and to.
    """

    labels: dict[str, list[str]] = field(default_factory=dict)
    arrows: list[tuple[str, str]] = field(default_factory=list)

    def below(self, box: str) -> set[str]:
        """All boxes that a way along the arrows leads to."""
        found: set[str] = set()
        ahead = [box]
        while ahead:
            last = ahead.pop()
            new = {to for start, to in self.arrows if start == last} - found
            found |= new
            ahead += new
        return found

    def rows(self) -> list[list[str]]:
        """The boxes row by row, from the top."""
        row: dict[str, int] = {}
        for box in sorted(self.labels, key=lambda each: -len(self.below(each))):
            above = [row[start] for start, to in self.arrows if to == box]
            row[box] = max(above) + 1 if above else 0
        for box in self.labels:
            below = [row[to] for start, to in self.arrows if start == box]
            if below and not any(to == box for _, to in self.arrows):
                row[box] = min(below) - 1
        return [
            [box for box in self.labels if row[box] == number]
            for number in range(max(row.values()) + 1)
        ]


def parse(text: str) -> Flowchart:
    """Read a flowchart.

    Raises:
        ValueError: for a line that is not of the kind above.
    """
    heading, *lines = (line.strip() for line in text.strip().splitlines())
    if heading != _HEADING:
        raise ValueError(f"a flowchart begins with {_HEADING!r}, not {heading!r}")
    chart = Flowchart()
    for line in lines:
        if found := _BOX.fullmatch(line):
            chart.labels[found["box"]] = found["label"].split("<br>")
        elif _ARROWS.fullmatch(line):
            groups = [group.split(" & ") for group in line.split(" --> ")]
            for starts, ends in pairwise(groups):
                chart.arrows += [(start, end) for start in starts for end in ends]
        elif line:
            raise ValueError(f"not a box or an arrow: {line!r}")
    for box in dict.fromkeys(box for arrow in chart.arrows for box in arrow):
        chart.labels.setdefault(box, [box])
    return chart


def draw(chart: Flowchart, title: str) -> str:
    """The SVG of a flowchart; its colours are those of the page that it stands in."""
    rows = chart.rows()
    height = (len(rows) - 1) * _ROW + _BOX_HEIGHT + 4
    places = {
        box: (_left(number, len(row)), 2 + index * _ROW)
        for index, row in enumerate(rows)
        for number, box in enumerate(row)
    }
    size = f'viewBox="0 0 {_WIDTH} {height}"'
    parts = [
        f'<svg class="flowchart" {size} role="img" aria-label="{escape(title)}">',
        _ARROWHEAD,
        *_arrows(chart, places),
    ]
    for box, (left, top) in places.items():
        name, *more = (escape(line) for line in chart.labels[box])
        middle = left + _BOX_WIDTH / 2
        first = top + (17 if more else 26)
        parts += [
            f'<rect x="{left}" y="{top}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="6"/>',
            f'<text class="name" x="{middle}" y="{first}">{name}</text>',
            *(f'<text x="{middle}" y="{top + 33}">{line}</text>' for line in more),
        ]
    return "\n".join([*parts, "</svg>"])


def _left(number: int, boxes: int) -> float:
    space = _WIDTH - _MARGIN
    return round(space * (2 * number + 1) / (2 * boxes) - _BOX_WIDTH / 2, 1)


def _arrows(chart: Flowchart, places: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    lane = _WIDTH - _MARGIN + _LANE
    for start, end in chart.arrows:
        (left, top), (end_left, end_top) = places[start], places[end]
        if end_top - top == _ROW:
            x, y = left + _BOX_WIDTH / 2, top + _BOX_HEIGHT
            end_x, end_y = end_left + _BOX_WIDTH / 2, end_top - 1
            bend = (end_y - y) / 2
            path = f"M{x} {y}C{x} {y + bend} {end_x} {end_y - bend} {end_x} {end_y}"
        else:
            x, y = left + _BOX_WIDTH, top + _BOX_HEIGHT / 2
            end_x, end_y = end_left + _BOX_WIDTH + 1, end_top + _BOX_HEIGHT / 2
            path = (
                f"M{x} {y}H{lane - 6}Q{lane} {y} {lane} {y + 6}"
                f"V{end_y - 6}Q{lane} {end_y} {lane - 6} {end_y}H{end_x}"
            )
            lane += _LANE
        yield f'<path class="arrow" d="{path}" marker-end="url(#arrowhead)"/>'
