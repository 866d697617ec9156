"""Run one way through a whole fill, and take the time of every connection."""

from __future__ import annotations

import gc
import time
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from bench.holders import SPARE_DESCRIPTORS, Holders, descriptor_limit

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from bench.ways import Fill, Way

#: Connections opened in one go: long enough for what lies between to weigh
#: nothing, short enough to see where in a fill the machine was slow.
BLOCK: Final = 256


class Block(NamedTuple):
    """Some connections.

    nanoseconds: what each of them took.
    error: what ended the block early.
    """

    sockets: list[socket.socket]
    nanoseconds: list[int]
    error: OSError | None


#: Opens the next so many connections of a fill.
BlockOpener: TypeAlias = "Callable[[int], Block]"


def timed(way: Way, fill: Fill) -> BlockOpener:
    """Open a fill's connections with one call each, and take the time of each call."""
    open_one = way(fill)
    destinations = iter(fill.destinations)

    def open_block(count: int) -> Block:
        clock = time.perf_counter_ns
        sockets: list[socket.socket] = []
        nanoseconds: list[int] = []
        for _, destination in zip(range(count), destinations, strict=False):
            start = clock()
            try:
                sock = open_one(destination)
            except OSError as error:
                return Block(sockets, nanoseconds, error)
            nanoseconds.append(clock() - start)
            sockets.append(sock)
        return Block(sockets, nanoseconds, None)

    return open_block


class Result(NamedTuple):
    """What came of a fill.

    asked: how many connections there were to open.
    nanoseconds: what each took, in the order of opening (array "Q").
    distinct: how many different 4-tuples they have.
    error: what ended it early, "" where nothing did.
    """

    asked: int
    nanoseconds: array[int]
    distinct: int
    error: str


def run(
    fill: Fill,
    start: Callable[[Fill], BlockOpener],
    listen: Callable[[], socket.socket] | None,
    time_limit: float,
) -> Result:
    """Open a fill's connections, and close them all.

    listen: makes what they connect to.
    time_limit: seconds of opening after which a way is too slow to wait for.

    Nothing else may be open in the caller's network namespace.
    """
    room = descriptor_limit() - SPARE_DESCRIPTORS - BLOCK
    size = len(fill.destinations)
    nanoseconds = array("Q")
    spent = 0
    four_tuples: set[tuple[object, object]] = set()
    pending: list[socket.socket] = []
    error: OSError | None = None
    with Holders(size) as holders:
        listener = listen() if listen is not None else None
        open_block = start(fill)
        # As timeit does: when the collector runs depends on everything else in
        # the process, and its passes would be charged to whoever is measured.
        gc.collect()
        gc.disable()
        while len(nanoseconds) < size and error is None and spent < time_limit * 1e9:
            sockets, times, error = open_block(min(BLOCK, size - len(nanoseconds)))
            nanoseconds.extend(times)
            spent += sum(times)
            pending += sockets
            # The addresses while it is ours: a socket given away has none.
            four_tuples |= {(sock.getsockname(), sock.getpeername()) for sock in sockets}
            if len(pending) > room:
                holders.take(pending)
                pending.clear()
        holders.take(pending)
        # Before the connections: it resets what waits to be accepted, and
        # neither side is left with a TIME_WAIT.
        if listener is not None:
            listener.close()
    return Result(size, nanoseconds, len(four_tuples), "" if error is None else str(error))
