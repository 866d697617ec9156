"""Processes that keep sockets open for another one.

A process may open 20,000 descriptors where the hard limit is that of a small
machine, and a fill opens more. So what has been opened is handed over, and the
opener's copies are closed. Handing over by fork() alone would be simpler, but
then the opener pays for a copy of every page it touches next, inside the part
that is timed.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from typing import TYPE_CHECKING, Final, Self

from bench.processes import CONTEXT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

#: Descriptors in one message; the kernel's limit is 253 (SCM_MAX_FD).
_AT_ONCE: Final = 250

#: What a process has open besides the sockets it holds, generously.
SPARE_DESCRIPTORS: Final = 200


def descriptor_limit() -> int:
    """Raise this process's soft limit of descriptors to its hard limit, and return that."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Holders:
    """Holding processes, as many as the announced number of sockets needs.

    A context manager: at its end the sockets are closed. Enter it before you
    open a listener, which the holders would otherwise keep open.
    """

    def __init__(self, sockets: int) -> None:
        self._room = descriptor_limit() - SPARE_DESCRIPTORS
        self._channels: list[socket.socket] = []
        self._processes = []
        # A message is not split, so a holder may stay short of full by one.
        for _ in range(-(-sockets // (self._room - _AT_ONCE))):
            ours, theirs = socket.socketpair()
            self._channels.append(ours)
            process = CONTEXT.Process(target=_hold, args=(theirs, self._channels))
            process.start()
            theirs.close()
            self._processes.append(process)
        self._filling = 0
        self._held = 0

    def take(self, sockets: Sequence[socket.socket]) -> None:
        """Hand sockets over; they are detached here.

        Not closed: connectx's sockets report their close, and would then count
        as gone when only this process's copies are.
        """
        for start in range(0, len(sockets), _AT_ONCE):
            some = sockets[start : start + _AT_ONCE]
            if self._held + len(some) > self._room:
                self._filling += 1
                self._held = 0
            channel = self._channels[self._filling]
            socket.send_fds(channel, [b"\0"], [sock.fileno() for sock in some])
            # Wait for each message: an ordinary user may have only so many
            # descriptors on their way (ETOOMANYREFS, unix(7)).
            if not channel.recv(1):
                raise RuntimeError("a process that holds sockets has ended")
            self._held += len(some)
            for sock in some:
                os.close(sock.detach())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for channel in self._channels:
            channel.close()
        for process in self._processes:
            process.join()


def _hold(channel: socket.socket, inherited: Sequence[socket.socket]) -> None:
    # Ours to end is the far end of the channel, not Ctrl-C, which everybody gets.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for sock in inherited:
        sock.close()
    while True:
        data, _, flags, _ = socket.recv_fds(channel, 1, _AT_ONCE)
        if not data:
            return
        if flags & socket.MSG_CTRUNC:
            raise RuntimeError("no descriptor was left for a socket that was handed over")
        channel.send(data)
