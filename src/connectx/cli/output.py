"""How commands print: numbers and errors as text, and an output that takes no more."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import Final

#: Errors of write(2) that mean that nothing more can be written: disk full, terminal gone.
_OUTPUT_LOST: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


#: What stands for a character that the output's encoding lacks, one for one, so that columns stay
#: aligned.
_INSTEAD: Final = {
    **dict(zip("─━│·…µ→✓✗░", "--|..u>vx:", strict=True)),
    **dict(zip("▁▂▃▄▅▆▇█", "_.:-=+*#", strict=True)),
    **dict(zip("▏▎▍▌▋▊▉", "---####", strict=True)),
}


def accept_any_encoding() -> None:
    """Make the standard streams print something for every character, whatever their encoding."""
    codecs.register_error("connectx", _instead)
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="connectx")


def _instead(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_INSTEAD.get(each, "?") for each in lacking), error.end


def percent(share: float) -> str:
    """Return a share as text, such as "97.3 %"."""
    # Rounded down: only what is full is 100 %.
    return f"{int(share * 1000) / 10:.1f} %"


def plural(number: int, noun: str) -> str:
    """Return a number and what it counts, such as "1 socket" or "2,000 sockets"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def error_text(error: BaseException) -> str:
    """Return what happened and to which file, without Python's "[Errno 2]"."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"


def is_lost(error: OSError) -> bool:
    """Return whether an error is from writing to a standard output that takes no more."""
    return error.errno in _OUTPUT_LOST and error.filename is None


def give_up_output() -> None:
    """Discard what is still buffered, which would raise again at interpreter exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
