"""How many connections one address can have, opened in the usual ways and with connectx.

Each way gets a fresh private network with an echo server on two destinations,
and opens connections from one source address: to the first destination until
there are as many as ports or the way gives out, then to the second. After
that, every connection says something of its own to the server and listens for
it to come back.
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
from connectx.lab import resources
from connectx.lab.opening import REFUSALS
from connectx.sandbox import echo
from connectx.sandbox.holders import Held, Holders
from connectx.sandbox.networks import experiment_network
from connectx.sandbox.servers import Servers
from connectx.sandbox.workers import Crew, descriptors_free

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from connectx.addresses import PortRange
    from connectx.lab.progress import Watch
    from connectx.sandbox.workers import Report

    Address: TypeAlias = tuple[str, int]
    Technique: TypeAlias = Callable[[socket.SocketKind, Address], socket.socket]

SOURCE: Final = "127.0.0.1"
#: Port 7 is the echo service's (RFC 862), and below every range of ephemeral ports.
DESTINATIONS: Final[tuple[Address, ...]] = (("127.0.0.2", 7), ("127.0.0.3", 7))
MARKER_SOURCE: Final = "127.0.0.4"


PROTOCOLS: Final[Mapping[str, socket.SocketKind]] = {
    "tcp": socket.SOCK_STREAM,
    "udp": socket.SOCK_DGRAM,
}

FAILURES_IN_A_ROW: Final = 50
#: Seconds that a way may take for each destination.
PATIENCE: Final = 8.0

FULL: Final = "as many as ports"
REFUSED: Final = f"failed {FAILURES_IN_A_ROW} times in a row"
SLOW: Final = "too slow to wait for"

_REPORT_EVERY: Final = 0.1  # seconds
_FOUR_TUPLE: Final = struct.Struct("!4sH4sH")


class Opening(NamedTuple):
    """How far one way has come toward one destination.

    opened: connections that are open.
    seconds: the time until the last of them was.
    spent: the time altogether, later failures included.
    failures: how many since the last success.
    errno: of the last failure, 0 for none.
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

    openings: one for each of DESTINATIONS.
    duplicates: how many sockets are on a 4-tuple that another one was on before them.
    echoed: connections whose token came back to them.
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
        """Whether every port serves every destination, and each connection works."""
        return (
            all(opening.stopped == FULL for opening in self.openings)
            and not self.duplicates
            and self.echoed == self.opened
        )


class Demonstration(NamedTuple):
    """What came of all the ways, and where.

    kernel: the release of the running kernel.
    cores: how many CPUs this process may use.
    seconds: how long it all took.
    """

    kernel: str
    cores: int
    ports: PortRange
    seconds: float
    ways: tuple[Way, ...]


# The ways.


def connect(kind: socket.SocketKind, destination: Address) -> socket.socket:
    """Leave address and port to the kernel."""
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(socket.socket(socket.AF_INET, kind))
        sock.connect(destination)
        on_error.pop_all()
    return sock


def bind_connect(kind: socket.SocketKind, destination: Address) -> socket.socket:
    """Choose the source address, as socket.create_connection() does it."""
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(socket.socket(socket.AF_INET, kind))
        sock.bind((SOURCE, 0))
        sock.connect(destination)
        on_error.pop_all()
    return sock


def reuseaddr_bind_connect(kind: socket.SocketKind, destination: Address) -> socket.socket:
    """Choose the source address, with what is usually tried against EADDRINUSE."""
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(socket.socket(socket.AF_INET, kind))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((SOURCE, 0))
        sock.connect(destination)
        on_error.pop_all()
    return sock


def create_connection(kind: socket.SocketKind, destination: Address) -> socket.socket:
    """Choose the source address with this library."""
    return connectx.create_connection(destination, source_address=(SOURCE, 0), type=kind)


CONNECTX: Final = "connectx"
TECHNIQUES: Final[Mapping[str, Technique]] = {
    "connect": connect,
    "bind": bind_connect,
    "SO_REUSEADDR": reuseaddr_bind_connect,
    CONNECTX: create_connection,
}


# What the workers do.


def open_connections(
    held: Held,
    report: Report,
    technique: Technique,
    kind: socket.SocketKind,
    destination: Address,
    ports: int,
    before: Opening,
) -> Opening:
    """Open connections until the way is done or this worker's descriptors are used up.

    Once there are as many as ports, one more try shows the errno of an exhausted range.

    before: how far it had come when the descriptors were used up before.
    """
    sockets = held.sockets
    room = len(sockets) + descriptors_free()
    opened, seconds, spent, failures, number, stopped = before
    begun = time.monotonic() - spent
    reported = spent
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
        if spent - reported > _REPORT_EVERY:
            report(opened)
            reported = spent
    return Opening(opened, seconds, spent, failures, number, stopped)


def four_tuples(held: Held, _: Report) -> list[bytes]:
    """The 4-tuples that the sockets say they are on, packed, since there are so many."""
    packed = []
    for sock in held.sockets:
        host, port = sock.getsockname()
        peer, peer_port = sock.getpeername()
        packed.append(
            _FOUR_TUPLE.pack(socket.inet_aton(host), port, socket.inet_aton(peer), peer_port)
        )
    return packed


# The experiment.


def run(protocols: Collection[str], ports: PortRange, watch: Watch) -> Demonstration:
    """Try every way with each of the protocols; `watch` is told how it goes.

    Of an ordinary user's process this makes the root of a user namespace, from
    which there is no way back: give it a process of its own.

    Raises CannotStartError before anything is tried; later ChildProcessError,
    TimeoutError or another OSError if the experiment itself fails.
    """
    resources.require(ports.size * len(DESTINATIONS), both_ends=True)
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(resources.in_first_network())
        ways = tuple(
            _Trial(protocol, technique, ports, watch).run()
            for protocol in PROTOCOLS
            if protocol in protocols
            for technique in TECHNIQUES
        )
    seconds = time.monotonic() - begun
    return Demonstration(platform.release(), len(os.sched_getaffinity(0)), ports, seconds, ways)


class _Trial:
    """One way, tried in a network of its own."""

    def __init__(self, protocol: str, technique: str, ports: PortRange, watch: Watch) -> None:
        self._protocol = protocol
        self._kind = PROTOCOLS[protocol]
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
            stream = self._kind == socket.SOCK_STREAM
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
                self._protocol,
                self._technique,
                tuple(openings),
                duplicates=total - len(set().union(*shares)),
                echoed=self._echo(holders, [len(share) for share in shares]),
            )

    def _open(self, holders: Holders, destination: Address, before: int) -> Opening:
        total = self._ports.size * len(DESTINATIONS)
        progress = functools.partial(self._tell, "opening", total, before)
        opening = Opening()
        while True:
            job = holders.opener.start(
                open_connections,
                TECHNIQUES[self._technique],
                self._kind,
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
        # One after the other, so that what is under way stays within the
        # server's receive buffers.
        for worker, share in zip(holders.workers, shares, strict=True):
            progress = functools.partial(self._tell, "echoing", total, done)
            if self._kind == socket.SOCK_STREAM:
                job = worker.start(echo.echo_streams, done)
            else:
                job = worker.start(echo.echo_datagrams, done, MARKER_SOURCE, DESTINATIONS)
            echoed += job.result(progress)
            done += share
        return echoed

    def _tell(self, phase: str, total: int, before: int, count: int) -> None:
        self._watch(f"{self._protocol.upper()} {self._technique}", phase, before + count, total)


def _accept(crew: Crew, listeners: list[socket.socket], waiting: list[int]) -> None:
    """Have workers accept the connections and echo.

    Until now they waited in the accept queues, where they take no descriptor,
    and no server took time from whoever opened them.
    """
    while any(waiting):
        room = descriptors_free()
        counts = []
        for index, count in enumerate(waiting):
            counts.append(min(count, room))
            waiting[index] -= counts[-1]
            room -= counts[-1]
        crew.fork(listeners).start(echo.serve_streams, counts)
