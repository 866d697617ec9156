"""asyncio: beside asyncio.open_connection() in an empty range, up to the last port, and waiting."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import socket
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

from bench.competition import tail
from bench.harness import (
    ABORT,
    DESTINATION,
    LOOPBACK,
    Findings,
    Table,
    in_network,
    interruptions,
    listen_at_destination,
    marked,
    typical,
)
from connectx import aio
from connectx.addresses import PortRange
from connectx.sandbox.workers import descriptors_free

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping

    from bench.harness import Settings

_CALLS: Final = 500
_WAITING: Final = 1_000
#: Seconds for which the waiting tasks are watched.
_WATCHED: Final = 3.0
_MOST_FILLS: Final = 3

_CALL: Final[Mapping[str, Callable[[], Awaitable[Any]]]] = {
    "aio.create_connection()": lambda: aio.create_connection(
        DESTINATION, source_address=(LOOPBACK, 0)
    ),
    "aio.open_connection()": lambda: aio.open_connection(
        *DESTINATION, source_address=(LOOPBACK, 0)
    ),
    "asyncio.open_connection()": lambda: asyncio.open_connection(
        *DESTINATION, local_addr=(LOOPBACK, 0)
    ),
}


def measure(settings: Settings) -> Findings:
    """Measure calls, fills and waiting tasks."""
    findings = Findings()
    settings.progress("asyncio: empty range")
    rounds = [_in_loop(_empty_range, settings.ports) for _ in range(settings.rounds)]
    times = [typical(column, _CALLS) / _CALLS / 1000 for column in zip(*rounds, strict=True)]
    findings.add("asyncio: empty range", times[-1] / times[0])
    findings.tables.append(
        Table(
            "asyncio: TCP from a source address, in an empty range",
            ("call", "µs"),
            [(call, round(each, 1)) for call, each in zip(_CALL, times, strict=True)],
        )
    )
    settings.progress("asyncio: up to the last port")
    # In one process, since this is about one event loop; an even number.
    size = min(settings.ports.size, descriptors_free()) // 2 * 2
    some = PortRange(settings.ports.low, settings.ports.low + size - 1)
    fills = [
        _in_loop(functools.partial(_fill, size), some)
        for _ in range(min(_MOST_FILLS, settings.rounds))
    ]
    findings.add("asyncio: opened", min(len(fill) for fill in fills) / size, f"{size:,}")
    findings.add("asyncio: last 1 %", statistics.median(map(tail, fills)))
    settings.progress("asyncio: waiting")
    share = _in_loop(_wait, PortRange(40000, 40099))
    findings.add("asyncio: waiting", 100 * share, f"{_WAITING:,} tasks, {_WATCHED:.0f} s")
    settings.progress("asyncio: waiting while others come and go")
    share, ends = _in_loop(functools.partial(_wait_in_churn, size), some)
    findings.add("asyncio: churn", 100 * share, f"{ends:,.0f} ends a second")
    return findings


def _in_loop(main: Callable[[], Coroutine[Any, Any, Any]], ports: PortRange) -> Any:
    def run() -> Any:
        gc.collect()
        gc.disable()
        return asyncio.run(main())

    return in_network(run, ports)


async def _empty_range() -> list[list[int]]:
    """Return the time of every call, as marked() returns it."""
    times: list[list[int]] = [[] for _ in _CALL]
    with listen_at_destination() as listener:
        for _ in range(_CALLS + 1):
            for call, column in zip(_CALL.values(), times, strict=True):
                column.append(await _time(call, listener))
    # What a program pays once is not what a call costs.
    return [column[1:] for column in times]


async def _time(call: Callable[[], Awaitable[Any]], listener: socket.socket) -> int:
    clock, before = time.perf_counter_ns, interruptions()
    start = clock()
    found = await call()
    spent = clock() - start
    spent = marked(spent, before)
    sock = found if isinstance(found, socket.socket) else found[1].get_extra_info("socket")
    # The range stays empty: no TIME_WAIT, and nothing waits to be accepted.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    if found is sock:
        sock.close()
    else:
        found[1].close()
        await asyncio.sleep(0)
    listener.accept()[0].close()
    return spent


async def _fill(size: int) -> list[int]:
    """Return the time of each connection of a fill, which ends at the first failure."""
    times = []
    clock = time.perf_counter_ns
    with listen_at_destination(), contextlib.ExitStack() as stack:
        for _ in range(size):
            before = interruptions()
            start = clock()
            try:
                sock = await aio.create_connection(DESTINATION, source_address=(LOOPBACK, 0))
            except OSError:
                break
            spent = clock() - start
            times.append(marked(spent, before))
            stack.enter_context(sock)
    return times


@contextlib.asynccontextmanager
async def _full_range(size: int, waiting: int) -> AsyncIterator[list[socket.socket]]:
    """Run a block in which tasks wait for a port; it gets the connections that have them all."""
    with listen_at_destination():
        dialer = aio.Dialer([LOOPBACK], wait=60)
        sockets = [await dialer.create_connection(DESTINATION) for _ in range(size)]
        tasks = [asyncio.create_task(dialer.create_connection(DESTINATION)) for _ in range(waiting)]
        # Each begins to wait in its first turn.
        await asyncio.sleep(0)
        yield sockets
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sock in sockets:
            sock.close()


async def _wait() -> float:
    """Return the share of a CPU that tasks take which wait for a port in a full range."""
    async with _full_range(100, _WAITING):
        before = time.process_time()
        await asyncio.sleep(_WATCHED)
        return (time.process_time() - before) / _WATCHED


async def _wait_in_churn(size: int) -> tuple[float, float]:
    """Return the same for one task while connections keep ending, into TIME_WAIT.

    Returns:
        The share, and how many connections ended a second.
    """
    async with _full_range(size, 1) as sockets:
        spent, ended = 0.0, 0
        begun = time.monotonic()
        while time.monotonic() - begun < _WATCHED and sockets:
            # What closing takes is not the task's.
            sockets.pop().close()
            ended += 1
            before = time.thread_time()
            await asyncio.sleep(0.002)
            spent += time.thread_time() - before
    return spent / _WATCHED, ended / _WATCHED
