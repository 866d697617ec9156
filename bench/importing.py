"""What connectx adds to the start of a program that imports socket anyway."""

from __future__ import annotations

import functools
import resource
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from bench.harness import (
    DESTINATION,
    KINDS,
    Findings,
    Table,
    in_network,
    listen_at_destination,
)

if TYPE_CHECKING:
    from bench.harness import Settings

_RUNS: Final = 10
_MOST_ROUNDS: Final = 5

_BARE: Final = "import socket"
_IMPORTED: Final = "import socket, connectx"
#: What is loaded when it is first needed belongs to the price.
_CALLED: Final = {
    protocol: f"{_IMPORTED}; connectx.create_connection({DESTINATION}, type=socket.{kind.name})"
    for protocol, kind in KINDS.items()
}


def measure(settings: Settings) -> Findings:
    """Start fresh interpreters, in turns."""
    settings.progress("import")
    runs = _RUNS * min(settings.rounds, _MOST_ROUNDS)
    medians = in_network(functools.partial(_medians, runs), settings.ports)
    findings = Findings()
    for protocol, program in _CALLED.items():
        findings.add(f"import, {protocol}", (medians[program] - medians[_BARE]) * 1000)
    findings.tables.append(
        Table(
            "Import: a fresh interpreter from start to end",
            ("program", "CPU ms"),
            [(program, round(median * 1000, 1)) for program, median in medians.items()],
        )
    )
    return findings


def _medians(runs: int) -> dict[str, float]:
    """Return the median CPU seconds of each program."""
    times: dict[str, list[float]] = {each: [] for each in (_BARE, _IMPORTED, *_CALLED.values())}
    with listen_at_destination():
        # Once more than needed: the first run may have to compile the modules.
        for _ in range(runs + 1):
            for program, column in times.items():
                column.append(_run(program))
    return {program: statistics.median(column[1:]) for program, column in times.items()}


def _run(program: str) -> float:
    """Return the CPU time, since on a busy machine others take the CPU from it as well."""
    before = _spent()
    # Isolated: neither this directory nor the environment decides what is imported.
    subprocess.run([sys.executable, "-I", "-c", program], check=True)
    return _spent() - before


def _spent() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
