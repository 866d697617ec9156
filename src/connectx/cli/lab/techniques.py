"""``connectx lab techniques``: prints what the experiments in connectx.lab.techniques find."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from connectx.addresses import PROTOCOLS
from connectx.cli import command
from connectx.cli.lab.output import changes_text, machine_text
from connectx.cli.page import Column, Page, Piece, Table
from connectx.cli.progress import progress_bars
from connectx.cli.schemas import add_json, print_json
from connectx.lab import techniques
from connectx.lab.folding import alike
from connectx.lab.mixing import OK
from connectx.lab.procedures import TRIES
from connectx.lab.technique_table import PORTS
from connectx.lab.transports import FAMILIES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from connectx.cli.page import Cell as Text
    from connectx.lab.listeners import Case, Outcome
    from connectx.lab.mixing import Cell
    from connectx.lab.technique_table import Findings
    from connectx.lab.techniques import Row, Techniques

NAME: Final = "techniques"
HELP: Final = "Try every way to open an outgoing connection, and compare it with what is known."
EXAMPLE: Final = "connectx lab techniques --protocol udp --family 4"

_DESCRIPTION: Final = f"""\
{HELP}

In private network namespaces, each technique opens connections from one source address
with {PORTS.size} source ports to two destinations. It opens as many as there are ports to the
first one and tries one more; then the same to the second. After that, two sockets are opened
to one 4-tuple, in every order that their system calls can have; for connectx, by two
processes at once. The next table has every pair of techniques: one has a source port, the
other wants it toward another destination. The last table has services whose port an
outgoing connection may have taken.

A technique that chooses ports at random has {TRIES} tries for each port of the range, so that it
misses the last one once in millions of runs. A ! marks what is not as expected.

The articles also list DCCP, which Linux 6.16 removed.
"""

_WIDTH: Final = 80


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = _DESCRIPTION
    parser.add_argument("--protocol", choices=list(PROTOCOLS), help="try only this protocol")
    parser.add_argument("--family", type=int, choices=FAMILIES, help="try only IPv4, or only IPv6")
    add_json(parser, "lab-techniques", "print JSON instead of tables")


def run(arguments: argparse.Namespace) -> int:
    """Run the experiments; they fail if something is not as expected."""
    protocols = [arguments.protocol] if arguments.protocol else list(PROTOCOLS)
    families = [arguments.family] if arguments.family else FAMILIES
    with progress_bars() as watch:
        result = techniques.run(protocols, families, watch)
    if arguments.json:
        print_json("lab-techniques", techniques.as_json(result))
    else:
        _print_tables(result)
    return command.FAILED if result.disagreements else command.OK


def _print_tables(result: Techniques) -> None:
    page = Page(_WIDTH)
    for transports, rows in alike(result.rows):
        _print_techniques(page, transports, rows)
    for transports, cells in alike(result.mixing):
        _print_matrix(page, transports, cells)
    for transports, cases in alike(result.listeners):
        _print_services(page, transports, cases)
    _print_end(page, result)


# The techniques.


def _print_techniques(page: Page, transports: str, rows: Sequence[Row]) -> None:
    drawn = _titled(
        f"{transports}: {PORTS.size} source ports, two destinations",
        Column("technique", folds=True, width=30),
        Column(),
        Column("errno when\nexhausted"),
        Column("source\nshared"),
        Column("over-\nshadows"),
        Column("opened\nto each"),
    )
    notes: list[str] = []
    for row in rows:
        if row.note and row.note not in notes:
            notes.append(row.note)
        mark = f" ({notes.index(row.note) + 1})" if row.note else ""
        columns = _beside(
            _cells_of(row.expected), None if row.observed is None else _cells_of(row.observed)
        )
        style = "bold" if row.technique.startswith("connectx") else ""
        drawn.add(row.technique + mark, *columns, style=style)
    page.table(drawn)
    for number, note in enumerate(notes, start=1):
        page.paragraph(note, f"({number}) ")
    page.line()


def _cells_of(findings: Findings) -> tuple[str, ...]:
    return (
        findings.errno or "none",
        _yes(findings.shares),
        _yes(findings.overshadows),
        " ".join(map(str, findings.opened)),
    )


# The pairs.


def _print_matrix(page: Page, transports: str, cells: Sequence[Cell]) -> None:
    calls = list(dict.fromkeys(cell.first for cell in cells))
    found = {(cell.first, cell.second): cell for cell in cells}
    page.line(Piece(f"{transports}: pairs of techniques that want one source port", "italic"))
    page.line()
    for number, call in enumerate(calls, start=1):
        page.paragraph(call, f"{number:2} ")
    drawn = _titled(
        "row: has the port; column: wants it toward another destination",
        Column(right=True, style="bold"),
        *(Column(str(number), right=True) for number in range(1, len(calls) + 1)),
        gap=2,
    )
    for number, call in enumerate(calls, start=1):
        drawn.add(str(number), *(_code(found[call, second]) for second in calls))
    page.line()
    page.table(drawn)
    page.paragraph(f"ok: they share it.  {_legend(cells)}")
    for cell in cells:
        if cell.agrees is False:
            row, column = calls.index(cell.first) + 1, calls.index(cell.second) + 1
            page.paragraph(
                f"! row {row}, column {column}: expected {cell.expected}, observed {cell.observed}",
                style="red",
            )
    page.line()


def _code(cell: Cell) -> Piece:
    if cell.agrees is None:
        return Piece("-")
    # The number of the errno, which is short, and known from elsewhere.
    name = cell.observed.partition(" ")[0]
    code = name if cell.observed == OK else str(getattr(errno, name))
    if not cell.agrees:
        return Piece(f"{code}!", "bold red")
    return Piece(code, "green" if cell.observed == OK else "")


def _legend(cells: Iterable[Cell]) -> str:
    calls: dict[str, list[str]] = {}
    for outcome in sorted({cell.observed for cell in cells} - {OK, ""}):
        name, _, where = outcome.partition(" ")
        calls.setdefault(name, []).append(where)
    entries = [f"{getattr(errno, name)}: {name} {' or '.join(calls[name])}." for name in calls]
    if any(cell.agrees is None for cell in cells):
        entries.append("-: this kernel lacks what one of the two needs.")
    return "  ".join(entries)


# The services.


def _print_services(page: Page, transports: str, cases: Sequence[Case]) -> None:
    drawn = _titled(
        f"{transports}: a service whose port is in the ephemeral range",
        Column("outgoing connection", folds=True, width=29),
        Column("service\nbinds to", folds=True, width=8),
        Column("port\nreserved"),
        Column(),
        Column("it\ntakes"),
        Column("service"),
    )
    merged: dict[tuple[object, ...], list[str]] = {}
    for case in cases:
        address = "wildcard" if case.anywhere else "source"
        key = (case.outgoing, case.reserved, case.expected, case.observed)
        merged.setdefault(key, []).append(address)
    for case in cases:
        key = (case.outgoing, case.reserved, case.expected, case.observed)
        if key in merged:
            columns = _beside(
                _cells_of_outcome(case.expected),
                None if case.observed is None else _cells_of_outcome(case.observed),
            )
            drawn.add(case.outgoing, ", ".join(merged.pop(key)), _yes(case.reserved), *columns)
    page.table(drawn)
    page.paragraph(f"The service: {cases[0].service}.")
    page.line()


def _cells_of_outcome(outcome: Outcome) -> tuple[str, ...]:
    return (
        "its port" if outcome.takes else "another",
        # JSON also has the call.
        "starts" if outcome.service == OK else outcome.service.partition(" ")[0],
    )


# The end.


def _print_end(page: Page, result: Techniques) -> None:
    for transport, reason in result.left_out.items():
        page.paragraph(f"Left out, because this machine has no {transport.title}: {reason}.")
    compared = len(result.compared)
    if result.disagreements:
        page.paragraph(
            f"! {result.disagreements:,} of {compared:,} findings are not as expected.",
            style="bold red",
        )
    else:
        page.paragraph(f"All {compared:,} findings are as expected.")
    page.paragraph(changes_text(result.changes))
    page.paragraph(machine_text(result.machine, result.seconds), style="dim")


# What they have in common.


def _beside(expected: Sequence[str], observed: Sequence[str] | None) -> list[Text]:
    """Return columns of two lines: what was expected above what was observed."""
    columns: list[Text] = [(Piece("expected", "dim"), Piece("observed"))]
    for here, there in zip(expected, observed or ["-"] * len(expected), strict=True):
        agrees = observed is None or here == there
        found = Piece(there) if agrees else Piece(f"! {there}", "bold red")
        columns.append((Piece(here, "dim"), found))
    return columns


def _yes(value: bool) -> str:  # noqa: FBT001 -- its only argument
    return "yes" if value else "no"


def _titled(title: str, *columns: Column, gap: int = 1) -> Table:
    return Table(columns, title, rule=True, gap=gap)
