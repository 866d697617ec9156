"""What `import connectx` adds to a program that imports socket anyway."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from bench.harness import Findings, Table

if TYPE_CHECKING:
    from bench.harness import Settings

_RUNS: Final = 10
_PROGRAMS: Final = ("import socket", "import socket, connectx")


def measure(settings: Settings) -> Findings:
    """Start fresh interpreters, in turns."""
    settings.progress("import")
    times: dict[str, list[float]] = {program: [] for program in _PROGRAMS}
    # Once more than needed: the first run may have to compile the modules.
    for _ in range(_RUNS * min(settings.rounds, 5) + 1):
        for program in _PROGRAMS:
            times[program].append(_run(program))
    medians = {program: statistics.median(values[1:]) for program, values in times.items()}
    without, with_connectx = (medians[program] for program in _PROGRAMS)
    findings = Findings()
    findings.add("import", (with_connectx - without) * 1000)
    findings.tables.append(
        Table(
            "Import: a fresh interpreter from start to end",
            ("program", "ms"),
            [(program, round(median * 1000, 1)) for program, median in medians.items()],
        )
    )
    return findings


def _run(program: str) -> float:
    start = time.perf_counter()
    # Isolated: neither this directory nor the environment decides what is imported.
    subprocess.run([sys.executable, "-I", "-c", program], check=True)
    return time.perf_counter() - start
