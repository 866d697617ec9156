"""What a subcommand is, and how it becomes part of the command line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    # The class that add_subparsers() returns has no public name.
    from argparse import _SubParsersAction

    Subparsers = _SubParsersAction[argparse.ArgumentParser]


class Command(Protocol):
    """What a subcommand's module has.

    It imports only the standard library and connectx when it is imported; packages of the
    ``tools`` extra wait until it runs, so that ``--help`` and ``--version`` work without them.
    """

    #: As typed on the command line.
    NAME: str
    #: One line for the help of the command above it.
    HELP: str
    #: How it is typed, shown at the end of its own ``--help``.
    EXAMPLE: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do the work and return the exit status."""


def add(subparsers: Subparsers, command: Command) -> argparse.ArgumentParser:
    """Add a subcommand to those of a parser, and return its own parser."""
    parser = subparsers.add_parser(
        command.NAME,
        help=command.HELP,
        description=command.HELP,
        epilog=f"example:\n  {command.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.configure(parser)
    return parser
