"""What a finding is, and how its numbers are put into words."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.addresses import PortRange

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from connectx._diagnosis.causes import Cause, Remedy
    from connectx._diagnosis.facts import Facts

#: Shares of a capacity from which on it is full, and filling.
FULL: Final = 0.95
FILLING: Final = 0.7
#: How many of a kind are told one by one.
SHOWN: Final = 5


class Severity(enum.Enum):
    """How bad it is; a note is no reason to do anything now."""

    CRITICAL = "critical"
    WARNING = "warning"
    NOTE = "note"


class Finding(NamedTuple):
    """Something that is wrong.

    title: with its numbers, in one line. evidence: what shows it, a line each.
    values: what the remedies' commands have in braces.
    """

    severity: Severity
    cause: Cause
    title: str
    evidence: tuple[str, ...] = ()
    values: Mapping[str, str] = {}

    def command(self, remedy: Remedy) -> str:
        """The remedy's command, to be pasted; "" where what it needs is not known."""
        try:
            return remedy.command.format_map(self.values)
        except KeyError:
            return ""


def duration(seconds: float) -> str:
    """Seconds as people say them: "40 s", "12 min", "3 h"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def numbers(counts: Mapping[str, int]) -> str:
    """Counts by name, the largest first."""
    largest = sorted(counts.items(), key=lambda each: -each[1])
    return ", ".join(f"{number:,} {name}" for name, number in largest)


def owners(counts: Mapping[str, int]) -> str:
    """Who has them, the largest shares."""
    named = sorted(((n, name) for name, n in counts.items() if name), reverse=True)
    shown = [f"{name}: {number:,}" for number, name in named[:SHOWN]]
    if len(named) > SHOWN:
        shown.append(f"{len(named) - SHOWN} more processes")
    return "; ".join(shown) or "owned by nobody, or by processes that only root may see"


def list_of(ports: set[int]) -> str:
    """Ports in order, the first ones."""
    shown = [str(port) for port in sorted(ports)[: 2 * SHOWN]]
    return ", ".join(shown) + ", …" * (len(ports) > len(shown))


def reserve(facts: Facts, ports: Iterable[int]) -> str:
    """The value for ip_local_reserved_ports that has these ports too."""
    wanted = {port for hole in facts.reserved for port in range(hole.low, hole.high + 1)}
    wanted.update(ports)
    ranges: list[PortRange] = []
    for port in sorted(wanted):
        if ranges and ranges[-1].high == port - 1:
            ranges[-1] = PortRange(ranges[-1].low, port)
        else:
            ranges.append(PortRange(port, port))
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
