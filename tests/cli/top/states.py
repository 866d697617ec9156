"""Invented results of a watcher, the same in every run."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from connectx.addresses import Endpoint, PortRange
from connectx.cli.top.app import TopApp
from connectx.cli.top.model import Model
from connectx.cli.top.watcher import Counted, Looked, Outcome, Watcher
from connectx.linux.processes import Process
from connectx.observe.usage import Detail, Row, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from connectx.observe.history import Pair

PORTS = PortRange(20000, 20999)
FULL, FILLING, QUIET, DNS = "192.0.2.7", "192.0.2.8", "2001:db8::7", "192.0.2.53"

#: Protocol, source, destination, ports in use at first, and how many more in each round.
PAIRS: tuple[tuple[str, str, Endpoint, int, int], ...] = (
    ("tcp", "10.0.0.1", Endpoint(FULL, 443), 1000, 0),
    ("tcp", "10.0.0.12", Endpoint(FILLING, 8443), 700, 8),
    ("udp", "10.0.0.1", Endpoint(DNS, 53), 450, -4),
    ("tcp", "2001:db8::1:2", Endpoint(QUIET, 443), 70, 0),
    *(("tcp", f"10.0.1.{number}", Endpoint(FULL, 80), 40 - number, 0) for number in range(1, 31)),
)
ROUNDS = 20


def row(protocol: str, source: str, destination: Endpoint, in_use: int) -> Row:
    return Row(protocol, source, destination, in_use, 1000, {"ESTAB": in_use}, {})


#: Addresses as long as they get.
LONG = row(
    "tcp",
    "2001:db8:1234:5678:9abc:def0:1234:5678",
    Endpoint("2001:db8:1234:5678:9abc:def0:1234:9999", 54321),
    999,
)


def snapshot(rows: Sequence[Row], *, netns: str = "net:[4026532000]") -> Snapshot:
    ordered = sorted(rows, key=lambda row: (-row.utilisation, -row.in_use, row[:3]))
    taken_at = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    return Snapshot(taken_at, netns, PORTS, 3, {"tcp": 0, "udp": 0}, tuple(ordered))


def counted(round_: int) -> Counted:
    rows = [
        row(protocol, source, destination, used + more * round_)
        for protocol, source, destination, used, more in PAIRS
    ]
    return Counted(100.0 + 2 * round_, 2.0, snapshot(rows))


def looked(pair: Pair) -> Looked:
    processes = {
        Process(1234, "gunicorn", "web.service"): 800,
        Process(77, "celery", "0123456789ab"): 50,
        None: 2,
    }
    ports = (*range(20000, 20800), *range(20850, 20999, 3))
    return Looked(pair, Detail({"ESTAB": 840, "TIME-WAIT": 12}, processes, 0, PORTS, ports))


class Still(Watcher):
    """A watcher without a thread: it delivers what it is given, and answers each look."""

    def __init__(self, *outcomes: Outcome) -> None:
        super().__init__(1.0, ["tcp", "udp"])
        self._outcomes = outcomes
        self.tell: Callable[[Outcome], object] = print
        self.pair: Pair | None = None
        self.stopped = False

    def start(self, deliver: Callable[[Outcome], object]) -> None:
        self.tell = deliver
        for outcome in self._outcomes:
            deliver(outcome)

    def look(self, pair: Pair | None) -> None:
        self.pair = pair
        if pair is not None:
            self.tell(looked(pair))

    def stop(self) -> None:
        self.stopped = True


def busy() -> list[Outcome]:
    return [counted(round_) for round_ in range(ROUNDS)]


def top(*outcomes: Outcome, netns: str | None = None) -> tuple[TopApp, Model, Still]:
    model, watcher = Model(["tcp", "udp"], netns), Still(*outcomes)
    return TopApp(model, watcher), model, watcher
