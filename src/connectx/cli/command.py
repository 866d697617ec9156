"""What a subcommand is, how it becomes part of the command line, and how it ends."""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING, Any, Final, Protocol

from connectx.cli.output import error_text, give_up_output, is_lost

if TYPE_CHECKING:
    # The class that add_subparsers() returns has no public name.
    from argparse import _SubParsersAction
    from collections.abc import Iterable, Iterator

    Subparsers = _SubParsersAction[Any]

# Exit statuses.
OK: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
#: 128 + SIGINT, as shells report it.
INTERRUPTED: Final = 130


class Command(Protocol):
    """What the module of a subcommand defines.

    When it is imported, it imports only connectx and the standard library. Packages of an extra
    wait until it runs, so that ``--help`` and ``--version`` work without them.
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


class UsageError(CommandError):
    """Ends a command like `CommandError`, for arguments that are wrong: its usage is shown too."""

    def __init__(self, message: str) -> None:
        super().__init__(message, WRONG_USAGE)


class Parser(argparse.ArgumentParser):
    """A parser whose errors show the usage of the subcommand at hand, and what was likely meant."""

    # Any: its overloads give back a namespace of the type that they were given.
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments, and refuse those that this parser does not know.

        argparse would collect the unknown arguments of a subcommand, and then show the usage
        of the command above it.
        """
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._hint(found, unknown)}")
        return found, unknown

    def _hint(self, found: argparse.Namespace, unknown: Iterable[str]) -> str:
        option = next((each for each in unknown if each.startswith("-")), "")
        subparser: Parser = getattr(found, "parser", self)
        if subparser is not self and subparser.knows(option):
            return f"; {option} comes after the command, as in {subparser.prog} {option}"
        return _meant(option, [name for name in self._option_string_actions if name[:2] == "--"])

    def knows(self, option: str) -> bool:
        """Return whether this is one of its options, with or without a value after "="."""
        return option.partition("=")[0] in self._option_string_actions

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += _meant(value, action.choices or ())
            raise


def _meant(text: object, known: Iterable[object]) -> str:
    """The end of a message that asks whether something known was meant by a text."""
    typed = str(text).partition("=")[0].lower()
    names = {str(each).lower(): each for each in known}
    from difflib import get_close_matches  # noqa: PLC0415 - only for mistakes

    close = get_close_matches(typed, names, n=1)
    return f"; did you mean {names[close[0]]}?" if close else ""


def add(subparsers: Subparsers, command: Command) -> argparse.ArgumentParser:
    """Add a subcommand to a parser's, and return its own parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        command.NAME,
        help=command.HELP,
        description=command.HELP,
        epilog=f"example:\n  {command.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # Of several subcommands, one within the other, the last one's.
    parser.set_defaults(parser=parser)
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
        raise UsageError(str(error)) from error
    except OSError as error:
        if is_lost(error):
            give_up_output()
        raise CommandError(error_text(error), status) from error
