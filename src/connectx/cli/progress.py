"""Progress of what takes long: on standard error, and only if that is a terminal."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from connectx.lab.progress import Watch

#: The seconds between two redraws.
_REDRAW_EVERY: Final = 0.1

#: Erases the rest of a terminal's line.
_CLEAR: Final = "\x1b[K"

#: How many tasks are shown besides the first: the latest ones.
_SHOWN: Final = 8


@contextlib.contextmanager
def spinner(doing: str) -> Iterator[Callable[[str], None]]:
    """Show that a command works, and at what; yield a function that says what it does now.

    Args:
        doing: What it does at first.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    finished = threading.Event()

    def report(now: str) -> None:
        nonlocal doing
        doing = now

    def draw() -> None:
        for frame in itertools.cycle("|/-\\"):
            print(f"\r{_CLEAR}{frame} {doing}", end="", file=sys.stderr, flush=True)
            if finished.wait(_REDRAW_EVERY):
                break
        print(f"\r{_CLEAR}", end="", file=sys.stderr, flush=True)

    drawing = threading.Thread(target=draw, name="spinner", daemon=True)
    drawing.start()
    try:
        yield report
    finally:
        finished.set()
        drawing.join()


@contextlib.contextmanager
def progress_bars() -> Iterator[Watch]:
    """Show a bar and the remaining time for each task that an experiment reports."""
    from rich.console import Console  # noqa: PLC0415 -- from the tools extra
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    # Without auto_refresh, which needs a thread: experiments fork, and only a process with a
    # single thread may enter a user namespace.
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[phase]} {task.completed:,} of {task.total:,}"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    tasks: dict[str, TaskID] = {}
    drawn = time.monotonic()

    def watch(task: str, phase: str, done: int, total: int) -> None:
        nonlocal drawn
        if task not in tasks:
            tasks[task] = progress.add_task(task, total=total, phase=phase)
            for former in list(tasks)[1:-_SHOWN]:
                progress.update(tasks[former], visible=False)
        progress.update(tasks[task], completed=done, total=total, phase=phase)
        if time.monotonic() - drawn > _REDRAW_EVERY:
            progress.refresh()
            drawn = time.monotonic()

    with progress:
        yield watch
