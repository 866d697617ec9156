"""``connectx demo``: prints what the experiment in connectx.lab.demo finds."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, Any, Final

from connectx.addresses import Endpoint
from connectx.cli.command import FAILED, OK, CommandError
from connectx.cli.lab.arguments import add_ports
from connectx.cli.output import plural
from connectx.cli.page import Column, Page, Piece, Table
from connectx.cli.progress import progress_bars
from connectx.cli.schemas import add_json, of_endpoint, print_json
from connectx.lab import demo
from connectx.lab.resources import DEFAULT_PORTS, CannotStartError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from connectx.addresses import PortRange

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
"""

#: How wide a bar is.
_BAR: Final = 16

#: How wide the table gets; it fits into 80 columns.
_WIDEST: Final = 100


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = _DESCRIPTION
    parser.add_argument("--protocol", choices=demo.DEMONSTRATED, help="try only this protocol")
    add_ports(parser, DEFAULT_PORTS)
    add_json(parser, "demo", "print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; it fails unless connectx opened all connections and each works."""
    protocols = [arguments.protocol] if arguments.protocol else demo.DEMONSTRATED
    if sys.stderr.isatty():
        print(_announcement(protocols, arguments.ports), file=sys.stderr)
    try:
        with progress_bars() as watch:
            result = demo.run(protocols, arguments.ports, watch)
    except CannotStartError as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        print_json("demo", _as_json(result))
    else:
        _print_table(result)
    flawless = all(way.flawless for way in result.ways if way.technique == demo.CONNECTX)
    return OK if flawless else FAILED


def _announcement(protocols: Sequence[str], ports: PortRange) -> str:
    seconds = demo.estimate(protocols, ports)
    # To five seconds, which is more than an estimate has.
    about = f"about {5 * round(seconds / 5)} s" if seconds > 5 else "a few seconds"
    ways = len(demo.TECHNIQUES) * len(protocols)
    return f"This takes {about}: {ways} ways to open connections, one after the other."


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
                        "destination": of_endpoint(Endpoint(*destination)),
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
    for remark in _remarks(result):
        page.paragraph(remark, style="dim")
    for way in result.ways:
        if way.technique == demo.CONNECTX:
            connections = plural(way.opened, f"{way.protocol.upper()} connection")
            page.paragraph(
                f"connectx: {connections} from {demo.SOURCE}, "
                f"{plural(way.duplicates, 'duplicate')}, {way.echoed:,} echoing"
            )
    page.paragraph(
        f"Linux {result.kernel}, {plural(result.cores, 'core')}, {result.seconds:.1f} s",
        style="dim",
    )


def _table(result: demo.Demonstration) -> Table:
    possible = result.ports.size * len(demo.DESTINATIONS)
    to = " and ".join(f"{host}:{port}" for host, port in demo.DESTINATIONS)
    drawn = Table(
        [
            Column(),
            Column("way"),
            Column(f"of {possible:,}"),
            Column("work", right=True),
            Column("per\nsecond", right=True, leave_out=1),
            Column("verdict", folds=True),
        ],
        f"from {demo.SOURCE} with {plural(result.ports.size, 'source port')} ({result.ports})\n"
        f"to {to}",
        rule=True,
        gap=1,
    )
    for number, way in enumerate(result.ways):
        new = number == 0 or result.ways[number - 1].protocol != way.protocol
        if new:
            drawn.add_section()
        seconds = sum(opening.seconds for opening in way.openings)
        colour = "green" if way.flawless else "red"
        ours = way.technique == demo.CONNECTX
        drawn.add(
            way.protocol.upper() if new else "",
            way.technique,
            Piece(_bar(way, possible), colour if ours or not way.flawless else ""),
            f"{way.echoed:,}",
            f"{way.opened / seconds:,.0f}" if seconds else "",
            Piece(_verdict(way), f"{'bold ' * ours}{colour}"),
            style=f"bold {colour}" if ours else "",
        )
    return drawn


def _bar(way: demo.Way, possible: int) -> str:
    """Draw how many connections work, and how many are open and do not."""
    working = way.echoed * _BAR // possible
    broken = way.opened * _BAR // possible - working
    return f"{'█' * working}{'░' * broken}{'·' * (_BAR - working - broken)}"


def _verdict(way: demo.Way) -> str:
    if way.flawless:
        return "✓ every port, for both"
    if way.duplicates:
        return f"✗ {way.duplicates:,} lost to duplicates"
    for opening in way.openings:
        if opening.stopped == demo.REFUSED:
            return f"✗ refused: {errno.errorcode[opening.errno]}"
        if opening.stopped == demo.SLOW:
            return f"✗ {opening.stopped}"
    return f"✗ {way.opened - way.echoed:,} do not echo"


def _remarks(result: demo.Demonstration) -> Iterator[str]:
    """Say what the verdicts mean."""
    stopped = {opening.stopped for way in result.ways for opening in way.openings}
    if demo.SLOW in stopped:
        yield (
            f"{demo.SLOW}: {demo.PATIENCE:.0f} s were not enough for the ports toward one "
            "destination."
        )
    if demo.REFUSED in stopped:
        yield (
            f"refused: {demo.FAILURES_IN_A_ROW} times in a row, while ports were free toward the "
            "destination."
        )
    if any(way.duplicates for way in result.ways):
        yield (
            "duplicates: sockets on the 4-tuple of another socket, which gets nothing any more. "
            "Drawn as ░."
        )
