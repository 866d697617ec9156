"""``connectx demo``: how it shows what tests/lab is about, and how it ends."""

from __future__ import annotations

import errno
import os
import re
import signal

import pytest

from connectx.addresses import PortRange
from connectx.cli import demo as cli
from connectx.cli.main import main
from connectx.lab import demo, resources
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


def verdicts(printed: str) -> list[tuple[str, str]]:
    """The verdict of each way, in order, without the count of duplicates."""
    found = re.findall(r"^(?:TCP|UDP|   ) (\w+) +[█░·]+ .*([✓✗] .+)$", printed, re.MULTILINE)
    return [(way, re.sub(r"[\d,]+(?= lost)", "N", verdict)) for way, verdict in found]


def bars(printed: str) -> dict[str, str]:
    """The last bar of each way."""
    return dict(re.findall(r"^(?:TCP|UDP|   ) (\w+) +([█░·]+) ", printed, re.MULTILINE))


class TestTable:
    def test_without_a_terminal_is_plain(self) -> None:
        result = connectx("demo", "--ports", RANGE)
        assert "\x1b" not in result.stdout
        assert result.stderr == ""
        assert max(map(len, result.stdout.splitlines())) <= 80
        assert verdicts(result.stdout) == [
            ("connect", "✓ every port, for both"),
            ("bind", "✗ refused: EADDRINUSE"),
            ("SO_REUSEADDR", "✗ refused: EADDRINUSE"),
            ("connectx", "✓ every port, for both"),
            ("connect", "✗ refused: EAGAIN"),
            ("bind", "✗ refused: EADDRINUSE"),
            ("SO_REUSEADDR", "✗ N lost to duplicates"),
            ("connectx", "✓ every port, for both"),
        ]
        assert "connectx: 400 UDP connections from 127.0.0.1, 0 duplicates, 400 echoing" in (
            result.stdout
        )

    def test_has_a_bar_for_each_way(self) -> None:
        drawn = bars(connectx("demo", "--ports", RANGE, "--protocol", "udp").stdout)
        assert drawn["connectx"] == "█" * 16
        assert drawn["connect"] == drawn["bind"] == "█" * 8 + "·" * 8
        # All are open, and some of them get nothing.
        assert re.fullmatch("█+░+", drawn["SO_REUSEADDR"])
        assert len(drawn["SO_REUSEADDR"]) == 16

    def test_is_coloured_on_a_terminal(self) -> None:
        with on_a_terminal("demo", "--ports", RANGE, "--protocol", "udp") as (process, screen):
            shown = read_to_end(screen).decode()
            assert process.wait(limits.LIMIT) == 0
        assert re.search(r"\x1b\[1;32mconnectx\x1b", shown)
        assert re.search(r"\x1b\[1;32m✓ every port, for both\x1b", shown)
        assert re.search(r"\x1b\[31m✗ refused: EAGAIN\x1b", shown)

    def test_needs_no_unicode(self) -> None:
        result = connectx(
            *("demo", "--ports", RANGE, "--protocol", "udp"), PYTHONIOENCODING="ascii"
        )
        assert "v every port, for both" in result.stdout
        assert "x refused: EAGAIN" in result.stdout
        assert "################" in result.stdout
        assert "?" not in result.stdout

    def test_is_not_where_no_colour_is_wanted(self) -> None:
        with on_a_terminal("demo", "--ports", RANGE, "--protocol", "udp", NO_COLOR="1") as (
            _,
            screen,
        ):
            shown = read_to_end(screen)
        assert b"SO_REUSEADDR" in shown
        assert not COLOUR.search(shown)


class TestVerdict:
    """Of ways as they end on a machine that is slower or larger than a test may need."""

    def printed(
        self,
        capsys: pytest.CaptureFixture[str],
        *openings: demo.Opening,
        echoed: int,
        cores: int = 2,
    ) -> str:
        ways = (demo.Way("tcp", "bind", openings, 0, echoed),)
        cli._print_table(demo.Demonstration("6.18", cores, PortRange(40000, 40099), 9.5, ways))
        return capsys.readouterr().out

    def test_of_a_way_that_is_too_slow(self, capsys: pytest.CaptureFixture[str]) -> None:
        slow = demo.Opening(60, 8.0, 8.1, stopped=demo.SLOW)
        refused = demo.Opening(10, 1.0, 2.0, 50, errno.EADDRINUSE, demo.REFUSED)
        out = self.printed(capsys, slow, refused, echoed=70)
        assert verdicts(out) == [("bind", "✗ gave up, too slow")]
        assert (
            "gave up, too slow: 8 s were not enough for the ports toward one destination.\n" in out
        )

    def test_of_connections_that_do_not_work(self, capsys: pytest.CaptureFixture[str]) -> None:
        full = demo.Opening(100, 1.0, 1.0, stopped=demo.FULL)
        assert verdicts(self.printed(capsys, full, full, echoed=197)) == [
            ("bind", "✗ 3 do not echo")
        ]

    def test_of_nothing_at_all(self, capsys: pytest.CaptureFixture[str]) -> None:
        refused = demo.Opening(0, 0.0, 2.0, 50, errno.EAGAIN, demo.REFUSED)
        out = self.printed(capsys, refused, refused, echoed=0)
        assert verdicts(out) == [("bind", "✗ refused: EAGAIN")]
        assert bars(out) == {"bind": "·" * 16}

    def test_one_core_is_one_core(self, capsys: pytest.CaptureFixture[str]) -> None:
        full = demo.Opening(100, 1.0, 1.0, stopped=demo.FULL)
        out = self.printed(capsys, full, full, echoed=200, cores=1)
        assert out.endswith("Linux 6.18, 1 core, 9.5 s\n")


class TestAnnouncement:
    def test_says_how_long_it_will_take(self) -> None:
        with on_a_terminal("demo", "--protocol", "tcp") as (process, screen):
            read_until(screen, b"This takes about 60 s: 4 ways")
            process.terminate()
            read_to_end(screen)

    def test_of_a_small_range(self) -> None:
        with on_a_terminal("demo", "--ports", RANGE, "--protocol", "udp") as (process, screen):
            assert b"This takes a few seconds: 4 ways" in read_to_end(screen)
            assert process.wait(limits.LIMIT) == 0


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
