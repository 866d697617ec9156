"""How well connectx has to do: every figure that has a target, and the target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from bench.harness import SOURCES

AT_LEAST: Final = "at least"
AT_MOST: Final = "at most"


@dataclass(frozen=True)
class Target:
    """What a figure has to be.

    figure: its name; what comes before the first comma or colon is the measurement's.
    says: the figure in words.
    """

    figure: str
    says: str
    comparison: str
    bound: float
    unit: str = ""

    def met_by(self, value: float | None) -> bool:
        """Whether a figure meets it; one that was not measured does not."""
        if value is None or math.isnan(value):
            return False
        return value >= self.bound if self.comparison is AT_LEAST else value <= self.bound


def _fill(protocol: str, slow: str, against_slow: float, against_c: float) -> list[Target]:
    name = protocol.upper()
    return [
        target
        for source in SOURCES
        for target in (
            Target(
                f"{protocol}, {source}: opened",
                f"{name}, {source}: connections opened, of all there are",
                AT_LEAST,
                1,
            ),
            Target(
                f"{protocol}, {source}: duplicates",
                f"{name}, {source}: duplicate 4-tuples",
                AT_MOST,
                0,
            ),
            Target(
                f"{protocol}, {source}: {slow}",
                f"{name}, {source}: speed, {slow} being 1",
                AT_LEAST,
                against_slow,
                "x",
            ),
            Target(
                f"{protocol}, {source}: bare loop",
                f"{name}, {source}: speed, a bare Python loop being 1",
                AT_LEAST,
                0.85,
                "x",
            ),
            Target(
                f"{protocol}, {source}: C",
                f"{name}, {source}: speed, C being 1",
                AT_LEAST,
                against_c,
                "x",
            ),
            Target(
                f"{protocol}, {source}: last 1 %",
                f"{name}, {source}: time in the last 1 %, the first half being 1",
                AT_MOST,
                1.5,
                "x",
            ),
        )
    ]


def _each(figure: str, says: str, comparison: str, bound: float, unit: str = "") -> list[Target]:
    """The same target for TCP and UDP, with and without a source."""
    return [
        Target(f"{figure}, {protocol}, {source}", f"{protocol.upper()}, {source}: {says}",
               comparison, bound, unit)
        for protocol in ("tcp", "udp")
        for source in SOURCES
    ]  # fmt: skip


TARGETS: Final = (
    *_fill("tcp", "plain connect()", 20, 0.55),
    *_fill("udp", "linear probing", 30, 0.45),
    *_each("system calls", "system calls other than the bare loop's", AT_MOST, 0),
    *_each("churn", "opening at 99 % occupancy, at 10 % being 1", AT_MOST, 2, "x"),
    *(
        Target(
            f"empty range, {source}",
            f"Empty range, {source}: time, socket.create_connection() being 1",
            AT_MOST,
            1.25,
            "x",
        )
        for source in SOURCES
    ),
    *(
        Target(
            f"dialer, {protocol}, {sources}",
            f"Dialer, {protocol.upper()}, {sources}: time, create_connection() being 1",
            AT_MOST,
            1.15,
            "x",
        )
        for protocol in ("tcp", "udp")
        for sources in ("one source", "two sources")
    ),
    Target(
        "asyncio, empty range",
        "asyncio, empty range: speed, asyncio.open_connection() being 1",
        AT_LEAST,
        1,
        "x",
    ),
    Target("asyncio, opened", "asyncio: connections opened, of all there are", AT_LEAST, 1),
    Target(
        "asyncio, last 1 %",
        "asyncio: time in the last 1 %, the first half being 1",
        AT_MOST,
        1.5,
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
    Target("import", "import connectx, beyond import socket", AT_MOST, 15, "ms"),
    *(
        target
        for protocol in ("tcp", "udp")
        for target in (
            Target(
                f"memory, {protocol}: one connection",
                f"Memory, {protocol.upper()}: an active destination, one connection, per port",
                AT_MOST,
                2,
                "bytes",
            ),
            Target(
                f"memory, {protocol}: every port",
                f"Memory, {protocol.upper()}: an active destination, all ports in use, per port",
                AT_MOST,
                2,
                "bytes",
            ),
            Target(
                f"memory, {protocol}: idle",
                f"Memory, {protocol.upper()}: each further idle destination",
                AT_MOST,
                # Nothing; what is left belongs to what happens to be in the caches.
                1,
                "bytes",
            ),
        )
    ),
    *(
        Target(f"usage, {way}: {other}", f"{way}: time, {other} being 1", AT_MOST, bound, "x")
        for way in ("connectx usage --json", "snapshot()")
        for other, bound in (("ss -tan", 0.8), ("psutil.net_connections()", 0.1))
    ),
)
