"""Measure, print the figures beside their targets, and write them as JSON."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import (
    asynchronous,
    calls,
    churn,
    competition,
    destinations,
    importing,
    integrations,
    memory,
    report,
    searching,
    top,
    turns,
    usage,
)
from bench.harness import Findings, Settings, progress_line, refusal
from connectx.cli.arguments import whole_number
from connectx.cli.lab.arguments import add_ports
from connectx.lab.resources import DEFAULT_PORTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: By the names that --only takes, and with which the figures' names begin.
MEASUREMENTS: Final[Mapping[str, Callable[[Settings], Findings]]] = {
    "tcp": functools.partial(competition.measure, competition.TCP),
    "udp": functools.partial(competition.measure, competition.UDP),
    "system calls": calls.measure,
    "churn": churn.measure,
    "empty range": functools.partial(
        turns.measure, "Empty range: TCP to a literal address", turns.EMPTY_RANGE
    ),
    "own socket": functools.partial(
        turns.measure, "connectx() on the caller's socket", turns.OWN_SOCKET
    ),
    "new destinations": functools.partial(
        turns.measure, "A new destination at every call", turns.NEW
    ),
    "destinations": destinations.measure,
    "dialer": functools.partial(turns.measure, "Dialer", turns.DIALER),
    "socket options": functools.partial(
        turns.measure, "Dialer: socket_options=", turns.SOCKET_OPTIONS
    ),
    "asyncio": asynchronous.measure,
    "integrations": integrations.measure,
    "import": importing.measure,
    "memory": memory.measure,
    "search": searching.measure,
    "top": top.measure,
    "usage": usage.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurements, and return 0 if every target is met, else 1."""
    options = _parser().parse_args(arguments)
    names = options.only or list(MEASUREMENTS)
    settings = Settings(options.rounds, options.ports, progress_line)
    reason = refusal()
    if reason:
        print(f"bench: {reason}", file=sys.stderr)
        return 1
    findings = Findings()
    try:
        for name in names:
            findings.merge(MEASUREMENTS[name](settings))
    finally:
        progress_line("")
    targets = report.targets_of(names)
    print(report.as_text(targets, findings, settings))
    content = json.dumps(report.as_json(targets, findings, settings), indent=2)
    options.json.write_text(f"{content}\n")
    print(f"\nwritten to {options.json}")
    return 0 if report.all_met(targets, findings) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        choices=list(MEASUREMENTS),
        help="measure only this; may be given several times",
    )
    parser.add_argument(
        "--rounds",
        type=whole_number(),
        default=9,
        help="how often each comparison is repeated (default: %(default)s)",
    )
    add_ports(parser, DEFAULT_PORTS)
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("bench.json"),
        metavar="FILE",
        help="where to write the figures as JSON (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
