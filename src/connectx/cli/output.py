"""How commands print: numbers and errors as text, tables, and an output that takes no more."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.table import Table
    from rich.text import Text

Row = TypeVar("Row")

#: Errors of write(2) that mean that nothing more can be written: disk full, terminal gone.
_OUTPUT_LOST: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


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


class Column(NamedTuple, Generic[Row]):
    """A column of a table.

    Attributes:
        title: What stands above it.
        cell: Returns its text for a row.
        numeric: Whether it is aligned to the right and never folded.
        shown: Whether it is part of the table.
    """

    title: str
    cell: Callable[[Row], str | Text]
    numeric: bool = False
    shown: bool = True


def table(columns: Iterable[Column[Row]], rows: Iterable[Row]) -> Table:
    """Return a table without borders, a line for each row, which a narrow terminal folds."""
    from rich.table import Table  # noqa: PLC0415 - from the tools extra

    columns = [column for column in columns if column.shown]
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(
            column.title,
            justify="right" if column.numeric else "left",
            no_wrap=column.numeric,
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*(column.cell(row) for column in columns))
    return drawn


def is_lost(error: OSError) -> bool:
    """Return whether an error is from writing to a standard output that takes no more."""
    return error.errno in _OUTPUT_LOST and error.filename is None


def give_up_output() -> None:
    """Discard what is still buffered, which would raise again at interpreter exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
