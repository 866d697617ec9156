"""``connectx lab techniques``: how it shows what tests/lab is about, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from connectx.addresses import PROTOCOLS
from connectx.cli.main import main
from connectx.lab import calls, mixing, resources, technique_table, techniques, trials
from connectx.lab.transports import Transport
from tests import limits
from tests.lab.commands import connectx, on_a_terminal, read_to_end, read_until

if TYPE_CHECKING:
    import socket

SIZE = 64


@pytest.fixture(scope="module")
def shown() -> str:
    process = connectx("lab", "techniques", "--family", "4", "--protocol", "udp")
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


class TestTables:
    def test_are_plain_and_fit_80_columns(self, shown: str) -> None:
        assert "\x1b" not in shown
        assert max(map(len, shown.splitlines())) <= 80

    def test_show_expected_and_observed(self, shown: str) -> None:
        assert shown.count("expected") > 20
        assert "SO_REUSEADDR as a lock" in shown
        assert "UDP over IPv4: pairs of techniques" in shown
        assert "11: EAGAIN at connect or at connectx." in " ".join(shown.split())

    def test_leave_other_protocols_out(self, shown: str) -> None:
        assert "TCP" not in shown
        assert "IPv6" not in shown

    def test_end_with_what_was_changed(self, shown: str) -> None:
        text = " ".join(shown.split())
        assert "Changed in private network namespaces, which are gone: net.ipv4." in text
        assert "Nothing else was changed." in text
        assert " findings are as expected." in text


UDP4 = ["lab", "techniques", "--protocol", "udp", "--family", "4"]


@pytest.fixture
def only_plain_connect(monkeypatch: pytest.MonkeyPatch) -> technique_table.Technique:
    """Reduce the experiment to what takes no time."""
    (plain, *_) = technique_table.techniques(Transport("udp", 4))
    monkeypatch.setattr(mixing, "OPENINGS", (plain.opener,))
    monkeypatch.setattr(technique_table, "_DATAGRAM_TECHNIQUES", (plain,))
    return plain


@pytest.mark.usefixtures("network")
class TestDisagreement:
    def test_of_a_technique(
        self,
        only_plain_connect: technique_table.Technique,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        wrong = only_plain_connect.expected._replace(errno="EADDRINUSE", opened=(SIZE, SIZE))
        table = (only_plain_connect._replace(expected=wrong),)
        monkeypatch.setattr(technique_table, "_DATAGRAM_TECHNIQUES", table)
        assert main(UDP4) == 1
        shown = capsys.readouterr().out
        assert "! EAGAIN" in shown
        assert "! 64 0" in shown
        assert "! 1 of " in shown
        assert main([*UDP4, "--json"]) == 1
        (row,) = json.loads(capsys.readouterr().out)["rows"]
        assert row["agrees"] is False
        assert (row["expected"]["errno"], row["observed"]["errno"]) == ("EADDRINUSE", "EAGAIN")

    @pytest.mark.usefixtures("only_plain_connect")
    def test_of_a_pair(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(mixing, "expected", lambda *_: "ok")
        assert main(UDP4) == 1
        shown = capsys.readouterr().out
        assert "11!" in shown
        assert "! row 1, column 1: expected ok, observed EAGAIN at connect" in shown


@pytest.mark.usefixtures("network")
class TestWhatIsMissing:
    @staticmethod
    def watch(*_: object) -> None:
        pass

    def test_an_option(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: socket.socket) -> None:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")

        monkeypatch.setitem(calls._OPTIONS, "IP_LOCAL_PORT_RANGE", refuse)
        monkeypatch.setattr(mixing, "OPENINGS", ())
        result = techniques.as_json(techniques.run(["tcp"], [4], self.watch))
        rows = {row["technique"]: row for row in result["rows"]}
        window = rows["full-range window"]
        assert (window["observed"], window["agrees"]) == (None, None)
        assert window["note"] == "This kernel lacks IP_LOCAL_PORT_RANGE."
        assert rows["plain connect"]["agrees"] is True

    @pytest.mark.usefixtures("only_plain_connect")
    def test_a_protocol(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(PROTOCOLS, "mptcp", PROTOCOLS["mptcp"]._replace(number=255))
        result = techniques.as_json(techniques.run(["mptcp", "udp"], [4], self.watch))
        (left_out,) = result["left_out"]
        assert (left_out["protocol"], left_out["family"]) == ("mptcp", 4)
        assert {row["protocol"] for row in result["rows"]} == {"udp"}

    def test_the_only_protocol(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(PROTOCOLS, "mptcp", PROTOCOLS["mptcp"]._replace(number=255))
        assert main(["lab", "techniques", "--protocol", "mptcp"]) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("connectx lab techniques: no MPTCP over IPv4: ")

    def test_namespaces(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def refuse() -> None:
            raise PermissionError(errno.EPERM, "run as root")

        monkeypatch.setattr(resources, "experiment_network", refuse)
        assert main(["lab", "techniques"]) == 1
        assert capsys.readouterr().err == "connectx lab techniques: run as root\n"

    def test_descriptors(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(trials, "DESCRIPTORS", 1 << 40)
        assert main(["lab", "techniques"]) == 1
        assert "descriptors here (ulimit -H -n)" in capsys.readouterr().err


class TestInterruption:
    @pytest.mark.parametrize("phase", ["techniques 1", "pairs", "services"])
    def test_leaves_no_process(self, phase: str) -> None:
        with on_a_terminal("lab", "techniques", "--protocol", "tcp") as (process, screen):
            read_until(screen, phase.encode())
            os.killpg(process.pid, signal.SIGINT)
            assert b"Traceback" not in read_to_end(screen)
            assert process.wait(limits.LIMIT) == 130
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
