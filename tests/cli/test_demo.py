"""``connectx demo``: how it shows what tests/lab is about, and how it ends."""

from __future__ import annotations

import errno
import os
import re
import signal

import pytest

from connectx.cli.main import main
from connectx.lab import resources
from connectx.sandbox import workers
from tests import limits
from tests.lab.commands import connectx, on_a_terminal, read_to_end, read_until

RANGE = "40000-40199"
COLOUR = re.compile(rb"\x1b\[[0-9;]*3[1-7]m")


class TestArguments:
    @pytest.mark.parametrize("ports", ["", "40000", "a-b", "2-1", "1023-2000", "60000-65536"])
    def test_that_make_no_sense(self, ports: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["demo", "--ports", ports])
        assert "--ports" in capsys.readouterr().err


class TestTable:
    def test_without_a_terminal_is_plain(self) -> None:
        result = connectx("demo", "--ports", RANGE)
        assert "\x1b" not in result.stdout
        assert result.stderr == ""
        assert max(map(len, result.stdout.splitlines())) <= 80
        for shown in (
            "EADDRNOTAVAIL",
            "EADDRINUSE",
            "EAGAIN",
            "gave up, refused",
            "SO_REUSEADDR",
        ):
            assert shown in result.stdout
        assert "connectx: 400 UDP connections from 127.0.0.1, 0 duplicates, 400 echoing" in (
            result.stdout
        )

    def test_is_coloured_on_a_terminal(self) -> None:
        with on_a_terminal("demo", "--ports", RANGE, "--protocol", "udp") as (process, screen):
            assert COLOUR.search(read_to_end(screen))
            assert process.wait(limits.LIMIT) == 0

    def test_is_not_where_no_colour_is_wanted(self) -> None:
        with on_a_terminal("demo", "--ports", RANGE, "--protocol", "udp", NO_COLOR="1") as (
            _,
            screen,
        ):
            shown = read_to_end(screen)
        assert b"SO_REUSEADDR" in shown
        assert not COLOUR.search(shown)


class TestInterruption:
    @pytest.mark.parametrize("protocol, phase", [("tcp", "opening"), ("udp", "echoing")])
    def test_leaves_no_process(self, protocol: str, phase: str) -> None:
        with on_a_terminal("demo", "--protocol", protocol) as (process, screen):
            read_until(screen, phase.encode())
            # As the terminal does it on Ctrl-C: to each process of the group.
            os.killpg(process.pid, signal.SIGINT)
            assert b"Traceback" not in read_to_end(screen)
            assert process.wait(limits.LIMIT) == 130
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)

    def test_by_a_signal_that_is_not_handled(self) -> None:
        with on_a_terminal("demo", "--protocol", "tcp") as (process, screen):
            read_until(screen, b"opening")
            process.terminate()
            # The end comes when the last process that has the terminal is gone.
            read_to_end(screen)
            assert process.wait(limits.LIMIT) == -signal.SIGTERM


class TestRefusal:
    def test_without_a_namespace(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def refuse() -> None:
            raise PermissionError(
                errno.EPERM, "cannot make a private network namespace; run as root"
            )

        monkeypatch.setattr(resources, "experiment_network", refuse)
        assert main(["demo"]) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("connectx demo: ")
        assert "cannot make a private network namespace; run as root" in shown.err

    @pytest.mark.parametrize("limit", [10, 64, 100, 256])
    def test_with_too_few_descriptors(
        self, limit: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(workers, "descriptor_limit", lambda: limit)
        assert main(["demo"]) == 1
        assert f"a process may have {limit} descriptors" in capsys.readouterr().err

    def test_with_too_little_memory(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(resources, "BYTES_PER_CONNECTION", 1 << 40)
        assert main(["demo"]) == 1
        assert "MiB of memory" in capsys.readouterr().err
