"""Child processes for races: forked, killed and stopped at will, and never left behind."""

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Literal

from connectx.linux import uapi
from tests import limits


class Child:
    """A process that runs a task and ends.

    report: the reading end of a pipe, for the bytes that the task sends.
    """

    def __init__(self, task: Callable[[Callable[[bytes], None]], None]) -> None:
        """task: gets a function that sends bytes to the parent."""
        self.report, sending = os.pipe()
        parent = os.getpid()
        with warnings.catch_warnings():
            # As in connectx.sandbox.servers: of fork() in a process with threads.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                ctypes.CDLL(None).prctl(uapi.PR_SET_PDEATHSIG, signal.SIGKILL)
                # The signal comes only for a parent that dies from now on.
                if os.getppid() == parent:
                    os.close(self.report)
                    task(lambda data: _send(sending, data))
                    status = 0
            except BaseException:  # noqa: BLE001 - it is reported, and the process ends
                os.write(2, traceback.format_exc().encode())
            finally:
                # Not sys.exit(): pytest, whose frames are below, would go on in the child.
                os._exit(status)
        os.close(sending)

    def receive(self, size: int = 1) -> bytes:
        """Wait for bytes that the task sends; fewer once it has ended."""
        data = b""
        while len(data) < size:
            limits.readable(self.report)
            if not (more := os.read(self.report, size - len(data))):
                break
            data += more
        return data

    def kill(self) -> None:
        """Kill it, and wait until its sockets are gone with it."""
        os.kill(self.pid, signal.SIGKILL)
        self.finish(killed=True)

    def finish(self, *, killed: bool = False) -> None:
        """Wait for its end; AssertionError if that was another than expected."""
        status = limits.status_of(self.pid)
        self.pid = 0
        os.close(self.report)
        assert status == (-signal.SIGKILL if killed else 0)

    def wait_until_stopped(self) -> None:
        """Wait for it to stop itself by SIGSTOP."""

        def look() -> tuple[int, int] | None:
            found = os.waitpid(self.pid, os.WUNTRACED | os.WNOHANG)
            os.sched_yield()
            return found if found[0] else None

        _, status = limits.until(look, f"the child {self.pid} stops itself")
        assert os.WIFSTOPPED(status), status

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


@contextlib.contextmanager
def children() -> Iterator[Callable[[Callable[[Callable[[bytes], None]], None]], Child]]:
    """Give a function that starts children; those still there in the end are killed."""
    started: list[Child] = []

    def start(task: Callable[[Callable[[bytes], None]], None]) -> Child:
        started.append(Child(task))
        return started[-1]

    try:
        yield start
    finally:
        for child in started:
            if child.pid:
                os.kill(child.pid, signal.SIGKILL)
                limits.status_of(child.pid)
                os.close(child.report)


def shared(count: int, code: Literal["B", "I"] = "B") -> memoryview:
    """Zeros in memory that is shared with the children forked from now on.

    code: what the numbers are, as in the struct module.
    """
    return memoryview(mmap.mmap(-1, count * struct.calcsize(code))).cast(code)


class Barrier:
    """Lets processes go at the same moment: each waits until all have arrived.

    They watch a byte each, and give way to each other meanwhile; being woken would
    take longer for some than the race they are to run.
    """

    def __init__(self, parties: int) -> None:
        self._arrivals = shared(parties)

    def wait(self, party: int, turn: int) -> None:
        """turn: how often this was called before, counted from 0."""
        mark = turn % 255 + 1
        self._arrivals[party] = mark
        deadline = time.monotonic() + limits.LIMIT
        # Another may be a turn ahead, when it has seen all arrive and we have not.
        marks = {mark, mark % 255 + 1}
        while not marks.issuperset(self._arrivals):
            os.sched_yield()
            if time.monotonic() > deadline:
                raise TimeoutError(f"waiting for {marks}: {self._arrivals.tolist()}")


def _send(descriptor: int, data: bytes) -> None:
    os.write(descriptor, data)
