"""Every wait of a test ends, and says what was waited for.

A test waits for what comes at once on an idle machine, and within seconds on a busy one. If it has
not come after LIMIT seconds something else has failed: most often the thread or the process that
was to bring it. pytest's own limit for a test is no help there, for it ends the test only once,
and what cleans up behind the test may wait for the same thread.

tests/test_limits.py finds the waits that have no limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import ssl
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    import socket
    import subprocess
    from collections.abc import Callable, Coroutine, Iterator

T = TypeVar("T")

#: Seconds for one event. Two of them fit into pytest's limit for a test.
LIMIT: Final = 40.0

#: Seconds for a command from its start to its end.
COMMAND_LIMIT: Final = 100.0


def until(look: Callable[[], T | None], what: str) -> T:
    """Look again and again, where nobody tells, until there is something to be seen; return that.

    what: what is waited for.
    """
    deadline = time.monotonic() + LIMIT
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {LIMIT:.0f} s, but {found!r}")
    return found


def readable(file: Any) -> None:
    """Wait until there is something to be read from a socket, a pipe or a terminal, or its end.

    file: a descriptor, or something with one.
    """
    poll = select.poll()
    poll.register(file, select.POLLIN)
    if not poll.poll(LIMIT * 1000):
        raise TimeoutError(f"nothing to be read from {file} within {LIMIT:.0f} s")


def accept(listener: socket.socket) -> tuple[socket.socket, Any]:
    """Wait for a connection, and accept it."""
    readable(listener)
    return listener.accept()


def receive(sock: socket.socket, size: int = 1) -> bytes:
    """Wait for data, an end or an error, and take it."""
    if isinstance(sock, ssl.SSLSocket):
        # It may have read from the network already what it has to give.
        sock.settimeout(LIMIT)
    else:
        readable(sock)
    return sock.recv(size)


def receive_from(sock: socket.socket, size: int) -> tuple[bytes, Any]:
    """Wait for a datagram, and take it with its sender."""
    readable(sock)
    return sock.recvfrom(size)


def join(thread: threading.Thread) -> None:
    """Wait for the end of a thread."""
    thread.join(LIMIT)
    if thread.is_alive():
        frame = sys._current_frames()[thread.ident or 0]
        where = "".join(traceback.format_stack(frame))
        raise TimeoutError(f"{thread.name} has not ended within {LIMIT:.0f} s:\n{where}")


async def ended(scenario: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Wait for the end of a coroutine, which is cancelled where it is if that does not come."""
    limit = asyncio.timeout(COMMAND_LIMIT)
    try:
        async with limit:
            return await scenario()
    except TimeoutError as error:
        if not limit.expired():
            raise
        what = f"{scenario.__qualname__} has not ended within {COMMAND_LIMIT:.0f} s"
        raise TimeoutError(what) from error


def line_from(process: subprocess.Popen[Any]) -> Any:
    """Wait for the next line on a process's standard output; a process that is late is killed."""
    assert process.stdout
    late = threading.Timer(LIMIT, process.kill)
    late.start()
    try:
        line = process.stdout.readline()
    finally:
        late.cancel()
        late.join()
    assert line, f"{process.args!r} has ended, or has said nothing for {LIMIT:.0f} s"
    return line


def status_of(child: int) -> int:
    """Wait for the end of a forked process; its exit status, negative for a signal."""
    descriptor = os.pidfd_open(child)
    try:
        readable(descriptor)
    finally:
        os.close(descriptor)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


@contextlib.contextmanager
def in_background(work: Callable[[], object], *sockets: socket.socket) -> Iterator[None]:
    """Run a function in a thread for the length of a block, and raise behind it what it raised.

    sockets: closed when it raises, so that those who wait for it to answer learn of it at once.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 -- raised behind the block
            errors.append(error)
            for sock in sockets:
                sock.close()

    thread = threading.Thread(target=run, name=getattr(work, "__qualname__", None))
    thread.start()
    try:
        yield
    finally:
        join(thread)
        # What the block raised, if anything, came of it.
        for error in errors:
            raise error
