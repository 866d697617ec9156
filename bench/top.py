"""What `connectx top` costs where a hundred thousand connections are open."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.filling import open_all
from bench.harness import LOOPBACK, Findings, Table, in_network
from connectx.sandbox.holders import Holders
from connectx.sandbox.servers import SERVER_PORT, listen
from connectx.sandbox.workers import Crew

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.harness import Settings

_CONNECTIONS: Final = 100_000
#: To several destinations, since an accept queue holds 65,535 connections.
_DESTINATIONS: Final = 4
_PAIRS: Final = 200
#: More than one interval, by which it has started and drawn what it counted.
_STARTING: Final = 6.0
_WATCHED: Final = 20.0
_SIZE: Final = struct.pack("HHHH", 40, 120, 0, 0)


class Cost(NamedTuple):
    """What the process took while it was watched.

    Attributes:
        cpu: CPU seconds.
        seconds: How long it was watched.
        memory: Bytes at the end.
    """

    cpu: float
    seconds: float
    memory: int


def measure(settings: Settings) -> Findings:
    """Run it on a pseudo-terminal, at its usual interval."""
    fills = _fills(settings.ports.size)
    connections = sum(fills)
    settings.progress(f"top: {connections:,} connections")
    cost = in_network(functools.partial(_cost, fills), settings.ports)
    share = 100 * cost.cpu / cost.seconds
    findings = Findings()
    findings.add("top", share, f"{connections:,} connections")
    findings.tables.append(
        Table(
            f"connectx top, watching {connections:,} connections",
            ("what", "figure"),
            [
                ("CPU, ms for each second", round(10 * share, 1)),
                ("memory, MiB", round(cost.memory / 2**20, 1)),
            ],
        )
    )
    return findings


def _fills(size: int) -> list[int]:
    """Return how many connections each pair has: different numbers, so that sorting has work."""
    total = sum(1 / rank for rank in range(1, _PAIRS + 1))
    fills = [min(size, int(_CONNECTIONS / total / rank)) for rank in range(1, _PAIRS + 1)]
    # The rest that rounding down left, up to the number of ports.
    fills[-1] += min(size - fills[-1], _CONNECTIONS - sum(fills))
    return fills


def _cost(fills: Sequence[int]) -> Cost:
    with contextlib.ExitStack() as stack:
        holders = stack.enter_context(Holders(stack.enter_context(Crew())))
        # Nobody accepts: in the queue they need no descriptor.
        for number in range(_DESTINATIONS):
            stack.enter_context(listen(LOOPBACK, SERVER_PORT + number))
        pairs = [
            ((f"127.0.1.{number + 1}", 0), (LOOPBACK, SERVER_PORT + number % _DESTINATIONS))
            for number, fill in enumerate(fills)
            for _ in range(fill)
        ]
        open_all(holders, pairs)
        return _watch()


def _watch() -> Cost:
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, _SIZE)
    process = subprocess.Popen(
        [sys.executable, "-m", "connectx", "top"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(terminal)
    with process, contextlib.closing(os.fdopen(screen, "rb", buffering=0)):
        try:
            _read_for(screen, _STARTING)
            before, start = _cpu_seconds(process.pid), time.monotonic()
            _read_for(screen, _WATCHED)
            seconds = time.monotonic() - start
            cost = Cost(_cpu_seconds(process.pid) - before, seconds, _memory(process.pid))
            # Not SIGINT, which workers, and so what they start, have blocked.
            os.write(screen, b"q")
            _read_for(screen, _STARTING)
            assert process.wait() == 0
        finally:
            process.kill()
    return cost


def _read_for(screen: int, seconds: float) -> None:
    """Take what is drawn, as a terminal does, for some seconds or until it is closed."""
    end = time.monotonic() + seconds
    poll = select.poll()
    poll.register(screen, select.POLLIN)
    # Linux gives EIO, not an end of file, once no process has the terminal any more.
    with contextlib.suppress(OSError):
        while (left := end - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                os.read(screen, 65536)


def _cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123 - a line, not a path
        # The fields after the command's name, which may have blanks in it: utime and stime.
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:  # noqa: PTH123 - as above
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
