"""``connectx demo``: prints what the experiment in connectx.lab.demo finds."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Any, Final

from connectx.cli.command import FAILED, OK, CommandError
from connectx.cli.lab.arguments import add_ports
from connectx.cli.page import Cell, Column, Page, Piece, Table
from connectx.cli.progress import progress_bars
from connectx.lab import demo
from connectx.lab.resources import DEFAULT_PORTS, CannotStartError

if TYPE_CHECKING:
    import argparse

NAME: Final = "demo"
HELP: Final = "Open every connection one address can have, and show what stops the usual ways."
EXAMPLE: Final = "connectx demo --protocol udp --ports 40000-40999"

_DESCRIPTION: Final = f"""\
{HELP}

In private network namespaces, the demo opens connections from one source address to an
echo server on two destinations, as many to each as there are source ports: in the ways
that people usually write, and with connectx. A way gives up after {demo.FAILURES_IN_A_ROW} failures
in a row, or {demo.PATIENCE:.0f} s with one destination. Then every connection sends something of
its own, and must get exactly that back.

ways:
  connect       connect()
  bind          bind() to the source address, then connect()
  SO_REUSEADDR  setsockopt(SO_REUSEADDR), then the same
  connectx      connectx.create_connection(..., source_address=(address, 0))

keys of --json:
  kernel, cores          kernel release; CPUs available
  ports                  the port range, [low, high]
  seconds                how long it took
  ways                   a list, in the order of the table:
    protocol             "tcp" or "udp"
    technique            as above
    destinations         a list of two:
      destination        address and port
      opened             connections
      rate               connections per second, null if there is none
      errno              name of the last error, null for none
      stopped            "{demo.FULL}", "{demo.REFUSED}" or
                         "{demo.SLOW}"
    duplicates           sockets on a 4-tuple that another socket was on before them
    echoed               connections that got back what they sent
"""

#: How wide the table gets; it fits into 80 columns.
_WIDEST: Final = 100


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = _DESCRIPTION
    parser.add_argument("--protocol", choices=demo.DEMONSTRATED, help="try only this protocol")
    add_ports(parser, DEFAULT_PORTS)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; it fails unless connectx opened all connections and each works."""
    protocols = [arguments.protocol] if arguments.protocol else demo.DEMONSTRATED
    try:
        with progress_bars() as watch:
            result = demo.run(protocols, arguments.ports, watch)
    except CannotStartError as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        print(json.dumps(_as_json(result), indent=2))
    else:
        _print_table(result)
    flawless = all(way.flawless for way in result.ways if way.technique == demo.CONNECTX)
    return OK if flawless else FAILED


def _as_json(result: demo.Demonstration) -> dict[str, Any]:
    return {
        "kernel": result.kernel,
        "cores": result.cores,
        "ports": list(result.ports),
        "seconds": round(result.seconds, 3),
        "ways": [
            {
                "protocol": way.protocol,
                "technique": way.technique,
                "destinations": [
                    {
                        "destination": list(destination),
                        "opened": opening.opened,
                        "rate": round(opening.rate) or None,
                        "errno": errno.errorcode.get(opening.errno),
                        "stopped": opening.stopped,
                    }
                    for destination, opening in zip(demo.DESTINATIONS, way.openings, strict=True)
                ],
                "duplicates": way.duplicates,
                "echoed": way.echoed,
            }
            for way in result.ways
        ],
    }


def _print_table(result: demo.Demonstration) -> None:
    page = Page(_WIDEST)
    page.table(_table(result))
    page.line()
    for way in result.ways:
        if way.technique == demo.CONNECTX:
            page.paragraph(
                f"connectx: {way.opened:,} {way.protocol.upper()} connections from "
                f"{demo.SOURCE}, {way.duplicates:,} duplicates, {way.echoed:,} echoing"
            )
    page.paragraph(
        f"Linux {result.kernel}, {result.cores} cores, {result.seconds:.1f} s", style="dim"
    )


def _table(result: demo.Demonstration) -> Table:
    first, second = (f"{host}:{port}" for host, port in demo.DESTINATIONS)
    drawn = Table(
        [
            Column(),
            Column("way"),
            Column("opened", right=True),
            Column("per\nsecond", right=True),
            Column("errno"),
            Column("stopped", folds=True),
            Column("dupli-\ncates", right=True),
            Column("echoing", right=True),
        ],
        f"{result.ports.size:,} source ports ({result.ports}) of {demo.SOURCE}\n"
        f"first line of each way: to {first}, second line: to {second}",
        rule=True,
        gap=1,
    )
    for number, way in enumerate(result.ways):
        new = number == 0 or result.ways[number - 1].protocol != way.protocol
        if new:
            drawn.add_section()
        heads: list[Cell] = [way.protocol.upper() if new else "", way.technique]
        tails: list[Cell] = [
            Piece(f"{way.duplicates:,}", "red" if way.duplicates else ""),
            Piece(f"{way.echoed:,}", "red" if way.echoed < way.opened else ""),
        ]
        for opening in way.openings:
            drawn.add(
                *heads,
                f"{opening.opened:,}",
                f"{opening.rate:,.0f}" if opening.opened else "",
                errno.errorcode.get(opening.errno, "none"),
                Piece(opening.stopped, "yellow" if opening.stopped != demo.FULL else ""),
                *tails,
                style="bold" if way.technique == demo.CONNECTX else "",
            )
            heads, tails = ["", ""], ["", ""]
    return drawn
