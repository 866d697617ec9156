"""``connectx top``: how it looks, what its keys do, and the command on a real terminal.

The pictures are in ``__snapshots__``; after a change that is meant,
``pytest tests/cli/top/test_top.py --snapshot-update`` draws them anew, for a person to look at.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING, Any

import pytest
from textual.widgets import Input

from connectx.addresses import Endpoint
from connectx.cli.main import main
from connectx.cli.top.model import Model, Sort
from connectx.cli.top.screens import KeysScreen, PairScreen, TableScreen
from connectx.cli.top.table import PairTable
from connectx.cli.top.watcher import Counted, Failed
from tests import limits
from tests.api.calls import reset_on_close
from tests.cli.top.states import (
    DNS,
    FILLING,
    FULL,
    LONG,
    Still,
    busy,
    counted,
    row,
    snapshot,
    top,
)
from tests.lab.commands import on_a_terminal, read_to_end, read_until

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Awaitable, Callable

    from textual.pilot import Pilot

    from connectx.cli.top.app import TopApp
    from connectx.sandbox.networks import Network
    from connectx.sandbox.servers import Servers

    Compare = Callable[..., bool]
    Script = Callable[[Pilot[Any], Model, Still], Awaitable[None]]

PORT = 9000
DENIED = Failed(150.0, PermissionError(1, "Operation not permitted"))


@pytest.fixture(autouse=True)
def _colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pictures independent of the terminal that the tests run on."""
    for name in ("NO_COLOR", "TEXTUAL", "TEXTUAL_FILTERS", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


class TestPictures:
    @pytest.mark.parametrize("size", [(80, 24), (140, 30), (60, 12)], ids="{0[0]}x{0[1]}".format)
    def test_of_all_pairs(self, size: tuple[int, int], snap_compare: Compare) -> None:
        app, _, _ = top(*busy())
        assert snap_compare(app, terminal_size=size, press=["down"])

    def test_of_the_keys(self, snap_compare: Compare) -> None:
        app, _, _ = top(*busy())
        assert snap_compare(app, terminal_size=(60, 12), press=["question_mark"])

    def test_of_long_addresses(self, snap_compare: Compare) -> None:
        app, _, _ = top(
            Counted(
                1.0,
                2.0,
                snapshot(
                    [
                        LONG,
                        *(row("tcp", f"10.0.0.{n}", Endpoint(FULL, 80), 9 - n) for n in range(2)),
                    ]
                ),
            )
        )
        assert snap_compare(app, terminal_size=(70, 14), press=["down"])

    def test_of_one_pair(self, snap_compare: Compare) -> None:
        app, _, _ = top(*busy())
        assert snap_compare(app, terminal_size=(80, 32), press=["down", "enter"])

    def test_of_one_pair_without_colours(
        self, snap_compare: Compare, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NO_COLOR", "1")
        app, _, _ = top(*busy())
        assert snap_compare(app, press=["enter"])

    def test_of_a_filter(self, snap_compare: Compare) -> None:
        app, _, _ = top(*busy())
        assert snap_compare(app, press=["slash", *"192.0.2.7", "enter", "s"])

    def test_of_nothing(self, snap_compare: Compare) -> None:
        app, _, _ = top(Counted(1.0, 2.0, snapshot([])))
        assert snap_compare(app)

    def test_before_anything_is_counted(self, snap_compare: Compare) -> None:
        app, _, _ = top()
        assert snap_compare(app)

    def test_of_an_error_at_once(self, snap_compare: Compare) -> None:
        app, _, _ = top(DENIED)
        assert snap_compare(app)

    def test_of_an_error_later(self, snap_compare: Compare) -> None:
        app, _, _ = top(*busy(), DENIED)
        assert snap_compare(app)


def play(script: Script, app: TopApp, model: Model, watcher: Still) -> None:
    async def run() -> None:
        async with app.run_test() as pilot:
            await pilot.pause()
            await script(pilot, model, watcher)

    asyncio.run(run())


def table(pilot: Pilot[Any]) -> PairTable:
    return pilot.app.screen.query_one(PairTable)


class TestKeys:
    def test_the_cursor_moves_and_stays_within_the_lines(self) -> None:
        async def script(pilot: Pilot[Any], model: Model, _: Still) -> None:
            lines = model.entries()
            for keys, expected in (
                (["up"], 0),
                (["down", "j"], 2),
                (["k"], 1),
                (["end"], 33),
                (["down"], 33),
                (["pageup"], 33 - (table(pilot).size.height - 1)),
                (["home", "pagedown"], table(pilot).size.height - 1),
                (["G"], 33),
                (["g"], 0),
            ):
                await pilot.press(*keys)
                assert table(pilot).pair == lines[expected].pair
                assert table(pilot).pair in table(pilot).on_screen

        play(script, *top(*busy()))

    def test_the_cursor_stays_with_its_pair(self) -> None:
        async def script(pilot: Pilot[Any], model: Model, watcher: Still) -> None:
            await pilot.press("down", "down")
            pair = table(pilot).pair
            assert pair is not None
            rows = [line.row for line in model.entries()]
            rows[2] = rows[2]._replace(in_use=0)
            watcher.tell(Counted(500.0, 2.0, snapshot(rows)))
            await pilot.pause()
            assert table(pilot).pair == pair
            assert model.entries()[-1].pair == pair
            watcher.tell(Counted(502.0, 2.0, snapshot([])))
            await pilot.pause()
            assert table(pilot).pair is None
            await pilot.press("enter", "down", "end", "pageup")
            assert isinstance(pilot.app.screen, TableScreen)

        play(script, *top(*busy()))

    def test_at_the_top_it_stays_there(self) -> None:
        async def script(pilot: Pilot[Any], model: Model, watcher: Still) -> None:
            assert table(pilot).pair is not None
            rows = [line.row for line in model.entries()][1:]
            watcher.tell(Counted(500.0, 2.0, snapshot(rows)))
            await pilot.pause()
            watcher.tell(counted(21))
            await pilot.pause()
            assert table(pilot).pair == model.entries()[0].pair

        play(script, *top(*busy()))

    def test_with_two_lines_for_each_pair(self) -> None:
        rows = [LONG, *(row("tcp", f"10.0.0.{n}", Endpoint(FULL, 80), 99 - n) for n in range(40))]

        async def script(pilot: Pilot[Any], model: Model, _: Still) -> None:
            lines = model.entries()
            await pilot.resize_terminal(70, 24)
            await pilot.pause()
            page = table(pilot).size.height // 2
            for keys, expected in (
                (["down", "down"], 2),
                (["end"], 40),
                (["pageup"], 40 - (page - 1)),
                (["home", "pagedown"], page - 1),
            ):
                await pilot.press(*keys)
                assert table(pilot).pair == lines[expected].pair
                assert table(pilot).pair in table(pilot).on_screen
            await pilot.press("home")
            await pilot.click(PairTable, offset=(5, 5))
            assert table(pilot).pair == lines[2].pair

        play(script, *top(Counted(1.0, 2.0, snapshot(rows))))

    def test_the_keys_are_shown_and_any_key_goes_back(self) -> None:
        async def script(pilot: Pilot[Any], *_: object) -> None:
            for screen, opened in ((TableScreen, []), (PairScreen, ["enter"])):
                for key in ("q", "escape", "x"):
                    await pilot.press(*opened, "question_mark")
                    await pilot.pause()
                    assert isinstance(pilot.app.screen, KeysScreen)
                    await pilot.press(key)
                    await pilot.pause()
                    assert isinstance(pilot.app.screen, screen)
                    await pilot.press("escape")
                    await pilot.pause()

        play(script, *top(*busy()))

    def test_filter(self) -> None:
        async def script(pilot: Pilot[Any], model: Model, _: Still) -> None:
            await pilot.press("slash", *"udp q")
            # "q" is text here, not a command.
            assert (model.text, len(model.entries())) == ("udp q", 0)
            await pilot.press("backspace", "backspace", "enter")
            assert table(pilot).has_focus
            pair = table(pilot).pair
            assert pair is not None
            assert pair.destination.host == DNS
            await pilot.press("escape")
            assert (model.text, len(model.entries())) == ("", 34)
            await pilot.press("slash", *"x", "escape")
            assert table(pilot).has_focus
            assert (model.text, pilot.app.screen.query_one(Input).value) == ("", "")

        play(script, *top(*busy()))

    def test_protocol_and_sort(self) -> None:
        async def script(pilot: Pilot[Any], model: Model, _: Still) -> None:
            await pilot.press("p", "p")
            assert model.protocol == "udp"
            await pilot.press("p", "s", "s")
            assert (model.protocol, model.sort) == ("", Sort.RATE)
            pair = table(pilot).pair
            assert pair is not None
            assert pair.destination.host == FILLING

        play(script, *top(*busy()))

    def test_a_closer_look_and_back(self) -> None:
        async def script(pilot: Pilot[Any], model: Model, watcher: Still) -> None:
            await pilot.press("down", "enter")
            await pilot.pause()
            assert isinstance(pilot.app.screen, PairScreen)
            assert watcher.pair is not None
            assert watcher.pair.destination.host == FILLING
            assert model.detail(watcher.pair) is not None
            # The pair may disappear while its details are shown.
            watcher.tell(Counted(500.0, 2.0, snapshot([])))
            await pilot.pause()
            await pilot.press("escape")
            assert watcher.pair is None
            assert isinstance(pilot.app.screen, TableScreen)
            assert model.entries() == []

        play(script, *top(*busy()))

    def test_a_click_moves_the_cursor_and_two_look_closer(self) -> None:
        async def script(pilot: Pilot[Any], model: Model, watcher: Still) -> None:
            await pilot.click(PairTable, offset=(5, 2))
            assert table(pilot).pair == model.entries()[2].pair
            await pilot.click(PairTable, offset=(5, 1), times=2)
            await pilot.pause()
            assert watcher.pair == model.entries()[1].pair

        play(script, *top(*busy()))

    @pytest.mark.parametrize("keys", [["q"], ["ctrl+c"], ["slash", "ctrl+c"], ["enter", "q"]])
    def test_quit(self, keys: list[str]) -> None:
        app, model, watcher = top(*busy())

        async def script(pilot: Pilot[Any], *_: object) -> None:
            await pilot.press(*keys)

        play(script, app, model, watcher)
        assert app.return_code == 0
        assert watcher.stopped

    def test_another_size(self) -> None:
        async def script(pilot: Pilot[Any], *_: object) -> None:
            before = table(pilot).widths
            await pilot.resize_terminal(140, 40)
            await pilot.pause()
            assert table(pilot).widths.bar > before.bar
            assert table(pilot).size.height > 24
            await pilot.resize_terminal(30, 6)
            await pilot.pause()

        play(script, *top(*busy()))


@pytest.fixture
def pair(network: Network, servers: Servers, closing: contextlib.ExitStack) -> None:
    """Nine connections, where ten are possible."""
    network.port_range(20000, 20009)
    servers.listen("127.0.0.1", PORT)
    for _ in range(9):
        reset_on_close(closing.enter_context(socket.create_connection(("127.0.0.1", PORT))))


def resize(screen: int, lines: int, columns: int) -> None:
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@pytest.mark.usefixtures("pair")
class TestOnATerminal:
    def test_shows_a_pair_looks_closer_and_leaves_the_terminal_as_it_was(self) -> None:
        with on_a_terminal("top", "--interval", "0.1", COLUMNS="", LINES="") as (process, screen):
            resize(screen, 24, 80)
            before = termios.tcgetattr(screen)
            read_until(screen, b"90.0 %")
            os.write(screen, b"\r")
            read_until(screen, f"({os.getpid()}".encode())
            os.write(screen, b"q")
            shown = read_to_end(screen)
            # The normal screen and the cursor are back, and the mouse is released.
            assert b"\x1b[?1049l" in shown
            assert b"\x1b[?25h" in shown
            assert b"\x1b[?1000l" in shown
            assert b"Traceback" not in shown
            assert termios.tcgetattr(screen) == before
            assert process.wait(limits.LIMIT) == 0

    @pytest.mark.parametrize("how", ["the key", signal.SIGINT, signal.SIGTERM], ids=str)
    def test_ctrl_c(self, how: str | signal.Signals) -> None:
        with on_a_terminal("top") as (process, screen):
            before = termios.tcgetattr(screen)
            read_until(screen, b"90.0 %")
            if isinstance(how, signal.Signals):
                process.send_signal(how)
            else:
                os.write(screen, b"\x03")
            shown = read_to_end(screen)
            assert b"\x1b[?1049l" in shown
            assert b"Traceback" not in shown
            assert termios.tcgetattr(screen) == before
            assert process.wait(limits.LIMIT) == 0

    @pytest.mark.parametrize("no_colour", ["", "1"])
    def test_colours(self, no_colour: str) -> None:
        environment = {"NO_COLOR": no_colour} if no_colour else {}
        with on_a_terminal("top", **environment) as (process, screen):
            shown = read_until_and_quit(screen)
            assert process.wait(limits.LIMIT) == 0
        styles = b";".join(re.findall(rb"\x1b\[([0-9;]*)m", shown)).split(b";")
        colours = {int(each) for each in styles if each and 30 <= int(each) <= 107}
        # 39 and 49 are the default colours; 38 and 48 would be beyond the terminal's sixteen.
        assert not colours & {38, 48}
        assert bool(colours - {39, 49}) is not bool(no_colour)

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
    def test_an_encoding_without_its_characters(self, encoding: str) -> None:
        with on_a_terminal("top", PYTHONIOENCODING=encoding) as (process, screen):
            shown = read_until_and_quit(screen)
            assert process.wait(limits.LIMIT) == 0
        assert b"Traceback" not in shown
        # One for one, or columns would move.
        assert b"\\u" not in shown

    def test_of_another_namespace(self) -> None:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        with on_a_terminal("top", "--netns", str(child.pid), "--interval", "0.1") as (_, screen):
            read_until(screen, b"90.0 %")
            child.communicate(timeout=limits.LIMIT)
            read_until(screen, b"no longer exists")
            os.write(screen, b"q")
            read_to_end(screen)


def read_until_and_quit(screen: int) -> bytes:
    shown = b""
    while b"90.0 %" not in shown:
        limits.readable(screen)
        shown += os.read(screen, 65536)
    os.write(screen, b"q")
    return shown + read_to_end(screen)


class TestRefusal:
    def test_without_a_terminal(self) -> None:
        result = subprocess.run(
            [sys.executable, "-m", "connectx", "top"],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=limits.COMMAND_LIMIT,
        )
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == (
            "connectx top: standard input, output and error must be a terminal; "
            "without one, use connectx usage\n"
        )

    @pytest.mark.parametrize(
        "arguments",
        [["--interval", "0"], ["--interval", "nan"], ["--interval", "soon"], ["--protocol", "x"]],
    )
    def test_of_arguments(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["top", *arguments])
        assert arguments[0] in capsys.readouterr().err

    def test_help_needs_no_other_package(self) -> None:
        code = "import sys; from connectx.cli.main import main; sys.exit(main(['top', '--help']))"
        hide = "import sys; sys.modules.update(textual=None, rich=None); "
        result = subprocess.run(
            [sys.executable, "-c", hide + code],
            check=False,
            capture_output=True,
            text=True,
            timeout=limits.COMMAND_LIMIT,
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert "Ctrl-C  quit" in result.stdout
