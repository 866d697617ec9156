"""What a subcommand is, how it becomes part of the command line, and how it ends."""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING, Final, Protocol

from connectx.cli.output import error_text, give_up_output, is_lost

if TYPE_CHECKING:
    # The class that add_subparsers() returns has no public name.
    from argparse import _SubParsersAction
    from collections.abc import Iterator

    Subparsers = _SubParsersAction[argparse.ArgumentParser]

# Exit statuses.
OK: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
#: 128 + SIGINT, as shells report it.
INTERRUPTED: Final = 130


class Command(Protocol):
    """What the module of a subcommand defines.

    When it is imported, it imports only connectx and the standard library. Packages of the
    ``tools`` extra wait until it runs, so that ``--help`` and ``--version`` work without them.
    """

    #: Its name on the command line.
    NAME: str
    #: One line for the help of the command above it.
    HELP: str
    #: A command line to copy, shown at the end of its own ``--help``.
    EXAMPLE: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add its arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do its work and return the exit status."""


class CommandError(Exception):
    """Ends a command: prints the message on standard error, and sets the exit status."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


def add(subparsers: Subparsers, command: Command) -> argparse.ArgumentParser:
    """Add a subcommand to a parser's, and return its own parser."""
    parser = subparsers.add_parser(
        command.NAME,
        help=command.HELP,
        description=command.HELP,
        epilog=f"example:\n  {command.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.configure(parser)
    return parser


@contextlib.contextmanager
def errors_reported(status: int = FAILED) -> Iterator[None]:
    """End the command when the block raises an OSError, with this status, or a ValueError.

    `connectx.observe` raises ValueError for arguments that contradict each other.
    """
    try:
        yield
    except ValueError as error:
        raise CommandError(str(error), WRONG_USAGE) from error
    except OSError as error:
        if is_lost(error):
            give_up_output()
        raise CommandError(error_text(error), status) from error
