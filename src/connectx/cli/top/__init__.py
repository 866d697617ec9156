"""``connectx top``: a live view of the fullest pairs of source and destination.

- ``watcher``: a thread that counts source ports again and again and delivers the results.
- ``model``: the latest results, and which of them to show. It knows no terminal and no clock.
- ``drawing``, ``columns``, ``details``: turn numbers into styled text.
- ``keys``: the list of keys.
- ``table``, ``screens``, ``app``: the widgets. Only they import Textual.
"""

from __future__ import annotations

import sys
from textwrap import indent
from typing import TYPE_CHECKING, Final

from connectx.cli.arguments import add_netns, add_port_range, add_protocols, protocols, seconds
from connectx.cli.command import FAILED, OK, WRONG_USAGE, CommandError
from connectx.cli.top.keys import KEYS

if TYPE_CHECKING:
    import argparse

NAME: Final = "top"
HELP: Final = "Watch the fullest destinations live: which are full, and which will be next."
EXAMPLE: Final = "connectx top --protocol tcp --interval 5"

_DESCRIPTION: Final = f"""\
{HELP}

Each line is a source address and a destination. It shows the share of the source ports in
use between them, how fast that share changes, and at that rate the time until no port is
left. Press Enter for the states, processes and source ports of one pair.

keys:
{indent(KEYS, "  ")}"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.description = _DESCRIPTION
    parser.add_argument(
        "--interval",
        type=seconds(0.1),
        default=2.0,
        metavar="SECONDS",
        help="count every SECONDS (default: 2); less often where counting takes long",
    )
    add_protocols(parser)
    add_port_range(parser)
    add_netns(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show the view until the user quits."""
    # Textual reads from the first of these and draws on the last.
    if not all(each.isatty() for each in (sys.stdin, sys.stdout, sys.stderr)):
        raise CommandError(
            "standard input, output and error must be a terminal; without one, use connectx usage",
            WRONG_USAGE,
        )
    from connectx.cli.top.app import TopApp  # noqa: PLC0415 - from the tools extra
    from connectx.cli.top.model import Model  # noqa: PLC0415 - --help needs none of it
    from connectx.cli.top.watcher import Watcher  # noqa: PLC0415 - as above

    counted = protocols(arguments)
    watcher = Watcher(arguments.interval, counted, arguments.netns, arguments.port_range)
    app = TopApp(Model(counted, arguments.netns), watcher)
    try:
        app.run()
    finally:
        # The last round may take a moment: wait for it once the terminal is restored.
        watcher.stop()
        watcher.join()
    return FAILED if app.return_code else OK
