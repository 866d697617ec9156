"""asyncio: beside asyncio.open_connection() in an empty range, up to the last port, and waiting."""

from __future__ import annotations

import asyncio
import gc
import socket
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

from bench.churn import ABORT
from bench.harness import DESTINATION, LOOPBACK, Findings, Table, in_network, listen_at_destination
from bench.holders import SPARE_DESCRIPTORS, descriptor_limit
from connectx import aio
from connectx.addresses import PortRange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bench.harness import Settings

_CALLS: Final = 500
_WAITING: Final = 1_000
#: Seconds for which the waiting tasks are watched.
_WATCHED: Final = 3.0
_SOURCE: Final = (LOOPBACK, 0)


def measure(settings: Settings) -> Findings:
    """Measure the three."""
    findings = Findings()
    settings.progress("asyncio: empty range")
    rounds = in_network(lambda: asyncio.run(_empty_range(settings.rounds)), settings.ports)
    findings.add(
        "asyncio, empty range", statistics.median(theirs / ours for ours, _, theirs in rounds), ""
    )
    times = [statistics.median(column) / 1000 for column in zip(*rounds, strict=True)]
    findings.tables.append(
        Table(
            "asyncio: TCP from a source address, in an empty range",
            ("call", "µs"),
            list(
                zip(
                    (
                        "aio.create_connection()",
                        "aio.open_connection()",
                        "asyncio.open_connection()",
                    ),
                    (round(each, 1) for each in times),
                    strict=True,
                )
            ),
        )
    )
    settings.progress("asyncio: up to the last port")
    some = PortRange(
        settings.ports.low,
        settings.ports.low
        + min(settings.ports.size, descriptor_limit() - SPARE_DESCRIPTORS - 100) // 2 * 2
        - 1,
    )
    fills = [
        in_network(lambda: asyncio.run(_fill(some)), some) for _ in range(min(3, settings.rounds))
    ]
    findings.add("asyncio, opened", min(len(fill) for fill in fills) / some.size, f"{some.size:,}")
    findings.add("asyncio, last 1 %", statistics.median(map(_tail, fills)), "")
    settings.progress("asyncio: waiting")
    share = in_network(lambda: asyncio.run(_wait()), PortRange(40000, 40099))
    findings.add("asyncio, waiting", 100 * share, f"{_WAITING:,} tasks, {_WATCHED:.0f} s")
    settings.progress("asyncio: waiting while others come and go")
    share, ends = in_network(lambda: asyncio.run(_wait_in_churn(some)), some)
    findings.add("asyncio, waiting in churn", 100 * share, f"{ends:,.0f} ends a second")
    return findings


async def _empty_range(rounds: int) -> list[tuple[float, float, float]]:
    """Of each round the median nanoseconds of the three calls."""
    gc.collect()
    gc.disable()

    async def ours() -> Any:
        return await aio.create_connection(DESTINATION, source_address=_SOURCE)

    async def streams() -> Any:
        return await aio.open_connection(*DESTINATION, source_address=_SOURCE)

    async def theirs() -> Any:
        return await asyncio.open_connection(*DESTINATION, local_addr=_SOURCE)

    calls = (ours, streams, theirs)
    with listen_at_destination() as listener:
        for call in calls:
            await _time(call, listener)
        results = []
        for _ in range(rounds):
            times: tuple[list[int], ...] = ([], [], [])
            for _ in range(_CALLS):
                for call, column in zip(calls, times, strict=True):
                    column.append(await _time(call, listener))
            results.append(tuple(statistics.median(column) for column in times))
    return results  # type: ignore[return-value]  # three each


async def _time(call: Callable[[], Awaitable[Any]], listener: socket.socket) -> int:
    clock = time.perf_counter_ns
    start = clock()
    found = await call()
    spent = clock() - start
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


async def _fill(ports: PortRange) -> list[int]:
    """The nanoseconds of each connection of a fill; ends at the first that fails."""
    gc.collect()
    gc.disable()
    nanoseconds = []
    sockets = []
    clock = time.perf_counter_ns
    with listen_at_destination():
        try:
            for _ in range(ports.size):
                start = clock()
                sockets.append(await aio.create_connection(DESTINATION, source_address=_SOURCE))
                nanoseconds.append(clock() - start)
        except OSError:
            return nanoseconds
        finally:
            for sock in sockets:
                sock.close()
    return nanoseconds


def _tail(nanoseconds: list[int]) -> float:
    last = nanoseconds[-max(1, len(nanoseconds) // 100) :]
    return statistics.fmean(last) / statistics.fmean(nanoseconds[: len(nanoseconds) // 2])


async def _wait_in_churn(ports: PortRange) -> tuple[float, float]:
    """The same for one task in a full range whose connections keep ending, into TIME_WAIT.

    Returns how many ended a second, too.
    """
    with listen_at_destination():
        dialer = aio.Dialer([LOOPBACK], wait=60)
        sockets = [await dialer.create_connection(DESTINATION) for _ in range(ports.size)]
        task = asyncio.create_task(dialer.create_connection(DESTINATION))
        await asyncio.sleep(0)
        spent, ended = 0.0, 0
        begun = time.monotonic()
        while time.monotonic() - begun < _WATCHED and sockets:
            # What closing takes is not the task's.
            sockets.pop().close()
            ended += 1
            before = time.thread_time()
            await asyncio.sleep(0.002)
            spent += time.thread_time() - before
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for sock in sockets:
            sock.close()
    return spent / _WATCHED, ended / _WATCHED


async def _wait() -> float:
    """The share of a CPU that tasks take which wait for a port in a full range."""
    with listen_at_destination():
        dialer = aio.Dialer([LOOPBACK], wait=60)
        sockets = [await dialer.create_connection(DESTINATION) for _ in range(100)]
        tasks = [
            asyncio.create_task(dialer.create_connection(DESTINATION)) for _ in range(_WAITING)
        ]
        # Each begins to wait in its first turn.
        await asyncio.sleep(0)
        before = time.process_time()
        await asyncio.sleep(_WATCHED)
        spent = time.process_time() - before
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sock in sockets:
            sock.close()
    return spent / _WATCHED
