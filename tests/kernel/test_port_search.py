"""The model's search against the kernel's: the ports it takes, their order, and its cost.

Where a search begins is chance, so single ports differ; what is compared does not.
"""

import contextlib
import errno
import random
import resource
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import pytest

from connectx.addresses import PortRange
from connectx.lab import simulate
from connectx.lab.simulate import OPTION, PLAIN, WINDOW, Settings
from connectx.linux import features
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.kernel.raw import FIRST, abort, set_window

HOST: Final = "127.0.0.1"
STEP_OF_ONE: Final = features.probe(features.STEP_OF_ONE) is features.Probe.YES

RESERVED: Final = frozenset({40003, *range(40010, 40015)})
BOUND: Final = frozenset({40000, 40021, 40022})

#: As many as most kernels and users allow descriptors, and enough to tell searches by time.
MANY: Final = PortRange(40000, 42047)
#: Connections whose median is taken, so that interruptions do not count.
BIN: Final = 32
#: A busy machine may spoil a measurement, so there are some.
ROUNDS: Final = 5


class Attempt(NamedTuple):
    """An attempt to connect: its window, its port (0 for none), and connect()'s CPU time."""

    destination: int
    window: PortRange
    port: int
    nanoseconds: int


class Machine:
    """Does with sockets what simulate.run() does with the model, in the test's network."""

    def __init__(self, network: Network, servers: Servers) -> None:
        self._network = network
        self._servers = servers

    def run(self, settings: Settings) -> list[Attempt]:
        self._network.port_range(*settings.ports)
        self._network.reserved_ports(",".join(map(str, sorted(settings.reserved))))
        windows = random.Random(0)  # noqa: S311 - any windows will do
        with contextlib.ExitStack() as stack:
            for number in range(settings.destinations):
                stack.enter_context(self._servers.listen(HOST, FIRST + number))
            for port in settings.bound:
                stack.enter_context(socket.socket()).bind((HOST, port))
            return [
                _attempt(settings, number, windows, stack) for number in range(settings.attempts)
            ]


def _attempt(
    settings: Settings, number: int, windows: random.Random, stack: contextlib.ExitStack
) -> Attempt:
    sock = socket.socket()
    stack.callback(abort, sock)
    window = settings.ports
    if settings.search.kind == WINDOW:
        low = windows.randint(window.low, window.high - settings.search.size + 1)
        window = PortRange(low, low + settings.search.size - 1)
    if settings.search.kind != PLAIN:
        set_window(sock, *window)
    destination = number % settings.destinations
    before = time.thread_time_ns()
    code = sock.connect_ex((HOST, FIRST + destination))
    spent = time.thread_time_ns() - before
    assert code in (0, errno.EADDRNOTAVAIL)
    port = 0 if code else sock.getsockname()[1]
    return Attempt(destination + 1, window, port, spent)


@pytest.fixture
def machine(network: Network, servers: Servers) -> Iterator[Machine]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield Machine(network, servers)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def settings_for(search: str, ports: PortRange, **others: Any) -> Settings:
    return Settings(
        search=simulate.parse_search(search), ports=ports, step_of_one=STEP_OF_ONE, **others
    )


def to_each(attempts: Sequence[Any], destinations: int) -> list[list[Any]]:
    """The attempts, apart by destination."""
    return [
        [attempt for attempt in attempts if attempt.destination == number + 1]
        for number in range(destinations)
    ]


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"reserved": RESERVED},
        {"bound": BOUND},
        {"reserved": RESERVED, "bound": BOUND},
        {"destinations": 3},
        {"destinations": 2, "reserved": RESERVED, "bound": BOUND, "connections": 120},
        {"connections": 70},
    ],
    ids=lambda others: "+".join(others) or "all free",
)
@pytest.mark.parametrize("low", [40000, 39999])
@pytest.mark.parametrize("search", [PLAIN, OPTION, "window:64"])
def test_the_same_ports_are_taken_and_parities_come_in_the_same_order(
    machine: Machine, search: str, low: int, others: dict[str, Any]
) -> None:
    settings = settings_for(search, PortRange(low, low + 63), **others)
    model, kernel = (
        to_each(attempts, settings.destinations)
        for attempts in (simulate.run(settings).connections, machine.run(settings))
    )
    for modelled, real in zip(model, kernel, strict=True):
        assert sorted(each.port for each in modelled) == sorted(each.port for each in real)
        assert [bool(each.port) for each in modelled] == [bool(each.port) for each in real]
        if search == PLAIN or not STEP_OF_ONE:
            # All of the low end's parity, then all of the other, and then nothing.
            assert [each.port and 1 + (each.port - low) % 2 for each in modelled] == [
                each.port and 1 + (each.port - low) % 2 for each in real
            ]
        else:
            for attempts in (modelled, real):
                assert {each.port % 2 for each in attempts[:24]} == {0, 1}


@pytest.mark.parametrize("search", [PLAIN, OPTION])
def test_of_three_ports_both_leave_the_last_one_in_steps_of_two(
    machine: Machine, search: str
) -> None:
    settings = settings_for(search, PortRange(40000, 40002))
    taken = {each.port for each in machine.run(settings)}
    assert taken == {each.port for each in simulate.run(settings).connections}
    assert (40002 in taken) == (search == OPTION and STEP_OF_ONE)


@pytest.mark.parametrize("others", [{}, {"bound": BOUND, "reserved": RESERVED, "destinations": 2}])
def test_a_window_fails_where_it_is_full_and_only_there(
    machine: Machine, others: dict[str, Any]
) -> None:
    # Of an even size: in steps of two a search leaves a port of an odd number out.
    settings = settings_for("window:6", PortRange(40000, 40063), connections=200, **others)
    for attempts in (simulate.run(settings).connections, machine.run(settings)):
        taken: set[tuple[int, int]] = set()
        for each in attempts:
            free = {
                port
                for port in range(each.window.low, each.window.high + 1)
                if port not in settings.reserved | settings.bound
                and (each.destination, port) not in taken
            }
            assert each.port in (free or {0})
            taken.add((each.destination, each.port))


class TestCost:
    """The time that connect() takes, against the probes that the model counts."""

    def test_follows_the_probes(self, machine: Machine) -> None:
        # One round is enough, but for what else the machine does.
        assert any(correlation(machine, PLAIN, seed) > 0.9 for seed in range(ROUNDS))

    @pytest.mark.parametrize("other", [OPTION, "window:256"])
    def test_does_not_follow_those_of_another_search(self, machine: Machine, other: str) -> None:
        if not STEP_OF_ONE and other == OPTION:
            pytest.skip("kernel: before 6.8 it searches with the option as without")
        assert correlation(machine, other, seed=0) < 0.7

    @pytest.mark.parametrize("search", [OPTION, "window:256"])
    def test_of_a_probe_is_the_same_in_another_search(self, machine: Machine, search: str) -> None:
        plain, other = settings_for(PLAIN, MANY), settings_for(search, MANY)

        def ratio() -> float:
            """How long the other search takes in the range's second half: measured to predicted."""
            early, late = times_of_halves(machine, plain)
            per_probe = (late - early) / probes_in_second_half(plain)
            base, measured = times_of_halves(machine, other)
            return measured / (base + per_probe * probes_in_second_half(other))

        assert any(0.67 < ratio() < 1.5 for _ in range(ROUNDS))


def correlation(machine: Machine, predicted: str, seed: int) -> float:
    """Of the time of plain connects, in order, with the probes of a search."""
    times = [each.nanoseconds for each in machine.run(settings_for(PLAIN, MANY))]
    simulation = simulate.run(settings_for(predicted, MANY, seed=seed))
    probes = [each.probes for each in simulation.connections]
    return statistics.correlation(medians(times), medians(probes))


def medians(values: Sequence[int]) -> list[float]:
    return [statistics.median(values[start : start + BIN]) for start in range(0, len(values), BIN)]


def times_of_halves(machine: Machine, settings: Settings) -> tuple[float, float]:
    # Those that fail have no handshake, and so another base.
    opened = [each.nanoseconds for each in machine.run(settings) if each.port]
    middle = len(opened) // 2
    return statistics.median(opened[:middle]), statistics.median(opened[middle:])


def probes_in_second_half(settings: Settings) -> float:
    opened = [each.probes for each in simulate.run(settings).connections if each.port]
    return statistics.median(opened[len(opened) // 2 :])
