"""Single calls, the ways by turns, so that a slow moment of the machine meets all of them."""

from __future__ import annotations

import functools
import gc
import random
import socket
import time
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.harness import (
    ABORT,
    DESTINATION,
    KINDS,
    LOOPBACK,
    SOURCES,
    Findings,
    Table,
    in_network,
    interruptions,
    marked,
    typical,
)
from bench.ways import (
    Fill,
    bare_udp_anywhere,
    standard_library,
    with_connectx,
    with_dialer,
    with_nodelay,
    with_own_socket,
)
from connectx.sandbox.servers import listen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.harness import Address, Settings
    from bench.ways import Opener, Way

#: Calls of each way in a round.
CALLS: Final = 500
NEW_DESTINATIONS: Final = 6_000
_MOST_ROUNDS_OF_NEW: Final = 5


@dataclass(frozen=True)
class Comparison:
    """Two ways to open connections.

    Attributes:
        figure: What their ratio is called.
        kind: socket.SOCK_STREAM or socket.SOCK_DGRAM.
        source: The source address; None for any.
        ways: Ours and then the other, by what the table calls them.
        closing: Whether the figure counts closing as well.
        new: Whether each connection goes to a destination of its own, NEW_DESTINATIONS in all.
    """

    figure: str
    kind: socket.SocketKind
    source: str | None
    ways: Mapping[str, Way]
    closing: bool = False
    new: bool = False

    def destinations(self, number: int) -> list[Address]:
        """Return where a way connects to; the first one is for warming up."""
        if not self.new:
            return [DESTINATION] * (CALLS + 1)
        # As a crawler or a resolver meets them: in no order, and none twice. The same ones in
        # every round, so that the rounds can be compared.
        low, high = int(IPv4Address("127.1.0.0")), int(IPv4Address("127.255.255.255"))
        hosts = random.Random(number).sample(range(low, high), NEW_DESTINATIONS + 1)  # noqa: S311
        return [(str(IPv4Address(host)), DESTINATION[1]) for host in hosts]


class Call(NamedTuple):
    """The times of opening and of closing one connection, as marked() returns them."""

    opening: int
    closing: int


_CREATE: Final = "create_connection()"
_STANDARD: Final = "socket.create_connection()"

EMPTY_RANGE: Final = tuple(
    Comparison(
        f"empty range, {source}",
        socket.SOCK_STREAM,
        address,
        {_CREATE: with_connectx, _STANDARD: standard_library},
    )
    for source, address in SOURCES.items()
)
OWN_SOCKET: Final = tuple(
    Comparison(
        f"own socket, {protocol}, {source}",
        kind,
        address,
        {"socket() and connectx()": with_own_socket, _CREATE: with_connectx},
        closing=True,
    )
    for protocol, kind in KINDS.items()
    for source, address in SOURCES.items()
)
NEW: Final = tuple(
    Comparison(
        f"new destinations, {protocol}, {source}",
        kind,
        address,
        {_CREATE: with_connectx, **other},
        new=True,
    )
    for protocol, kind in KINDS.items()
    for source, address in SOURCES.items()
    for other in (
        {_STANDARD: standard_library} if protocol == "tcp" else {"bare loop": bare_udp_anywhere},
    )
)
DIALER: Final = tuple(
    Comparison(
        f"dialer, {protocol}, {name}",
        kind,
        LOOPBACK,
        {"Dialer": with_dialer(*sources), _CREATE: with_connectx},
        closing=True,
    )
    for protocol, kind in KINDS.items()
    # All of 127.0.0.0/8 is local.
    for name, sources in (("one source", (LOOPBACK,)), ("two sources", (LOOPBACK, "127.0.0.2")))
)
SOCKET_OPTIONS: Final = (
    Comparison(
        "socket options",
        socket.SOCK_STREAM,
        LOOPBACK,
        {"TCP_NODELAY": with_nodelay, "none": with_dialer(LOOPBACK)},
    ),
)


def measure(title: str, comparisons: Sequence[Comparison], settings: Settings) -> Findings:
    """Measure some comparisons."""
    findings = Findings()
    rows = []
    for comparison in comparisons:
        settings.progress(comparison.figure)
        count = min(settings.rounds, _MOST_ROUNDS_OF_NEW) if comparison.new else settings.rounds
        rounds = [
            in_network(functools.partial(_round, comparison, settings), settings.ports)
            for _ in range(count)
        ]
        # Of each way the microseconds of a call: opening, closing.
        times = [
            [
                typical(column, len(column[0])) / len(column[0]) / 1000
                for column in zip(*(zip(*calls, strict=True) for calls in way), strict=True)
            ]
            for way in zip(*rounds, strict=True)
        ]
        ours, theirs = (sum(time) if comparison.closing else time[0] for time in times)
        findings.add(comparison.figure, ours / theirs)
        if comparison.new and comparison.kind is socket.SOCK_DGRAM:
            # TCP's handshake is the kernel's, and differs from machine to machine.
            findings.add(f"{comparison.figure}: µs", ours)
        rows += [
            (comparison.figure.partition(", ")[2], way, *(round(each, 1) for each in time))
            for way, time in zip(comparison.ways, times, strict=True)
        ]
    findings.tables.append(Table(title, ("", "call", "µs", "close µs"), rows))
    return findings


def _round(comparison: Comparison, settings: Settings) -> list[list[Call]]:
    """Return the calls of each way."""
    # As timeit does: when the collector runs depends on everything else in the process, and
    # its passes would be charged to the way that is measured.
    gc.collect()
    gc.disable()
    runners: list[tuple[Opener, list[Address], list[Call]]] = []
    with listen("0.0.0.0", DESTINATION[1]) as listener:
        for number, way in enumerate(comparison.ways.values()):
            destinations = comparison.destinations(number)
            fill = Fill(comparison.kind, comparison.source, destinations, settings.ports)
            runners.append((way(fill), destinations, []))
        for number in range(len(runners[0][1])):
            # There and back, so that none is always the one after the other.
            for opener, destinations, calls in runners[:: 1 if number % 2 else -1]:
                calls.append(timed(opener, destinations[number], listener))
    # What a program pays once is not what a call costs.
    return [calls[1:] for _, _, calls in runners]


def timed(open_one: Opener, destination: Address, listener: socket.socket) -> Call:
    """Open and close one connection."""
    clock, before = time.perf_counter_ns, interruptions()
    start = clock()
    sock = open_one(destination)
    opened = clock()
    stream = sock.type == socket.SOCK_STREAM
    if stream:
        # The range stays empty: no TIME_WAIT, and nothing waits to be accepted.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    closing = clock()
    sock.close()
    closed = clock()
    call = Call(marked(opened - start, before), marked(closed - closing, before))
    if stream:
        listener.accept()[0].close()
    return call
