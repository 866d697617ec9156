"""The report's tables: a row for each group of techniques that behave alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from connectx.lab.folding import alike, folded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectx.lab.listeners import Case
    from connectx.lab.mixing import Cell
    from connectx.lab.techniques import Row


class Alone(NamedTuple):
    """What techniques do by themselves, over transports that behave alike.

    Attributes:
        title: The transports.
        rows: Groups of techniques with the same findings.
    """

    title: str
    rows: list[list[Row]]


class Matrix(NamedTuple):
    """Which techniques share a port with which, over transports that behave alike.

    Attributes:
        title: The transports.
        groups: Techniques that behave alike, both as the first socket and as the second one.
        rows: For each group of first techniques, the cell of each group of second ones.
        agreeing: How many pairs of techniques are as expected.
        tried: How many pairs this kernel can do.
    """

    title: str
    groups: list[list[str]]
    rows: list[list[Cell]]
    agreeing: int
    tried: int


class Service(NamedTuple):
    """What becomes of a service, for outgoing connections that have the same effect.

    Attributes:
        outgoing: The connections.
        places: What the service binds to: "source" or "wildcard", or both.
        case: One of the cases.
    """

    outgoing: list[str]
    places: list[str]
    case: Case


class Services(NamedTuple):
    """What becomes of services, over transports that behave alike.

    Attributes:
        title: The transports.
        rows: The cases, folded.
    """

    title: str
    rows: list[Service]


def alone(rows: Sequence[Row]) -> list[Alone]:
    """Return the tables of techniques by themselves."""
    return [Alone(title, folded(found, _findings)) for title, found in alike(rows)]


def matrices(cells: Sequence[Cell]) -> list[Matrix]:
    """Return the tables of pairs of techniques."""
    return [_matrix(title, found) for title, found in alike(cells)]


def services(cases: Sequence[Case]) -> list[Services]:
    """Return the tables of services whose port is in the range."""
    return [Services(title, _services(found)) for title, found in alike(cases)]


def _findings(row: Row) -> tuple[object, ...]:
    # A note says why there are none.
    return row.expected, row.observed, row.note if row.observed is None else ""


def _matrix(title: str, cells: Sequence[Cell]) -> Matrix:
    found = {(cell.first, cell.second): cell for cell in cells}
    names = list(dict.fromkeys(cell.first for cell in cells))

    def behaviour(name: str) -> tuple[tuple[str, str], ...]:
        row = (found[name, other] for other in names)
        column = (found[other, name] for other in names)
        return tuple((cell.expected, cell.observed) for cell in (*row, *column))

    groups = folded(names, behaviour)
    return Matrix(
        title,
        groups,
        [[found[first[0], second[0]] for second in groups] for first in groups],
        agreeing=sum(bool(cell.agrees) for cell in cells),
        tried=sum(cell.agrees is not None for cell in cells),
    )


def _services(cases: Sequence[Case]) -> list[Service]:
    # First the places of each connection, then the connections that have the same ones.
    by_place = folded(
        cases, lambda case: (case.outgoing, case.reserved, case.expected, case.observed)
    )
    rows = [
        Service(
            [group[0].outgoing],
            ["wildcard" if case.anywhere else "source" for case in group],
            group[0],
        )
        for group in by_place
    ]
    return [
        row[0]._replace(outgoing=[each.outgoing[0] for each in row])
        for row in folded(
            rows,
            lambda row: (
                tuple(row.places),
                row.case.service,
                row.case.reserved,
                row.case.expected,
                row.case.observed,
            ),
        )
    ]
