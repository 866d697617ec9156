"""The model's search against the kernel's: the ports it takes, and their order.

Where a search begins is chance, so single ports differ; what is compared does not. That its cost
follows the model's probes is measured in bench/searching.py.
"""

import contextlib
import errno
import random
import socket
from collections.abc import Sequence
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


class Attempt(NamedTuple):
    """An attempt to connect: its window, and its port (0 for none)."""

    destination: int
    window: PortRange
    port: int


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
    code = sock.connect_ex((HOST, FIRST + destination))
    assert code in (0, errno.EADDRNOTAVAIL)
    port = 0 if code else sock.getsockname()[1]
    return Attempt(destination + 1, window, port)


@pytest.fixture
def machine(network: Network, servers: Servers) -> Machine:
    return Machine(network, servers)


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
