"""The table of pairs. It draws only the lines that are on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from connectx.cli.page import Piece
from connectx.cli.top.columns import WHO, cells, columns, titles

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from textual import events
    from textual.binding import BindingType

    from connectx.cli.top.columns import Columns
    from connectx.cli.top.model import Entry, Model, Sort
    from connectx.observe.history import Pair


def strip_of(pieces: Iterable[Piece], width: int) -> Strip:
    """Return pieces as a line of exactly this width."""
    segments = [Segment(piece.text, Style.parse(piece.style)) for piece in pieces if piece.text]
    return Strip(segments).adjust_cell_length(width)


class Titles(Widget):
    """The titles above the table."""

    DEFAULT_CSS = "Titles { height: 1; }"

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[Piece] = []

    def show(self, widths: Columns, sort: Sort) -> None:
        """Draw the titles of these columns."""
        self._pieces = titles(widths, sort)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return the only line."""
        del y
        return strip_of(self._pieces, self.size.width)


class PairTable(ScrollView, can_focus=True):
    """The pairs, with a cursor that follows its pair to another line.

    Drawing ten thousand pairs costs as much as the twenty that are visible. Textual's
    DataTable would keep and measure every cell.
    """

    DEFAULT_CSS = "PairTable { height: 1fr; overflow-x: hidden; }"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Details"),
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home,g", "first", "First", show=False),
        Binding("end,G", "last", "Last", show=False),
    ]

    class Opened(Message):
        """The user asked for the details of a pair."""

        def __init__(self, pair: Pair) -> None:
            super().__init__()
            self.pair = pair

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model
        self._entries: Sequence[Entry] = ()
        self._instead = ""
        self._cursor = 0
        self.widths = columns(80, ())

    def show(self, entries: Sequence[Entry], instead: str = "") -> None:
        """Show these entries, or the text `instead` if there are none."""
        pair = self.pair
        self._entries, self._instead = entries, instead
        if pair is not None and self._cursor and (found := self._index(pair)) is not None:
            # Not from the top line: a cursor there stays with whatever is the fullest.
            self._cursor = found
        self._cursor = max(0, min(self._cursor, len(entries) - 1))
        self._fit()

    @property
    def pair(self) -> Pair | None:
        """The pair under the cursor."""
        return self._entries[self._cursor].pair if self._entries else None

    @property
    def on_screen(self) -> list[Pair]:
        """The pairs on the screen."""
        lines = self.widths.lines
        top, bottom = self.scroll_offset.y, self.scroll_offset.y + self.size.height
        return [entry.pair for entry in self._entries[top // lines : -(-bottom // lines)]]

    def render_line(self, y: int) -> Strip:
        """Return a line of the screen."""
        width = self.scrollable_content_region.width
        number, line = divmod(self.scroll_offset.y + y, self.widths.lines)
        if not self._entries and y == self.size.height // 2:
            return strip_of([Piece(self._instead.center(width), "dim")], width)
        if number >= len(self._entries):
            return Strip.blank(width)
        entry = self._entries[number]
        pieces = cells(entry, self._model.samples(entry.pair), self.widths)[line]
        if number == self._cursor and self.has_focus:
            # Not the bar: reversed, a full one looks empty.
            marked = [Piece(piece.text, "bold reverse") for piece in pieces[:WHO]]
            pieces = [*marked, *pieces[WHO:]]
        return strip_of(pieces, width)

    def on_resize(self, event: events.Resize) -> None:
        """Fit the columns to the new width."""
        del event
        self._fit()
        self.post_message(self.Refitted())

    class Refitted(Message):
        """The widths of the columns have changed."""

    def on_focus(self) -> None:
        """Show the cursor."""
        self.refresh()

    def on_blur(self) -> None:
        """Hide the cursor."""
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        """Move the cursor there; a double click opens the pair."""
        number = (self.scroll_offset.y + event.y) // self.widths.lines
        if number >= len(self._entries):
            return
        self._go_to(number)
        if event.chain > 1:
            self.action_open()

    def action_open(self) -> None:
        """Ask for the details of the pair under the cursor."""
        if self.pair is not None:
            self.post_message(self.Opened(self.pair))

    def action_move(self, lines: int) -> None:
        """Move the cursor by so many lines."""
        self._go_to(self._cursor + lines)

    def action_page(self, pages: int) -> None:
        """Move the cursor by so many screens."""
        shown = self.size.height // self.widths.lines
        self._go_to(self._cursor + pages * max(1, shown - 1))

    def action_first(self) -> None:
        """Move the cursor to the top."""
        self._go_to(0)

    def action_last(self) -> None:
        """Move the cursor to the end."""
        self._go_to(len(self._entries) - 1)

    def _go_to(self, number: int) -> None:
        self._cursor = max(0, min(number, len(self._entries) - 1))
        lines = self.widths.lines
        at = Region(0, self._cursor * lines, 1, lines)
        self.scroll_to_region(at, animate=False, force=True)
        self.refresh()

    def _fit(self) -> None:
        # One blank stays before the scroll bar.
        self.widths = columns(self.scrollable_content_region.width - 1, self._entries)
        self.virtual_size = Size(0, len(self._entries) * self.widths.lines)
        self.refresh()

    def _index(self, pair: Pair) -> int | None:
        return next((i for i, entry in enumerate(self._entries) if entry.pair == pair), None)
