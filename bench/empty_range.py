"""What connectx costs where nobody needs it: in an empty range, beside the standard library."""

from __future__ import annotations

import functools
import gc
import socket
import statistics
import time
from typing import TYPE_CHECKING, Final

import connectx
from bench.churn import ABORT
from bench.harness import DESTINATION, SOURCES, Findings, Table, in_network, listen_at_destination

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.harness import Settings
    from bench.ways import Address

_CALLS: Final = 500


def measure(settings: Settings) -> Findings:
    """Measure opening, and closing as well."""
    findings = Findings()
    rows = []
    for source, host in SOURCES.items():
        settings.progress(f"empty range: {source}")
        address = None if host is None else (host, 0)
        rounds = in_network(
            functools.partial(_all_rounds, address, settings.rounds), settings.ports
        )
        findings.add(
            f"empty range, {source}",
            statistics.median(ours[0] / theirs[0] for ours, theirs in rounds),
            "",
        )
        for name, times in zip(("connectx", "socket"), zip(*rounds, strict=True), strict=True):
            opening, closing = (
                statistics.median(column) / 1000 for column in zip(*times, strict=True)
            )
            rows.append(
                (f"{name}.create_connection(), {source}", round(opening, 1), round(closing, 1))
            )
    findings.tables.append(
        Table("Empty range: TCP to a literal address", ("call", "µs", "close µs"), rows)
    )
    return findings


def _all_rounds(
    source: Address | None, rounds: int
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Of each round and either function, the median nanoseconds of opening and of closing."""
    gc.collect()
    gc.disable()
    with listen_at_destination() as listener:
        # What a program pays once is not what a call costs.
        for function in (connectx.create_connection, socket.create_connection):
            _time(function, source, listener)
        results = []
        for _ in range(rounds):
            ours, theirs = [], []
            for _ in range(_CALLS):
                ours.append(_time(connectx.create_connection, source, listener))
                theirs.append(_time(socket.create_connection, source, listener))
            results.append((_medians(ours), _medians(theirs)))
    return results


def _time(
    create_connection: Callable[..., socket.socket],
    source: Address | None,
    listener: socket.socket,
) -> tuple[int, int]:
    clock = time.perf_counter_ns
    start = clock()
    sock = create_connection(DESTINATION, source_address=source)
    opened = clock()
    # The range stays empty: no TIME_WAIT, and nothing waits to be accepted.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    closing = clock()
    sock.close()
    closed = clock()
    listener.accept()[0].close()
    return opened - start, closed - closing


def _medians(times: list[tuple[int, int]]) -> tuple[float, float]:
    opening, closing = zip(*times, strict=True)
    return statistics.median(opening), statistics.median(closing)
