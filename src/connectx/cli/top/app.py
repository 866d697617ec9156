"""The application: keys that work on every screen; passes results from watcher to screens."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, ClassVar

from textual.app import App
from textual.binding import Binding
from textual.message import Message

from connectx.cli.top.screens import ModelScreen, PairScreen, TableScreen
from connectx.cli.top.table import PairTable

if TYPE_CHECKING:
    from collections.abc import Collection

    from textual.binding import BindingType

    from connectx.cli.top.model import Model
    from connectx.cli.top.watcher import Outcome, Watcher
    from connectx.observe.history import Pair


class TopApp(App[None]):
    """The live view.

    It uses the terminal's own 16 colours. With those, Textual honours NO_COLOR by printing
    no colours at all; with the colours of its themes it would print greys instead.

    Args:
        model: What the screens show.
        watcher: Its results go into the model. The application starts and stops it.
    """

    TITLE = "connectx top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen, Footer, FooterKey, Input { background: ansi_default; color: ansi_default; }
    Footer .footer-key--key { background: ansi_default; color: ansi_default; text-style: reverse; }
    Footer .footer-key--description {
        background: ansi_default;
        color: ansi_default;
        padding: 0 1;
    }
    #filter > .input--placeholder { color: ansi_default; text-style: dim; }
    #filter > .input--cursor { background: ansi_default; color: ansi_default; text-style: reverse; }
    PairTable, VerticalScroll {
        scrollbar-size-vertical: 1;
        scrollbar-color: ansi_white;
        scrollbar-color-hover: ansi_white;
        scrollbar-color-active: ansi_white;
        scrollbar-background: ansi_default;
        scrollbar-background-hover: ansi_default;
        scrollbar-background-active: ansi_default;
    }
    #verdict { height: auto; min-height: 2; }
    #shown { height: 1; }
    #filter, #filter:focus { height: 1; border: none; padding: 0; }
    TableScreen #filter, TableScreen.filtering #shown { display: none; }
    TableScreen.filtering #filter { display: block; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        # With priority over Textual's own binding, which only suggests another key.
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
    ]

    class Delivered(Message):
        """The watcher has a result."""

        def __init__(self, outcome: Outcome) -> None:
            super().__init__()
            self.outcome = outcome

    def __init__(self, model: Model, watcher: Watcher) -> None:
        super().__init__(ansi_color=True)
        self._model = model
        self._watcher = watcher
        self._table = TableScreen(model)

    def get_default_screen(self) -> TableScreen:
        """Return the first screen."""
        return self._table

    def on_mount(self) -> None:
        """Start counting."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            # Their default action would not restore the terminal.
            loop.add_signal_handler(number, self.exit)
        # post_message() is safe to call from any thread.
        self._watcher.start(lambda outcome: self.post_message(self.Delivered(outcome)))

    def on_unmount(self) -> None:
        """Stop counting: messages are no longer processed."""
        self._watcher.stop()

    def on_top_app_delivered(self, message: Delivered) -> None:
        """Record and show a result."""
        self._model.take(message.outcome, self._followed())
        if isinstance(self.screen, ModelScreen):
            self.screen.show()

    def on_pair_table_opened(self, message: PairTable.Opened) -> None:
        """Show the details of a pair."""
        self._watcher.look(message.pair)
        self.push_screen(PairScreen(self._model, message.pair))

    def action_leave(self) -> None:
        """Go back to the table."""
        self._watcher.look(None)
        self.pop_screen()

    def _followed(self) -> Collection[Pair]:
        if isinstance(self.screen, PairScreen):
            return {self.screen.pair}
        return self._table.query_one(PairTable).on_screen
