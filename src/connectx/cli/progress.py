"""Progress bars for what takes over a second, on standard error and only on a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectx.lab.progress import Watch

#: Seconds between two redraws of the progress bars.
_REDRAW_EVERY: Final = 0.1


#: How many tasks are shown, besides the first one: the latest.
_SHOWN: Final = 8


@contextlib.contextmanager
def progress_bars() -> Iterator[Watch]:
    """Show a bar for each task that an experiment tells of, with an estimate of its end."""
    from rich.console import Console  # noqa: PLC0415 -- from the tools extra
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    # Without auto_refresh, since its thread would still be there at each fork,
    # and since only a process of one thread may enter a user namespace.
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
