"""What connectx remembers: bytes for a destination in use, and for one no longer in use."""

from __future__ import annotations

import functools
import gc
import ipaddress
import itertools
import os
import socket
import time
import tracemalloc
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.harness import ABORT, DESTINATION, KINDS, Findings, Table, in_network
from bench.ways import Fill, with_connectx
from connectx.addresses import PortRange
from connectx.sandbox.servers import listen
from connectx.sandbox.workers import descriptors_free

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.harness import Settings

_PORTS: Final = 16384
#: More than any cache of a sensible size holds.
_DESTINATIONS: Final = 2000
#: Seconds.
_IDLE: Final = 3.3


class Usage(NamedTuple):
    """Bytes that Python had allocated more than before.

    Attributes:
        bare: With a socket for each port, without connectx.
        one: With one connection of connectx to a destination.
        full: With a connection on every port to it.
        closed: After all of these were closed.
        destination: With a connection on every port again, but without the socket objects, as
            if other processes kept the connections open.
        first: After many other destinations were each connected to, closed, and then left
            alone for some time.
        second: After as many again.
    """

    bare: int
    one: int
    full: int
    closed: int
    destination: int
    first: int
    second: int


def measure(settings: Settings) -> Findings:
    """Measure TCP and UDP with tracemalloc."""
    size = min(_PORTS, settings.ports.size, descriptors_free())
    ports = PortRange(settings.ports.low, settings.ports.low + size - 1)
    findings = Findings()
    rows = []
    for protocol, kind in KINDS.items():
        settings.progress(f"memory: {protocol}")
        usage = in_network(functools.partial(_usage, kind, ports), ports)
        one = usage.one - usage.bare // size
        findings.add(f"memory, {protocol}: one connection", one / size, f"{one:,} bytes")
        findings.add(
            f"memory, {protocol}: every port",
            usage.destination / size,
            f"{usage.destination:,} bytes",
        )
        growth = usage.second - usage.first
        findings.add(
            f"memory, {protocol}: idle",
            max(0, growth) / _DESTINATIONS,
            f"{growth:,} bytes for {_DESTINATIONS:,}",
        )
        objects = (usage.full - usage.bare - usage.destination) / size
        rows += [
            (f"{protocol}: {size:,} bare sockets", usage.bare),
            (f"{protocol}: connectx, as many connections to one destination", usage.full),
            (f"{protocol}: the same without the socket objects", usage.destination),
            (f"{protocol}: so a connection's socket object is larger by", round(objects, 1)),
            (f"{protocol}: all closed", usage.closed),
            (f"{protocol}: {_DESTINATIONS:,} other destinations, idle", usage.first),
            (f"{protocol}: {2 * _DESTINATIONS:,} other destinations, idle", usage.second),
        ]
    findings.tables.append(Table("Memory that is added", ("what is open", "bytes"), rows))
    return findings


def _usage(kind: socket.SocketKind, ports: PortRange) -> Usage:
    listener = listen("0.0.0.0", DESTINATION[1]) if kind is socket.SOCK_STREAM else None
    open_one = with_connectx(Fill(kind, None, [], ports))
    hosts = _addresses("127.1.0.0")
    many = [[(next(hosts), DESTINATION[1]) for _ in range(_DESTINATIONS)] for _ in range(2)]
    elsewhere = (next(hosts), DESTINATION[1])
    sockets: list[socket.socket | None] = [None] * ports.size

    def fill() -> None:
        for index in range(ports.size):
            sockets[index] = open_one(DESTINATION)

    # What the first connection in a process or namespace leaves belongs to no destination:
    # modules, the range in force.
    _close(open_one(elsewhere))
    tracemalloc.start()
    start = _allocated()
    for index in range(ports.size):
        sockets[index] = socket.socket(socket.AF_INET, kind)
    bare = _allocated() - start
    _empty(sockets, _close)

    start = _allocated()
    sockets[0] = open_one(DESTINATION)
    one = _allocated() - start
    _empty(sockets, _close)
    fill()
    full = _allocated() - start
    _empty(sockets, _close)
    closed = _allocated() - start
    fill()
    _empty(sockets, _detach)
    destination = _allocated() - start

    start = _allocated()
    counts = []
    for destinations in many:
        for each in destinations:
            _close(open_one(each))
        # A destination is idle when nobody has connected to it for some time. What was known
        # about it may stay until the program connects somewhere else.
        for _ in range(3):
            time.sleep(_IDLE / 3)
            _close(open_one(elsewhere))
        counts.append(_allocated() - start)
    if listener is not None:
        listener.close()
    return Usage(bare, one, full, closed, destination, *counts)


def _allocated() -> int:
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    return size


def _empty(sockets: list[socket.socket | None], dispose: Callable[[socket.socket], None]) -> None:
    for index, sock in enumerate(sockets):
        if sock is not None:
            dispose(sock)
            sockets[index] = None


def _close(sock: socket.socket) -> None:
    _abort(sock)
    sock.close()


def _detach(sock: socket.socket) -> None:
    """Close the descriptor without the socket object, which would report it."""
    _abort(sock)
    os.close(sock.detach())


def _abort(sock: socket.socket) -> None:
    if sock.type is socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)


def _addresses(first: str) -> Iterator[str]:
    return map(str, map(ipaddress.IPv4Address, itertools.count(int(ipaddress.IPv4Address(first)))))
