"""The simulation of connect()'s search; tests/kernel compares it with the kernel."""

from __future__ import annotations

import errno
import itertools
import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from connectx.addresses import PortRange
from connectx.lab import simulate
from connectx.lab.model_sockets import Obstacle
from connectx.lab.simulate import PLAIN, WINDOW, Search, Settings

if TYPE_CHECKING:
    from connectx.lab.simulate import Simulation

EIGHT: Final = PortRange(40000, 40007)


def run(ports: PortRange = EIGHT, search: str = PLAIN, **others: Any) -> Simulation:
    settings = Settings(ports=ports, search=simulate.parse_search(search), paths=True, **others)
    return simulate.run(settings)


def ports_of(simulation: Simulation) -> list[int]:
    return [connection.port for connection in simulation.connections]


class TestSearch:
    @pytest.mark.parametrize("seed", range(5))
    def test_plain_takes_the_low_ends_parity_first(self, seed: int) -> None:
        for low in (40000, 40001):
            taken = ports_of(run(PortRange(low, low + 63), seed=seed))
            assert [port % 2 for port in taken] == [low % 2] * 32 + [1 - low % 2] * 32
            assert sorted(taken) == list(range(low, low + 64))

    @pytest.mark.parametrize("search", ["option", "window:64"])
    def test_with_the_option_parities_mix_unless_the_kernel_is_old(self, search: str) -> None:
        ports = PortRange(40000, 40063)
        assert len({port % 2 for port in ports_of(run(ports, search))[:32]}) == 2
        old = run(ports, search, step_of_one=False)
        assert {port % 2 for port in ports_of(old)[:32]} == {0}

    def test_a_path_goes_over_ports_in_use_to_the_one_that_is_taken(self) -> None:
        simulation = run(seed=3)
        taken: set[int] = set()
        for connection in simulation.connections:
            *passed, last = connection.path
            assert {probe.port for probe in passed} <= taken
            assert {probe.obstacle for probe in passed} <= {Obstacle.IN_USE}
            assert last == (connection.port, None)
            assert connection.probes == len(connection.path)
            # Even ports, one after the other around the end; then the odd ones.
            ports = [probe.port for probe in connection.path]
            turns = [(after - before) % 8 for before, after in itertools.pairwise(ports)]
            assert all(turn == 2 for number, turn in enumerate(turns) if number != 3)
            taken.add(connection.port)
        assert taken == set(range(40000, 40008))

    def test_reserved_ports_are_not_looked_at_and_bound_ones_are_in_vain(self) -> None:
        simulation = run(reserved=frozenset({40001, 40002}), bound=frozenset({40004}))
        assert sorted(ports_of(simulation)) == [40000, 40003, 40005, 40006, 40007]
        probes = [probe for each in simulation.connections for probe in each.path]
        assert not {probe.port for probe in probes} & {40001, 40002}
        assert {probe.port for probe in probes if probe.obstacle is Obstacle.BOUND} == {40004}

    def test_destinations_share_every_port(self) -> None:
        simulation = run(destinations=3)
        assert len(simulation.connections) == 24
        for destination in (1, 2, 3):
            taken = [
                each.port for each in simulation.connections if each.destination == destination
            ]
            assert sorted(taken) == list(range(40000, 40008))

    def test_beyond_the_last_port_every_port_is_looked_at_in_vain(self) -> None:
        simulation = run(connections=10)
        for connection in simulation.connections[8:]:
            assert (connection.port, connection.errno) == (0, errno.EADDRNOTAVAIL)
            assert {probe.obstacle for probe in connection.path} == {Obstacle.IN_USE}
            assert connection.probes == 8

    def test_a_window_is_tried_once(self) -> None:
        simulation = run(PortRange(40000, 40099), "window:10")
        failed = [each for each in simulation.connections if not each.port]
        assert failed
        assert {each.probes for each in failed} == {10}
        for each in simulation.connections:
            assert each.window.size == 10
            assert all(each.window.contains(probe.port) for probe in each.path)
        assert {each.window.low for each in simulation.connections} <= set(range(40000, 40091))

    def test_the_same_seed_does_the_same(self) -> None:
        for search in ("plain", "option", "window:4"):
            runs = [run(search=search, seed=seed) for seed in (5, 5, 6)]
            assert runs[0] == runs[1] != runs[2]
            assert runs[0].connections != runs[2].connections

    def test_paths_are_kept_where_they_are_wanted(self) -> None:
        settings = Settings(ports=EIGHT)
        without = simulate.run(settings)
        assert {connection.path for connection in without.connections} == {()}
        assert [each._replace(path=()) for each in run().connections] == without.connections


class TestTotals:
    def test_by_occupancy(self) -> None:
        simulation = run(PortRange(40000, 40999), connections=1010)
        groups = {group.name: group for group in simulation.by_occupancy()}
        assert [group.connections for group in groups.values()] == [500, 400, 90, 10, 10]
        assert [group.failed for group in groups.values()] == [0, 0, 0, 0, 10]
        assert groups["full"].mean == groups["full"].most == 1000
        assert groups["0% to 50%"].probes < 500 * 10
        assert groups["50% to 90%"].probes > 400 * 500

    def test_by_parity(self) -> None:
        simulation = run(PortRange(40000, 40999), connections=1010)
        even, odd = simulation.by_parity()
        assert even.connections == odd.connections == 500
        assert even.most < 500 < odd.most
        assert simulation.total().probes == even.probes + odd.probes + 10 * 1000

    def test_of_what_there_is_none_there_is_no_mean(self) -> None:
        assert [group.mean for group in run(connections=1).by_parity()] == [1, None]


class TestSettings:
    @pytest.mark.parametrize(
        "wrong, message",
        [
            ({"search": Search(WINDOW, 9)}, "larger than 40000-40007"),
            ({"reserved": frozenset({39999})}, "reserved port 39999 is not in the range"),
            ({"bound": frozenset({40008})}, "bound port 40008 is not in the range"),
            ({"bound": frozenset(range(40000, 40008))}, "every port"),
            ({"destinations": 0}, "must be at least 1"),
            ({"connections": -1}, "must be at least 1"),
        ],
    )
    def test_that_make_no_sense(self, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Settings(ports=EIGHT, **wrong)

    @pytest.mark.parametrize("text", ["plain", "option", "window:1", "window:65535"])
    def test_a_search_as_text(self, text: str) -> None:
        assert str(simulate.parse_search(text)) == text

    @pytest.mark.parametrize(
        "text", ["", "x", "plain:1", "option:", "window", "window:", "window:0", "window:-1"]
    )
    def test_no_search(self, text: str) -> None:
        with pytest.raises(ValueError, match="is neither plain"):
            simulate.parse_search(text)

    @pytest.mark.parametrize("step_of_one", [True, False])
    @pytest.mark.parametrize("search", ["plain", "option", "window:10", "window:50", "window:399"])
    def test_the_probes_expected_are_about_those_it_takes(
        self, search: str, *, step_of_one: bool
    ) -> None:
        for others in ({}, {"connections": 480}, {"destinations": 3, "connections": 800}):
            simulation = run(PortRange(40000, 40399), search, step_of_one=step_of_one, **others)
            assert simulation.total().probes <= simulation.settings.expected_probes


def test_a_long_simulation_reports_how_far_it_is() -> None:
    reports: list[tuple[str, str, int, int]] = []

    def watch(task: str, phase: str, done: int, total: int, /) -> None:
        reports.append((task, phase, done, total))

    simulate.run(Settings(ports=PortRange(40000, 41999)), watch)
    assert {(task, phase, total) for task, phase, _, total in reports} == {
        ("plain", "connections", 2000)
    }
    done = [each[2] for each in reports]
    assert done == sorted(done)
    assert 2 <= len(done) <= 10


def test_json() -> None:
    simulation = run(
        search="window:3", seed=1, connections=20, bound=frozenset({40003}), destinations=2
    )
    found = json.loads(json.dumps(simulate.as_json(simulation)))
    assert found["settings"] == {
        "ports": [40000, 40007],
        "search": "window:3",
        "step_of_one": True,
        "connections": 20,
        "destinations": 2,
        "reserved": [],
        "bound": [40003],
        "seed": 1,
    }
    assert [each["number"] for each in found["connections"]] == list(range(1, 21))
    for each, connection in zip(found["connections"], simulation.connections, strict=True):
        assert each["port"] == (connection.port or None)
        assert each["errno"] == (None if connection.port else "EADDRNOTAVAIL")
        assert each["probes"] == len(each["path"])
        findings = [probe["finding"] for probe in each["path"]]
        assert set(findings) <= {"in use", "bound", "chosen"}
        assert [finding == "chosen" for finding in findings].count(True) == bool(connection.port)
        assert all(
            (probe["finding"] == "bound") == (probe["port"] == 40003) for probe in each["path"]
        )
    total = found["totals"]["all"]
    assert total["connections"] == 20
    assert total["probes"] == sum(each["probes"] for each in found["connections"])
    assert total["mean"] == total["probes"] / 20
    for groups in ("occupancy", "parity"):
        assert sum(group["failed"] for group in found["totals"][groups]) <= total["failed"]
