"""The ``connectx`` command: finds the subcommand, and turns how it ends into an exit status.

A subcommand is a module of this package that has what :class:`connectx.cli.command.Command` lists.
"""

import argparse
import errno
import importlib
import select
import sys
from collections.abc import Sequence
from typing import Final, cast

from connectx import __version__
from connectx.cli.command import Command, add
from connectx.cli.output import give_up_output

#: The subcommands, by module name; the command line has ``-`` for ``_``.
COMMANDS: Final = ("demo", "doctor", "exporter", "kill", "lab", "top", "usage")

#: The packages that the ``tools`` extra brings, by import name.
TOOLS: Final = frozenset({"altair", "jinja2", "prometheus_client", "rich", "textual", "vl_convert"})

OK: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
#: 128 + SIGINT, as shells report it.
INTERRUPTED: Final = 130

#: Errors of write(2) that say that there is no more room.
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

EPILOG: Final = f"""\
exit status:
  {OK}    all is well
  {FAILED}    the command failed, or found what it was asked to look for
  {WRONG_USAGE}    wrong usage, or a missing package
  {INTERRUPTED}  interrupted with Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status, as :data:`EPILOG` lists them.

    ``argv`` is what follows the program's name; ``None`` takes the process's own. As argparse
    does it, ``--help``, ``--version`` and wrong usage raise SystemExit.
    """
    try:
        try:
            return _dispatch(sys.argv[1:] if argv is None else argv)
        finally:
            # Here, because what goes wrong with it cannot be handled at interpreter exit.
            _flush()
    except _OutputLost as lost:
        print(f"connectx: cannot write to standard output: {lost}", file=sys.stderr)
        give_up_output()
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        give_up_output()
        return FAILED
    except OSError as error:
        # While the command was at it: unbuffered, or with more to say than a buffer holds.
        if error.errno not in _DISK_FULL or error.filename is not None:
            raise
        print(f"connectx: cannot write to standard output: {error.strerror}", file=sys.stderr)
        give_up_output()
        return FAILED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in TOOLS:
            raise
        print(
            f"connectx: this command needs {error.name}: pip install 'connectx[tools]'",
            file=sys.stderr,
        )
        return WRONG_USAGE


def parser_for(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for a command line, with no more subcommands than it needs.

    Importing one costs more than all the rest: a subcommand that is named comes
    alone, ``--version`` without any.
    """
    first = argv[0].replace("-", "_") if argv else ""
    if argv[:1] == ["--version"]:
        names: Sequence[str] = ()
    elif first in COMMANDS:
        names = [first]
    else:
        names = COMMANDS
    parser = argparse.ArgumentParser(
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


class _OutputLost(Exception):  # noqa: N818 - what happened, as in connectx.errors
    """Standard output takes no more: its disk is full, say."""


def _flush() -> None:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _OutputLost(error.strerror) from error


def _dispatch(argv: Sequence[str]) -> int:
    if sys.stdout is None:
        print("connectx: standard output is closed", file=sys.stderr)
        return WRONG_USAGE
    arguments = parser_for(argv).parse_args(argv)
    command: Command = arguments.command
    return command.run(arguments)


def _reader_has_gone() -> bool:
    """Tell a broken pipe behind standard output from one of the command's own sockets."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
