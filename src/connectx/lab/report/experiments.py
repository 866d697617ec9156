"""The experiments that the report is made of, and how large each is.

To add one: a field of `Findings`, a part of `_Report.run`, its figure in `figures.py`
(`all_figures`), and its place in `page.html.jinja`. Tests: tests/lab/report/.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from connectx.addresses import PROTOCOLS, PortRange
from connectx.errors import NotSupported
from connectx.lab import latency, simulate, techniques
from connectx.lab.latency import WINDOWS, Latency, Settings
from connectx.lab.opening import ONE_WINDOW
from connectx.lab.transports import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from connectx.lab.machine import Machine
    from connectx.lab.progress import Watch
    from connectx.lab.simulate import Simulation
    from connectx.lab.techniques import Techniques

Key = TypeVar("Key")

#: The range of "connect() - why are you so slow?" (2024): 56,512 ports.
ARTICLE_PORTS: Final = PortRange(9024, 65535)

#: In the comparison of one address and two, connections for each port of the range: the article
#: had 70,000 connections on 56,512 ports.
_ADDRESSES_LOAD: Final = 70_000 / 56_512

#: Ways to open TCP connections that are compared with each other, the slow one first.
STRATEGIES: Final = (
    "kernel",
    "shifting-window",
    "full-range",
    "explicit-bind",
    "one-port",
    "auto",
)

#: Churn: how full the range is, how many ports it has, how often, and in which ways.
OCCUPANCIES: Final = (0.8, 0.95, 0.99, 0.999)
_CHURN_PORTS: Final = 16_384
_CHURN_OPERATIONS: Final = 2_000
CHURNING: Final = ("kernel", "shifting-window", "full-range", "auto")

#: How many fills there are, and the model and the tables.
_PARTS: Final = len(STRATEGIES) + len(WINDOWS) + 1 + 2 + len(CHURNING) * len(OCCUPANCIES) + 1 + 2

#: Seconds for a fill; with plain connect(), the article's range takes some 100 on two cores.
TIME_LIMIT: Final = 300.0

#: Ports that the model goes through in a few seconds.
_MODEL_PORTS: Final = 4_096


class Findings(NamedTuple):
    """What came of all experiments.

    Attributes:
        machine: What they ran on.
        ports: The range of source ports.
        seconds: How long they took.
        strategies: TCP fills of the whole range, by way.
        datagrams: UDP fills of the whole range, by way.
        addresses: Fills by how many source addresses share the load; one address has as many
            connections as its range has ports.
        windows: Fills with one window for each connection, by the window's size.
        churn: Churn by way and occupancy.
        predicted: The model's search.
        measured: The kernel's search on the same range.
        techniques: The tables.
        missing: What this kernel cannot do, by way, in words.
    """

    machine: Machine
    ports: PortRange
    seconds: float
    strategies: dict[str, Latency]
    datagrams: dict[str, Latency]
    addresses: dict[int, Latency]
    windows: dict[int, Latency]
    churn: dict[tuple[str, float], Latency]
    predicted: Simulation
    measured: Latency
    techniques: Techniques
    missing: dict[str, str]

    @property
    def unfinished(self) -> list[str]:
        """The ways of the fills that the time limit ended."""
        return [fill.settings.way for fill in self.fills if not fill.finished]

    @property
    def changes(self) -> list[str]:
        """What was changed in private networks, which are gone by now, each change once."""
        found = dict.fromkeys(change for fill in self.fills for change in fill.changes)
        return list(found | dict.fromkeys(self.techniques.changes))

    @property
    def fills(self) -> Iterable[Latency]:
        """All fills, in the order in which they were run."""
        yield from self.strategies.values()
        yield from self.windows.values()
        yield self.addresses[2]
        yield from self.datagrams.values()
        yield from self.churn.values()
        yield self.measured


def largest_fill(ports: PortRange) -> int:
    """Return how many connections there are at a time, at most."""
    return round(ports.size * _ADDRESSES_LOAD)


def run(ports: PortRange, machine: Machine, watch: Watch) -> Findings:
    """Run everything, inside a first private network (resources.in_first_network()).

    Args:
        ports: The range for the fills; everything else is sized after it.
        machine: What it runs on, described before that network was entered.
        watch: Called with the progress.

    Raises:
        Exception: As connectx.lab.latency.run() does.
    """
    return _Report(ports, machine, watch).run()


class _Report:
    def __init__(self, ports: PortRange, machine: Machine, watch: Watch) -> None:
        self._ports = ports
        self._machine = machine
        self._watch = watch
        self._missing: dict[str, str] = {}
        self._parts = 0

    def run(self) -> Findings:
        begun = time.monotonic()
        ports = self._ports
        # What is needed most comes first: if it is not possible, nobody waits for the rest.
        strategies = self._fills({way: Settings(way, ports=ports) for way in STRATEGIES})
        windows = self._fills(
            {
                size: Settings(f"{ONE_WINDOW}:{size}", ports=ports)
                for size in dict.fromkeys(
                    max(1, size * ports.size // ARTICLE_PORTS.size) for size in WINDOWS
                )
            }
        )
        # One address has been filled already, with as many connections as its range has ports.
        addresses = {1: strategies["kernel"]} | self._fills(
            {2: Settings("kernel", ports=ports, sources=2, connections=largest_fill(ports))}
        )
        datagrams = self._fills(
            {way: Settings(way, "udp", ports=ports) for way in ("kernel", "auto")}
        )
        most = min(ports.size, _CHURN_PORTS, latency.churn_most())
        some = PortRange(ports.low, ports.low + most - 1)
        churn = self._fills(
            {
                (way, occupancy): Settings(
                    way, ports=some, occupancy=occupancy, operations=_CHURN_OPERATIONS
                )
                for way in CHURNING
                for occupancy in OCCUPANCIES
            }
        )
        few = PortRange(ports.low, ports.low + min(ports.size & ~1, _MODEL_PORTS) - 1)
        measured = self._fills({"kernel": Settings("kernel", ports=few)})["kernel"]
        self._watch("report", "parts", self._parts, _PARTS)
        predicted = simulate.run(simulate.Settings(ports=few), self._watch)
        self._watch("report", "parts", _PARTS - 1, _PARTS)
        tables = techniques.run(PROTOCOLS, FAMILIES, self._watch)
        return Findings(
            self._machine,
            ports,
            time.monotonic() - begun,
            strategies,
            datagrams,
            addresses,
            windows,
            churn,
            predicted,
            measured,
            tables,
            self._missing,
        )

    def _fills(self, settings: dict[Key, Settings]) -> dict[Key, Latency]:
        fills = {}
        for key, each in settings.items():
            # The bar of the whole report comes first, and stays.
            self._watch("report", "parts", self._parts, _PARTS)
            self._parts += 1
            try:
                fills[key] = latency.run(
                    each._replace(time_limit=TIME_LIMIT), self._watch_fill, self._machine
                )
            except NotSupported as error:
                self._missing[each.way] = error.strerror or str(error)
        return fills

    def _watch_fill(self, task: str, phase: str, done: int, total: int) -> None:
        """Pass on the progress of a fill, under a name of its own."""
        self._watch(f"fill {self._parts}: {task}", phase, done, total)
