"""Rows of a snapshot, taken together by source, destination, process or state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from connectx.observe.usage import Row

UNKNOWN: Final = "nobody's, or hidden"


class Group(NamedTuple):
    """Connections that have something in common.

    protocol, name: what that is: a source, a destination, a process or a state.
    in_use: their number. pairs: from how many sources to how many destinations.
    capacity: of a destination, the ports of all the sources that it is reached from; None
    where the budget is not the group's, since it is per destination.
    fullest: the pair of them that is the nearest to exhaustion.
    """

    protocol: str
    name: str
    in_use: int
    pairs: int
    capacity: int | None
    fullest: Row


def _sources(row: Row) -> Iterator[tuple[str, int]]:
    yield row.source, row.in_use


def _destinations(row: Row) -> Iterator[tuple[str, int]]:
    yield str(row.destination), row.in_use


def _processes(row: Row) -> Iterator[tuple[str, int]]:
    for process, number in row.processes.items():
        yield UNKNOWN if process is None else str(process), number


def _states(row: Row) -> Iterator[tuple[str, int]]:
    yield from row.states.items()


#: What to group by, and the names that a row counts for, with how many connections.
GROUPINGS: Final[dict[str, Callable[[Row], Iterator[tuple[str, int]]]]] = {
    "source": _sources,
    "destination": _destinations,
    "process": _processes,
    "state": _states,
}


def group(rows: Iterable[Row], by: str) -> list[Group]:
    """The groups that rows fall into, the largest first; by: one of `GROUPINGS`.

    By process, the rows must come from a snapshot that has processes.
    """
    members: dict[tuple[str, str], list[tuple[Row, int]]] = {}
    for row in rows:
        for name, number in GROUPINGS[by](row):
            members.setdefault((row.protocol, name), []).append((row, number))
    groups = [
        Group(
            protocol,
            name,
            sum(number for _, number in some),
            len(some),
            sum(row.capacity for row, _ in some) if by == "destination" else None,
            max((row for row, _ in some), key=lambda row: row.utilisation),
        )
        for (protocol, name), some in members.items()
    ]
    return sorted(groups, key=lambda each: (-each.in_use, each[:2]))
