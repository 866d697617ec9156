"""What a Dialer costs beside the plain call: opening and closing, one by one, in turns."""

from __future__ import annotations

import functools
import gc
import socket
import statistics
import time
from typing import TYPE_CHECKING, Final

import connectx
from bench.churn import ABORT
from bench.harness import DESTINATION, LOOPBACK, Findings, Table, in_network, listen_at_destination

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.harness import Settings

    Opener = Callable[[], socket.socket]

_KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
#: Source addresses of the dialers. All of 127.0.0.0/8 is local.
_SOURCES: Final = {"one source": (LOOPBACK,), "two sources": (LOOPBACK, "127.0.0.2")}
_CALLS: Final = 1000


def measure(settings: Settings) -> Findings:
    """Measure TCP and UDP, with one source and with two."""
    findings = Findings()
    rows = []
    for protocol, kind in _KINDS.items():
        for name, sources in _SOURCES.items():
            settings.progress(f"dialer: {protocol}, {name}")
            rounds = in_network(
                functools.partial(_all_rounds, kind, sources, settings.rounds), settings.ports
            )
            ratio = statistics.median(dialer / core for dialer, core in rounds)
            findings.add(f"dialer, {protocol}, {name}", ratio, "")
            dialer, core = (
                statistics.median(column) / 1000 for column in zip(*rounds, strict=True)
            )
            rows.append((f"{protocol}, {name}", round(dialer, 1), round(core, 1)))
    findings.tables.append(
        Table("Dialer: opening and closing", ("", "Dialer, µs", "create_connection(), µs"), rows)
    )
    return findings


def _all_rounds(
    kind: socket.SocketKind, sources: tuple[str, ...], rounds: int
) -> list[tuple[float, float]]:
    """Of each round the median nanoseconds with a dialer and without."""
    gc.collect()
    gc.disable()
    dialer = connectx.Dialer(sources)
    source = (LOOPBACK, 0)

    def dial() -> socket.socket:
        return dialer.create_connection(DESTINATION, type=kind)

    def call() -> socket.socket:
        return connectx.create_connection(DESTINATION, source_address=source, type=kind)

    with listen_at_destination() as listener:
        # What a program pays once is not what a call costs.
        for opener in (dial, call):
            _time(opener, listener)
        results = []
        for _ in range(rounds):
            ours, theirs = [], []
            for _ in range(_CALLS):
                ours.append(_time(dial, listener))
                theirs.append(_time(call, listener))
            results.append((statistics.median(ours), statistics.median(theirs)))
    return results


def _time(opener: Opener, listener: socket.socket) -> int:
    clock = time.perf_counter_ns
    start = clock()
    sock = opener()
    opened = clock()
    stream = sock.type == socket.SOCK_STREAM
    if stream:
        # The range stays empty: no TIME_WAIT, and nothing waits to be accepted.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    closing = clock()
    sock.close()
    spent = opened - start + clock() - closing
    if stream:
        listener.accept()[0].close()
    return spent
