"""The bench in small: its figures are about what it says they are about.

Nothing here looks at how fast anything is. The fills in C are only tried where
there is a compiler.
"""

import errno
import functools
import json
import math
import os
import socket
import subprocess
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import destinations, integrations, memory, native, report, turns, usage
from bench.__main__ import MEASUREMENTS
from bench.competition import TCP, UDP, Competition, mean_time, tail, typical_time
from bench.filling import Block, BlockOpener, Result, run
from bench.harness import (
    DESTINATION,
    SOURCES,
    Findings,
    Settings,
    in_network,
    in_networks,
    listen_at_destination,
)
from bench.targets import AT_LEAST, AT_MOST, TARGETS, Target
from bench.ways import Fill, Way, bare_udp_anywhere, linear_probing, with_own_socket
from connectx.addresses import PortRange
from connectx.linux import netns
from tests import limits

ROOT = Path(__file__).parent.parent
PORTS = PortRange(20000, 20099)
SETTINGS = Settings(1, PORTS, print)

COMPILER = native.compiler()


def fill_by(competition: Competition, way: str, source: str, ports: PortRange = PORTS) -> Result:
    fill = competition.fill(Settings(1, ports, print), SOURCES[source])
    listen = listen_at_destination if fill.kind is socket.SOCK_STREAM else None
    start = competition.ways()[way]
    return in_network(functools.partial(run, fill, start, listen, math.inf), ports)


class TestWays:
    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.parametrize(
        "competition, way",
        [(competition, way) for competition in (TCP, UDP) for way in competition.ways()],
        ids=lambda value: value if isinstance(value, str) else value.name,
    )
    def test_opens_every_connection_there_is(
        self, competition: Competition, way: str, source: str
    ) -> None:
        result = fill_by(competition, way, source)
        expected = PORTS.size * len(competition.destinations)
        assert not result.error
        assert len(result.times) == result.distinct == result.asked == expected
        assert all(result.times)

    def test_linear_probing_says_when_none_is_left(self) -> None:
        def one_too_many() -> int | None:
            fill = Fill(socket.SOCK_DGRAM, None, [DESTINATION] * 3, PortRange(20000, 20002))
            open_one = linear_probing(fill)
            sockets = [open_one(DESTINATION) for _ in range(3)]
            try:
                open_one(DESTINATION)
            except OSError as error:
                return error.errno
            finally:
                for sock in sockets:
                    sock.close()
            return None

        assert in_network(one_too_many, PORTS) == errno.EAGAIN

    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.parametrize("way", [with_own_socket, bare_udp_anywhere])
    def test_connects_udp_to_destinations_it_has_not_seen(self, way: Way, source: str) -> None:
        destinations = [(f"127.1.0.{number}", 9000) for number in range(1, 4)]

        def connected() -> list[tuple[object, object]]:
            open_one = way(Fill(socket.SOCK_DGRAM, SOURCES[source], destinations, PORTS))
            ends = []
            for destination in destinations:
                with open_one(destination) as sock:
                    ends.append((sock.getsockname()[0], sock.getpeername()))
            return ends

        # On the loopback the routing table chooses the same source.
        assert in_network(connected, PORTS) == [("127.0.0.1", each) for each in destinations]

    @pytest.mark.parametrize("competition", [TCP, UDP], ids=lambda value: value.name)
    def test_every_port_comes_once_toward_each_destination(self, competition: Competition) -> None:
        fill = competition.fill(SETTINGS, None)
        pairs = list(zip(fill.destinations, fill.shuffled_ports(), strict=True))
        assert len(set(pairs)) == len(pairs) == PORTS.size * len(competition.destinations)


class TestNative:
    @pytest.mark.skipif(not COMPILER, reason="needs a C compiler")
    @pytest.mark.parametrize("name", native.PROGRAMS.values())
    def test_builds_without_a_warning(
        self, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(native, "BUILD", tmp_path)
        monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-Werror"))
        assert native.build(name).is_file()

    def test_names_the_missing_compiler(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(native, "BUILD", tmp_path)
        monkeypatch.setattr(native, "compiler", lambda: None)
        with pytest.raises(FileNotFoundError, match="install gcc"):
            native.build("fill_tcp")


def failing(_: Fill) -> BlockOpener:
    return lambda _count: Block([], [], OSError(errno.EMFILE, "Too many open files"))


class TestFilling:
    def test_an_error_ends_a_fill_and_is_reported(self) -> None:
        fill = Fill(socket.SOCK_DGRAM, None, [DESTINATION], PORTS)
        result = in_network(lambda: run(fill, failing, None, math.inf), PORTS)
        assert "Too many open files" in result.error
        assert not result.times

    def test_a_time_limit_ends_a_fill(self) -> None:
        fill = TCP.fill(Settings(1, PortRange(20000, 20999), print), None)
        start = TCP.ways()["plain connect()"]
        result = in_network(lambda: run(fill, start, listen_at_destination, 0), PORTS)
        assert not result.times
        assert not result.error

    def test_networks_are_apart(self) -> None:
        def identities(networks: Sequence[int]) -> set[netns.Identity]:
            return {netns.current(), *map(netns.identify, networks)}

        apart = in_networks(identities, 2, PORTS)
        assert len(apart) == 2
        assert netns.current() not in apart


class TestFigures:
    def test_a_slow_moment_is_left_out_of_the_typical_time_only(self) -> None:
        quiet = result([10] * 300)
        disturbed = result([10] * 256 + [1000] * 44)
        rounds = [quiet, disturbed, quiet]
        assert typical_time(rounds, 300) == 3000
        assert mean_time(rounds, 300) == 3000 + 44 * 990 / 3

    def test_an_interrupted_call_counts_in_no_time_but_those_of_the_slow_ways(self) -> None:
        interrupted = result([10, -5000, 10, 10])
        assert typical_time([interrupted], 4) == 40
        assert tail([10, 10, 10, -5000, 20]) == 2
        assert mean_time([interrupted], 4) == 5030

    def test_what_comes_back_in_every_round_is_typical(self) -> None:
        assert typical_time([result([10] * 256 + [1000] * 44)] * 3, 300) == 2560 + 44000

    def test_every_target_belongs_to_a_measurement(self) -> None:
        assert report.targets_of(MEASUREMENTS) == list(TARGETS)

    @pytest.mark.parametrize(
        "comparison, value, met",
        [
            (AT_LEAST, 2.0, True),
            (AT_LEAST, 1.9, False),
            (AT_MOST, 2.0, True),
            (AT_MOST, 2.1, False),
            (AT_MOST, None, False),
            (AT_MOST, math.nan, False),
        ],
    )
    def test_a_target_is_met_on_the_bound_and_never_unmeasured(
        self,
        comparison: str,
        value: float | None,
        met: bool,  # noqa: FBT001 - a parameter
    ) -> None:
        assert Target("figure", "says", comparison, 2.0).met_by(value) is met

    def test_a_missing_figure_says_why(self) -> None:
        findings = Findings()
        findings.lack("top", "no interpreter")
        text = report.as_text(report.targets_of(["top"]), findings, SETTINGS)
        assert "not measured (no interpreter)" in text
        assert "1 of 1 targets missed" in text


def result(times: list[int]) -> Result:
    return Result(len(times), array("q", times), len(times), "")


class TestMeasurements:
    @pytest.mark.parametrize(
        "name",
        [
            "churn",
            "empty range",
            "own socket",
            "new destinations",
            "destinations",
            "dialer",
            "socket options",
            "integrations",
            "memory",
        ],
    )
    def test_finds_all_its_figures(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        # Nobody waits in a test: then nothing is idle yet, which changes the figure only. So
        # does how many destinations there are.
        monkeypatch.setattr(memory, "_IDLE", 0)
        # More than there are ports.
        monkeypatch.setattr(turns, "CALLS", 110)
        monkeypatch.setattr(turns, "NEW_DESTINATIONS", 110)
        monkeypatch.setattr(memory, "_DESTINATIONS", 100)
        monkeypatch.setattr(destinations, "_COUNTS", (10, 200))
        monkeypatch.setattr(destinations, "_CALLS", 100)
        monkeypatch.setattr(destinations, "_OPEN", 100)
        monkeypatch.setattr(integrations, "CLIENTS", 1)
        figures = MEASUREMENTS[name](SETTINGS).figures
        assert sorted(figures) == sorted(target.figure for target in report.targets_of([name]))
        assert all(math.isfinite(value) for value in figures.values())

    def test_usage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(usage, "CONNECTIONS", 500)
        findings = MEASUREMENTS["usage"](SETTINGS)
        (table,) = findings.tables
        commands = {row[0]: row[1:] for row in table.rows}
        if usage.SS not in commands:
            pytest.skip("needs ss, of iproute2")
        time, memory = commands[usage.USAGE]
        assert time > 0
        assert 8 < memory < 100
        for target in report.targets_of(["usage"]):
            # psutil is installed for the bench alone.
            found = target.figure in findings.figures
            assert found or findings.details[target.figure] == "no psutil: install it"


class TestCommand:
    def test_prints_a_table_and_writes_json(self, tmp_path: Path) -> None:
        output = tmp_path / "bench.json"
        done = run_bench("--only", "tcp", "--only", "udp", "--json", str(output))
        found = json.loads(output.read_text())
        assert done.returncode == (0 if found["met"] else 1), done.stderr
        assert found["ports"] == list(PORTS)
        assert found["rounds"] == 1
        assert found["kernel"] == os.uname().release
        figures = {figure["name"]: figure for figure in found["figures"]}
        for protocol in ("tcp", "udp"):
            for source in SOURCES:
                assert figures[f"{protocol}, {source}: opened"]["value"] == 1
                assert figures[f"{protocol}, {source}: duplicates"]["value"] == 0
                assert figures[f"{protocol}, {source}: bare loop"]["target"] == 0.85
        assert [table["title"].partition(":")[0] for table in found["tables"]] == ["TCP", "UDP"]
        for figure in figures.values():
            assert figure["says"] in done.stdout

    @pytest.mark.parametrize("ports", ["", "1-2", "30000-20000", "60000-70000", "20000"])
    def test_refuses_a_range_that_is_none(self, ports: str) -> None:
        done = run_bench("--ports", ports)
        assert done.returncode == 2
        assert "--ports" in done.stderr


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    defaults = ("--rounds", "1", "--ports", f"{PORTS}")
    return subprocess.run(
        [sys.executable, "-m", "bench", *defaults, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=limits.COMMAND_LIMIT,
        check=False,
    )
