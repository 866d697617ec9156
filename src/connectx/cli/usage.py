"""``connectx usage``: how full the ports are, per source and destination.

A column of the table is a line in `_pair_columns`, or in `_group_columns` for ``--by``; a field of
the JSON is a line in `_pair_as_json` or `_group_as_json`.
"""

from __future__ import annotations

import json
import select
import sys
from typing import TYPE_CHECKING, Any, Final

from connectx.cli.arguments import (
    add_addresses,
    add_json,
    add_netns,
    add_port_range,
    add_protocols,
    protocols,
    seconds,
    whole_number,
)
from connectx.cli.command import OK, errors_reported
from connectx.cli.output import Column, percent, plural, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from rich.text import Text

    from connectx.observe.usage import Group, Row, Snapshot

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
    add_json(parser)
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
            print(json.dumps(_as_json(taken, arguments), indent=None if arguments.watch else 2))
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
        rows = [_pair_as_json(row, processes=processes) for row in taken.rows[: arguments.top]]
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
        "rows": rows,
    }


def _pair_as_json(row: Row, *, processes: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "protocol": row.protocol,
        "source": row.source,
        "destination": str(row.destination),
        "in_use": row.in_use,
        "reusable": row.reusable,
        "capacity": row.capacity,
        "utilisation": round(row.utilisation, 3),
        "states": dict(row.states),
    }
    if processes:
        fields["processes"] = [
            {
                "pid": process and process.pid,
                "command": process and process.command,
                "unit": process and process.unit,
                "in_use": number,
            }
            for process, number in row.processes.items()
        ]
    return fields


def _group_as_json(each: Group, by: str, *, processes: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "protocol": each.protocol,
        by: each.name,
        "in_use": each.in_use,
        "pairs": each.pairs,
    }
    if each.capacity is not None:
        fields["capacity"] = each.capacity
    fields["fullest"] = _pair_as_json(each.fullest, processes=processes)
    return fields


# As text.


def _show(taken: Snapshot, arguments: argparse.Namespace) -> None:
    from rich.console import Console  # noqa: PLC0415 - from the tools extra

    from connectx.observe.usage import group  # noqa: PLC0415 - as above

    # In a pipe, each row is one line, for grep and awk; a terminal folds it.
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    # No markup, no emoji: "2001:db8:a:b::1" contains the name of one, and a process's name may
    # contain anything.
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    if arguments.watch and console.is_terminal:
        console.clear()
    usable = taken.ports.size - taken.reserved
    held = "".join(f", {number:,} held ({name})" for name, number in taken.held.items() if number)
    console.print(
        f"{taken.taken_at:%H:%M:%S} UTC, {taken.netns}: source ports {taken.ports}, "
        f"{taken.reserved:,} reserved{held}"
    )
    for name, free in taken.unshared.items():
        if free < usable:
            console.print(
                f"{name}: {free:,} of {usable:,} ports are free for sockets without SO_REUSEADDR"
            )
    if arguments.by == "pair":
        shown = taken.rows[: arguments.top]
        left_out = len(taken.rows) - len(shown)
        console.print(table(_pair_columns(shown, processes=arguments.processes), shown))
    else:
        groups = group(taken.rows, arguments.by)
        left_out = len(groups) - len(groups[: arguments.top])
        console.print(table(_group_columns(arguments.by), groups[: arguments.top]))
    if not taken.rows:
        console.print("No source port in the range is in use.")
    elif left_out:
        console.print(f"{plural(left_out, 'more row')}")


def _pair_columns(rows: tuple[Row, ...], *, processes: bool) -> list[Column[Row]]:
    return [
        Column("protocol", lambda row: row.protocol),
        Column("source", lambda row: row.source),
        Column("destination", lambda row: str(row.destination)),
        Column("in use", lambda row: f"{row.in_use:,}", numeric=True),
        Column(
            "reusable",
            lambda row: f"{row.reusable:,}",
            numeric=True,
            shown=any(row.reusable for row in rows),
        ),
        Column("of", lambda row: f"{row.capacity:,}", numeric=True),
        Column("full", lambda row: _share(row.utilisation), numeric=True),
        Column("states", lambda row: _numbers(row.states)),
        Column("processes", lambda row: _numbers(row.processes), shown=processes),
    ]


def _group_columns(by: str) -> list[Column[Group]]:
    return [
        Column("protocol", lambda each: each.protocol),
        Column(by, lambda each: each.name),
        Column("in use", lambda each: f"{each.in_use:,}", numeric=True),
        Column(
            "of",
            lambda each: "" if each.capacity is None else f"{each.capacity:,}",
            numeric=True,
        ),
        Column("pairs", lambda each: f"{each.pairs:,}", numeric=True),
        Column("fullest pair", lambda each: f"{each.fullest.source} to {each.fullest.destination}"),
        Column("full", lambda each: _share(each.fullest.utilisation), numeric=True),
    ]


def _numbers(numbers: Mapping[Any, int]) -> str:
    return ", ".join(f"{name or '?'} {number:,}" for name, number in numbers.items())


def _share(share: float) -> Text:
    from rich.text import Text  # noqa: PLC0415 - as above

    from connectx._diagnosis.finding import FILLING, FULL  # noqa: PLC0415 - as above

    colour = "red" if share >= FULL else "yellow" if share >= FILLING else ""
    return Text(percent(share), colour)
