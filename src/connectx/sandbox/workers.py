"""Child processes that hold an experiment's sockets.

Holding every connection of a full port range takes more descriptors than most
processes may have, and raising the hard limit takes CAP_SYS_RESOURCE. So the
sockets live in as many workers as it takes (Holders), and the experiment tells
each what to do with its share. A task is a function at the top of a module: it
is sent to the worker by name and finds there what earlier tasks have left.

Workers are forked, not started afresh: they are in their creator's network
namespace, can be given its sockets, and are ready within milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
import traceback
import warnings
from multiprocessing import Pipe
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    NamedTuple,
    NoReturn,
    ParamSpec,
    Self,
    TypeAlias,
    TypeVar,
    cast,
)

from connectx.linux import uapi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from types import TracebackType

    #: How a task tells its count of what is done so far.
    Report: TypeAlias = Callable[[int], None]

State = TypeVar("State")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

#: Descriptors left free in a worker, for what a task opens besides the sockets it holds.
SPARE_DESCRIPTORS: Final = 32

#: Descriptors in one message; the kernel takes up to SCM_MAX_FD, which is 253.
_HANDOVER: Final = 250
_HANDOVER_TIMEOUT: Final = 30.0  # seconds


class _Progress(NamedTuple):
    done: int


class _Returned(NamedTuple):
    value: object


class _Raised(NamedTuple):
    error: Exception


def descriptor_limit() -> int:
    """How many descriptors a worker may have: the hard limit, to which it raises its soft one."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def descriptors_free() -> int:
    """How many sockets the calling worker can still open, less SPARE_DESCRIPTORS.

    Asked in its creator: what a new worker can open at the least. The creator
    has pipes to other workers besides.
    """
    return descriptor_limit() - len(list(Path("/proc/self/fd").iterdir())) - SPARE_DESCRIPTORS


class Crew:
    """The workers of one experiment, which end together.

    Close it, or use it as a context manager. Workers also die with their
    creator, even with one that was killed, and leave Ctrl-C for it to handle.
    """

    def __init__(self) -> None:
        self._workers: dict[int, Connection] = {}

    def fork(self, state: State) -> Worker[State]:
        """Start a worker.

        state: the first argument of every task; the worker has its own copy.

        Raises OSError as fork(2) and socketpair(2).
        """
        near_end, far_end = Pipe()
        with contextlib.ExitStack() as on_error, far_end:
            on_error.enter_context(near_end)
            parent = os.getpid()
            with _interrupts_held_back(), warnings.catch_warnings():
                # Python 3.12 and newer warn of fork() in a process with threads,
                # which of our users only pytest-xdist is: the worker takes no
                # lock that another thread could have held.
                warnings.simplefilter("ignore", DeprecationWarning)
                process = os.fork()
                if process == 0:
                    # Others' pipes would take descriptors, and would stay open
                    # here after their owner has closed them.
                    for connection in (near_end, *self._workers.values()):
                        connection.close()
                    _work(parent, far_end, state)
                self._workers[process] = near_end
            on_error.pop_all()
        return Worker(near_end)

    def close(self) -> None:
        """Kill all workers and wait until they are gone, their sockets with them."""
        # All at once, because closing tens of thousands of sockets takes a while.
        for process in self._workers:
            os.kill(process, signal.SIGKILL)
        while self._workers:
            process, connection = self._workers.popitem()
            connection.close()
            os.waitpid(process, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Worker(Generic[State]):
    """A child process that does one task after the other and keeps a state between them.

    Made by Crew.fork().
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def start(
        self,
        task: Callable[Concatenate[State, Report, Arguments], Result],
        *arguments: Arguments.args,
        **keywords: Arguments.kwargs,
    ) -> Job[Result]:
        """Have the worker call ``task(state, report, …)``, and return at once.

        Arguments and result are pickled, so they cannot be sockets.

        Raises OSError (EPIPE) if the worker has died.
        """
        self._connection.send((task, arguments, keywords))
        return Job(self._connection)


class Held(NamedTuple):
    """The state of a worker that holds sockets.

    channel: between the worker that gives sockets away and the one that takes them.
    kept: what a task leaves for the next one, by a name of its choosing.
    """

    sockets: list[socket.socket]
    channel: tuple[socket.socket, socket.socket]
    kept: dict[str, Any]


class Holders:
    """Workers that together hold more sockets than one process may have.

    One of them, the opener, opens all the sockets, as a single program would;
    when it has no descriptor left, the others take over what it has opened.
    Were they to take turns at opening, each would have to find out anew which
    ports the ones before it had used.

    Close it, or use it as a context manager; the workers end with the crew.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in self._channel:
            end.settimeout(_HANDOVER_TIMEOUT)
        self.opener = self._fork()
        #: All of them, the opener first.
        self.workers = [self.opener]

    def relieve(self) -> None:
        """Have a new worker take over all that the opener holds.

        Raises ChildProcessError, or the OSError that one of the two met with.
        """
        worker = self._fork()
        self.workers.append(worker)
        take = worker.start(_take)
        self.opener.start(_give).result()
        take.result()

    def close(self) -> None:
        """Close this process's ends of the channel between the workers."""
        for end in self._channel:
            end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _fork(self) -> Worker[Held]:
        return self._crew.fork(Held([], self._channel, {}))


def _give(held: Held, _: Report) -> None:
    giving, _taking = held.channel
    while held.sockets:
        # detach() and not close(): the connection lives on, and connectx is not
        # to take its port for free.
        descriptors = [sock.detach() for sock in held.sockets[-_HANDOVER:]]
        del held.sockets[-_HANDOVER:]
        socket.send_fds(giving, [b"+"], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        # One batch at a time: the kernel lets a user have no more descriptors
        # under way than a process may have open (ETOOMANYREFS, unix(7)).
        if not giving.recv(1):
            return  # The other worker has failed, and raises why.
    giving.send(b".")


def _take(held: Held, _: Report) -> None:
    _giving, taking = held.channel
    while True:
        data, descriptors, flags, _address = socket.recv_fds(taking, 1, _HANDOVER)
        held.sockets.extend(socket.socket(fileno=descriptor) for descriptor in descriptors)
        if flags & socket.MSG_CTRUNC:
            taking.shutdown(socket.SHUT_RDWR)
            raise OSError(errno.EMFILE, "a worker could not take over all the sockets given to it")
        if data != b"+":
            return
        taking.send(b"+")


class Job(Generic[Result]):
    """A task that a worker is at. Ask for its result before starting the worker's next."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def result(self, progress: Report | None = None) -> Result:
        """Wait until the task has ended and return what it returned.

        progress: called with what the task reports.

        Raises what the task raised, and ChildProcessError if the worker died.
        """
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, ConnectionResetError):
                raise ChildProcessError("a worker process died in the middle of a task") from None
            if isinstance(message, _Raised):
                raise message.error
            if isinstance(message, _Returned):
                return cast("Result", message.value)
            if progress is not None:
                progress(message.done)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    # A worker inherits this mask and keeps it: no Ctrl-C can reach it before it
    # could have said that it takes none.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(parent: int, connection: Connection, state: object) -> NoReturn:
    status = 1
    try:
        ctypes.CDLL(None).prctl(uapi.PR_SET_PDEATHSIG, signal.SIGKILL)
        # The signal comes only for a parent that dies from now on.
        if os.getppid() == parent:
            limit = descriptor_limit()
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            _do_tasks(connection, state)
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        # Not sys.exit(): the creator's frames are below, and must not go on here.
        os._exit(status)


def _do_tasks(connection: Connection, state: object) -> None:
    def report(done: int) -> None:
        connection.send(_Progress(done))

    while True:
        try:
            task, arguments, keywords = connection.recv()
        except EOFError:
            return
        try:
            answer: _Returned | _Raised = _Returned(task(state, report, *arguments, **keywords))
        except Exception as error:  # noqa: BLE001 -- the creator raises it
            error.add_note(f"in a worker process:\n{traceback.format_exc()}")
            answer = _Raised(error)
        connection.send(answer)
