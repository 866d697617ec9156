"""The articles' tables, regenerated on this kernel."""

from __future__ import annotations

import resource
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from connectx.addresses import PROTOCOLS
from connectx.lab import listeners, machine, mixing, trials
from connectx.lab.private_networks import PrivateNetworks
from connectx.lab.resources import CannotStartError
from connectx.lab.technique_table import Findings, techniques
from connectx.lab.transports import FAMILIES, Transport

if TYPE_CHECKING:
    from collections.abc import Collection

    from connectx.lab.listeners import Case
    from connectx.lab.machine import Machine
    from connectx.lab.mixing import Cell
    from connectx.lab.progress import Watch


class Row(NamedTuple):
    """A technique over one transport.

    Attributes:
        transport: The protocol and family.
        technique: Its name.
        calls: The system calls that make it up.
        expected: What is known to come of it.
        observed: What came of it; None where this kernel lacks something that it needs.
        note: What else there is to say about it.
    """

    transport: Transport
    technique: str
    calls: str
    expected: Findings
    observed: Findings | None
    note: str

    @property
    def agrees(self) -> bool | None:
        """Whether the kernel does as expected; None where it could not be tried."""
        return None if self.observed is None else self.observed == self.expected


class Techniques(NamedTuple):
    """What was found.

    Attributes:
        machine: What it ran on.
        changes: What was changed in private networks, which are gone by now.
        seconds: How long it took.
        left_out: The transports that this machine lacks, and why.
        rows: Each technique by itself.
        mixing: Each pair of techniques.
        listeners: Outgoing connections and services.
    """

    machine: Machine
    changes: tuple[str, ...]
    seconds: float
    left_out: dict[Transport, str]
    rows: tuple[Row, ...]
    mixing: tuple[Cell, ...]
    listeners: tuple[Case, ...]

    @property
    def compared(self) -> tuple[Row | Cell | Case, ...]:
        """All that could be tried."""
        everything: list[Row | Cell | Case] = [*self.rows, *self.mixing, *self.listeners]
        return tuple(each for each in everything if each.agrees is not None)

    @property
    def disagreements(self) -> int:
        """How many findings are not as expected."""
        return sum(not each.agrees for each in self.compared)


def run(protocols: Collection[str], families: Collection[int], watch: Watch) -> Techniques:
    """Try every technique, every pair of techniques, and each beside a service.

    It turns an ordinary user's process into the root of a user namespace, for good: give it a
    process of its own.

    Args:
        protocols: Keys of connectx.addresses.PROTOCOLS.
        families: Of FAMILIES.
        watch: Called with the progress.

    Raises:
        CannotStartError: Before anything is tried.
        OSError: The experiment itself failed; ChildProcessError if a process died.
    """
    require_descriptors()
    begun = time.monotonic()
    host = machine.describe()
    with PrivateNetworks() as networks:
        transports, left_out = _present(protocols, families)
        rows: list[Row] = []
        cells: list[Cell] = []
        cases: list[Case] = []
        for transport in transports:
            rows += _try_all(transport, networks, watch)
            cells += mixing.run(transport, networks, watch)
            cases += listeners.run(transport, networks, watch)
    return Techniques(
        host,
        networks.changes,
        time.monotonic() - begun,
        left_out,
        tuple(rows),
        tuple(cells),
        tuple(cases),
    )


def require_descriptors() -> None:
    """Raise this process's soft limit of descriptors as far as it takes.

    Raises:
        CannotStartError: The hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < trials.DESCRIPTORS:
        raise CannotStartError(
            f"a process may have {hard:,} descriptors here (ulimit -H -n), "
            f"and {trials.DESCRIPTORS:,} are needed"
        )
    if soft < trials.DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (trials.DESCRIPTORS, hard))


def _present(
    protocols: Collection[str], families: Collection[int]
) -> tuple[list[Transport], dict[Transport, str]]:
    wanted = [
        Transport(protocol, family)
        for protocol in PROTOCOLS
        if protocol in protocols
        for family in FAMILIES
        if family in families
    ]
    absences = {transport: transport.absence() for transport in wanted}
    left_out = {transport: absence for transport, absence in absences.items() if absence}
    transports = [transport for transport in wanted if transport not in left_out]
    if not transports:
        raise CannotStartError(
            "; ".join(f"no {transport.title}: {why}" for transport, why in left_out.items())
        )
    return transports, left_out


def _try_all(transport: Transport, networks: PrivateNetworks, watch: Watch) -> list[Row]:
    rows = []
    table = techniques(transport)
    for done, technique in enumerate(table):
        watch(transport.title, "techniques", done, len(table))
        missing = trials.missing(technique, transport)
        rows.append(
            Row(
                transport,
                technique.name,
                technique.opener.calls,
                technique.expected,
                None if missing else trials.observe(technique, transport, networks),
                f"This kernel lacks {missing}. {technique.note}".strip()
                if missing
                else technique.note,
            )
        )
    watch(transport.title, "techniques", len(table), len(table))
    return rows


def as_json(result: Techniques) -> dict[str, Any]:
    """Return the findings in JSON's types."""
    return {
        "machine": result.machine._asdict(),
        "changes": list(result.changes),
        "seconds": round(result.seconds, 3),
        "left_out": [
            {**transport.as_json(), "reason": reason}
            for transport, reason in result.left_out.items()
        ],
        "rows": [
            {
                **row.transport.as_json(),
                "technique": row.technique,
                "calls": row.calls,
                "expected": _findings(row.expected),
                "observed": None if row.observed is None else _findings(row.observed),
                "agrees": row.agrees,
                "note": row.note or None,
            }
            for row in result.rows
        ],
        "mixing": [mixing.as_json(cell) for cell in result.mixing],
        "listeners": [listeners.as_json(case) for case in result.listeners],
    }


def _findings(findings: Findings) -> dict[str, Any]:
    return {
        "errno": findings.errno or None,
        "shares": findings.shares,
        "overshadows": findings.overshadows,
        "opened": list(findings.opened),
    }
