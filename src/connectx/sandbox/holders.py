"""Workers that together hold more sockets than one process may have.

Holding every connection of a full port range takes more descriptors than most processes
may have, and raising the hard limit takes CAP_SYS_RESOURCE. So the sockets live in as many
workers as it takes, and each does its part of every task.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

if TYPE_CHECKING:
    from connectx.sandbox.workers import Crew, Report, Worker

#: Descriptors in one message; the kernel takes up to SCM_MAX_FD, which is 253.
_HANDOVER: Final = 250
_HANDOVER_TIMEOUT: Final = 30.0  # seconds


class Held(NamedTuple):
    """The state of a worker that holds sockets.

    Attributes:
        sockets: The sockets.
        channel: Through it one worker gives sockets to another: the giving end, the taking end.
        kept: What a task leaves for the next one, by a name of its choosing.
    """

    sockets: list[socket.socket]
    channel: tuple[socket.socket, socket.socket]
    kept: dict[str, Any]


class Holders:
    """One worker that opens sockets, and as many others as it takes to hold them.

    The opener opens all of them, as a single program would. When it has no descriptor left,
    relieve() has another worker take over what it holds. If the workers took turns at opening,
    each would have to find out anew which ports the ones before it had used. If one process
    opened and forked, it would pay for a copy of every page it touches next, while it is timed.

    Close it, or use it as a context manager; the workers end with the crew.

    Attributes:
        opener: The worker that opens.
        workers: All workers, the opener first.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in self._channel:
            end.settimeout(_HANDOVER_TIMEOUT)
        self.opener = self._fork()
        self.workers = [self.opener]

    def relieve(self) -> None:
        """Have a new worker take over all that the opener holds.

        Raises:
            ChildProcessError: One of the two died.
            OSError: What one of the two met with.
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fork(self) -> Worker[Held]:
        return self._crew.fork(Held([], self._channel, {}))


def _give(held: Held, _: Report) -> None:
    giving, _taking = held.channel
    while held.sockets:
        # detach() and not close(): the connection lives on, and connectx must not take its
        # port for free.
        descriptors = [sock.detach() for sock in held.sockets[-_HANDOVER:]]
        del held.sockets[-_HANDOVER:]
        socket.send_fds(giving, [b"+"], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        # One batch at a time: the kernel lets a user have no more descriptors in flight than
        # a process may have open (ETOOMANYREFS, unix(7)).
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
