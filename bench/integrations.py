"""What `dialer=` costs in each library: requests with the library alone and through a dialer.

The rows are those of tests/integrations, so a new integration is measured by existing.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import statistics
import time
from typing import TYPE_CHECKING, Final

import connectx
from bench.harness import DESTINATION, LOOPBACK, Findings, Table, in_network
from tests.integrations import frame

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from bench.harness import Settings

#: Clients of each way in a round, and requests of a client once it is connected.
CLIENTS: Final = 50
_KEPT: Final = 10
_MOST_ROUNDS: Final = 3

#: What is compared, by what the figures call it.
PRICES: Final = ("new", "kept")

ROWS: Final[Mapping[str, frame.Row]] = {row.name: row for row in frame.rows()}


def measure(settings: Settings) -> Findings:
    """Measure each library in turn."""
    findings = Findings()
    rows = []
    for name, row in ROWS.items():
        settings.progress(f"integrations: {name}")
        rounds = [
            in_network(functools.partial(_round, name), settings.ports)
            for _ in range(min(settings.rounds, _MOST_ROUNDS))
        ]
        # Of each way: the first request of a client, and a later one.
        plain, ours = (
            [statistics.median(each) / 1000 for each in zip(*way, strict=True)]
            for way in zip(*rounds, strict=True)
        )
        for price, before, after in zip(PRICES, plain, ours, strict=True):
            findings.add(f"integrations, {row.name}: {price}", after / before)
            rows.append((name, price, round(before), round(after)))
    columns = ("", "connection", "the library alone, µs", "through a dialer, µs")
    findings.tables.append(Table("Integrations: a request", columns, rows))
    return findings


def _round(name: str) -> list[list[float]]:
    """Return the typical nanoseconds of a request for each way."""
    row = ROWS[name]
    dialer = connectx.Dialer([LOOPBACK])
    with contextlib.ExitStack() as stack:
        row.adapter.begin(stack, frame.Server(*DESTINATION))
        gc.collect()
        gc.disable()
        return frame.run(row.backend, functools.partial(_by_turns, row, dialer))


async def _by_turns(row: frame.Row, dialer: connectx.Dialer) -> list[list[float]]:
    ways: list[tuple[ModuleType, frame.Options, list[list[int]]]] = [
        (row.library, frame.Options(), [[], []]),
        (row.integration, frame.Options(given={"dialer": dialer}), [[], []]),
    ]
    for number in range(CLIENTS + 1):
        for library, options, times in ways[:: 1 if number % 2 else -1]:
            async with row.adapter.client(library, options) as client:
                for each in range(1 + _KEPT):
                    start = time.perf_counter_ns()
                    await client.ask(frame.Server(*DESTINATION))
                    taken = time.perf_counter_ns() - start
                    # The second one still loads what belongs to keeping connections.
                    if each != 1:
                        times[bool(each)].append(taken)
    return [[statistics.median(each) for each in times] for _, _, times in ways]
