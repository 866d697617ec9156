"""What commands print on: a terminal or a pipe, with styles, wrapped text and tables.

It needs no package, so a command prints the same on a host that has only Python. Styles are
those of every terminal, and no style carries information that the text lacks.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Final, NamedTuple, TextIO, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


class Piece(NamedTuple):
    """A piece of a line, and its style: words of `_CODES`, as in "bold red"."""

    text: str
    style: str = ""


#: A cell of a table. A tuple has a piece for each line; a text may have several lines.
Cell: TypeAlias = str | Piece | tuple[Piece, ...]

Line: TypeAlias = list[Piece]

#: Parameters of SGR, "select graphic rendition" (ECMA-48).
_CODES: Final = {
    "bold": "1",
    "dim": "2",
    "italic": "3",
    "reverse": "7",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "cyan": "36",
}
_COLOURS: Final = frozenset({"red", "green", "yellow", "blue", "cyan"})

#: Names of processes come from strangers: without control characters, which a terminal obeys.
_UNPRINTABLE: Final = dict.fromkeys((*range(32), *range(127, 160)), "?")

#: The width of what is no terminal, and the least width that text is wrapped to.
_WIDTH: Final = 80
_LEAST_WIDTH: Final = 24

#: A column that folds keeps this width, if columns can be left out instead.
_LEAST_COLUMN: Final = 8


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        heading: What stands above it; it may have several lines.
        right: Whether it is aligned to the right.
        folds: Whether a narrow terminal folds its words onto several lines.
        width: Its greatest width; 0 for none.
        leave_out: If the table is too wide, columns are left out: the one with the largest
            number first, and never one with 0.
        style: The style of its cells.
    """

    heading: str = ""
    right: bool = False
    folds: bool = False
    width: int = 0
    leave_out: int = 0
    style: str = ""


class Table:
    """A table without borders, with a line for each row.

    Args:
        columns: Its columns.
        title: Lines above it.
        rule: Whether there is a line below the headings.
        gap: The number of blanks between two columns, one where the terminal is narrow.
    """

    def __init__(
        self, columns: Iterable[Column], title: str = "", *, rule: bool = False, gap: int = 2
    ) -> None:
        self._columns = list(columns)
        self._title = title
        self._rule = rule
        self._gap = gap
        # None stands for an empty line between two sections.
        self._rows: list[tuple[list[Line], str] | None] = []

    def add(self, *cells: Cell, style: str = "") -> None:
        """Add a row, with a style for what has none of its own; cells may be missing at its end."""
        blank = [""] * (len(self._columns) - len(cells))
        self._rows.append(([_pieces(cell) for cell in (*cells, *blank)], style))

    def add_section(self) -> None:
        """Leave a line empty between the last row and the next."""
        if self._rows and self._rows[-1] is not None:
            self._rows.append(None)

    def lines(self, width: int) -> list[Line]:
        """Return the lines of the table, fitted to a width as well as its words allow."""
        rows = [row for row in self._rows if row is not None]
        headings = [_pieces(column.heading) for column in self._columns]
        every = [headings, *(cells for cells, _ in rows)]
        shown, widths, gap = self._fitted([list(each) for each in zip(*every, strict=True)], width)
        lines = [[Piece(line, "italic")] for line in self._title.splitlines()]
        if any(column.heading for column in self._columns):
            lines += self._row(headings, widths, shown, gap, "bold", at_bottom=True)
        if self._rule:
            lines.append([Piece("─" * _total(widths, shown, gap))])
        while self._rows and self._rows[-1] is None:
            self._rows.pop()
        for row in self._rows:
            lines += [[]] if row is None else self._row(row[0], widths, shown, gap, row[1])
        return lines

    def _fitted(self, cells: list[list[Line]], width: int) -> tuple[list[int], list[int], int]:
        """Return which columns are shown, how wide they are, and the gap between them.

        Blanks go first, then words move to other lines, and then columns are left out.
        """
        widths, words = [], []
        for column, some in zip(self._columns, cells, strict=True):
            texts = [piece.text for lines in some for piece in lines]
            natural = max(map(columns_of, texts), default=0)
            widths.append(min(natural, column.width or natural))
            words.append(
                max((columns_of(word) for text in texts for word in text.split()), default=0)
            )
        shown = [*range(len(widths))]
        gap = self._gap if _total(widths, shown, self._gap) <= width else 1
        foldable = sorted(
            (at for at in shown if self._columns[at].folds), key=lambda at: -widths[at]
        )
        dispensable = sorted(
            (at for at in shown if self._columns[at].leave_out),
            key=lambda at: -self._columns[at].leave_out,
        )
        for at in foldable:
            least = min(widths[at], max(words[at], _LEAST_COLUMN))
            widths[at] = max(least, widths[at] - max(0, _total(widths, shown, gap) - width))
        for at in dispensable:
            if _total(widths, shown, gap) > width:
                shown.remove(at)
        for at in foldable:
            excess = max(0, _total(widths, shown, gap) - width)
            widths[at] = max(min(widths[at], words[at]), widths[at] - excess)
        return shown, widths, gap

    def _row(
        self,
        cells: Sequence[Line],
        widths: Sequence[int],
        shown: Sequence[int],
        gap: int,
        style: str,
        *,
        at_bottom: bool = False,
    ) -> Iterable[Line]:
        columns = {
            at: [fold for piece in cells[at] for fold in _folded(piece, widths[at])] for at in shown
        }
        height = max(map(len, columns.values()), default=0)
        for number in range(height):
            line: Line = []
            for at, pieces in columns.items():
                index = number - (height - len(pieces)) * at_bottom
                piece = pieces[index] if 0 <= index < len(pieces) else Piece("")
                blank = " " * (widths[at] - columns_of(piece.text))
                line += [Piece(" " * gap)] * bool(line)
                column = self._columns[at]
                styled = Piece(piece.text, piece.style or column.style or style)
                line += [Piece(blank), styled] if column.right else [styled, Piece(blank)]
            yield line


class Page:
    """A stream that a command prints on.

    Args:
        widest: The greatest width to use; 0 for that of the terminal.
        piped: The width of what is no terminal; 0 for 80.
        stream: None for standard output.

    Attributes:
        width: How many columns there are.
        is_terminal: Whether it is a terminal.
    """

    def __init__(self, widest: int = 0, piped: int = 0, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self.is_terminal = self._stream.isatty()
        width = piped if piped and not self.is_terminal else _terminal_width()
        self.width = max(_LEAST_WIDTH, min(width, widest or width))
        self._styled = self.is_terminal and os.environ.get("TERM") != "dumb"
        # https://no-color.org: colours only; bold text stays bold.
        self._coloured = self._styled and not os.environ.get("NO_COLOR")

    def line(self, *pieces: Piece | str) -> None:
        """Print a line as it is, however long."""
        # Cells of tables are padded: nothing is to end with blanks.
        text = "".join(self._rendered(piece) for piece in _without_blank_end(pieces))
        print(text, file=self._stream)

    def lines(self, lines: Iterable[Iterable[Piece | str]]) -> None:
        """Print lines."""
        for line in lines:
            self.line(*line)

    def paragraph(self, text: str, first: str = "", rest: str = "", style: str = "") -> None:
        """Print wrapped text. `first` begins the first line, `rest` or blanks the others."""
        rest = rest or " " * len(first)
        for line in _wrapped(text, self.width, first, rest) or [""]:
            self.line(Piece(line, style))

    def table(self, table: Table) -> None:
        """Print a table."""
        self.lines(table.lines(self.width))

    def clear(self) -> None:
        """Clear the terminal, and begin at its top."""
        if self._styled:
            self._stream.write("\x1b[2J\x1b[H")

    @contextlib.contextmanager
    def animation(self) -> Iterator[Callable[[Iterable[Piece]], None]]:
        """Yield a function that shows a line in the place of the one that it showed before.

        It does nothing where that cannot be done, and no pieces clear the line. The cursor is
        hidden meanwhile.
        """

        def show(pieces: Iterable[Piece]) -> None:
            if self._styled:
                self._stream.write("\r\x1b[K" + "".join(map(self._rendered, pieces)))
                self._stream.flush()

        # Flushed, or a process that is forked meanwhile would write them again.
        if self._styled:
            print("\x1b[?25l", end="", file=self._stream, flush=True)
        try:
            yield show
        finally:
            if self._styled:
                print("\x1b[?25h", end="", file=self._stream, flush=True)

    def _rendered(self, piece: Piece | str) -> str:
        text, style = (piece, "") if isinstance(piece, str) else piece
        text = text.translate(_UNPRINTABLE)
        words = [
            word
            for word in style.split()
            if self._styled and (self._coloured or word not in _COLOURS)
        ]
        if not words or not text:
            return text
        return f"\x1b[{';'.join(_CODES[word] for word in words)}m{text}\x1b[0m"


def _total(widths: Sequence[int], shown: Sequence[int], gap: int) -> int:
    """Return how wide a table is."""
    return sum(widths[at] for at in shown) + gap * (len(shown) - 1)


def columns_of(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    import unicodedata  # noqa: PLC0415 - rarely needed, and never for JSON

    return sum(
        0 if unicodedata.combining(each) else 1 + int(unicodedata.east_asian_width(each) in "WF")
        for each in text
    )


def _terminal_width() -> int:
    """Return the width of the terminal, wherever it is among the standard streams."""
    named = os.environ.get("COLUMNS", "")
    if named.isascii() and named.isdecimal() and int(named):
        return int(named)
    for descriptor in (1, 2, 0):
        try:
            if width := os.get_terminal_size(descriptor).columns:
                return width
        except OSError:
            continue
    return _WIDTH


def _pieces(cell: Cell) -> Line:
    """Return the lines of a cell."""
    if isinstance(cell, str):
        return [Piece(line) for line in cell.splitlines() or [""]]
    if isinstance(cell, Piece):
        return [Piece(line, cell.style) for line in cell.text.splitlines() or [""]]
    return list(cell)


def _folded(piece: Piece, width: int) -> list[Piece]:
    """Return a line of a cell as lines of at most this width."""
    if columns_of(piece.text) <= width:
        return [piece]
    return [Piece(line, piece.style) for line in _wrapped(piece.text, width, long_words=True)]


def _wrapped(
    text: str, width: int, first: str = "", rest: str = "", *, long_words: bool = False
) -> list[str]:
    import textwrap  # noqa: PLC0415 - not needed for JSON

    # Not at hyphens: of a range or a state, each half would look like a whole one.
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=long_words,
        break_on_hyphens=False,
    )


def _without_blank_end(pieces: Iterable[Piece | str]) -> list[Piece | str]:
    shown = list(pieces)
    while shown:
        last = shown.pop()
        text, style = (last, "") if isinstance(last, str) else last
        if text := text.rstrip():
            return [*shown, Piece(text, style)]
    return []
