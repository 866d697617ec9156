"""``connectx lab latency``: how it shows what tests/lab is about, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from connectx.cli.main import main
from connectx.linux import features
from connectx.linux.features import Probe
from connectx.sandbox import workers
from tests import limits
from tests.lab.commands import connectx, on_a_terminal, read_to_end, read_until

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.usefixtures("network")

needs_windows = pytest.mark.skipif(
    features.probe(features.IP_LOCAL_PORT_RANGE) is not Probe.YES,
    reason="kernel: no IP_LOCAL_PORT_RANGE",
)


def lab_latency(*arguments: str) -> subprocess.CompletedProcess[str]:
    return connectx("lab", "latency", *arguments)


class TestOutput:
    def test_csv_has_every_sample(self) -> None:
        result = lab_latency(
            "--ports", "40000-40049", "--csv", "--churn", "80", "--operations", "7"
        )
        rows = list(csv.DictReader(io.StringIO(result.stdout)))
        assert [row["way"] for row in rows] == ["kernel"] * 47 + ["auto"] * 47
        assert [row["phase"] for row in rows[:47]] == ["fill"] * 40 + ["churn"] * 7
        assert all(40000 <= int(row["port"]) <= 40049 for row in rows)

    def test_tables_fit_the_terminal_and_explain_themselves(self) -> None:
        result = lab_latency("--ports", "40000-40199")
        assert result.returncode == 0
        assert "\x1b" not in result.stdout
        assert max(map(len, result.stdout.splitlines())) <= 80
        shown = " ".join(result.stdout.split())
        for text in ("even ports", "odd ports", "__inet_hash_connect()", os.uname().release):
            assert text in shown
        assert "Nothing else was changed." in shown
        assert "net.ipv4.ip_local_port_range = 40000 40199" in shown

    @needs_windows
    def test_the_table_of_window_sizes(self) -> None:
        result = lab_latency("--windows", "--ports", "40000-51999", "--connections", "200")
        assert result.returncode == 0
        for size in (500, 1000, 5000, 10000):
            assert f"one-window:{size} " in result.stdout

    def test_json_names_the_machine_in_plain_terms(self) -> None:
        result = lab_latency("--way", "kernel", "--ports", "40000-40009", "--json")
        found = json.loads(result.stdout)
        assert found["machine"]["kernel"] == os.uname().release
        # The machine's own, not what the experiment has set.
        assert found["machine"]["sysctls"]["net.ipv4.ip_local_port_range"] != "40000 40009"
        assert "net.ipv4.ip_local_port_range = 40000 40009" in found["changes"]

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--way", "fastest"),
            ("--way", "one-window"),
            ("--way", "one-window:0"),
            ("--way", "one-window:x"),
            ("--way", ""),
            ("--churn", "0"),
            ("--churn", "101"),
            ("--churn", "nan"),
            ("--sources", "0"),
            ("--sources", "201"),
            ("--operations", "x"),
            ("--ports", "1-10"),
            ("--time-limit", "0"),
            ("--json", "--csv"),
            ("--way", "kernel", "--windows"),
            ("--operations", "5"),
            ("--churn", "50", "--connections", "10"),
            ("--ports", "40000-40009", "--churn", "1"),
            ("--ports", "40000-40009", "--way", "one-window:11"),
        ],
        ids=" ".join,
    )
    def test_arguments_that_make_no_sense(
        self, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["lab", "latency", *arguments])
        assert arguments[0] in capsys.readouterr().err


class TestRefusal:
    def test_with_too_few_descriptors(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(workers, "descriptor_limit", lambda: 100)
        assert main(["lab", "latency"]) == 1
        assert "connectx lab latency: a process may have 100 descriptors" in capsys.readouterr().err

    def test_of_churn_that_one_process_cannot_hold(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # It could close its own connections only, which are the latest: all of one parity.
        monkeypatch.setattr(workers, "descriptor_limit", lambda: 1000)
        with pytest.raises(SystemExit, match="2"):
            main(["lab", "latency", "--ports", "40000-41999", "--churn", "90"])
        assert "churn needs 1,800 descriptors in one process" in capsys.readouterr().err


class TestInterruption:
    def test_leaves_no_process(self) -> None:
        with on_a_terminal("lab", "latency") as (process, screen):
            read_until(screen, b"opening")
            # As the terminal does it on Ctrl-C: to each process of the group.
            os.killpg(process.pid, signal.SIGINT)
            assert b"Traceback" not in read_to_end(screen)
            assert process.wait(limits.LIMIT) == 130
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
