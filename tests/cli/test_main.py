"""What all commands share: help, version, exit statuses, and an output that is lost."""

import argparse
import errno
import importlib
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import connectx
from connectx.cli import main as cli
from connectx.cli.command import FAILED, INTERRUPTED, OK, WRONG_USAGE
from connectx.cli.output import accept_any_encoding
from tests import limits
from tests.cli.bare import without_extras

Run = Callable[[argparse.Namespace], int]
Install = Callable[[Run], None]

#: Runs the command line with one subcommand, "fake", that does what the first argument says.
FAKE_MAIN = """
import sys, types
from connectx.cli import main as cli

fake = types.ModuleType("connectx.cli.fake")
fake.NAME = fake.HELP = fake.EXAMPLE = "fake"
fake.configure = lambda parser: None
exec("def run(arguments):\\n " + sys.argv[1])
fake.run = run
sys.modules["connectx.cli.fake"] = fake
cli.COMMANDS = ("fake",)
sys.exit(cli.main(sys.argv[2:]))
"""


def run(
    *arguments: str, stdout: int = subprocess.PIPE, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=limits.COMMAND_LIMIT,
        env={**os.environ, **(environment or {})},
    )


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make ``fake`` the only subcommand."""

    def install(function: Run) -> None:
        fake = types.ModuleType("connectx.cli.fake_command")
        fake.__dict__.update(
            NAME="fake-command",
            HELP="Do what the test says.",
            EXAMPLE="connectx fake-command --often",
            configure=lambda parser: parser.add_argument("--often", action="store_true"),
            run=function,
        )
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
        monkeypatch.setattr(cli, "COMMANDS", ("fake_command",))

    return install


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


class TestStarts:
    def test_python_m_connectx(self) -> None:
        result = run("-m", "connectx", "--version")
        assert (result.returncode, result.stdout) == (0, f"connectx {connectx.__version__}\n")

    def test_the_installed_script(self) -> None:
        script = os.path.join(os.path.dirname(sys.executable), "connectx")  # noqa: PTH118, PTH120
        result = run(script, "--version")
        assert (result.returncode, result.stdout) == (0, f"connectx {connectx.__version__}\n")

    def test_version_imports_no_subcommand(self) -> None:
        result = run("-X", "importtime", "-m", "connectx", "--version")
        assert "connectx.cli.main" in result.stderr
        assert "connectx.cli.demo" not in result.stderr

    @pytest.mark.parametrize("option", ["--version", "--help"])
    def test_without_any_extra(self, option: str) -> None:
        result = without_extras(option)
        assert (result.returncode, result.stderr) == (0, "")


class TestHelp:
    def test_lists_every_command_and_exit_status(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="0"):
            cli.main(["--help"])
        shown = capsys.readouterr().out
        for module in cli.COMMANDS:
            # argparse wraps it to the width of the terminal.
            summary = importlib.import_module(f"connectx.cli.{module}").HELP
            assert summary in " ".join(shown.split())
        assert cli.EPILOG in shown

    @pytest.mark.parametrize("module", cli.COMMANDS)
    def test_of_a_command_ends_with_its_example(
        self, module: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = importlib.import_module(f"connectx.cli.{module}")
        with pytest.raises(SystemExit, match="0"):
            cli.main([command.NAME, "--help"])
        assert command.EXAMPLE in capsys.readouterr().out

    @pytest.mark.parametrize("module", cli.COMMANDS)
    def test_a_command_is_named_after_its_module(self, module: str) -> None:
        command = importlib.import_module(f"connectx.cli.{module}")
        assert command.NAME.replace("-", "_") == module
        assert command.EXAMPLE.startswith(f"connectx {command.NAME}")


class TestExitStatus:
    @pytest.mark.parametrize("status", [OK, FAILED])
    def test_is_the_commands(self, status: int, install: Install) -> None:
        install(lambda arguments: status if arguments.often else 99)
        assert cli.main(["fake-command", "--often"]) == status

    @pytest.mark.parametrize(
        "arguments", [[], ["no-such-command"], ["--no-such-option"], ["fake-command", "surplus"]]
    )
    def test_wrong_usage(self, arguments: Sequence[str], install: Install) -> None:
        install(lambda _: OK)
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == WRONG_USAGE

    @pytest.mark.parametrize(
        "arguments, command, says",
        [
            ("usge", "connectx", "did you mean usage?"),
            ("usage --destinaton=1.2.3.4", "connectx usage", "did you mean --destination?"),
            ("usage --watchh 2", "connectx usage", "did you mean --watch?"),
            ("usage --by proces", "connectx usage", "did you mean process?"),
            ("kill --protocol tpc", "connectx kill", "did you mean tcp?"),
            ("kill --state time-wiat", "connectx kill", "did you mean TIME-WAIT?"),
            ("doctor --netn 1 --idel 3", "connectx doctor", "did you mean --idle?"),
            ("kill 198.51.100.9", "connectx kill", "unrecognized arguments: 198.51.100.9\n"),
            ("lab lateny", "connectx lab", "did you mean latency?"),
            (
                "lab latency --port 2000-3000 -x",
                "connectx lab latency",
                "unrecognized arguments: -x\n",
            ),
            ("--json usage", "connectx", "--json comes after the command, as in connectx usage"),
            ("--zzz usage", "connectx", "unrecognized arguments: --zzz\n"),
        ],
    )
    def test_wrong_usage_shows_the_commands_own_and_what_was_meant(
        self, arguments: str, command: str, says: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="2"):
            cli.main(arguments.split())
        shown = capsys.readouterr().err
        assert shown.startswith(f"usage: {command} ")
        assert f"{command}: error: " in shown
        assert says in shown

    def test_arguments_that_are_wrong_together_show_the_usage_too(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["kill", "--state", "ESTAB"]) == WRONG_USAGE
        shown = capsys.readouterr().err
        assert shown.startswith("usage: connectx kill ")
        assert "connectx kill: sockets that are not in TIME-WAIT" in shown

    def test_interrupted(self, install: Install) -> None:
        def interrupt(_: argparse.Namespace) -> int:
            raise KeyboardInterrupt

        install(interrupt)
        assert cli.main(["fake-command"]) == INTERRUPTED

    @pytest.mark.parametrize("package, extra", sorted(cli.EXTRAS.items()))
    def test_a_package_of_an_extra_is_missing(
        self,
        package: str,
        extra: str,
        install: Install,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        install(lambda _: bool(importlib.import_module(package)))
        monkeypatch.setitem(sys.modules, package, None)
        assert cli.main(["fake-command"]) == WRONG_USAGE
        assert f"pip install 'connectx[{extra}]'" in capsys.readouterr().err

    def test_another_missing_module_is_a_bug_and_shows_as_one(self, install: Install) -> None:
        install(lambda _: bool(importlib.import_module("connectx.no_such_module")))
        with pytest.raises(ModuleNotFoundError):
            cli.main(["fake-command"])


class TestEncodings:
    """Where the output's encoding lacks a character, something like it is printed."""

    TEXT = "µ ─ █ ✓ … é 漢 \\udcff"

    @pytest.mark.parametrize(
        "encoding, shown",
        [
            ("utf-8", "µ ─ █ ✓ … é 漢 ?"),
            ("ascii", "u - # v . ? ? ?"),
            ("latin-1", "µ - # v . é ? ?"),
            ("cp437", "µ ─ █ v . é ? ?"),
            ("ascii:strict", "u - # v . ? ? ?"),
            ("utf-16", "µ ─ █ ✓ … é 漢 ?"),
        ],
    )
    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_of_any_kind(self, stream: str, encoding: str, shown: str) -> None:
        result = subprocess.run(
            [
                *(sys.executable, "-c", FAKE_MAIN),
                *(f'return print("{self.TEXT}", end="", file=sys.{stream})', "fake"),
            ],
            check=False,
            capture_output=True,
            timeout=limits.COMMAND_LIMIT,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert result.returncode == 0, result.stderr
        printed = result.stdout if stream == "stdout" else result.stderr
        assert printed.decode(encoding.partition(":")[0]) == shown

    def test_every_character_that_commands_print_has_a_stand_in(self) -> None:
        package = Path(connectx.__file__).parent
        printed = {
            character
            for part in ("cli", "lab", "observe", "_diagnosis", "errors.py")
            for path in [package / part, *(package / part).rglob("*.py")]
            if path.is_file()
            for character in path.read_text("utf-8")
            if not character.isascii()
        }
        assert "µ" in printed
        accept_any_encoding()
        for character in printed:
            stand_in = character.encode("ascii", errors="connectx").decode()
            assert len(stand_in) == 1
            assert stand_in != "?", character

    def test_of_a_locale(self) -> None:
        result = without_extras(
            *("lab", "latency", "--ports", "40000-40063"),
            LC_ALL="C",
            PYTHONUTF8="0",
            PYTHONCOERCECLOCALE="0",
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert "mean us" in result.stdout


class TestBrokenPipe:
    @pytest.mark.parametrize(
        "body",
        [
            pytest.param("return print('.' * 1_000_000)", id="while it runs"),
            pytest.param("return print('.')", id="as it ends"),
        ],
    )
    @pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
    def test_of_standard_output_is_quiet(
        self, body: str, unbuffered: str, closed_pipe: int
    ) -> None:
        environment = {"PYTHONUNBUFFERED": unbuffered}
        result = run("-c", FAKE_MAIN, body, "fake", stdout=closed_pipe, environment=environment)
        assert (result.returncode, result.stderr) == (FAILED, "")

    def test_of_the_help_is_quiet(self, closed_pipe: int) -> None:
        # The status depends on argparse, which hides the error before Python 3.12.
        assert run("-m", "connectx", "--version", stdout=closed_pipe).stderr == ""

    @pytest.mark.parametrize("unbuffered", ["", "1"])
    @pytest.mark.parametrize("length", [1, 100_000])
    def test_a_full_disk_is_said_once(self, length: int, unbuffered: str) -> None:
        with open("/dev/full", "w") as full:  # noqa: PTH123 - a device, not a path to work with
            result = run(
                *("-c", FAKE_MAIN, f"return print('.' * {length})", "fake"),
                stdout=full.fileno(),
                environment={"PYTHONUNBUFFERED": unbuffered},
            )
        assert result.returncode == FAILED
        assert result.stderr.splitlines() == [
            f"connectx: cannot write to standard output: {os.strerror(errno.ENOSPC)}"
        ]

    def test_of_another_descriptor_is_not_hidden(self) -> None:
        result = run("-c", FAKE_MAIN, "raise BrokenPipeError('a socket')", "fake")
        assert "BrokenPipeError: a socket" in result.stderr
