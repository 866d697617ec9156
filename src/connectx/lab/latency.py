"""What each connection of a fill costs: a whole port range, from the first port to the last.

One process opens connections one after the other, as a single program would, each with the
clock running (connectx.lab.opening). Worker processes take over what exceeds one process's
descriptors. For churn, connections are then closed at random and opened again, one by one.
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
from connectx.lab.transports import Transport
from connectx.sandbox import workers
from connectx.sandbox.holders import Held, Holders
from connectx.sandbox.servers import family_of
from connectx.sandbox.workers import Crew, descriptors_free, sparingly

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

#: Most addresses of one kind: what fits into the last octet of those below.
MOST_ADDRESSES: Final = 200

#: How full the accept queues get at most: the kernel spreads connections over them by a hash,
#: and not quite evenly.
_QUEUE_SHARE: Final = 0.6

#: What a worker has open besides the connections it holds, with much to spare.
_DESCRIPTORS_BESIDES: Final = 128

#: SO_LINGER on, for zero seconds: close() resets the connection, and leaves no TIME_WAIT.
_ABORT: Final = struct.pack("@ii", 1, 0)


class Settings(NamedTuple):
    """One fill.

    Attributes:
        way: How connections are opened, as connectx.lab.opening names it.
        protocol: A key of connectx.addresses.PROTOCOLS.
        family: 4 or 6.
        ports: The range of source ports.
        sources: How many source addresses take turns.
        destinations: How many destinations take turns.
        connections: How many to try; 0 for as many as there are 4-tuples.
        occupancy: How far to fill, from 0 to 1, before churn begins.
        operations: How many connections churn closes, opening another after each; 0 for none.
        time_limit: Seconds of opening after which the fill ends.
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
        """Check that the settings make sense.

        Raises:
            ValueError: They do not.
        """
        check_way(self.way)
        if not 0 < self.occupancy <= 1:
            raise ValueError(f"the occupancy {self.occupancy} is not above 0 and up to 1")
        for name, count in (("sources", self.sources), ("destinations", self.destinations)):
            if not 1 <= count <= MOST_ADDRESSES:
                raise ValueError(f"{name}: {count} is not a number from 1 to {MOST_ADDRESSES}")
        if window_of(self.way) > self.ports.size:
            raise ValueError(f"{self.way} has more ports than {self.ports}")
        if self.operations and not self.tries:
            raise ValueError(f"at {self.occupancy:.0%} of {self.ports} there is nothing to close")
        if self.operations and self.tries > churn_most():
            # Connections beyond that would be held, and could only be closed, by other
            # processes. Those left here would be the latest: all of one parity, for a plain
            # connect().
            raise ValueError(
                f"churn needs {self.tries:,} descriptors in one process, which may have "
                f"{churn_most():,} (ulimit -H -n): try a smaller range"
            )


def churn_most() -> int:
    """Return how many connections churn can have: those that one process holds."""
    return max(0, workers.descriptor_limit() - _DESCRIPTORS_BESIDES)


class Samples(NamedTuple):
    """Connections in the order in which they were tried, column by column.

    Attributes:
        port: The source port; 0 for a connection that was refused.
        nanoseconds: How long the caller waited.
        retries: How many tries were refused within the call.
        errno: Why the connection was refused; 0 if it was not.
    """

    port: array[int]
    nanoseconds: array[int]
    retries: array[int]
    errno: array[int]

    @classmethod
    def none(cls) -> Samples:
        """Return the samples of no connection."""
        return cls(array("H"), array("Q"), array("I"), array("H"))

    def extend(self, more: Samples) -> None:
        """Add the connections that came later."""
        for column, addition in zip(self, more, strict=True):
            column.extend(addition)

    def add(self, port: int, nanoseconds: int, retries: int, number: int) -> None:
        """Add a connection; number is its errno."""
        for column, value in zip(self, (port, nanoseconds, retries, number), strict=True):
            column.append(value)


class Latency(NamedTuple):
    """What came of a fill.

    Attributes:
        settings: What was asked for.
        machine: What it ran on.
        fill: Every connection that was tried, in order.
        churn: Every connection that churn opened in the place of another.
        finished: False where the time limit ended the fill.
        changes: What was changed in the private network, which is gone.
    """

    settings: Settings
    machine: Machine
    fill: Samples
    churn: Samples
    finished: bool
    changes: list[str]


class _Part(NamedTuple):
    """What one task of a worker opened, and whether the time limit stopped it."""

    samples: Samples
    seconds: float
    stopped: bool


def run(settings: Settings, watch: Watch, machine: Machine | None = None) -> Latency:
    """Fill a port range in a network of its own.

    It turns an ordinary user's process into the root of a user namespace, for good: give it a
    process of its own.

    Args:
        settings: What to fill, and how.
        watch: Called with the progress.
        machine: What it runs on, if the caller described that before it entered a network.

    Raises:
        ValueError: The settings make no sense. Nothing was tried.
        CannotStartError: The machine lacks something. Nothing was tried.
        NotSupported: This kernel cannot do as the way says.
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
        report = functools.partial(watch, f"{settings.way} {settings.protocol}")
        fill, finished = _fill(settings, holders, sources, destinations, report)
        churn = Samples.none()
        if settings.operations and finished:
            job = holders.opener.start(_churn, settings, sources, destinations)
            churn = job.result(lambda done: report("reopening", done, settings.operations))
        return Latency(settings, machine, fill, churn, finished, network.changes)


def _addresses(network: Network, settings: Settings) -> tuple[list[Address], list[Address]]:
    """Return sources and destinations, all of them local, as all of 127.0.0.0/8 always is."""
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
    """Have the kernel complete handshakes; connections wait unaccepted, without a descriptor.

    An accept queue holds at most net.core.somaxconn, so several listeners share the port. No
    server takes time from the process that opens the connections.
    """
    backlog = resources.accept_queue()
    number = settings.transport.protocol.number
    per_destination = math.ceil((settings.tries + settings.operations) / len(destinations))
    listeners = math.ceil(per_destination / (backlog * _QUEUE_SHARE))
    for destination in destinations:
        for _ in range(listeners):
            sock = stack.enter_context(
                socket.socket(family_of(destination[0]), socket.SOCK_STREAM, number)
            )
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(destination)
            sock.listen(backlog)


def _fill(
    settings: Settings,
    holders: Holders,
    sources: Sequence[Address],
    destinations: Sequence[Address],
    report: functools.partial[None],
) -> tuple[Samples, bool]:
    samples, seconds = Samples.none(), 0.0
    while True:
        begun = len(samples.port)
        job = holders.opener.start(
            _open, settings, sources, destinations, begun, settings.time_limit - seconds
        )
        part = job.result(lambda done: report("opening", done, settings.tries))
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
    """Open connections until all were tried, or descriptors or time are used up."""
    if not held.kept:
        held.kept["opener"] = opener(settings.way, settings.transport.protocol, settings.ports)
    open_one: Opener = held.kept["opener"]
    report = sparingly(report)
    pairs = _pairs(sources, destinations, begun)
    room = len(held.sockets) + descriptors_free()
    samples = Samples.none()
    with _collector_paused():
        start = time.monotonic()
        for number in range(begun, settings.tries):
            _add(held, samples, open_one, next(pairs))
            report(number + 1)
            if time.monotonic() - start > time_limit:
                return _Part(samples, time.monotonic() - start, stopped=True)
            if len(held.sockets) == room:
                break
        return _Part(samples, time.monotonic() - start, stopped=False)


def _churn(
    held: Held,
    report: Report,
    settings: Settings,
    sources: Sequence[Address],
    destinations: Sequence[Address],
) -> Samples:
    """Close one of this worker's connections at random, open another, again and again.

    The new one is between the same addresses. What other workers hold stays open, and its ports
    taken.
    """
    open_one: Opener = held.kept["opener"]
    report = sparingly(report)
    samples = Samples.none()
    pairs = {
        (source[0], destination[0]): (source, destination)
        for source in sources
        for destination in destinations
    }
    sockets = held.sockets
    with _collector_paused():
        for number in range(settings.operations):
            if not sockets:
                break
            index = random.randrange(len(sockets))  # noqa: S311 - any will do
            sockets[index], sockets[-1] = sockets[-1], sockets[index]
            sock = sockets.pop()
            pair = pairs[sock.getsockname()[0], sock.getpeername()[0]]
            if sock.type == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            sock.close()
            _add(held, samples, open_one, pair)
            report(number + 1)
    return samples


def _add(held: Held, samples: Samples, open_one: Opener, pair: tuple[Address, Address]) -> None:
    """Try to open a connection, and hold it."""
    opened = open_one(*pair)
    port = 0
    if opened.socket is not None:
        port = opened.socket.getsockname()[1]
        held.sockets.append(opened.socket)
    samples.add(port, opened.nanoseconds, opened.retries, opened.errno)


def _pairs(
    sources: Sequence[Address], destinations: Sequence[Address], begun: int
) -> Iterator[tuple[Address, Address]]:
    """Yield the source and destination of each connection from a number on, all in turn."""
    pairs = [(source, destination) for destination in destinations for source in sources]
    while True:
        yield pairs[begun % len(pairs)]
        begun += 1


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector, as timeit does.

    Its passes over all those sockets would be charged to some connection.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
