"""The table of pairs, of which only the lines on the screen are ever drawn."""

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

from connectx.cli.top.columns import WHO, cells, columns, titles
from connectx.cli.top.drawing import Piece

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from textual import events
    from textual.binding import BindingType

    from connectx.cli.top.columns import Columns
    from connectx.cli.top.model import Line, Model, Sort
    from connectx.observe.history import Pair


def strip_of(pieces: Iterable[Piece], width: int) -> Strip:
    """Pieces as a line of exactly this width."""
    segments = [Segment(piece.text, Style.parse(piece.style)) for piece in pieces if piece.text]
    return Strip(segments).adjust_cell_length(width)


class Titles(Widget):
    """The line above the table."""

    DEFAULT_CSS = "Titles { height: 1; }"

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[Piece] = []

    def show(self, widths: Columns, sort: Sort) -> None:
        """Draw it for these columns."""
        self._pieces = titles(widths, sort)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """A line, for Textual."""
        del y  # There is one.
        return strip_of(self._pieces, self.size.width)


class PairTable(ScrollView, can_focus=True):
    """Pairs with a cursor, which stays with its pair when that moves.

    Ten thousand lines cost as much to draw as the twenty that are visible, unlike with
    Textual's DataTable, which keeps and measures each cell.
    """

    DEFAULT_CSS = "PairTable { height: 1fr; overflow-x: hidden; }"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Look closer"),
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home,g", "first", "First", show=False),
        Binding("end,G", "last", "Last", show=False),
    ]

    class Opened(Message):
        """Somebody wants a closer look at a pair."""

        def __init__(self, pair: Pair) -> None:
            super().__init__()
            self.pair = pair

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model
        self._lines: Sequence[Line] = ()
        self._instead = ""
        self._cursor = 0
        self.widths = columns(80, ())

    def show(self, lines: Sequence[Line], instead: str = "") -> None:
        """Show these lines; instead: what to say where there is none."""
        pair = self.pair
        self._lines, self._instead = lines, instead
        if pair is not None and self._cursor and (found := self._index(pair)) is not None:
            # At the top it stays there: who is looking at the fullest wants the fullest.
            self._cursor = found
        self._cursor = max(0, min(self._cursor, len(lines) - 1))
        self._fit()

    @property
    def pair(self) -> Pair | None:
        """The pair under the cursor."""
        return self._lines[self._cursor].pair if self._lines else None

    @property
    def on_screen(self) -> list[Pair]:
        """The pairs on the screen."""
        top = self.scroll_offset.y
        return [line.pair for line in self._lines[top : top + self.size.height]]

    def render_line(self, y: int) -> Strip:
        """A line, for Textual."""
        width = self.scrollable_content_region.width
        number = self.scroll_offset.y + y
        if not self._lines and y == self.size.height // 2:
            return strip_of([Piece(self._instead.center(width), "dim")], width)
        if number >= len(self._lines):
            return Strip.blank(width)
        line = self._lines[number]
        pieces = cells(line, self._model.samples(line.pair), self.widths)
        if number == self._cursor and self.has_focus:
            # Not the bars: reversed, a full one looks empty.
            marked = [Piece(piece.text, "bold reverse") for piece in pieces[:WHO]]
            pieces = [*marked, *pieces[WHO:]]
        return strip_of(pieces, width)

    def on_resize(self, event: events.Resize) -> None:
        """Fit the columns to another width."""
        del event
        self._fit()
        self.post_message(self.Refitted())

    class Refitted(Message):
        """The columns have other widths."""

    def on_focus(self) -> None:
        """Show the cursor."""
        self.refresh()

    def on_blur(self) -> None:
        """Hide it."""
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        """Put the cursor there; a second click is a closer look."""
        number = self.scroll_offset.y + event.y
        if number >= len(self._lines):
            return
        self._go_to(number)
        if event.chain > 1:
            self.action_open()

    def action_open(self) -> None:
        """Look closer at the pair under the cursor."""
        if self.pair is not None:
            self.post_message(self.Opened(self.pair))

    def action_move(self, lines: int) -> None:
        """Move the cursor."""
        self._go_to(self._cursor + lines)

    def action_page(self, pages: int) -> None:
        """Move the cursor by a screen."""
        self._go_to(self._cursor + pages * max(1, self.size.height - 1))

    def action_first(self) -> None:
        """Move the cursor to the top."""
        self._go_to(0)

    def action_last(self) -> None:
        """Move the cursor to the end."""
        self._go_to(len(self._lines) - 1)

    def _go_to(self, number: int) -> None:
        self._cursor = max(0, min(number, len(self._lines) - 1))
        self.scroll_to_region(Region(0, self._cursor, 1, 1), animate=False, force=True)
        self.refresh()

    def _fit(self) -> None:
        self.virtual_size = Size(0, len(self._lines))
        # A blank before the scroll bar.
        self.widths = columns(self.scrollable_content_region.width - 1, self._lines)
        self.refresh()

    def _index(self, pair: Pair) -> int | None:
        return next((i for i, line in enumerate(self._lines) if line.pair == pair), None)
