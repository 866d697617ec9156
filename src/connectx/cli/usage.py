"""``connectx usage``: how full the ports are, per source and destination."""

from __future__ import annotations

import json
import select
import sys
from typing import TYPE_CHECKING, Any, Final

from connectx.addresses import Endpoint
from connectx.cli.ports import address, count, endpoint
from connectx.cli.usage_arguments import (
    DEFAULT_PROTOCOLS,
    add_netns,
    add_port_range,
    add_protocol,
    percent,
    seconds,
)

if TYPE_CHECKING:
    import argparse

    from rich.table import Table
    from rich.text import Text

    from connectx.observe.groups import Group
    from connectx.observe.usage import Row, Snapshot

NAME: Final = "usage"
HELP: Final = "Show how many source ports are in use toward each destination, the fullest first."
EXAMPLE: Final = "connectx usage --top 10 --watch 2"

_UNSEEN: Final = """\
It cannot see which ports are locked by sockets that were bound before they connected:
`connectx doctor` tries that out. Connections that were accepted count as ones that were
made from here, once nobody listens on their port any more."""

#: Columns of what is piped.
_PIPED_WIDTH: Final = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = f"{parser.epilog}\n\n{_UNSEEN}"
    parser.add_argument(
        "--by",
        choices=["pair", "source", "destination", "process", "state"],
        default="pair",
        help="count together what has this in common (pair: of a source and a destination)",
    )
    parser.add_argument("--top", type=count, metavar="N", help="show the first N rows only")
    add_protocol(parser)
    parser.add_argument("--source", type=address, metavar="ADDRESS", help="count from this address")
    parser.add_argument(
        "--destination",
        type=endpoint,
        default=Endpoint("", 0),
        metavar="HOST[:PORT]",
        help="count toward this address, and this port; :PORT for any address",
    )
    add_port_range(parser)
    add_netns(parser)
    parser.add_argument(
        "--processes", action="store_true", help="name the processes; may need root"
    )
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.add_argument(
        "--watch",
        type=seconds,
        nargs="?",
        const=2.0,
        metavar="SECONDS",
        help="count again every so many seconds (2), until interrupted",
    )


def run(arguments: argparse.Namespace) -> int:
    """Count and show, once or again and again."""
    from connectx.cli.main import FAILED, OK, WRONG_USAGE  # noqa: PLC0415 - it imports us

    while True:
        try:
            taken = _take(arguments)
        except ValueError as error:
            print(f"connectx usage: {error}", file=sys.stderr)
            return WRONG_USAGE
        except OSError as error:
            print(f"connectx usage: {error}", file=sys.stderr)
            return FAILED
        if arguments.json:
            print(json.dumps(_as_json(taken, arguments), indent=None if arguments.watch else 2))
            sys.stdout.flush()
        else:
            _show(taken, arguments)
        if not arguments.watch:
            return OK
        # No sleep: who reads our output may have gone, and then nothing is left to do.
        poll = select.poll()
        poll.register(sys.stdout, 0)
        if poll.poll(arguments.watch * 1000):
            return OK


def _take(arguments: argparse.Namespace) -> Snapshot:
    from connectx.observe.usage import snapshot  # noqa: PLC0415 - --help needs none of it

    return snapshot(
        protocols=arguments.protocol or DEFAULT_PROTOCOLS,
        netns=arguments.netns,
        port_range=arguments.port_range,
        source=arguments.source or "",
        destination=arguments.destination,
        processes=arguments.processes or arguments.by == "process",
    )


def _as_json(taken: Snapshot, arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.by == "pair":
        rows = [_row_as_json(row, arguments) for row in taken.rows[: arguments.top]]
    else:
        from connectx.observe.groups import group  # noqa: PLC0415 - as above

        groups = group(taken.rows, arguments.by)[: arguments.top]
        rows = [_group_as_json(each, arguments) for each in groups]
    return {
        "taken_at": taken.taken_at.isoformat(),
        "netns": taken.netns,
        "range": list(taken.ports),
        "reserved": taken.reserved,
        "held": taken.held,
        "unshared": dict(taken.unshared),
        "rows": rows,
    }


def _row_as_json(row: Row, arguments: argparse.Namespace) -> dict[str, Any]:
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
    if arguments.processes or arguments.by == "process":
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


def _group_as_json(each: Group, arguments: argparse.Namespace) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "protocol": each.protocol,
        arguments.by: each.name,
        "in_use": each.in_use,
        "pairs": each.pairs,
    }
    if each.capacity is not None:
        fields["capacity"] = each.capacity
    fields["fullest"] = _row_as_json(each.fullest, arguments)
    return fields


def _show(taken: Snapshot, arguments: argparse.Namespace) -> None:
    from rich.console import Console  # noqa: PLC0415 - from the tools extra

    from connectx.observe.groups import group  # noqa: PLC0415 - as above

    # Piped, a row is a line, which grep and awk can take; a terminal has it folded.
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    # An address such as 2001:db8:a:b::1 has the name of an emoji in it, and a process may have
    # markup in its own.
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    if arguments.watch and console.is_terminal:
        console.clear()
    held = ", ".join(f"{number} held ({name})" for name, number in taken.held.items() if number)
    console.print(
        f"{taken.taken_at:%H:%M:%S} UTC, {taken.netns}: source ports {taken.ports}, "
        f"{taken.reserved} reserved{', ' + held if held else ''}"
    )
    for name, free in taken.unshared.items():
        if free < taken.ports.size - taken.reserved:
            console.print(
                f"{name}: {free:,} of {taken.ports.size - taken.reserved:,} ports are free for "
                "sockets that do not share"
            )
    if arguments.by == "pair":
        number = len(taken.rows)
        table = _table_of_rows(taken.rows[: arguments.top], arguments)
    else:
        groups = group(taken.rows, arguments.by)
        number = len(groups)
        table = _table_of_groups(groups[: arguments.top], arguments.by)
    console.print(table)
    if not number:
        console.print("No source port of the range is in use.")
    elif arguments.top and arguments.top < number:
        console.print(f"{number - arguments.top} more")


def _table(*columns: tuple[str, bool]) -> Table:
    """A table; columns: their titles, and whether they are numbers."""
    from rich.table import Table  # noqa: PLC0415 - as above

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, numeric in columns:
        table.add_column(
            title, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold"
        )
    return table


def _table_of_rows(rows: tuple[Row, ...], arguments: argparse.Namespace) -> Table:
    some_reusable = any(row.reusable for row in rows)
    table = _table(
        ("protocol", False),
        ("source", False),
        ("destination", False),
        ("in use", True),
        *[("reusable", True)] * some_reusable,
        ("of", True),
        ("full", True),
        ("states", False),
        *[("processes", False)] * arguments.processes,
    )
    for row in rows:
        owners = [f"{process or '?'} {number}" for process, number in row.processes.items()]
        table.add_row(
            row.protocol,
            row.source,
            str(row.destination),
            f"{row.in_use:,}",
            *[f"{row.reusable:,}"] * some_reusable,
            f"{row.capacity:,}",
            _share(row.utilisation),
            ", ".join(f"{state} {number:,}" for state, number in row.states.items()),
            *[", ".join(owners)] * arguments.processes,
        )
    return table


def _table_of_groups(groups: list[Group], by: str) -> Table:
    table = _table(
        ("protocol", False),
        (by, False),
        ("in use", True),
        ("of", True),
        ("pairs", True),
        ("fullest pair", False),
        ("full", True),
    )
    for each in groups:
        table.add_row(
            each.protocol,
            each.name,
            f"{each.in_use:,}",
            "" if each.capacity is None else f"{each.capacity:,}",
            f"{each.pairs:,}",
            f"{each.fullest.source} to {each.fullest.destination}",
            _share(each.fullest.utilisation),
        )
    return table


def _share(share: float) -> Text:
    from rich.text import Text  # noqa: PLC0415 - as above

    from connectx._diagnosis.finding import FILLING, FULL  # noqa: PLC0415 - as above

    colour = "red" if share >= FULL else "yellow" if share >= FILLING else ""
    return Text(percent(share), colour)
