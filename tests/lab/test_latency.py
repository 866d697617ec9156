"""``connectx lab latency``, on ranges small enough for a test."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from connectx.addresses import PortRange
from connectx.cli.main import main
from connectx.lab import resources
from connectx.lab.explanations import explain
from connectx.lab.latency import Settings, run
from connectx.lab.machine import describe
from connectx.lab.opening import check_way
from connectx.lab.summary import summarise
from connectx.linux import features
from connectx.linux.features import Probe
from connectx.sandbox import workers
from tests.lab.commands import connectx, on_a_terminal, read_to_end, read_until

if TYPE_CHECKING:
    import subprocess

    from connectx.lab.latency import Samples
    from connectx.sandbox.networks import Network

pytestmark = pytest.mark.usefixtures("network")

needs_windows = pytest.mark.skipif(
    features.probe(features.IP_LOCAL_PORT_RANGE) is not Probe.YES,
    reason="kernel: no IP_LOCAL_PORT_RANGE",
)
needs_steps_of_one = pytest.mark.skipif(
    features.probe(features.IP_LOCAL_PORT_RANGE) is not Probe.YES
    or features.probe(features.STEP_OF_ONE) is not Probe.YES,
    reason="kernel: windows are searched in steps of two",
)


def lab_latency(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return connectx("lab", "latency", *arguments, prefix=prefix)


def ways(*arguments: str) -> dict[str, dict[str, Any]]:
    result = lab_latency(*arguments, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    return {way["way"]: way for way in json.loads(result.stdout)["ways"]}


def watch(task: str, phase: str, done: int, total: int) -> None:
    assert task
    assert phase in {"opening", "reopening"}
    assert 0 <= done <= total


def refusal(samples: Samples) -> float:
    """Nanoseconds of the quickest refused try: a busy machine reaches even the median."""
    return min(
        time for time, port in zip(samples.nanoseconds, samples.port, strict=True) if not port
    )


class TestWhatTheKernelDoes:
    """The findings of "connect() - why are you so slow?" (2024), on a range of 8,000 ports."""

    def test_odd_ports_cost_a_plain_connect_several_times_what_even_ones_do(self) -> None:
        found = summarise(run(Settings("kernel", ports=PortRange(9024, 17023)), watch))
        assert found.even.connections == found.odd.connections == 4000
        # By the median: a busy machine reaches the mean.
        assert found.odd.half > 3 * found.even.half
        assert found.slope > 0

    def test_with_an_odd_low_end_it_is_the_even_ports(self) -> None:
        found = summarise(run(Settings("kernel", ports=PortRange(9025, 17024)), watch))
        assert found.even.half > 3 * found.odd.half

    @needs_steps_of_one
    def test_the_option_removes_the_difference(self) -> None:
        found = summarise(run(Settings("full-range", ports=PortRange(9024, 17023)), watch))
        assert found.opened == 8000
        assert found.odd.half == pytest.approx(found.even.half, rel=0.3)

    def test_connectx_has_no_errors_and_no_difference(self) -> None:
        found = summarise(run(Settings("auto", ports=PortRange(9024, 17023)), watch))
        assert (found.opened, found.errors) == (8000, 0)
        if features.probe(features.IP_LOCAL_PORT_RANGE) is Probe.YES:
            assert found.odd.half == pytest.approx(found.even.half, rel=0.3)

    @needs_windows
    def test_larger_windows_mean_more_errors_and_more_time(self) -> None:
        small, large = (
            run(Settings(f"one-window:{size}", ports=PortRange(9024, 17023)), watch).fill
            for size in (70, 1400)
        )
        assert 0 < sum(map(bool, small.errno)) < sum(map(bool, large.errno)) / 2
        # A refusal costs a look at each port of the window.
        assert refusal(large) > 3 * refusal(small)

    def test_on_two_addresses_each_has_its_own_fast_half(self) -> None:
        settings = Settings("kernel", ports=PortRange(9024, 17023), sources=2, connections=8000)
        found = summarise(run(settings, watch))
        assert found.even.connections == 8000


class TestFills:
    @pytest.mark.parametrize("family", ["4", "6"])
    @pytest.mark.parametrize("protocol", ["tcp", "mptcp", "udp", "udplite"])
    def test_of_every_protocol_and_family(self, protocol: str, family: str) -> None:
        result = lab_latency(
            *("--protocol", protocol, "--family", family, "--way", "auto"),
            *("--ports", "40000-40099", "--sources", "2", "--destinations", "3", "--json"),
        )
        if " here: " in result.stderr:
            pytest.skip(f"kernel: {result.stderr}")
        (way,) = json.loads(result.stdout)["ways"]
        fill = way["fill"]
        assert way["summary"]["opened"] == 600
        # Each port once for every source and destination.
        assert sorted(fill["port"]) == sorted(list(range(40000, 40100)) * 6)
        assert len(fill["nanoseconds"]) == len(fill["errno"]) == len(fill["retries"]) == 600
        assert min(fill["nanoseconds"]) > 0
        assert set(fill["errno"]) == {0}

    def test_go_on_past_the_last_port_if_asked_to(self) -> None:
        found = ways("--way", "kernel", "--ports", "40000-40009", "--connections", "13")["kernel"]
        assert found["fill"]["port"][10:] == [0, 0, 0]
        assert found["fill"]["errno"][10:] == [99, 99, 99]
        assert (found["summary"]["opened"], found["summary"]["errors"]) == (10, 3)

    def test_take_turns_over_processes_where_descriptors_are_few(self) -> None:
        prefix = ("sh", "-c", 'ulimit -n 100 && exec "$@"', "sh")
        result = lab_latency("--ports", "40000-40299", "--json", prefix=prefix)
        for way in json.loads(result.stdout)["ways"]:
            assert sorted(way["fill"]["port"]) == list(range(40000, 40300))

    def test_spread_over_as_many_listeners_as_short_accept_queues_take(
        self, network: Network, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        del network
        monkeypatch.setattr(resources, "accept_queue", lambda: 100)
        found = summarise(run(Settings("kernel", ports=PortRange(40000, 40399)), watch))
        assert found.opened == 400

    def test_end_at_the_time_limit(self) -> None:
        settings = Settings("kernel", ports=PortRange(40000, 40399), time_limit=-1.0)
        found = run(settings, watch)
        assert not found.finished
        assert len(found.fill.port) == 1

    def test_keep_what_the_kernel_refuses_apart_from_a_broken_experiment(self) -> None:
        result = lab_latency("--way", "one-port", "--protocol", "udp", "--ports", "40000-40099")
        assert result.returncode == 1
        assert "does not serve udp" in result.stderr


class TestChurn:
    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_opens_a_connection_for_each_that_it_closes(self, protocol: str) -> None:
        found = ways(
            *("--way", "auto", "--protocol", protocol, "--ports", "40000-40199"),
            *("--churn", "90", "--operations", "300"),
        )["auto"]
        assert found["summary"]["opened"] == 180
        assert len(found["churn"]["port"]) == 300
        assert set(found["churn"]["errno"]) == {0}
        assert found["summary"]["churn"]["connections"] == 300

    def test_closes_any_of_the_connections(self) -> None:
        settings = Settings("kernel", ports=PortRange(9024, 11023), occupancy=1.0, operations=1000)
        churn = run(settings, watch).churn
        even = sum(port % 2 == 0 for port in churn.port)
        assert 350 < even < 650

    def test_of_a_full_range_finds_the_one_port_that_is_free(self) -> None:
        found = ways(
            *("--way", "auto,kernel", "--ports", "40000-40009"),
            *("--churn", "100", "--operations", "50"),
        )
        for way in found.values():
            assert set(way["churn"]["errno"]) == {0}


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
        result = lab_latency("--windows", "--ports", "40000-51999")
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
            assert process.wait() == 130
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)


class TestExplanations:
    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    @pytest.mark.parametrize(
        "way",
        ["auto", "kernel", "full-range", "shifting-window", "one-port", "explicit-bind",
         "one-window:500"],
    )  # fmt: skip
    def test_name_the_kernel(self, way: str, protocol: str) -> None:
        check_way(way)
        machine = describe()
        assert machine.kernel in explain(Settings(way, protocol), machine)

    def test_follow_what_the_kernel_can_do(self) -> None:
        machine = describe()
        old = machine._replace(features={**machine.features, "search in steps of one": "no"})
        new = machine._replace(features={**machine.features, "search in steps of one": "yes"})
        settings = Settings("full-range")
        assert "steps of two all the same" in explain(settings, old)
        assert "port by port" in explain(settings, new)
