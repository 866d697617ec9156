"""How many connections one address can have, opened in the usual ways and with connectx.

Each way gets a fresh private network with an echo server on two destinations. It opens
connections from one source address: to the first destination until there are as many as ports or
the way gives out, then to the second. After that, every connection sends something of its own to
the server and must get it back.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import socket
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import connectx
from connectx.addresses import PROTOCOLS
from connectx.lab import resources
from connectx.lab.opening import REFUSALS
from connectx.sandbox import echo
from connectx.sandbox.holders import Held, Holders
from connectx.sandbox.networks import experiment_network
from connectx.sandbox.servers import Servers
from connectx.sandbox.workers import Crew, descriptors_free, sparingly

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from connectx.addresses import PortRange
    from connectx.lab.progress import Watch
    from connectx.sandbox.workers import Report

    Address: TypeAlias = tuple[str, int]
    Technique: TypeAlias = Callable[[int, Address], socket.socket]

SOURCE: Final = "127.0.0.1"
#: Port 7 is the echo service's (RFC 862), and below every range of ephemeral ports.
DESTINATIONS: Final[tuple[Address, ...]] = (("127.0.0.2", 7), ("127.0.0.3", 7))
MARKER_SOURCE: Final = "127.0.0.4"

#: Keys of connectx.addresses.PROTOCOLS.
DEMONSTRATED: Final = ("tcp", "udp")

FAILURES_IN_A_ROW: Final = 50
#: Seconds that a way may take for a destination.
PATIENCE: Final = 8.0

#: How a way ended.
FULL: Final = "all ports"
REFUSED: Final = "gave up, refused"
SLOW: Final = "gave up, too slow"

#: For the estimate alone: roughly the seconds that it takes to open a connection and to have it
#: echo, each; and to look at a port that is in use, as `connectx lab simulate` counts them.
_CALL: Final = 25e-6
_PROBE: Final = 90e-9

_FOUR_TUPLE: Final = struct.Struct("!4sH4sH")


class Opening(NamedTuple):
    """How far one way has come toward one destination.

    Attributes:
        opened: Connections that are open.
        seconds: The time until the last of them was open.
        spent: The time altogether, later failures included.
        failures: How many there were since the last success.
        errno: The error of the last failure; 0 for none.
        stopped: FULL, REFUSED or SLOW; "" while it may go on.
    """

    opened: int = 0
    seconds: float = 0.0
    spent: float = 0.0
    failures: int = 0
    errno: int = 0
    stopped: str = ""

    @property
    def rate(self) -> float:
        """Connections per second."""
        return self.opened / self.seconds if self.opened else 0.0


class Way(NamedTuple):
    """What came of one way to open connections.

    Attributes:
        protocol: The protocol.
        technique: The name of the way.
        openings: One for each of DESTINATIONS.
        duplicates: How many sockets are on a 4-tuple that another socket was on before them.
        echoed: Connections that got back what they sent.
    """

    protocol: str
    technique: str
    openings: tuple[Opening, ...]
    duplicates: int
    echoed: int

    @property
    def opened(self) -> int:
        """Connections open to all destinations together."""
        return sum(opening.opened for opening in self.openings)

    @property
    def flawless(self) -> bool:
        """Whether every port serves every destination, and every connection works."""
        return (
            all(opening.stopped == FULL for opening in self.openings)
            and not self.duplicates
            and self.echoed == self.opened
        )


class Demonstration(NamedTuple):
    """What came of all the ways, and where.

    Attributes:
        kernel: The release of the running kernel.
        cores: How many CPUs this process may use.
        ports: The range of source ports.
        seconds: How long it took.
        ways: The ways, in order.
    """

    kernel: str
    cores: int
    ports: PortRange
    seconds: float
    ways: tuple[Way, ...]


# The ways.


def connect(
    kind: int, destination: Address, *, bind: bool = False, reuseaddr: bool = False
) -> socket.socket:
    """Connect in a usual way.

    Args:
        kind: SOCK_STREAM or SOCK_DGRAM.
        destination: Where to connect to.
        bind: Whether to choose the source address, as socket.create_connection() does.
        reuseaddr: Whether to set SO_REUSEADDR, which people try against EADDRINUSE.
    """
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(socket.socket(socket.AF_INET, kind))
        if reuseaddr:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bind:
            sock.bind((SOURCE, 0))
        sock.connect(destination)
        on_error.pop_all()
    return sock


def create_connection(kind: int, destination: Address) -> socket.socket:
    """Connect from the source address with connectx."""
    return connectx.create_connection(destination, source_address=(SOURCE, 0), type=kind)


CONNECTX: Final = "connectx"
TECHNIQUES: Final[Mapping[str, Technique]] = {
    "connect": connect,
    "bind": functools.partial(connect, bind=True),
    "SO_REUSEADDR": functools.partial(connect, bind=True, reuseaddr=True),
    CONNECTX: create_connection,
}


# What the workers do.


def open_connections(
    held: Held,
    report: Report,
    technique: Technique,
    kind: int,
    destination: Address,
    ports: int,
    before: Opening,
) -> Opening:
    """Open connections until the way is done or this worker's descriptors are used up.

    Once there are as many connections as ports, one more try shows the errno of an exhausted
    range.

    Args:
        held: The worker's state.
        report: Called with how many connections are open.
        technique: The way.
        kind: SOCK_STREAM or SOCK_DGRAM.
        destination: Where to connect to.
        ports: How many source ports there are.
        before: How far it had come when descriptors were used up before.

    Raises:
        OSError: The experiment failed: an error that is not about ports.
    """
    report = sparingly(report)
    sockets = held.sockets
    room = len(sockets) + descriptors_free()
    opened, seconds, spent, failures, number, stopped = before
    begun = time.monotonic() - spent
    while not stopped and len(sockets) < room:
        try:
            sock = technique(kind, destination)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            number = error.errno
            failures += 1
        else:
            if opened == ports:
                sock.close()
                return Opening(opened, seconds, spent, stopped=FULL)
            sockets.append(sock)
            opened += 1
            failures = 0
            seconds = time.monotonic() - begun
        spent = time.monotonic() - begun
        if failures and opened == ports:
            stopped = FULL
        elif failures == FAILURES_IN_A_ROW:
            stopped = REFUSED
        elif spent > PATIENCE:
            stopped = SLOW
        report(opened)
    return Opening(opened, seconds, spent, failures, number, stopped)


def four_tuples(held: Held, _: Report) -> list[bytes]:
    """Return the 4-tuples of the sockets, packed, since there are so many."""
    packed = []
    for sock in held.sockets:
        host, port = sock.getsockname()
        peer, peer_port = sock.getpeername()
        packed.append(
            _FOUR_TUPLE.pack(socket.inet_aton(host), port, socket.inet_aton(peer), peer_port)
        )
    return packed


# The experiment.


def estimate(protocols: Collection[str], ports: PortRange) -> float:
    """Return about how many seconds run() takes.

    What the usual ways to open TCP connections cost grows with the square of the range: in its
    second half, each connection looks at every port of the first. Then PATIENCE ends them.

    Args:
        protocols: Of DEMONSTRATED.
        ports: The range of source ports.
    """
    calls = 2 * ports.size * _CALL
    searches = (ports.size / 2) ** 2 * _PROBE
    ways = [
        calls + min(PATIENCE, searches if protocol == "tcp" and way != CONNECTX else 0.0)
        for protocol in protocols
        for way in TECHNIQUES
    ]
    return len(DESTINATIONS) * sum(ways)


def run(protocols: Collection[str], ports: PortRange, watch: Watch) -> Demonstration:
    """Try every way with each of the protocols.

    It turns an ordinary user's process into the root of a user namespace, for good: give it a
    process of its own.

    Args:
        protocols: Of DEMONSTRATED.
        ports: The range of source ports.
        watch: Called with the progress.

    Raises:
        CannotStartError: The machine lacks something. Nothing was tried.
        OSError: The experiment itself failed; ChildProcessError if a process died, TimeoutError
            if the server did not answer.
    """
    resources.require(ports.size * len(DESTINATIONS), both_ends=True)
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(resources.in_first_network())
        trials = [
            _Trial(protocol, technique, ports, watch)
            for protocol in DEMONSTRATED
            if protocol in protocols
            for technique in TECHNIQUES
        ]
        ways: list[Way] = []
        for trial in trials:
            watch("demo", "ways", len(ways), len(trials))
            ways.append(trial.run())
    seconds = time.monotonic() - begun
    cores = len(os.sched_getaffinity(0))
    return Demonstration(platform.release(), cores, ports, seconds, tuple(ways))


class _Trial:
    """One way, tried in a network of its own."""

    def __init__(self, protocol: str, technique: str, ports: PortRange, watch: Watch) -> None:
        self._protocol = PROTOCOLS[protocol]
        self._technique = technique
        self._ports = ports
        self._watch = watch

    def run(self) -> Way:
        """Open, count, echo, and leave nothing behind."""
        with (
            experiment_network() as network,
            Servers() as servers,
            Crew() as crew,
            Holders(crew) as holders,
        ):
            network.port_range(*self._ports)
            stream = self._protocol.stream
            make = servers.listen if stream else servers.receive
            server_sockets = [make(*destination) for destination in DESTINATIONS]

            openings: list[Opening] = []
            for destination in DESTINATIONS:
                before = sum(opening.opened for opening in openings)
                openings.append(self._open(holders, destination, before))

            shares = [worker.start(four_tuples).result() for worker in holders.workers]
            total = sum(len(share) for share in shares)

            if stream:
                _accept(crew, server_sockets, [opening.opened for opening in openings])
            else:
                servers.echo(*server_sockets)
            return Way(
                self._protocol.name,
                self._technique,
                tuple(openings),
                duplicates=total - len(set().union(*shares)),
                echoed=self._echo(holders, [len(share) for share in shares]),
            )

    def _open(self, holders: Holders, destination: Address, before: int) -> Opening:
        total = self._ports.size * len(DESTINATIONS)
        progress = functools.partial(self._report, "opening", total, before)
        opening = Opening()
        while True:
            job = holders.opener.start(
                open_connections,
                TECHNIQUES[self._technique],
                self._protocol.type,
                destination,
                self._ports.size,
                opening,
            )
            opening = job.result(progress)
            progress(opening.opened)
            if opening.stopped:
                return opening
            holders.relieve()

    def _echo(self, holders: Holders, shares: Sequence[int]) -> int:
        total = sum(shares)
        echoed = done = 0
        # One after the other, so that what is in flight fits into the server's receive buffers.
        for worker, share in zip(holders.workers, shares, strict=True):
            progress = functools.partial(self._report, "echoing", total, done)
            if self._protocol.stream:
                job = worker.start(echo.echo_streams, done)
            else:
                job = worker.start(echo.echo_datagrams, done, MARKER_SOURCE, DESTINATIONS)
            echoed += job.result(progress)
            done += share
        return echoed

    def _report(self, phase: str, total: int, before: int, count: int) -> None:
        self._watch(f"{self._protocol.title} {self._technique}", phase, before + count, total)


def _accept(crew: Crew, listeners: list[socket.socket], waiting: list[int]) -> None:
    """Have workers accept the connections and echo.

    Until now the connections waited in the accept queues, where they take no descriptor, and no
    server took time from the process that opened them.
    """
    while any(waiting):
        room = descriptors_free()
        counts = []
        for index, count in enumerate(waiting):
            counts.append(min(count, room))
            waiting[index] -= counts[-1]
            room -= counts[-1]
        crew.fork(listeners).start(echo.serve_streams, counts)
