"""``connectx top``: a live view of the fullest pairs of source and destination.

- ``watcher``: a thread that counts again and again, and tells what came of it.
- ``model``: what is known, and what of it is to be shown; no terminal, no clock.
- ``drawing``, ``columns``, ``details``: the same as text, in pieces with a style each.
- ``table``, ``screens``, ``app``: widgets that draw it; they alone import Textual.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from connectx.cli.arguments import add_netns, add_port_range, add_protocols, protocols, seconds
from connectx.cli.command import FAILED, OK, WRONG_USAGE, CommandError

if TYPE_CHECKING:
    import argparse

NAME: Final = "top"
HELP: Final = "Watch the fullest destinations live: what is full, and when the next will be."
EXAMPLE: Final = "connectx top --protocol tcp --interval 5"

_DESCRIPTION: Final = f"""\
{HELP}

Each line is a source address and a destination, with the share of the source ports
that is in use between them, how fast it changes, and at that rate the time until
none is left. A closer look has its states, processes and source ports.

keys:
  up, down, page up, page down, home, end   move
  enter      look closer; escape to come back
  /          filter by words of protocol, source and destination; escape for all
  p          filter by protocol
  s          sort by share, number in use, rate, or name
  q, Ctrl-C  quit
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = _DESCRIPTION
    parser.add_argument(
        "--interval",
        type=seconds(0.1),
        default=2.0,
        metavar="SECONDS",
        help="count every so many seconds (2); less often where that takes long",
    )
    add_protocols(parser)
    add_port_range(parser)
    add_netns(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show the view until somebody quits."""
    # Textual reads the first and draws on the last of them.
    if not all(each.isatty() for each in (sys.stdin, sys.stdout, sys.stderr)):
        raise CommandError("needs a terminal; try connectx usage", WRONG_USAGE)
    from connectx.cli.top.app import TopApp  # noqa: PLC0415 - from the tools extra
    from connectx.cli.top.model import Model  # noqa: PLC0415 - --help needs none of it
    from connectx.cli.top.watcher import Watcher  # noqa: PLC0415 - as above

    counted = protocols(arguments)
    watcher = Watcher(arguments.interval, counted, arguments.netns, arguments.port_range)
    app = TopApp(Model(counted, arguments.netns), watcher)
    try:
        app.run()
    finally:
        # Only now, with the terminal as it was: the last round may take a moment.
        watcher.stop()
        watcher.join()
    return FAILED if app.return_code else OK
