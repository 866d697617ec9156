"""`connectx usage` beside ss(8) and psutil, on a machine with 100,000 TCP sockets."""

from __future__ import annotations

import contextlib
import functools
import importlib
import shutil
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.filling import open_all
from bench.harness import LOOPBACK, Findings, Table, in_network
from connectx.addresses import PortRange
from connectx.observe import snapshot
from connectx.sandbox.holders import Holders
from connectx.sandbox.servers import listen
from connectx.sandbox.workers import Crew

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.harness import Settings

#: Nobody accepts them, so that a connection takes one descriptor and yet has two ends.
CONNECTIONS: Final = 50_000
_LISTENERS: Final = (900, 901)
_PORTS: Final = PortRange(1024, 65535)

USAGE: Final = "connectx usage --json"
SNAPSHOT: Final = "snapshot()"
SS: Final = "ss -tan"
PSUTIL: Final = "psutil.net_connections()"

_COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    USAGE: (sys.executable, "-m", "connectx", "usage", "--json"),
    SS: ("ss", "-tan"),
}


#: Starts a command, and prints the most memory that it had, in KiB. It is a process of its own,
#: as small as a Python can be, since what execve() replaces counts too.
_MEMORY_OF: Final = """\
import os, resource, sys
null = os.open(os.devnull, os.O_WRONLY)
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ,
                      file_actions=[(os.POSIX_SPAWN_DUP2, null, 1)])
assert os.waitpid(pid, 0)[1] == 0
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


class Measured(NamedTuple):
    """What one way took.

    Attributes:
        seconds: Of each run.
        memory: The most memory that a command had, in MiB; None for a call.
    """

    seconds: list[float]
    memory: float | None


def measure(settings: Settings) -> Findings:
    """Run all of them in turns, beside the same sockets."""
    settings.progress("usage")
    ways = _ways()
    measured = in_network(lambda: _measured(ways, settings.rounds), _PORTS)
    medians = {way: statistics.median(each.seconds) for way, each in measured.items()}
    findings = Findings()
    for way in (USAGE, SNAPSHOT):
        for other, package in ((SS, "iproute2"), (PSUTIL, "psutil")):
            figure = f"usage, {way}: {other}"
            if other in medians:
                findings.add(figure, medians[way] / medians[other])
            else:
                findings.lack(figure, f"no {package}: install it")
    findings.tables.append(
        Table(
            f"Usage: {2 * CONNECTIONS:,} TCP sockets",
            ("what", "ms", "MiB at most"),
            [
                (way, round(medians[way] * 1000, 1), "" if each.memory is None else each.memory)
                for way, each in measured.items()
            ],
        )
    )
    return findings


def _ways() -> dict[str, Callable[[], object]]:
    ways: dict[str, Callable[[], object]] = {
        name: functools.partial(_run, words)
        for name, words in _COMMANDS.items()
        if shutil.which(words[0])
    }
    ways[SNAPSHOT] = snapshot
    # By name, since only the bench installs it: mypy runs without it.
    with contextlib.suppress(ModuleNotFoundError):
        psutil = importlib.import_module("psutil")
        ways[PSUTIL] = functools.partial(psutil.net_connections, kind="tcp")
    return ways


def _measured(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Measured]:
    with contextlib.ExitStack() as stack:
        holders = stack.enter_context(Holders(stack.enter_context(Crew())))
        listeners = [stack.enter_context(listen(LOOPBACK, port)) for port in _LISTENERS]
        each = CONNECTIONS // len(listeners)
        open_all(holders, [(None, sock.getsockname()) for sock in listeners for _ in range(each)])
        assert sum(row.in_use for row in snapshot().rows) == CONNECTIONS
        # This also compiles modules, which no timed run should do.
        measured = {
            way: Measured([], _memory(_COMMANDS[way]) if way in _COMMANDS else None) for way in ways
        }
        for _ in range(rounds):
            for way, run in ways.items():
                start = time.perf_counter()
                run()
                measured[way].seconds.append(time.perf_counter() - start)
    return measured


def _run(words: Sequence[str]) -> None:
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True)


def _memory(words: Sequence[str]) -> float:
    said = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _MEMORY_OF, *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return round(int(said.stdout) / 1024, 1)
