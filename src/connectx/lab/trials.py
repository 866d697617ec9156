"""One technique put to the test: filled up, interleaved with itself, or raced."""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.addresses import PortRange
from connectx.errors import PortsExhausted
from connectx.lab.calls import Attempt, complete
from connectx.lab.interleaving import Pair, orders
from connectx.lab.opening import REFUSALS
from connectx.lab.private_networks import leave_one_port
from connectx.lab.procedures import Connectx
from connectx.lab.technique_table import PORTS, Findings
from connectx.lab.transports import FIRST, SECOND, Transport
from connectx.sandbox.servers import Servers
from connectx.sandbox.workers import Crew

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectx.lab.calls import Opener
    from connectx.lab.private_networks import PrivateNetworks
    from connectx.lab.technique_table import Technique
    from connectx.sandbox.networks import Network
    from connectx.sandbox.workers import Report

#: The ports that two processes race for: enough to keep both busy for some milliseconds.
RACED: Final = PortRange(40000, 40255)
_RACERS: Final = 2

#: Descriptors that a process needs at a time: for all of a fill, or all that a racer can win.
DESCRIPTORS: Final = max(2 * PORTS.size, RACED.size) + 64


def missing(technique: Technique, transport: Transport) -> str:
    """Return what this kernel lacks for a technique; "" for nothing."""
    if technique.sysctl and not Path("/proc/sys", *technique.sysctl.split(".")).exists():
        return technique.sysctl
    return technique.opener.missing(transport)


def observe(technique: Technique, transport: Transport, networks: PrivateNetworks) -> Findings:
    """Try a technique, in private networks of its own."""
    with _network(technique, PORTS, transport, networks), contextlib.ExitStack() as closing:
        fills = [
            _fill(technique.opener, transport, destination, closing)
            for destination in (FIRST, SECOND)
        ]
    if isinstance(technique.opener, Connectx):
        overshadows = _race(technique, transport, networks)
    else:
        overshadows = _interleave(technique, transport, networks)
    first, second = fills
    return Findings(
        # One errno, unless the two destinations unexpectedly differ.
        errno=", ".join(dict.fromkeys(fill.errno for fill in fills if fill.errno)),
        shares=not first.sources.isdisjoint(second.sources),
        overshadows=overshadows or first.duplicates > 0 or second.duplicates > 0,
        opened=(first.opened, second.opened),
    )


@contextlib.contextmanager
def _network(
    technique: Technique, ports: PortRange, transport: Transport, networks: PrivateNetworks
) -> Iterator[Network]:
    with networks.fresh() as network, Servers() as servers:
        network.port_range(*ports)
        if technique.sysctl:
            network.sysctl(technique.sysctl, 1)
        transport.serve(servers)
        yield network


class _Fill(NamedTuple):
    opened: int
    errno: str
    sources: frozenset[object]
    duplicates: int


def _fill(
    opener: Opener, transport: Transport, destination: int, closing: contextlib.ExitStack
) -> _Fill:
    """Open as many connections as there are ports, and try to open one more."""
    sources = []
    number = 0
    for count in range(PORTS.size + 1):
        port = PORTS.low + count % PORTS.size
        try:
            sock = complete(opener.open(Attempt(transport, PORTS, port, destination)))
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            number = error.errno
            break
        closing.enter_context(sock)
        sources.append(sock.getsockname())
    # If the extra connection opens, it is on a 4-tuple that another socket is on.
    return _Fill(
        opened=min(len(sources), PORTS.size),
        errno=errno.errorcode[number] if number else "",
        sources=frozenset(sources),
        duplicates=len(sources) - len(set(sources)),
    )


def _interleave(technique: Technique, transport: Transport, networks: PrivateNetworks) -> bool:
    """Return whether two sockets end up on one 4-tuple in any order of their calls."""
    with _network(technique, PORTS, transport, networks) as network:
        port = PORTS.high + 1
        overshadowed = False

        def run(order: tuple[int, ...]) -> tuple[int, ...]:
            # A port that no other pair has had, so that they leave nothing in the way.
            nonlocal port, overshadowed
            attempt = Attempt(transport, leave_one_port(network, port), port, FIRST)
            port += 2
            with contextlib.ExitStack() as closing:
                opener = technique.opener
                pair = Pair(opener.open(attempt), opener.open(attempt), REFUSALS, closing)
                taken = pair.run(order)
                tuples = [(sock.getsockname(), sock.getpeername()) for sock in pair.opened]
                overshadowed = overshadowed or len(set(tuples)) < len(tuples)
            return taken

        for _ in orders(run):
            pass
    return overshadowed


def _race(technique: Technique, transport: Transport, networks: PrivateNetworks) -> bool:
    """Return whether two processes that want the same ports at once end up on one 4-tuple."""
    with (
        _network(technique, RACED, transport, networks),
        Crew() as crew,
        contextlib.ExitStack() as closing,
    ):
        start, gate = socket.socketpair()
        closing.enter_context(start)
        closing.enter_context(gate)
        racers = [crew.fork(_Racer(gate, [])) for _ in range(_RACERS)]
        jobs = [racer.start(_open_at_once, technique.opener, transport) for racer in racers]
        start.send(bytes(_RACERS))
        tuples = [found for job in jobs for found in job.result()]
    return len(set(tuples)) < len(tuples)


class _Racer(NamedTuple):
    """What a worker has: the socket on which it waits for the start, and what it holds."""

    gate: socket.socket
    sockets: list[socket.socket]


def _open_at_once(racer: _Racer, _: Report, opener: Opener, transport: Transport) -> list[object]:
    racer.gate.recv(1)
    for port in range(RACED.low, RACED.high + 1):
        try:
            sock = complete(opener.open(Attempt(transport, RACED, port, FIRST)))
        except PortsExhausted:
            break
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
        else:
            racer.sockets.append(sock)
    return [(sock.getsockname(), sock.getpeername()) for sock in racer.sockets]
