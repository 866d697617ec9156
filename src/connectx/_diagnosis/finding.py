"""What a finding is, and how its figures are put into words."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.addresses import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from connectx._diagnosis.causes import Cause, Remedy
    from connectx.addresses import Endpoint

#: Shares of a capacity from which on it is full, and filling.
FULL: Final = 0.95
FILLING: Final = 0.7

#: What sockets without a process are counted under.
NOBODY: Final = "no process"

#: How many items of a kind are listed one by one.
SHOWN: Final = 5


class Severity(enum.Enum):
    """How bad a finding is. A note calls for nothing now."""

    CRITICAL = "critical"
    WARNING = "warning"
    NOTE = "note"


class Finding(NamedTuple):
    """Something that is wrong.

    Attributes:
        severity: How bad it is.
        cause: Why it is wrong, and what helps.
        title: What was found, with its figures, in one line.
        evidence: What shows it, in one line each.
        values: What the {names} in the commands of the remedies stand for.
        details: More that shows it, in one line each, for a reader who wants to check.
        about: The connections it is about, where another rule may find the same ones; "" for
            none in particular.
        also: The other findings of the same cause, the worst first.
        fields: The addresses and counts of title and evidence, by name, for programs. The
            values are text, numbers, and what `connectx._diagnosis.facts` and
            `connectx.addresses` define, or several of these.
    """

    severity: Severity
    cause: Cause
    title: str
    evidence: tuple[str, ...] = ()
    values: Mapping[str, str] = {}
    details: tuple[str, ...] = ()
    about: str = ""
    also: tuple[Finding, ...] = ()
    fields: Mapping[str, object] = {}

    def command(self, remedy: Remedy) -> str:
        """Return a remedy's command, ready to paste; "" if a value for it is not known."""
        try:
            command = remedy.command.format_map(self.values)
        except KeyError:
            return ""
        within = "" if remedy.anywhere else self.values.get("within", "")
        return f"{within}{command}" if command else ""


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by severity, and otherwise leave their order."""
    return sorted(findings, key=lambda finding: list(Severity).index(finding.severity))


def one_per_cause(findings: Iterable[Finding]) -> list[Finding]:
    """Return one finding for each cause, with the others of that cause in it, the worst first.

    Two rules that find the same connections are reported once, by the worse of the two.
    """
    of_cause: dict[Cause, list[Finding]] = {}
    seen: set[str] = set()
    each_by_itself = (one for each in findings for one in (each._replace(also=()), *each.also))
    for finding in worst_first(each_by_itself):
        some = of_cause.setdefault(finding.cause, [])
        if finding.about not in seen and finding.title not in [each.title for each in some]:
            some.append(finding)
        if finding.about:
            seen.add(finding.about)
    return [some[0]._replace(also=tuple(some[1:])) for some in of_cause.values() if some]


def about(protocol: str, source: str, destination: Endpoint | None) -> str:
    """Return which connections a finding is about, whichever rule finds them."""
    return f"{PROTOCOLS[protocol].table} {source} {destination}"


def duration(seconds: float) -> str:
    """Return a duration as people say it: "40 s", "12 min", "3 h"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def numbers(counts: Mapping[str, int]) -> str:
    """Return counts with their names, the largest first."""
    largest = sorted(counts.items(), key=lambda each: -each[1])
    return ", ".join(f"{number:,} {name}" for name, number in largest)


def owners(counts: Mapping[str, int], first: str = "") -> tuple[str, ...]:
    """Return the owners with the most sockets, a line each; a single one on the first line.

    Args:
        counts: The number of sockets by owner; under "" those without a process.
        first: What the first line begins with.
    """
    named = sorted(((n, name or NOBODY) for name, n in counts.items() if n), reverse=True)
    shown = [f"{name}: {number:,}" for number, name in named[:SHOWN]]
    if len(named) > SHOWN:
        shown.append(f"{len(named) - SHOWN:,} more")
    if len(shown) <= 1:
        return ("; ".join(filter(None, [first, *(shown or [NOBODY])])),)
    return tuple(filter(None, [first, *shown]))
