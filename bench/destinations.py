"""How a call's time and what is kept grow with the number of destinations."""

from __future__ import annotations

import functools
import gc
import itertools
import socket
import statistics
import tracemalloc
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.harness import DESTINATION, KINDS, Findings, Table, in_network, mean, quiet
from bench.turns import timed
from bench.ways import Fill, plain_connect, standard_library, with_connectx, with_dialer
from connectx.sandbox.servers import listen
from connectx.sandbox.workers import descriptors_free

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.harness import Address, Settings
    from bench.ways import Way

#: What is compared, by what figures and tables call it.
WAYS: Final[Mapping[str, Way]] = {"create_connection()": with_connectx, "Dialer": with_dialer()}

#: What grows with the number of destinations without connectx, by protocol: the kernel's part.
_PLAIN: Final[Mapping[str, tuple[str, Way]]] = {
    "tcp": ("socket.create_connection()", standard_library),
    "udp": ("socket.connect()", plain_connect),
}

#: Numbers of destinations.
_COUNTS: Final = (100, 1_000, 10_000, 100_000)

#: Calls in a round at least.
_CALLS: Final = 10_000
_MOST_ROUNDS: Final = 3

#: Destinations with an open connection each, at most, and how many descriptors are left.
_OPEN: Final = 10_000
_SPARE: Final = 100


class Round(NamedTuple):
    """Calls to so many destinations in turn, each connection closed before the next.

    Attributes:
        mean: Nanoseconds of opening and closing one.
        longest: Nanoseconds of the longest of these.
    """

    mean: float
    longest: int


class Kept(NamedTuple):
    """Bytes that Python has allocated more than before.

    Attributes:
        open: With a connection to each of some destinations, for each.
        closed: After many destinations had a connection each, in all.
    """

    open: float
    closed: int


def measure(settings: Settings) -> Findings:
    """Measure calls to few and to many destinations, and what is kept of these."""
    findings = Findings()
    rows = []
    for protocol, kind in KINDS.items():
        plain, way = _PLAIN[protocol]
        ways = {**WAYS, plain: way}
        rounds = [
            _rounds(f"destinations, {protocol}", kind, ways, settings)
            for _ in range(min(settings.rounds, _MOST_ROUNDS))
        ]
        for name in ways:
            figure = f"destinations, {protocol}, {name}"
            columns = list(zip(*(each[name] for each in rounds), strict=True))
            times = [statistics.median(each.mean for each in column) / 1000 for column in columns]
            # What belongs to a call comes back in every round; a slow moment does not.
            longest = [min(each.longest for each in column) / 1e6 for column in columns]
            if name in WAYS:
                findings.add(f"{figure}: growth", times[-1] / times[0])
                findings.add(f"{figure}: longest", max(longest))
            rows += [
                (protocol, name, f"{count:,}", round(time, 1), round(time / times[0], 2), worst)
                for count, time, worst in zip(
                    _COUNTS, times, (round(each, 2) for each in longest), strict=True
                )
            ]
    titles = ("", "call", "destinations", "µs with close", "100 being 1", "longest, ms")
    findings.tables.append(Table("Calls to destinations in turn", titles, rows))
    for name, way in WAYS.items():
        settings.progress(f"destinations, {name}: memory")
        kept = in_network(functools.partial(_kept, way, settings), settings.ports)
        findings.add(f"destinations, {name}: open", kept.open)
        findings.add(f"destinations, {name}: closed", kept.closed / 2**20)
    return findings


def _rounds(
    figure: str, kind: socket.SocketKind, ways: Mapping[str, Way], settings: Settings
) -> dict[str, list[Round]]:
    """Measure each way once with each number of destinations, the ways in turn."""
    found: dict[str, list[Round]] = {name: [] for name in ways}
    for count, (name, way) in itertools.product(_COUNTS, ways.items()):
        settings.progress(f"{figure}, {name}: {count:,}")
        measured = functools.partial(_round, kind, way, count, settings)
        found[name].append(in_network(measured, settings.ports))
    return found


def _addresses(count: int) -> list[Address]:
    first = int(IPv4Address("127.1.0.0"))
    return [(str(IPv4Address(first + number)), DESTINATION[1]) for number in range(count)]


def _round(kind: socket.SocketKind, way: Way, count: int, settings: Settings) -> Round:
    addresses = _addresses(count)
    open_one = way(Fill(kind, None, addresses, settings.ports))
    with listen("0.0.0.0", DESTINATION[1]) as listener:
        # All of few destinations are known then, and of many as many as there are kept.
        for address in addresses[: _COUNTS[0]]:
            timed(open_one, address, listener)
        gc.collect()
        gc.disable()
        turns = itertools.islice(itertools.cycle(addresses), max(count, _CALLS))
        calls = [timed(open_one, address, listener) for address in turns]
    times = [_sum(call) for call in calls]
    return Round(mean(times), max(quiet(times)))


def _sum(call: Sequence[int]) -> int:
    """Return the time of a call with its end, negative if either was interrupted."""
    total = sum(map(abs, call))
    return total if min(call) > 0 else -total


def _kept(way: Way, settings: Settings) -> Kept:
    """Measure with tracemalloc, over UDP, which leaves nothing on the other side."""
    addresses = _addresses(_COUNTS[-1] + _OPEN)
    few, many = addresses[:_OPEN], addresses[_OPEN:]
    few = few[: descriptors_free() - _SPARE]
    open_one = way(Fill(socket.SOCK_DGRAM, None, [], settings.ports))
    # What the first call leaves belongs to no destination.
    open_one(few[0]).close()
    tracemalloc.start()
    start = _allocated()
    bare = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in few]
    of_sockets = _allocated() - start
    for sock in bare:
        sock.close()
    bare.clear()
    start = _allocated()
    socks = [open_one(address) for address in few]
    opened = _allocated() - start - of_sockets
    for sock in socks:
        sock.close()
    socks.clear()
    for address in many:
        open_one(address).close()
    return Kept(opened / len(few), max(0, _allocated() - start))


def _allocated() -> int:
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    return size
