"""The two screens: the table of all pairs, and the details of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from rich.text import Text
from textual.app import ComposeResult  # noqa: TC002 - Textual reads the annotation
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, Input, Static

from connectx.cli.page import Piece
from connectx.cli.top.details import details
from connectx.cli.top.keys import KEYS
from connectx.cli.top.table import PairTable, Titles

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual import events
    from textual.binding import BindingType

    from connectx.cli.top.model import Model
    from connectx.observe.history import Pair


def text_of(lines: Iterable[Iterable[Piece]], *, wrapped: bool = False) -> Text:
    """Return lines of pieces as rich's text; a line that is too long is wrapped, or cut."""
    overflow: Literal["fold", "ellipsis"] = "fold" if wrapped else "ellipsis"
    return Text("\n", no_wrap=not wrapped, overflow=overflow).join(
        Text.assemble(*line) for line in lines
    )


class Head(Static):
    """The line at the top: what was counted, and when."""

    DEFAULT_CSS = "Head { height: 1; text-style: reverse; }"

    def show(self, model: Model) -> None:
        """Draw what the model knows."""
        left, right = " connectx top", ""
        if model.counted is not None:
            taken = model.counted.snapshot
            reserved = f", {taken.reserved:,} reserved" if taken.reserved else ""
            left = f" ports {taken.ports}{reserved}  {taken.netns}"
            right = f"  every {model.counted.every:.3g} s  {taken.taken_at:%H:%M:%S} UTC "
        room = self.app.size.width - len(left)
        self.update(f"{left}{right:>{room}}" if len(right) <= room else left, layout=False)


class KeysScreen(Screen[None]):
    """The keys, until one is pressed."""

    def compose(self) -> ComposeResult:
        """Yield the text."""
        yield Static(f"\n{KEYS}\nAny key goes back.", markup=False)

    def on_key(self, event: events.Key) -> None:
        """Go back."""
        event.stop()
        self.dismiss()


class ModelScreen(Screen[None]):
    """A screen that draws the model, and draws it again when it is resized or resumed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "keys", "Keys", key_display="?"),
    ]

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def show(self) -> None:
        """Draw what the model knows."""
        raise NotImplementedError

    def action_keys(self) -> None:
        """Show the keys."""
        self.app.push_screen(KeysScreen())

    def on_mount(self) -> None:
        """Draw for the first time."""
        self.show()

    def on_screen_resume(self) -> None:
        """Draw what changed while another screen was shown."""
        self.show()

    def on_resize(self, event: events.Resize) -> None:
        """Draw for the new size."""
        del event
        self.show()


class TableScreen(ModelScreen):
    """All pairs, the fullest first."""

    AUTO_FOCUS = "PairTable"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("p", "protocol", "Protocol"),
        Binding("s", "sort", "Sort"),
        Binding("escape", "everything", "No filter", show=False),
    ]

    def compose(self) -> ComposeResult:
        """Yield the widgets from top to bottom."""
        yield Head(markup=False)
        yield Static(id="verdict")
        yield Titles()
        yield PairTable(self.model)
        yield Static(id="shown")
        yield Input(
            id="filter",
            placeholder="words in protocol, source and destination; Escape for all",
            select_on_focus=False,
        )
        yield Footer(show_command_palette=False)

    def show(self) -> None:
        """Draw what the model knows."""
        model = self.model
        entries = model.entries()
        self.query_one(Head).show(model)
        self.query_one("#verdict", Static).update(text_of(model.verdict(), wrapped=True))
        self.query_one("#shown", Static).update(self._shown(len(entries)), layout=False)
        table = self.query_one(PairTable)
        table.show(entries, self._instead())
        self.query_one(Titles).show(table.widths, model.sort)

    def _instead(self) -> str:
        """Return the text for an empty table."""
        taken = self.model.snapshot
        if taken is None:
            return "" if self.model.failed else "counting …"
        return "no pair matches" if taken.rows else f"no port of {taken.ports} is in use"

    def _shown(self, number: int) -> Text:
        model = self.model
        if model.snapshot is None:
            return Text()
        rows = model.snapshot.rows
        about = f"{len(rows):,} pairs, {sum(row.in_use for row in rows):,} ports in use"
        if model.protocol or model.text:
            words = f"{model.protocol} {model.text}".strip()
            about = f"{number:,} of {len(rows):,} pairs: {words} (Escape for all)"
        return Text(f"{about}; {model.sort.value}", "dim", no_wrap=True, overflow="ellipsis")

    def on_pair_table_refitted(self) -> None:
        """Move the titles above their columns."""
        self.query_one(Titles).show(self.query_one(PairTable).widths, self.model.sort)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter by the words typed so far."""
        self.model.text = event.value
        self.show()

    def on_input_submitted(self) -> None:
        """Keep the filter and return to the table."""
        self._leave_filter()

    def action_filter(self) -> None:
        """Let the user type words to filter by."""
        self.add_class("filtering")
        self.set_focus(self.query_one("#filter", Input))

    def action_everything(self) -> None:
        """Remove all filters."""
        self.model.protocol = self.model.text = ""
        self.query_one("#filter", Input).value = ""
        self._leave_filter()

    def action_protocol(self) -> None:
        """Filter by the next protocol."""
        self.model.next_protocol()
        self.show()

    def action_sort(self) -> None:
        """Sort in the next order."""
        self.model.sort = self.model.sort.next()
        self.query_one(PairTable).action_first()
        self.show()

    def _leave_filter(self) -> None:
        self.remove_class("filtering")
        self.set_focus(self.query_one(PairTable))
        self.show()


class PairScreen(ModelScreen):
    """The details of one pair."""

    AUTO_FOCUS = "VerticalScroll"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,left,backspace", "app.leave", "Back", key_display="esc"),
    ]

    def __init__(self, model: Model, pair: Pair) -> None:
        super().__init__(model)
        self.pair = pair

    def compose(self) -> ComposeResult:
        """Yield the widgets from top to bottom."""
        yield Head(markup=False)
        yield Static(id="verdict")
        with VerticalScroll():
            yield Static(id="details")
        yield Footer(show_command_palette=False)

    def show(self) -> None:
        """Draw what the model knows about the pair."""
        model, pair = self.model, self.pair
        self.query_one(Head).show(model)
        lines = model.verdict() if model.failed else [[Piece(f"  {pair}", "bold")]]
        self.query_one("#verdict", Static).update(text_of(lines, wrapped=True))
        samples = model.history.samples(pair)
        about = details(model.entry(pair), samples, model.detail(pair), self.app.size.width)
        self.query_one("#details", Static).update(text_of(about))
