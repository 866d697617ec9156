"""The ``connectx`` command: finds the subcommand, and turns how it ends into an exit status.

A subcommand is a module of this package that defines what
:class:`connectx.cli.command.Command` lists.
"""

import argparse
import importlib
import select
import sys
from collections.abc import Sequence
from typing import Final, cast

from connectx import __version__
from connectx.cli.command import (
    FAILED,
    INTERRUPTED,
    OK,
    WRONG_USAGE,
    Command,
    CommandError,
    Parser,
    UsageError,
    add,
)
from connectx.cli.output import accept_any_encoding, error_text, give_up_output, is_lost

#: The subcommands, by module name; the command line has ``-`` for ``_``.
COMMANDS: Final = ("demo", "doctor", "exporter", "kill", "lab", "top", "usage")

#: The packages that some commands need, by import name, and the extras that bring them.
EXTRAS: Final = {
    "prometheus_client": "tools",
    "rich": "tools",
    "textual": "tools",
    "altair": "lab",
    "jinja2": "lab",
    "vl_convert": "lab",
}

EPILOG: Final = f"""\
exit status:
  {OK}    success
  {FAILED}    the command failed, or found what it was asked to look for
  {WRONG_USAGE}    wrong usage, or a missing package
  {INTERRUPTED}  interrupted with Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status, as :data:`EPILOG` lists them.

    Args:
        argv: What follows the program's name; None for the process's own arguments.

    Raises:
        SystemExit: For ``--help``, ``--version`` and wrong usage, as argparse does it.
    """
    accept_any_encoding()
    try:
        try:
            return _dispatch(sys.argv[1:] if argv is None else argv)
        finally:
            # Now: nothing could handle an error of the flush at interpreter exit.
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        give_up_output()
        return FAILED
    except OSError as error:
        if not is_lost(error):
            raise
        give_up_output()
        return _complain(f"cannot write to standard output: {error_text(error)}", FAILED)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _complain(
            f"this command needs {error.name}: pip install 'connectx[{extra}]'", WRONG_USAGE
        )


def parser_for(argv: Sequence[str]) -> Parser:
    """Return the parser for a command line, with no more subcommands than it needs.

    Importing the subcommands costs more than everything else. If the command line names one,
    only that one is imported; ``--version`` imports none.
    """
    first = argv[0].replace("-", "_") if argv else ""
    if argv[:1] == ["--version"]:
        names: Sequence[str] = ()
    elif first in COMMANDS:
        names = [first]
    else:
        names = COMMANDS
    parser = Parser(
        prog="connectx",
        description="Outgoing TCP and UDP connections limited by the 4-tuple, not the port range.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"connectx {__version__}")
    subparsers = parser.add_subparsers(metavar="command", required=True)
    for name in names:
        command = cast("Command", importlib.import_module(f"connectx.cli.{name}"))
        add(subparsers, command).set_defaults(command=command)
    return parser


def _dispatch(argv: Sequence[str]) -> int:
    if sys.stdout is None:
        return _complain("standard output is closed", WRONG_USAGE)
    arguments = parser_for(argv).parse_args(argv)
    command: Command = arguments.command
    try:
        return command.run(arguments)
    except UsageError as error:
        parser: Parser = arguments.parser
        parser.print_usage(sys.stderr)
        return _complain(str(error), error.status, command.NAME)
    except CommandError as error:
        return _complain(str(error), error.status, command.NAME)


def _complain(message: str, status: int, command: str = "") -> int:
    """Print a message on standard error, and return the exit status that goes with it."""
    print(f"connectx {command}".rstrip() + f": {message}", file=sys.stderr)
    return status


def _reader_has_gone() -> bool:
    """Return whether it is standard output that is broken, not a socket of the command's."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
