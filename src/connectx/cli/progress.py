"""The progress of what takes long: a line on standard error, and only if that is a terminal."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx._diagnosis.finding import duration
from connectx.cli.page import Page, Piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from connectx.lab.progress import Watch

#: The seconds between two redraws.
_REDRAW_EVERY: Final = 0.1

_BAR: Final = 20


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
            show([Piece(f"{frame} {doing}"[: page.width - 1])])
            if finished.wait(_REDRAW_EVERY):
                break
        show([])

    page = Page(stream=sys.stderr)
    drawing = threading.Thread(target=draw, name="spinner", daemon=True)
    with page.animation() as show:
        drawing.start()
        try:
            yield report
        finally:
            finished.set()
            drawing.join()


class _Task(NamedTuple):
    """A task that an experiment has reported, and when its phase began."""

    name: str
    phase: str
    done: int
    total: int
    since: float


@contextlib.contextmanager
def progress_bars() -> Iterator[Watch]:
    """Show a bar and the remaining time for the latest task that an experiment reports.

    The first task is shown too for as long as it lasts: it may be the sum of the others.
    """
    page = Page(stream=sys.stderr)
    tasks: dict[str, _Task] = {}
    began: dict[tuple[str, str], float] = {}
    drawn = time.monotonic()

    with page.animation() as show:

        def watch(name: str, phase: str, done: int, total: int) -> None:
            nonlocal drawn
            now = time.monotonic()
            begins = (name, phase) not in began
            since = began.setdefault((name, phase), now)
            tasks[name] = _Task(name, phase, done, total, since)
            if begins or now - drawn > _REDRAW_EVERY:
                first = next(iter(tasks.values()))
                latest = tasks[name]
                above = [first] if first is not latest and first.done < first.total else []
                text = ", ".join(_text(task) for task in (*above, latest))
                show([Piece(f"{_bar(latest)} {text}{_left(latest, now)}"[: page.width - 1])])
                drawn = now

        try:
            yield watch
        finally:
            show([])


def _bar(task: _Task) -> str:
    full = _BAR * task.done // max(1, task.total)
    return f"{'━' * full}{'·' * (_BAR - full)}"


def _text(task: _Task) -> str:
    return f"{task.name}: {task.phase} {task.done:,} of {task.total:,}"


def _left(task: _Task, now: float) -> str:
    """How long a task may still take, if it goes on as before."""
    if not 0 < task.done < task.total:
        return ""
    return f", {duration((now - task.since) / task.done * (task.total - task.done))} left"
