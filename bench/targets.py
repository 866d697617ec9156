"""How well connectx has to do: every figure that has a target, and the target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from bench.harness import KINDS, SOURCES
from bench.traced import NEW

AT_LEAST: Final = "at least"
AT_MOST: Final = "at most"


@dataclass(frozen=True)
class Target:
    """What a figure has to be.

    Attributes:
        figure: Its name; what comes before the first comma or colon is the measurement's.
        says: The figure in words.
        comparison: AT_LEAST or AT_MOST.
        bound: What the figure must reach, or must not exceed.
        unit: The figure's unit; "x" for a ratio.
    """

    figure: str
    says: str
    comparison: str
    bound: float
    unit: str = ""

    def met_by(self, value: float | None) -> bool:
        """Return whether a figure meets it; one that was not measured does not."""
        if value is None or math.isnan(value):
            return False
        return value >= self.bound if self.comparison is AT_LEAST else value <= self.bound


def _fill(protocol: str, slow: str, against_slow: float, against_c: float) -> list[Target]:
    return [
        Target(
            f"{protocol}, {source}: {figure}",
            f"{protocol.upper()}, {source}: {says}",
            comparison,
            bound,
            unit,
        )
        for source in SOURCES
        for figure, says, comparison, bound, unit in (
            ("opened", "connections opened, of all there are", AT_LEAST, 1, ""),
            ("duplicates", "duplicate 4-tuples", AT_MOST, 0, ""),
            (slow, f"speed, {slow} being 1", AT_LEAST, against_slow, "x"),
            ("bare loop", "speed, a bare Python loop being 1", AT_LEAST, 0.85, "x"),
            ("C", "speed, C being 1", AT_LEAST, against_c, "x"),
            ("last 1 %", "time in the last 1 %, the first half being 1", AT_MOST, 1.3, "x"),
        )
    ]


def _each(
    figure: str, says: str, bound: float, unit: str = "", *, of: tuple[str, ...] = tuple(KINDS)
) -> list[Target]:
    """Return the same target for each protocol, with and without a source: at most so much."""
    return [
        Target(figure.format(protocol, source), f"{protocol.upper()}, {source}: {says}", AT_MOST,
               bound, unit)
        for protocol in of
        for source in SOURCES
    ]  # fmt: skip


TARGETS: Final = (
    *_fill("tcp", "plain connect()", 20, 0.75),
    *_fill("udp", "linear probing", 30, 0.6),
    *_each("system calls, {}, {}", "system calls other than the bare loop's", 0),
    *_each(
        f"system calls, {{}}, {{}}{NEW}",
        f"system calls other than the bare loop's{NEW}",
        0,
        of=("udp",),
    ),
    *_each("churn, {}, {}", "opening at 99 % occupancy, at 10 % being 1", 2, "x"),
    *_each(
        "empty range, {1}",
        "time in an empty range, socket.create_connection() being 1",
        1.1,
        "x",
        of=("tcp",),
    ),
    *_each(
        "own socket, {}, {}",
        "socket(), connectx() and close(), create_connection() and close() being 1",
        1.5,
        "x",
    ),
    *_each(
        "new destinations, {}, {}",
        "time for a new destination, socket.create_connection() being 1",
        1.5,
        "x",
        of=("tcp",),
    ),
    *_each(
        "new destinations, {}, {}",
        "time for a new destination, a bare Python loop being 1",
        1.7,
        "x",
        of=("udp",),
    ),
    *_each("new destinations, {}, {}, µs", "time for a new destination", 90, "µs", of=("udp",)),
    *(
        Target(
            f"dialer, {protocol}, {sources}",
            f"Dialer, {protocol.upper()}, {sources}: time, create_connection() being 1",
            AT_MOST,
            1.25,
            "x",
        )
        for protocol in KINDS
        for sources in ("one source", "two sources")
    ),
    Target(
        "asyncio, empty range",
        "asyncio, empty range: speed, asyncio.open_connection() being 1",
        AT_LEAST,
        1.4,
        "x",
    ),
    Target("asyncio, opened", "asyncio: connections opened, of all there are", AT_LEAST, 1),
    Target(
        "asyncio, last 1 %",
        "asyncio: time in the last 1 %, the first half being 1",
        AT_MOST,
        1.3,
        "x",
    ),
    Target(
        "asyncio, waiting",
        "asyncio: 1,000 tasks that wait for a port, of one CPU",
        AT_MOST,
        1,
        "%",
    ),
    Target(
        "asyncio, waiting in churn",
        "asyncio: a task that waits in a full range while connections end, of one CPU",
        AT_MOST,
        20,
        "%",
    ),
    Target("top", "connectx top: watching 100,000 connections, of one CPU", AT_MOST, 30, "%"),
    *(
        Target(
            f"import, {protocol}",
            f"import connectx and its first {protocol.upper()} connection, beyond import socket",
            AT_MOST,
            20,
            "ms",
        )
        for protocol in KINDS
    ),
    *(
        Target(
            f"memory, {protocol}: {figure}",
            f"Memory, {protocol.upper()}: {says}",
            AT_MOST,
            bound,
            "bytes",
        )
        for protocol in KINDS
        for figure, says, bound in (
            ("one connection", "an active destination, one connection, per port", 2),
            ("every port", "an active destination, all ports in use, per port", 2),
            # Nothing; what is left belongs to what happens to be in the caches.
            ("idle", "each further idle destination", 1),
        )
    ),
    *(
        Target(f"usage, {way}: {other}", f"{way}: time, {other} being 1", AT_MOST, bound, "x")
        for way in ("connectx usage --json", "snapshot()")
        for other, bound in (("ss -tan", 0.8), ("psutil.net_connections()", 0.1))
    ),
)
