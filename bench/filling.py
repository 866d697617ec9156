"""Run one way through a whole fill, and take the time of every connection."""

from __future__ import annotations

import gc
import time
from array import array
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import connectx
from bench.harness import interruptions, marked
from connectx.sandbox.holders import Holders
from connectx.sandbox.workers import Crew, descriptors_free

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from bench.harness import Address
    from bench.ways import Fill, Way
    from connectx.sandbox.holders import Held
    from connectx.sandbox.workers import Report

#: Connections opened in one go: long enough for what lies between to weigh nothing, short
#: enough to see where in a fill the machine was slow.
BLOCK: Final = 256


class Block(NamedTuple):
    """Some connections.

    Attributes:
        sockets: Those that were opened.
        times: What each of them took, as marked() returns it.
        error: What ended the block early.
    """

    sockets: list[socket.socket]
    times: list[int]
    error: OSError | None


#: Opens the next so many connections of a fill.
BlockOpener: TypeAlias = "Callable[[int], Block]"
#: Prepares a way for a fill; it is sent to a worker by name.
Start: TypeAlias = "Callable[[Fill], BlockOpener]"


def timed(way: Way, fill: Fill) -> BlockOpener:
    """Open a fill's connections with one call each, and take the time of each call."""
    open_one = way(fill)
    destinations = iter(fill.destinations)

    def open_block(count: int) -> Block:
        clock = time.perf_counter_ns
        sockets: list[socket.socket] = []
        times: list[int] = []
        for _, destination in zip(range(count), destinations, strict=False):
            before = interruptions()
            start = clock()
            try:
                sock = open_one(destination)
            except OSError as error:
                return Block(sockets, times, error)
            spent = clock() - start
            times.append(marked(spent, before))
            sockets.append(sock)
        return Block(sockets, times, None)

    return open_block


class Result(NamedTuple):
    """What came of a fill.

    Attributes:
        asked: How many connections there were to open.
        times: What each took, in the order of opening, as marked() returns it (array "q").
        distinct: How many different 4-tuples they have.
        error: What ended it early; "" where nothing did.
    """

    asked: int
    times: array[int]
    distinct: int
    error: str


def run(
    fill: Fill, start: Start, listen: Callable[[], socket.socket] | None, time_limit: float
) -> Result:
    """Open a fill's connections, and close them all.

    Nothing else may be open in the caller's network namespace.

    Args:
        fill: What there is to open.
        start: The way.
        listen: Makes what they connect to.
        time_limit: Seconds of opening after which a way is too slow to wait for.
    """
    with Crew() as crew, Holders(crew) as holders:
        while True:
            result = holders.opener.start(_open, fill, start, listen, time_limit).result()
            if result is not None:
                return result
            holders.relieve()


class _Progress:
    """What the opener keeps from one task to the next."""

    def __init__(
        self, fill: Fill, start: Start, listen: Callable[[], socket.socket] | None
    ) -> None:
        self.listener = listen() if listen is not None else None
        self.open_block = start(fill)
        self.times = array("q")
        self.spent = 0
        self.four_tuples: set[tuple[Any, Any]] = set()


def _open(
    held: Held,
    _: Report,
    fill: Fill,
    start: Start,
    listen: Callable[[], socket.socket] | None,
    time_limit: float,
) -> Result | None:
    """Open connections until all are open, or time or this worker's descriptors are used up.

    Returns:
        What came of the whole fill; None when it is to go on once there are descriptors.
    """
    if not held.kept:
        held.kept["progress"] = _Progress(fill, start, listen)
    progress: _Progress = held.kept["progress"]
    size, done = len(fill.destinations), progress.times
    room = descriptors_free()
    # As timeit does: when the collector runs depends on everything else in the process, and
    # its passes would be charged to the way that is measured.
    gc.collect()
    gc.disable()
    error: OSError | None = None
    while len(done) < size and error is None and progress.spent < time_limit * 1e9:
        if room < BLOCK:
            return None
        sockets, times, error = progress.open_block(min(BLOCK, size - len(done)))
        done.extend(times)
        progress.spent += sum(map(abs, times))
        held.sockets.extend(sockets)
        room -= len(sockets)
        progress.four_tuples |= {(sock.getsockname(), sock.getpeername()) for sock in sockets}
    if progress.listener is not None:
        # Before the connections: that resets what waits to be accepted, and neither side is
        # left with a TIME_WAIT. No other worker has it.
        progress.listener.close()
    return Result(size, done, len(progress.four_tuples), "" if error is None else str(error))


def open_all(holders: Holders, pairs: Sequence[tuple[Address | None, Address]]) -> None:
    """Have workers open a TCP connection for each pair of source and destination, and hold it."""
    done = 0
    while (done := holders.opener.start(_open_pairs, pairs, done).result()) < len(pairs):
        holders.relieve()


def _open_pairs(
    held: Held, _: Report, pairs: Sequence[tuple[Address | None, Address]], done: int
) -> int:
    some = pairs[done : done + descriptors_free()]
    held.sockets.extend(
        connectx.create_connection(destination, source_address=source)
        for source, destination in some
    )
    return done + len(some)
