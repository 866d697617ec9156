"""``connectx lab latency``, on ranges small enough for a test."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from connectx.addresses import PortRange
from connectx.lab import resources
from connectx.lab.explanations import explain
from connectx.lab.latency import Settings, run
from connectx.lab.machine import describe
from connectx.lab.opening import check_way
from connectx.lab.summary import summarise
from connectx.linux import features
from connectx.linux.features import Probe
from tests.lab.commands import connectx

if TYPE_CHECKING:
    import subprocess

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


def parities(settings: Settings) -> list[set[int]]:
    """The parities of the ports of a fill's first half, and of its second."""
    ports = run(settings, watch).fill.port
    middle = len(ports) // 2
    return [{port % 2 for port in half} for half in (ports[:middle], ports[middle:])]


class TestWhatTheKernelDoes:
    """The findings of "connect() - why are you so slow?" (2024), without its times.

    They come of the order in which the kernel gives out ports: whoever is given the last ones has
    looked at all the others before. `make bench` measures that (bench/searching.py).
    """

    def test_odd_ports_come_after_all_even_ones(self) -> None:
        settings = Settings("kernel", ports=PortRange(9024, 10023))
        assert parities(settings) == [{0}, {1}]
        found = summarise(run(settings, watch))
        assert found.even.connections == found.odd.connections == 500

    def test_with_an_odd_low_end_it_is_the_even_ports(self) -> None:
        assert parities(Settings("kernel", ports=PortRange(9025, 10024))) == [{1}, {0}]

    @needs_steps_of_one
    def test_the_option_removes_the_difference(self) -> None:
        settings = Settings("full-range", ports=PortRange(9024, 10023))
        assert parities(settings) == [{0, 1}, {0, 1}]
        assert summarise(run(settings, watch)).opened == 1000

    def test_connectx_has_no_errors_and_no_difference(self) -> None:
        settings = Settings("auto", ports=PortRange(9024, 10023))
        found = summarise(run(settings, watch))
        assert (found.opened, found.errors) == (1000, 0)
        if features.probe(features.IP_LOCAL_PORT_RANGE) is Probe.YES:
            assert parities(settings) == [{0, 1}, {0, 1}]

    @needs_windows
    def test_larger_windows_mean_more_errors(self) -> None:
        small, large = (
            run(Settings(f"one-window:{size}", ports=PortRange(9024, 17023)), watch).fill
            for size in (70, 1400)
        )
        assert 0 < sum(map(bool, small.errno)) < sum(map(bool, large.errno)) / 2

    def test_on_two_addresses_each_has_its_own_fast_half(self) -> None:
        settings = Settings("kernel", ports=PortRange(9024, 10023), sources=2, connections=1000)
        found = summarise(run(settings, watch))
        assert found.even.connections == 1000


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
