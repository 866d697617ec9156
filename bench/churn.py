"""Close one connection, open another: in a range that is nearly full, and in one that is not."""

from __future__ import annotations

import contextlib
import functools
import gc
import random
import socket
import statistics
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.harness import (
    ABORT,
    DESTINATION,
    KINDS,
    SOURCES,
    Findings,
    Table,
    in_networks,
    interruptions,
    listen_at_destination,
    marked,
    mean,
)
from bench.ways import Fill, with_connectx
from connectx.addresses import PortRange
from connectx.linux import netns
from connectx.sandbox.workers import descriptors_free

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.harness import Settings
    from bench.ways import Opener

_OCCUPANCIES: Final = (0.10, 0.99)
_PORTS: Final = 16384
_TURNS: Final = 32
_OPERATIONS: Final = 64


class Lane(NamedTuple):
    """A range at one occupancy, in a network of its own."""

    network: int
    open_one: Opener
    sockets: list[socket.socket]


def measure(settings: Settings) -> Findings:
    """Measure TCP and UDP."""
    ports = _range(settings.ports)
    findings = Findings()
    rows = []
    for protocol, kind in KINDS.items():
        for source, address in SOURCES.items():
            settings.progress(f"churn: {protocol}, {source}")
            fill = Fill(kind, address, [DESTINATION] * ports.size, ports)
            rounds = in_networks(
                functools.partial(_all_rounds, fill, settings.rounds), len(_OCCUPANCIES), ports
            )
            medians = [
                statistics.median(times[occupancy] for times in rounds) / 1000
                for occupancy in _OCCUPANCIES
            ]
            rows.append((f"{protocol}, {source}", *(round(time, 1) for time in medians)))
            low, high = _OCCUPANCIES
            findings.add(
                f"churn, {protocol}, {source}",
                statistics.median(times[high] / times[low] for times in rounds),
            )
    findings.tables.append(
        Table(
            f"Churn: close a connection at random, open one; {ports.size:,} ports",
            ("what", *(f"mean µs at {occupancy:.0%}" for occupancy in _OCCUPANCIES)),
            rows,
        )
    )
    return findings


def _range(ports: PortRange) -> PortRange:
    """Return as many ports as one process can hold sockets for, at both occupancies together."""
    size = min(_PORTS, ports.size, int(descriptors_free() / sum(_OCCUPANCIES)))
    return PortRange(ports.low, ports.low + size - 1)


def _all_rounds(
    fill: Fill, rounds: int, networks: Sequence[int]
) -> Sequence[Mapping[float, float]]:
    """Return the mean nanoseconds of opening, by occupancy, of every round.

    The two occupancies take turns, since the machine's speed changes from one second to the
    next.
    """
    with contextlib.ExitStack() as stack:
        lanes = {}
        for occupancy, network in zip(_OCCUPANCIES, networks, strict=True):
            netns.enter(network)
            if fill.kind is socket.SOCK_STREAM:
                # Nobody accepts. What was reset stays in the queue, which has room.
                stack.enter_context(listen_at_destination())
            open_one = with_connectx(fill)
            sockets = [open_one(DESTINATION) for _ in range(round(fill.ports.size * occupancy))]
            lanes[occupancy] = Lane(network, open_one, sockets)
        gc.collect()
        gc.disable()
        results = []
        for _ in range(rounds):
            times: dict[float, list[int]] = {occupancy: [] for occupancy in lanes}
            for _ in range(_TURNS):
                for occupancy, lane in lanes.items():
                    netns.enter(lane.network)
                    times[occupancy] += _replace(lane, fill.kind)
            results.append({key: mean(values) for key, values in times.items()})
    return results


def _replace(lane: Lane, kind: socket.SocketKind) -> list[int]:
    """Close some connections, open one after each, and return the nanoseconds of opening."""
    clock = time.perf_counter_ns
    open_one, sockets = lane.open_one, lane.sockets
    times = []
    for index in random.choices(range(len(sockets)), k=_OPERATIONS):  # noqa: S311 - a load
        if kind is socket.SOCK_STREAM:
            sockets[index].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        sockets[index].close()
        before = interruptions()
        start = clock()
        sockets[index] = open_one(DESTINATION)
        spent = clock() - start
        times.append(marked(spent, before))
    return times
