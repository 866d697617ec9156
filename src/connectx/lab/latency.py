"""What each connection of a fill costs: a whole port range, from the first port to the last.

Connections are opened one after the other by one process, as a single program
would, each with the clock running (connectx.lab.opening); worker processes take
over what exceeds one process's descriptors. For churn, connections are then closed
at random and opened again, one by one.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import random
import socket
import struct
import time
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.lab import resources
from connectx.lab.machine import Machine, describe
from connectx.lab.opening import check_way, opener, window_of
from connectx.lab.resources import DEFAULT_PORTS, CannotStartError
from connectx.lab.transports import PROTOCOLS, Transport
from connectx.sandbox import workers
from connectx.sandbox.holders import Held, Holders
from connectx.sandbox.servers import family_of
from connectx.sandbox.workers import Crew, descriptors_free

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from connectx.addresses import Address, PortRange
    from connectx.lab.opening import Opener
    from connectx.lab.progress import Watch
    from connectx.sandbox.networks import Network
    from connectx.sandbox.workers import Report

#: Port 7 is the echo service's (RFC 862), and below every range of ephemeral ports.
DESTINATION_PORT: Final = 7


#: The window sizes in the table of "connect() - why are you so slow?" (2024).
WINDOWS: Final = (500, 1000, 5000, 10000)

#: Seconds of opening after which a way is too slow to wait for.
TIME_LIMIT: Final = 120.0

#: How full the accept queues get at most: the kernel spreads connections over them by
#: a hash, and not quite evenly.
_QUEUE_SHARE: Final = 0.6

_REPORT_EVERY: Final = 0.1  # seconds

#: What a worker has open besides the connections it holds, with much to spare.
_DESCRIPTORS_BESIDES: Final = 128

#: SO_LINGER on with no time: close() resets the connection, and no TIME_WAIT is left.
_ABORT: Final = struct.pack("@ii", 1, 0)


class Settings(NamedTuple):
    """One fill.

    way: as connectx.lab.opening has it.
    protocol: one of PROTOCOLS.
    family: 4 or 6.
    ports: the range of source ports.
    sources, destinations: how many addresses take turns.
    connections: how many to try; 0 for as many as there are 4-tuples.
    occupancy: how far to fill, from 0 to 1, before `operations` connections are closed
    and opened again.
    time_limit: seconds of opening after which the fill ends.
    """

    way: str
    protocol: str = "tcp"
    family: int = 4
    ports: PortRange = DEFAULT_PORTS
    sources: int = 1
    destinations: int = 1
    connections: int = 0
    occupancy: float = 1.0
    operations: int = 0
    time_limit: float = TIME_LIMIT

    @property
    def transport(self) -> Transport:
        """The protocol over the family."""
        return Transport(self.protocol, self.family)

    @property
    def capacity(self) -> int:
        """How many 4-tuples there are."""
        return self.ports.size * self.sources * self.destinations

    @property
    def tries(self) -> int:
        """How many connections the fill tries to open."""
        return self.connections or int(self.capacity * self.occupancy)

    def check(self) -> None:
        """Raise ValueError for settings that make no sense."""
        check_way(self.way)
        if not 0 < self.occupancy <= 1:
            raise ValueError(f"an occupancy lies above 0 and up to 1, not {self.occupancy}")
        for name, count in (("sources", self.sources), ("destinations", self.destinations)):
            if not 1 <= count <= MOST_ADDRESSES:
                raise ValueError(f"{name}: 1 to {MOST_ADDRESSES}, not {count}")
        if window_of(self.way) > self.ports.size:
            raise ValueError(f"{self.way} has more ports than {self.ports}")
        if self.operations and not self.tries:
            raise ValueError(f"nothing to close at {self.occupancy:.0%} of {self.ports}")
        if self.operations and self.tries > churn_most():
            # The others would have to be closed in other processes, and the ones left to
            # close here are the latest: all of one parity, for a plain connect().
            raise ValueError(
                f"churn takes {self.tries:,} descriptors in one process, which may have "
                f"{churn_most():,} (ulimit -H -n): try a smaller range"
            )


def churn_most() -> int:
    """How many connections there may be for churn: those that one process holds."""
    return max(0, workers.descriptor_limit() - _DESCRIPTORS_BESIDES)


#: Addresses of one kind: what fits into the last octet of the ones below.
MOST_ADDRESSES: Final = 200


class Samples(NamedTuple):
    """Connections in the order in which they were tried, column by column.

    port: 0 for one that was refused. nanoseconds: what the caller waited.
    retries: tries that were refused within the call. errno: 0 for a connected one.
    """

    port: array[int]
    nanoseconds: array[int]
    retries: array[int]
    errno: array[int]

    @classmethod
    def none(cls) -> Samples:
        """No connection yet."""
        return cls(array("H"), array("Q"), array("I"), array("H"))

    def extend(self, more: Samples) -> None:
        """Add the connections that came later."""
        for column, addition in zip(self, more, strict=True):
            column.extend(addition)

    def add(self, port: int, nanoseconds: int, retries: int, number: int) -> None:
        """Add one."""
        for column, value in zip(self, (port, nanoseconds, retries, number), strict=True):
            column.append(value)


class Latency(NamedTuple):
    """What came of a fill.

    fill: every connection tried, in order.
    churn: every connection opened in the place of another one afterwards.
    finished: False where the time limit ended the fill.
    changes: what was changed in the private network, which is gone.
    """

    settings: Settings
    machine: Machine
    fill: Samples
    churn: Samples
    finished: bool
    changes: list[str]


class _Part(NamedTuple):
    """What a worker's task has opened, and whether it was stopped by the time limit."""

    samples: Samples
    seconds: float
    stopped: bool


def run(settings: Settings, watch: Watch, machine: Machine | None = None) -> Latency:
    """Fill a port range in a network of its own.

    machine: what it runs on, where the caller has looked before entering another network.

    Of an ordinary user's process this makes the root of a user namespace, from
    which there is no way back: give it a process of its own.

    Raises ValueError for settings that make no sense and CannotStartError for what the
    machine lacks, before anything is tried; NotSupported where this kernel cannot do as
    the way says.
    """
    settings.check()
    resources.require(settings.tries, both_ends=False)
    machine = machine or describe()
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(resources.in_first_network())
        network.port_range(*settings.ports)
        if absence := settings.transport.absence():
            raise CannotStartError(f"no {settings.transport.title} here: {absence}")
        sources, destinations = _addresses(network, settings)
        crew = stack.enter_context(Crew())
        holders = stack.enter_context(Holders(crew))
        if settings.transport.stream:
            _listen(stack, settings, destinations)
        tell = functools.partial(watch, f"{settings.way} {settings.protocol}")
        fill, finished = _fill(settings, holders, sources, destinations, tell)
        churn = Samples.none()
        if settings.operations and finished:
            job = holders.opener.start(_churn, settings, sources, destinations)
            churn = job.result(lambda done: tell("reopening", done, settings.operations))
        return Latency(settings, machine, fill, churn, finished, network.changes)


def _addresses(network: Network, settings: Settings) -> tuple[list[Address], list[Address]]:
    """The sources and the destinations, made local: all of 127.0.0.0/8 is without doing."""
    if settings.family == 4:
        sources = [f"127.0.0.{number}" for number in range(1, settings.sources + 1)]
        destinations = [f"127.0.1.{number}" for number in range(1, settings.destinations + 1)]
    else:
        # From the prefix for documentation (RFC 3849).
        sources = [f"2001:db8::1:{number:x}" for number in range(1, settings.sources + 1)]
        destinations = [f"2001:db8::2:{number:x}" for number in range(1, settings.destinations + 1)]
        for address in (*sources, *destinations):
            network.add_address(address)
    return [(host, 0) for host in sources], [(host, DESTINATION_PORT) for host in destinations]


def _listen(
    stack: contextlib.ExitStack, settings: Settings, destinations: Sequence[Address]
) -> None:
    """Have the kernel complete handshakes; connections wait un-accepted, without a descriptor.

    One accept queue holds at most net.core.somaxconn, so several listeners share the
    port. None of them takes time from whoever opens the connections.
    """
    backlog = resources.accept_queue()
    proto = PROTOCOLS[settings.protocol].number
    per_destination = math.ceil((settings.tries + settings.operations) / len(destinations))
    listeners = math.ceil(per_destination / (backlog * _QUEUE_SHARE))
    for destination in destinations:
        for _ in range(listeners):
            sock = stack.enter_context(
                socket.socket(family_of(destination[0]), socket.SOCK_STREAM, proto)
            )
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(destination)
            sock.listen(backlog)


def _fill(
    settings: Settings,
    holders: Holders,
    sources: Sequence[Address],
    destinations: Sequence[Address],
    tell: functools.partial[None],
) -> tuple[Samples, bool]:
    samples, seconds = Samples.none(), 0.0
    while True:
        begun = len(samples.port)
        job = holders.opener.start(
            _open, settings, sources, destinations, begun, settings.time_limit - seconds
        )
        part = job.result(lambda done: tell("opening", done, settings.tries))
        samples.extend(part.samples)
        seconds += part.seconds
        if part.stopped or len(samples.port) == settings.tries:
            return samples, not part.stopped
        holders.relieve()


# What the workers do.


def _open(
    held: Held,
    report: Report,
    settings: Settings,
    sources: Sequence[Address],
    destinations: Sequence[Address],
    begun: int,
    time_limit: float,
) -> _Part:
    """Open connections until all are tried, or descriptors or time are used up."""
    open_one: Opener = held.kept.setdefault(
        "opener",
        opener(
            settings.way,
            PROTOCOLS[settings.protocol].kind,
            PROTOCOLS[settings.protocol].number,
            settings.ports,
        ),
    )
    pairs = _pairs(sources, destinations, begun)
    room = descriptors_free()
    samples = Samples.none()
    with _collector_resting():
        start = reported = time.monotonic()
        for number in range(begun, settings.tries):
            opened = open_one(*next(pairs))
            port = 0
            if opened.socket is not None:
                port = opened.socket.getsockname()[1]
                held.sockets.append(opened.socket)
                room -= 1
            samples.add(port, opened.nanoseconds, opened.retries, opened.errno)
            now = time.monotonic()
            if now - reported > _REPORT_EVERY:
                report(number + 1)
                reported = now
            if now - start > time_limit:
                return _Part(samples, now - start, stopped=True)
            if not room:
                break
        return _Part(samples, time.monotonic() - start, stopped=False)


def _churn(
    held: Held,
    report: Report,
    settings: Settings,
    sources: Sequence[Address],
    destinations: Sequence[Address],
) -> Samples:
    """Close one connection at random, open one between the same addresses, again and again.

    One of those that this worker holds: the others stay, and their ports stay taken.
    """
    open_one: Opener = held.kept["opener"]
    samples = Samples.none()
    reported = time.monotonic()
    pairs = {
        (source[0], destination[0]): (source, destination)
        for source in sources
        for destination in destinations
    }
    with _collector_resting():
        for number in range(settings.operations):
            index = random.randrange(len(held.sockets))  # noqa: S311 - any will do
            sock = held.sockets[index]
            pair = pairs[sock.getsockname()[0], sock.getpeername()[0]]
            if sock.type == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            sock.close()
            opened = open_one(*pair)
            port = 0
            if opened.socket is not None:
                port = opened.socket.getsockname()[1]
                held.sockets[index] = opened.socket
            else:
                held.sockets[index] = held.sockets[-1]
                held.sockets.pop()
            samples.add(port, opened.nanoseconds, opened.retries, opened.errno)
            now = time.monotonic()
            if now - reported > _REPORT_EVERY:
                report(number + 1)
                reported = now
            if not held.sockets:
                break
    return samples


def _pairs(
    sources: Sequence[Address], destinations: Sequence[Address], begun: int
) -> Iterator[tuple[Address, Address]]:
    """The source and destination of each connection from a number on, all taking turns."""
    all_pairs = [(source, destination) for destination in destinations for source in sources]
    while True:
        yield all_pairs[begun % len(all_pairs)]
        begun += 1


@contextlib.contextmanager
def _collector_resting() -> Iterator[None]:
    """As timeit does: its passes over all those sockets would be charged to some connection."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
