"""Forked processes: how one starts, talks to its creator, and ends.

A child is forked, not started afresh: it is in its creator's network namespace, has its
sockets, and is ready within milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import traceback
import warnings
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any, Final, NoReturn

from connectx.linux import uapi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.connection import Connection

_ENDED: Final = "a child process ended before it had answered"


class Child:
    """A forked process that runs one function, and the creator's end of a pipe to it.

    The child dies with its creator, even with one that was killed, and leaves Ctrl-C to
    the creator. It inherits all descriptors: it and its creator keep a socket open until
    both have closed it.

    Args:
        run: Called in the child with its end of the pipe. When it returns, the child exits.
        unused: Pipes of the creator that the child closes first.

    Attributes:
        pid: The process ID.
        pipe: The creator's end of the pipe.

    Raises:
        OSError: As fork(2) and socketpair(2) do.
    """

    def __init__(
        self, run: Callable[[Connection], object], unused: Iterable[Connection] = ()
    ) -> None:
        self.pipe, far_end = Pipe()
        creator = os.getpid()
        with contextlib.ExitStack() as on_error, far_end:
            on_error.enter_context(self.pipe)
            with _interrupts_held_back(), warnings.catch_warnings():
                # Python 3.12 and later warn about fork() in a process with threads, such
                # as a pytest-xdist worker. A child takes no lock that another thread could
                # have held, and a fresh interpreter takes a hundred times as long to start.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.pid = os.fork()
                if self.pid == 0:
                    for connection in (self.pipe, *unused):
                        connection.close()
                    _run(creator, run, far_end)
            on_error.pop_all()

    def send(self, message: object) -> None:
        """Send an object to the child.

        Raises:
            ChildProcessError: The child has ended.
        """
        try:
            self.pipe.send(message)
        except BrokenPipeError:
            raise ChildProcessError(_ENDED) from None

    def receive(self) -> Any:
        """Wait for the next object that the child sends.

        Raises:
            ChildProcessError: The child has ended.
        """
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise ChildProcessError(_ENDED) from None

    def kill(self) -> None:
        """Kill the child, and close the pipe to it."""
        os.kill(self.pid, signal.SIGKILL)
        self.pipe.close()

    def wait(self) -> int:
        """Wait until the child is gone, and its sockets with it.

        Returns:
            Its exit code; after kill(), -SIGKILL unless it had ended by itself before.
        """
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    # The child inherits this mask and keeps it, so that no Ctrl-C reaches it, not even
    # before it could have asked for that.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(creator: int, run: Callable[[Connection], object], pipe: Connection) -> NoReturn:
    status = 1
    try:
        ctypes.CDLL(None).prctl(uapi.PR_SET_PDEATHSIG, signal.SIGKILL)
        # The signal comes only when the creator dies from now on.
        if os.getppid() == creator:
            run(pipe)
        status = 0
    except BaseException:
        # Not through sys.stderr, whose buffer may hold what the creator is about to write.
        os.write(2, traceback.format_exc().encode())
        raise
    finally:
        # Not sys.exit(): the creator's frames are below, and must not go on here.
        os._exit(status)
