"""``connectx usage``: how full the ports are, per source and destination.

A column of the table is a line in `_pair_columns`, or in `_group_columns` for ``--by``; a field of
the JSON is a line in `connectx.cli.schemas.of_pair` or `_group_as_json`, and in the schema.
"""

from __future__ import annotations

import select
import sys
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from connectx.cli.arguments import (
    add_addresses,
    add_netns,
    add_port_range,
    add_protocols,
    protocols,
    seconds,
    whole_number,
)
from connectx.cli.command import OK, errors_reported
from connectx.cli.output import percent, plural
from connectx.cli.page import Column, Page, Piece, Table
from connectx.cli.schemas import add_json, of_endpoint, of_pair, of_process, print_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping

    from connectx.observe.usage import Group, Row, Snapshot

#: What a row of a table is about: a pair or a group.
Counted = TypeVar("Counted")

NAME: Final = "usage"
HELP: Final = "Show how many source ports are in use toward each destination, the fullest first."
EXAMPLE: Final = "connectx usage --top 10 --watch 2"

_LIMITS: Final = """\
It cannot tell which ports are locked by sockets that were bound before they connected;
`connectx doctor` finds out by trying. Accepted connections whose listener has closed count
as outgoing ones."""

#: The width, in columns, of output that is not a terminal.
_PIPED_WIDTH: Final = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.epilog = f"{parser.epilog}\n\n{_LIMITS}"
    parser.add_argument(
        "--by",
        choices=["pair", "source", "destination", "process", "state"],
        default="pair",
        help="add up the connections that have this in common "
        "(default: pair, a source and a destination)",
    )
    parser.add_argument(
        "--top", type=whole_number(), metavar="N", help="show only the first N rows"
    )
    add_protocols(parser)
    add_addresses(parser, "count")
    add_port_range(parser)
    add_netns(parser)
    parser.add_argument(
        "--processes",
        action="store_true",
        help="name the processes; those of other users need root",
    )
    add_json(parser, "usage", "print JSON instead of text")
    parser.add_argument(
        "--watch",
        type=seconds(0.1),
        nargs="?",
        const=2.0,
        metavar="SECONDS",
        help="count again every SECONDS (2) until interrupted",
    )


def run(arguments: argparse.Namespace) -> int:
    """Count and show, once or again and again."""
    while True:
        with errors_reported():
            taken = _count(arguments)
        if arguments.json:
            print_json("usage", _as_json(taken, arguments), None if arguments.watch else 2)
            sys.stdout.flush()
        else:
            _show(taken, arguments)
        if not arguments.watch:
            return OK
        # Not time.sleep(): when the reader of our output leaves, this returns at once.
        poll = select.poll()
        poll.register(sys.stdout, 0)
        if poll.poll(arguments.watch * 1000):
            return OK


def _count(arguments: argparse.Namespace) -> Snapshot:
    from connectx.observe.usage import snapshot  # noqa: PLC0415 - --help needs none of it

    return snapshot(
        protocols=protocols(arguments),
        netns=arguments.netns,
        port_range=arguments.port_range,
        source=arguments.source or "",
        destination=arguments.destination,
        processes=_with_processes(arguments),
    )


def _with_processes(arguments: argparse.Namespace) -> bool:
    return bool(arguments.processes) or arguments.by == "process"


# As JSON.


def _as_json(taken: Snapshot, arguments: argparse.Namespace) -> dict[str, Any]:
    processes = _with_processes(arguments)
    if arguments.by == "pair":
        rows = [of_pair(row, processes=processes) for row in taken.rows[: arguments.top]]
    else:
        from connectx.observe.usage import group  # noqa: PLC0415 - as above

        groups = group(taken.rows, arguments.by)[: arguments.top]
        rows = [_group_as_json(each, arguments.by, processes=processes) for each in groups]
    return {
        "taken_at": taken.taken_at.isoformat(),
        "netns": taken.netns,
        "range": list(taken.ports),
        "reserved": taken.reserved,
        "held": taken.held,
        "unshared": dict(taken.unshared),
        "by": arguments.by,
        "rows": rows,
    }


def _group_as_json(each: Group, by: str, *, processes: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "protocol": each.protocol,
        by: {
            "destination": lambda: of_endpoint(each.fullest.destination),
            "process": lambda: of_process(each.process),
        }.get(by, lambda: each.name)(),
        "in_use": each.in_use,
        "pairs": each.pairs,
    }
    if each.capacity is not None:
        fields["capacity"] = each.capacity
    fields["fullest"] = of_pair(each.fullest, processes=processes)
    return fields


# As text.


def _show(taken: Snapshot, arguments: argparse.Namespace) -> None:
    from connectx.observe.usage import group  # noqa: PLC0415 - as above

    # In a pipe, each row is one line, for grep and awk; a terminal folds it.
    page = Page(piped=_PIPED_WIDTH)
    if arguments.watch and page.is_terminal:
        page.clear()
    usable = taken.ports.size - taken.reserved
    held = "".join(f", {number:,} held ({name})" for name, number in taken.held.items() if number)
    page.paragraph(
        f"{taken.taken_at:%H:%M:%S} UTC, {taken.netns}: source ports {taken.ports}, "
        f"{taken.reserved:,} reserved{held}"
    )
    for name, free in taken.unshared.items():
        if free < usable:
            page.paragraph(
                f"{name}: {free:,} of {usable:,} ports are free for sockets without SO_REUSEADDR"
            )
    if arguments.by == "pair":
        shown = taken.rows[: arguments.top]
        left_out = len(taken.rows) - len(shown)
        page.table(_table(_pair_columns(shown, processes=arguments.processes), shown))
    else:
        groups = group(taken.rows, arguments.by)
        left_out = len(groups) - len(groups[: arguments.top])
        page.table(_table(_group_columns(arguments.by), groups[: arguments.top]))
    if not taken.rows:
        page.line("No source port in the range is in use.")
    elif left_out:
        page.line(plural(left_out, "more row"))


class _Shown(NamedTuple, Generic[Counted]):
    """A column, and what it shows of a row."""

    column: Column
    cell: Callable[[Counted], str | Piece]


def _table(columns: Iterable[_Shown[Counted]], rows: Iterable[Counted]) -> Table:
    columns = list(columns)
    table = Table(shown.column for shown in columns)
    for row in rows:
        table.add(*(shown.cell(row) for shown in columns))
    return table


def _pair_columns(rows: tuple[Row, ...], *, processes: bool) -> list[_Shown[Row]]:
    # Where the terminal is narrow, the protocol goes first, and the addresses never.
    columns: list[_Shown[Row]] = [
        _Shown(Column("protocol", leave_out=4), lambda row: row.protocol),
        _Shown(Column("source"), lambda row: row.source),
        _Shown(Column("destination"), lambda row: str(row.destination)),
        _Shown(Column("in use", right=True, leave_out=2), lambda row: f"{row.in_use:,}"),
    ]
    if any(row.reusable for row in rows):
        columns.append(
            _Shown(Column("reusable", right=True, leave_out=3), lambda row: f"{row.reusable:,}")
        )
    columns += [
        _Shown(Column("of", right=True, leave_out=1), lambda row: f"{row.capacity:,}"),
        _Shown(Column("full", right=True), lambda row: _share(row.utilisation)),
        _Shown(Column("states", folds=True), lambda row: _numbers(row.states)),
    ]
    if processes:
        columns.append(_Shown(Column("processes", folds=True), lambda row: _numbers(row.processes)))
    return columns


def _group_columns(by: str) -> list[_Shown[Group]]:
    return [
        _Shown(Column("protocol", leave_out=4), lambda each: each.protocol),
        _Shown(Column(by, folds=by == "process"), lambda each: each.name),
        _Shown(Column("in use", right=True), lambda each: f"{each.in_use:,}"),
        _Shown(
            Column("of", right=True, leave_out=2),
            lambda each: "" if each.capacity is None else f"{each.capacity:,}",
        ),
        _Shown(Column("pairs", right=True, leave_out=3), lambda each: f"{each.pairs:,}"),
        _Shown(
            Column("fullest pair", folds=True),
            lambda each: f"{each.fullest.source} to {each.fullest.destination}",
        ),
        _Shown(Column("full", right=True), lambda each: _share(each.fullest.utilisation)),
    ]


def _numbers(numbers: Mapping[Any, int]) -> str:
    return ", ".join(f"{name or '?'} {number:,}" for name, number in numbers.items())


def _share(share: float) -> Piece:
    from connectx._diagnosis.finding import FILLING, FULL  # noqa: PLC0415 - as above

    colour = "red" if share >= FULL else "yellow" if share >= FILLING else ""
    return Piece(percent(share), colour)
