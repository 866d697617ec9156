"""Child processes that carry out one task after the other.

A task is a function at the top of a module: it is sent to the worker by name, and finds
there what earlier tasks have left.
"""

from __future__ import annotations

import functools
import os
import resource
import time
import traceback
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Concatenate,
    Final,
    Generic,
    NamedTuple,
    ParamSpec,
    Self,
    TypeAlias,
    TypeVar,
    cast,
)

from connectx.sandbox.children import Child

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    #: How a task reports how much it has done so far.
    Report: TypeAlias = Callable[[int], None]

State = TypeVar("State")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

#: Descriptors left free in a worker, for what a task opens besides the sockets it holds.
SPARE_DESCRIPTORS: Final = 32

_REPORT_EVERY: Final = 0.1  # seconds


class _Progress(NamedTuple):
    done: int


class _Returned(NamedTuple):
    value: object


class _Raised(NamedTuple):
    error: Exception


def descriptor_limit() -> int:
    """Return how many descriptors a worker may have: it raises its soft limit to the hard one."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def descriptors_free() -> int:
    """Return how many sockets the calling worker can still open, less SPARE_DESCRIPTORS.

    In the creator it returns what a new worker can open at least, since the creator has pipes
    to other workers besides.
    """
    return descriptor_limit() - len(list(Path("/proc/self/fd").iterdir())) - SPARE_DESCRIPTORS


def sparingly(report: Report) -> Report:
    """Return a function that passes on what it is called with, but ten times a second at most."""
    passed_on = time.monotonic()

    def maybe(done: int) -> None:
        nonlocal passed_on
        now = time.monotonic()
        if now - passed_on > _REPORT_EVERY:
            report(done)
            passed_on = now

    return maybe


class Crew:
    """The workers of one experiment, which end together.

    Close it, or use it as a context manager.
    """

    def __init__(self) -> None:
        self._children: list[Child] = []

    def fork(self, state: State) -> Worker[State]:
        """Start a worker.

        Args:
            state: The first argument of every task. The worker has its own copy.

        Raises:
            OSError: As fork(2) and socketpair(2) do.
        """
        child = Child(
            functools.partial(_do_tasks, state=state),
            # The other workers' pipes take descriptors, and stay open after their owner
            # has closed them.
            unused=[other.pipe for other in self._children],
        )
        self._children.append(child)
        return Worker(child)

    def close(self) -> None:
        """Kill all workers and wait until they are gone, their sockets with them."""
        # First kill all: closing tens of thousands of sockets takes a while.
        for child in self._children:
            child.kill()
        while self._children:
            self._children.pop().wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Worker(Generic[State]):
    """A child process that keeps a state between its tasks; made by Crew.fork()."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def start(
        self,
        task: Callable[Concatenate[State, Report, Arguments], Result],
        *arguments: Arguments.args,
        **keywords: Arguments.kwargs,
    ) -> Job[Result]:
        """Have the worker call ``task(state, report, ...)``, and return at once.

        Arguments and result are pickled, so they cannot be sockets.

        Raises:
            ChildProcessError: The worker has died.
        """
        self._child.send((task, arguments, keywords))
        return Job(self._child)


class Job(Generic[Result]):
    """A task that a worker is doing. Ask for its result before you start the worker's next."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def result(self, progress: Report | None = None) -> Result:
        """Wait until the task has ended, and return what it returned.

        Args:
            progress: Called with each count that the task reports.

        Raises:
            ChildProcessError: The worker died.
            Exception: Whatever the task raised.
        """
        while True:
            message = self._child.receive()
            if isinstance(message, _Raised):
                raise message.error
            if isinstance(message, _Returned):
                return cast("Result", message.value)
            if progress is not None:
                progress(message.done)


def in_worker(function: Callable[[], Result]) -> Result:
    """Call a function in a worker of its own: what it does to its process ends with it.

    Raises:
        ChildProcessError: The worker died.
        Exception: Whatever the function raised.
    """
    with Crew() as crew:
        return crew.fork(function).start(_call).result()


def _call(function: Callable[[], Result], _: Report) -> Result:
    return function()


def _do_tasks(pipe: Connection, state: object) -> None:
    limit = descriptor_limit()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    def report(done: int) -> None:
        pipe.send(_Progress(done))

    while True:
        try:
            task, arguments, keywords = pipe.recv()
        except EOFError:
            return
        try:
            answer: _Returned | _Raised = _Returned(task(state, report, *arguments, **keywords))
        except Exception as error:  # noqa: BLE001 -- the creator raises it
            error.add_note(f"in worker process {os.getpid()}:\n{traceback.format_exc()}")
            answer = _Raised(error)
        pipe.send(answer)
