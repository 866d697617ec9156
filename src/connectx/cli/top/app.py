"""The application: keys that work everywhere, and the way from the watcher to the screens."""

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
    from connectx.cli.top.watcher import Outcome, Watching
    from connectx.observe.history import Pair


class TopApp(App[None]):
    """The live view.

    It is drawn in the terminal's own colours. With NO_COLOR, Textual then leaves colours
    out; in its themes' colours it would turn them into greys, which are colours too.

    model: what is shown. watcher: who fills it; started and stopped here.
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
    #verdict { height: 2; }
    #shown { height: 1; }
    #filter, #filter:focus { height: 1; border: none; padding: 0; }
    TableScreen #filter, TableScreen.filtering #shown { display: none; }
    TableScreen.filtering #filter { display: block; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        # Before any widget: Textual's own asks to press another key instead.
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
    ]

    class Told(Message):
        """The watcher has something new."""

        def __init__(self, outcome: Outcome) -> None:
            super().__init__()
            self.outcome = outcome

    def __init__(self, model: Model, watcher: Watching) -> None:
        super().__init__(ansi_color=True)
        self._model = model
        self._watcher = watcher
        self._table = TableScreen(model)

    def get_default_screen(self) -> TableScreen:
        """The screen that is there at first, for Textual."""
        return self._table

    def on_mount(self) -> None:
        """Begin to count."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            # By default they would leave the terminal as it is now.
            loop.add_signal_handler(number, self.exit)
        # post_message() may be called in any thread.
        self._watcher.start(lambda outcome: self.post_message(self.Told(outcome)))

    def on_unmount(self) -> None:
        """Stop counting: from now on nobody takes a message."""
        self._watcher.stop()

    def on_top_app_told(self, message: Told) -> None:
        """Take it in and show it."""
        self._model.take(message.outcome, self._followed())
        if isinstance(self.screen, ModelScreen):
            self.screen.show()

    def on_pair_table_opened(self, message: PairTable.Opened) -> None:
        """Look closer at a pair."""
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
