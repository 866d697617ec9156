"""How well connectx has to do: every figure that has a target, and the target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.destinations import WAYS
from bench.harness import KINDS, SOURCES
from bench.integrations import ROWS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    #: The figure's name, the same in words, comparison, bound and unit.
    Row = tuple[str, str, str, float, str]

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


def _targets(measurement: str, variants: Iterable[str], *rows: Row) -> Iterator[Target]:
    """Yield the targets of a measurement: each row for each of its variants."""
    for variant in variants:
        of = f"{measurement}, {variant}" if variant else measurement
        for name, says, comparison, bound, unit in rows:
            figure = f"{of}: {name}" if name else of
            yield Target(figure, f"{of}: {says}", comparison, bound, unit)


def _fill(slow: str, against_slow: float, against_c: float) -> tuple[Row, ...]:
    return (
        ("opened", "connections opened, of all there are", AT_LEAST, 1, ""),
        ("duplicates", "duplicate 4-tuples", AT_MOST, 0, ""),
        (slow, f"speed, {slow} being 1", AT_LEAST, against_slow, "x"),
        ("bare loop", "speed, a bare Python loop being 1", AT_LEAST, 0.85, "x"),
        ("C", "speed, C being 1", AT_LEAST, against_c, "x"),
        ("last 1 %", "time in the last 1 %, the first half being 1", AT_MOST, 1.3, "x"),
    )


_TCP: Final = [f"tcp, {source}" for source in SOURCES]
_UDP: Final = [f"udp, {source}" for source in SOURCES]
_DIALERS: Final = [
    f"{kind}, {sources}" for kind in KINDS for sources in ("one source", "two sources")
]

TARGETS: Final = (
    *_targets("tcp", SOURCES, *_fill("plain connect()", 20, 0.75)),
    *_targets("udp", SOURCES, *_fill("linear probing", 30, 0.6)),
    *_targets(
        "system calls", [*_TCP, *_UDP], ("", "those other than the bare loop's", AT_MOST, 0, "")
    ),
    *_targets(
        "system calls",
        _UDP,
        ("new destinations", "the same for new destinations", AT_MOST, 0, ""),
    ),
    *_targets(
        "churn",
        [*_TCP, *_UDP],
        ("", "time of opening at 99 % occupancy, at 10 % being 1", AT_MOST, 2, "x"),
    ),
    *_targets(
        "empty range", SOURCES, ("", "time, socket.create_connection() being 1", AT_MOST, 1.1, "x")
    ),
    *_targets(
        "own socket",
        [*_TCP, *_UDP],
        ("", "time with close(), create_connection() being 1", AT_MOST, 1.5, "x"),
    ),
    *_targets(
        "new destinations",
        _TCP,
        ("", "time, socket.create_connection() being 1", AT_MOST, 1.5, "x"),
    ),
    *_targets(
        "new destinations",
        _UDP,
        ("", "time, a bare Python loop being 1", AT_MOST, 1.7, "x"),
        ("µs", "time", AT_MOST, 90, "µs"),
    ),
    *_targets(
        "destinations",
        [f"{kind}, {way}" for kind in KINDS for way in WAYS],
        ("growth", "time of a call to 100,000 in turn, to 100 being 1", AT_MOST, 1.5, "x"),
        ("longest", "the longest call to any number of these", AT_MOST, 5, "ms"),
    ),
    *_targets(
        "destinations",
        WAYS,
        ("open", "each that has a connection, beside the socket", AT_MOST, 2048, "bytes"),
        ("closed", "100,000 that had one, all together", AT_MOST, 8, "MiB"),
    ),
    *_targets(
        "dialer",
        _DIALERS,
        ("", "time with close(), create_connection() being 1", AT_MOST, 1.25, "x"),
    ),
    *_targets(
        "socket options", [""], ("", "time with TCP_NODELAY, without being 1", AT_MOST, 1.5, "x")
    ),
    *_targets(
        "asyncio",
        [""],
        ("empty range", "speed, asyncio.open_connection() being 1", AT_LEAST, 1.4, "x"),
        ("opened", "connections opened, of all there are", AT_LEAST, 1, ""),
        ("last 1 %", "time in the last 1 %, the first half being 1", AT_MOST, 1.3, "x"),
        ("waiting", "1,000 tasks that wait for a port, of one CPU", AT_MOST, 1, "%"),
        ("churn", "a task that waits while connections end, of one CPU", AT_MOST, 20, "%"),
    ),
    *_targets(
        "integrations",
        ROWS,
        ("new", "a client's first request, the library alone being 1", AT_MOST, 1.1, "x"),
        ("kept", "a later request, the library alone being 1", AT_MOST, 1.05, "x"),
    ),
    *_targets("top", [""], ("", "watching 100,000 connections, of one CPU", AT_MOST, 30, "%")),
    *_targets(
        "search",
        [""],
        ("odd ports", "median time on odd ports, on even ones being 1", AT_LEAST, 3, "x"),
        (
            "even ports of an odd range",
            "the same of even ones where the range begins with an odd one",
            AT_LEAST,
            3,
            "x",
        ),
        ("slope", "time more than of the connection before", AT_LEAST, 0, "ns"),
        (
            "full-range parity",
            "the slower parity with IP_LOCAL_PORT_RANGE, the other being 1",
            AT_MOST,
            1.3,
            "x",
        ),
        ("auto parity", "the slower parity with connectx, the other being 1", AT_MOST, 1.3, "x"),
        ("refusals", "refusal by a window of 2,800 ports, by one of 70 being 1", AT_LEAST, 3, "x"),
        ("plain by its probes", "time by the model's probes, correlation", AT_LEAST, 0.9, ""),
        ("plain by the option's", "the same by a search with the option", AT_MOST, 0.7, ""),
        ("plain by a window's", "the same by a search in windows", AT_MOST, 0.7, ""),
        (
            "a probe with the option",
            "with the option, measured and predicted time apart",
            AT_MOST,
            1.5,
            "x",
        ),
        ("a probe in a window", "in windows, measured and predicted time apart", AT_MOST, 1.5, "x"),
    ),
    *_targets(
        "import",
        KINDS,
        ("", "connectx and its first connection, beyond import socket", AT_MOST, 20, "ms"),
    ),
    *_targets(
        "memory",
        KINDS,
        ("one connection", "a destination with one connection, per port", AT_MOST, 2, "bytes"),
        ("every port", "a destination with all ports in use, per port", AT_MOST, 2, "bytes"),
        # Nothing; what is left belongs to what happens to be in the caches.
        ("idle", "each further idle destination", AT_MOST, 1, "bytes"),
    ),
    *_targets(
        "usage",
        ("connectx usage --json", "snapshot()"),
        ("ss -tan", "time, ss -tan being 1", AT_MOST, 0.8, "x"),
        ("psutil.net_connections()", "time, psutil.net_connections() being 1", AT_MOST, 0.1, "x"),
    ),
)
