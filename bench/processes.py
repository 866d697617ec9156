"""Run a function in a process of its own, and get its result back."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

T = TypeVar("T")

#: fork and not spawn: a fresh interpreter would import everything again, some
#: hundred times in a run. Nothing here starts a thread before it forks.
CONTEXT: Final = multiprocessing.get_context("fork")


def in_process(function: Callable[[], T]) -> T:
    """Run a function in a forked process: what it does to itself ends with it.

    Raises RuntimeError when the process fails; its traceback is on standard error.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_report, args=(function, sender))
    process.start()
    sender.close()
    try:
        result: T = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"a measuring process ended with status {process.exitcode}") from None
    finally:
        receiver.close()
    process.join()
    return result


def _report(function: Callable[[], T], sender: Connection[T, None]) -> None:
    sender.send(function())
    sender.close()
