"""Which ports connect() looks at until it finds a free one, by a model of the kernel.

The articles draw this for eight ports. This simulates any range, and what else matters: windows,
reserved ports, ports that others have bound, several destinations. Nothing is opened:
connectx.lab.kernel_model does what the kernel would do, and does the same again for the same
seed. tests/kernel/test_port_search.py compares it with the kernel.
"""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from connectx.addresses import Endpoint, PortRange
from connectx.lab.kernel_model import KernelModel
from connectx.lab.occupancy import STAGES, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from connectx.lab.model_sockets import Obstacle
    from connectx.lab.progress import Watch

PLAIN: Final = "plain"
OPTION: Final = "option"
WINDOW: Final = "window"

#: The stages of occupancy by which connections are counted, and what comes after the last one.
_OCCUPANCY: Final = {
    **{str(stage): stage for stage in STAGES},
    "full": Stage(1.0, float("inf")),
}

#: About a minute of simulation. The kernel's default range, filled by plain connect(), takes
#: 200 million probes.
MOST_PROBES: Final = 300_000_000
#: About half a gigabyte of memory.
MOST_CONNECTIONS: Final = 500_000

_HOST: Final = "127.0.0.1"
_FIRST_DESTINATION: Final = 9000

#: Probes between two reports: a tenth of a second, or less.
_PROBES_PER_REPORT: Final = 300_000

#: What a search costs as long as its first scan finds a free port, with much to spare.
_PROBES_IN_PASSING: Final = 20


class Search(NamedTuple):
    """How connect() is made to search.

    Attributes:
        kind: PLAIN for connect() by itself; OPTION with IP_LOCAL_PORT_RANGE set to the whole
            range; WINDOW with it set to a part of the range, placed at random for each
            connection, and tried once.
        size: How many ports a window holds; 0 for the other kinds.
    """

    kind: str
    size: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.size}" if self.kind == WINDOW else self.kind


def parse_search(text: str) -> Search:
    """Return the search named plain, option or window:SIZE.

    Raises:
        ValueError: The text names none.
    """
    kind, colon, size = text.partition(":")
    if kind in (PLAIN, OPTION) and not colon:
        return Search(kind)
    if kind == WINDOW and size.isascii() and size.isdigit() and int(size):
        return Search(kind, int(size))
    raise ValueError(f"{text!r} is neither plain, nor option, nor a window such as window:500")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is simulated.

    Attributes:
        ports: net.ipv4.ip_local_port_range.
        search: How connect() searches.
        step_of_one: Whether windows are searched port by port, as since Linux 6.8, and not in
            steps of two.
        connections: How many to attempt; 0 for as many as there are 4-tuples.
        destinations: How many there are; the connections take turns over them.
        reserved: net.ipv4.ip_local_reserved_ports.
        bound: Ports that other sockets are bound to, exclusively.
        seed: Repeats a simulation.
        paths: Whether to keep every probe of each connection, and not only their number.

    Raises:
        ValueError: The settings make no sense.
    """

    ports: PortRange
    search: Search = field(default=Search(PLAIN))
    step_of_one: bool = True
    connections: int = 0
    destinations: int = 1
    reserved: frozenset[int] = frozenset()
    bound: frozenset[int] = frozenset()
    seed: int = 0
    paths: bool = False

    def __post_init__(self) -> None:
        if self.search.size > self.ports.size:
            raise ValueError(f"a window of {self.search.size:,} ports is larger than {self.ports}")
        for name, ports in (("reserved", self.reserved), ("bound", self.bound)):
            outside = [port for port in sorted(ports) if not self.ports.contains(port)]
            if outside:
                # It would change nothing, which nobody expects who names it.
                raise ValueError(f"the {name} port {outside[0]} is not in the range {self.ports}")
        if self.connections < 0 or self.destinations < 1:
            raise ValueError("connections and destinations must be at least 1")
        if not self.tuples:
            raise ValueError(f"every port of {self.ports} is reserved or bound")

    @property
    def tuples(self) -> int:
        """How many connections there can be, if searches find every port."""
        return (self.ports.size - len(self.reserved | self.bound)) * self.destinations

    @property
    def attempts(self) -> int:
        """How many connections are attempted."""
        return self.connections or self.tuples

    @property
    def expected_probes(self) -> int:
        """About how many probes it takes: exact enough to refuse what would take too long."""
        each = self.search.size or self.ports.size - len(self.reserved)
        beyond = max(0, self.attempts - self.tuples)
        within = self.attempts - beyond
        if self.search.kind == WINDOW and each < self.ports.size:
            # Windows are full before the range is.
            searched = within * each // (4 if self.step_of_one else 2)
        elif self.search.kind == PLAIN or not self.step_of_one:
            # Once half of the ports are in use, each search looks at that half in vain.
            searched = max(0, within - self.tuples // 2) * each // 2
        else:
            searched = 0
        return beyond * each + searched + self.attempts * _PROBES_IN_PASSING


class Probe(NamedTuple):
    """A port that a search looked at.

    Attributes:
        port: The port.
        obstacle: Why the search passed over it; None if it chose the port.
    """

    port: int
    obstacle: Obstacle | None


class Connection(NamedTuple):
    """An attempt to connect.

    Attributes:
        number: Its number, counted from one.
        destination: The number of its destination, counted from one.
        in_use: How many 4-tuples were in use before it.
        window: The ports that it was to search.
        port: The port that it got; 0 for none.
        errno: Why it got none; 0 if it got one.
        probes: How many ports it looked at.
        path: Those ports in order, if the settings ask for them.
    """

    number: int
    destination: int
    in_use: int
    window: PortRange
    port: int
    errno: int
    probes: int
    path: tuple[Probe, ...]


class Group(NamedTuple):
    """What some connections cost.

    Attributes:
        name: What they have in common.
        connections: How many there are.
        failed: How many of them got no port.
        probes: How many ports all of them looked at.
        most: How many ports one of them looked at, at most.
    """

    name: str
    connections: int
    failed: int
    probes: int
    most: int

    @property
    def mean(self) -> float | None:
        """Probes of a connection on average; None where there is no connection."""
        return self.probes / self.connections if self.connections else None


@dataclass(frozen=True, slots=True)
class Simulation:
    """What came of a simulation.

    Attributes:
        settings: What was simulated.
        connections: The attempts, in order.
    """

    settings: Settings
    connections: list[Connection]

    def by_occupancy(self) -> list[Group]:
        """Return the connections by the share of all 4-tuples that was in use before them."""
        shares = [(each.in_use / self.settings.tuples, each) for each in self.connections]
        return [
            _group(name, (each for share, each in shares if stage.low <= share < stage.high))
            for name, stage in _OCCUPANCY.items()
        ]

    def by_parity(self) -> list[Group]:
        """Return those that got an even port, and those that got an odd one."""
        opened = [connection for connection in self.connections if connection.port]
        return [
            _group(name, (each for each in opened if each.port % 2 == parity))
            for parity, name in enumerate(("even ports", "odd ports"))
        ]

    def total(self) -> Group:
        """Return all of them."""
        return _group("all", self.connections)


def run(settings: Settings, watch: Watch | None = None) -> Simulation:
    """Simulate; the same settings give the same result.

    Args:
        settings: What to simulate.
        watch: Called with the progress.
    """
    kernel = KernelModel(
        settings.ports,
        settings.reserved,
        step_of_one=settings.step_of_one,
        seed=settings.seed,
        address=_HOST,
    )
    for port in sorted(settings.bound):
        kernel.bind(kernel.socket(), _HOST, port)
    # Random numbers of its own: otherwise each window would depend on where the search in the
    # one before began.
    windows = random.Random(f"windows {settings.seed}")  # noqa: S311 - to be repeatable
    connections: list[Connection] = []
    in_use = reported = probes = 0
    for number in range(settings.attempts):
        window = _window(settings, windows)
        connection = _connect(kernel, settings, number, window)._replace(in_use=in_use)
        connections.append(connection)
        in_use += bool(connection.port)
        probes += connection.probes
        if watch and probes - reported > _PROBES_PER_REPORT:
            reported = probes
            watch(f"{settings.search}", "connections", number + 1, settings.attempts)
    return Simulation(settings, connections)


def as_json(simulation: Simulation) -> dict[str, Any]:
    """Return a simulation in JSON's types: the schema lab-simulate."""
    settings = simulation.settings
    return {
        "settings": {
            "ports": list(settings.ports),
            "search": str(settings.search),
            "step_of_one": settings.step_of_one,
            "connections": settings.attempts,
            "destinations": settings.destinations,
            "reserved": sorted(settings.reserved),
            "bound": sorted(settings.bound),
            "seed": settings.seed,
        },
        "connections": [
            _connection_as_json(connection, paths=settings.paths)
            for connection in simulation.connections
        ],
        "totals": {
            "all": _group_as_json(simulation.total()),
            "occupancy": [_group_as_json(group) for group in simulation.by_occupancy()],
            "parity": [_group_as_json(group) for group in simulation.by_parity()],
        },
    }


def _window(settings: Settings, source: random.Random) -> PortRange:
    if settings.search.kind != WINDOW:
        return settings.ports
    size = settings.search.size
    low = source.randint(settings.ports.low, settings.ports.high - size + 1)
    return PortRange(low, low + size - 1)


def _connect(kernel: KernelModel, settings: Settings, number: int, window: PortRange) -> Connection:
    option = (0, 0) if settings.search.kind == PLAIN else tuple(window)
    destination = Endpoint(_HOST, _FIRST_DESTINATION + number % settings.destinations)
    sock = kernel.socket(local_port_range=(option[0], option[1]))
    code = 0
    try:
        kernel.connect(sock, destination)
    except OSError as error:
        code = error.errno or 0
    path: list[Probe] = []
    if settings.paths:
        for port in kernel.probes:
            # Ports that the search passed over are still as it found them.
            obstacle = kernel.obstacle(Endpoint(_HOST, port), destination)
            path.append(Probe(port, None if port == sock.source.port else obstacle))
    return Connection(
        number=number + 1,
        destination=number % settings.destinations + 1,
        in_use=0,
        window=window,
        port=sock.source.port,
        errno=code,
        probes=len(kernel.probes),
        path=tuple(path),
    )


def _group(name: str, members: Iterable[Connection]) -> Group:
    connections = list(members)
    probes = [connection.probes for connection in connections]
    failed = sum(not connection.port for connection in connections)
    return Group(name, len(connections), failed, sum(probes), max(probes, default=0))


def _group_as_json(group: Group) -> dict[str, Any]:
    return {**group._asdict(), "mean": None if group.mean is None else round(group.mean, 3)}


def _connection_as_json(connection: Connection, *, paths: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "number": connection.number,
        "destination": connection.destination,
        "window": list(connection.window),
        "port": connection.port or None,
        "errno": errno.errorcode.get(connection.errno),
        "probes": connection.probes,
    }
    if paths:
        found["path"] = [
            {"port": port, "finding": obstacle.value if obstacle else "chosen"}
            for port, obstacle in connection.path
        ]
    return found
