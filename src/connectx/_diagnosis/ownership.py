"""Whose a socket is, in words: a process, nobody, or somebody who may not be seen.

A socket without an inode has no process: it is in TIME_WAIT, its process has closed it, or its
listener has not accepted it yet. One with an inode has an owner, who may be hidden.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from connectx._diagnosis.finding import NOBODY
from connectx.addresses import Endpoint, text, unmapped
from connectx.linux import processes
from connectx.linux.uapi import TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_SYN_RECV

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from connectx.linux.processes import Owners, Process
    from connectx.linux.sock_diag import SocketRecord

#: The states in which a connection may wait for accept().
_IN_A_QUEUE: Final = (TCP_ESTABLISHED, TCP_CLOSE_WAIT, TCP_SYN_RECV)


class Ownership:
    """The owners of a network namespace's sockets.

    Args:
        owners: The processes that have sockets open.
        listeners: The TCP sockets that listen.
    """

    def __init__(self, owners: Owners, listeners: Iterable[SocketRecord]) -> None:
        self._owners = owners
        self._descriptors: dict[int, dict[int, int]] = {}
        self._listeners: defaultdict[int, list[SocketRecord]] = defaultdict(list)
        for each in listeners:
            self._listeners[each.source_port].append(each)

    @property
    def hidden(self) -> str:
        """What sockets are counted under whose process is not seen."""
        if self._owners.hidden:
            return "processes that only root may see"
        return "processes outside of this PID namespace, or the kernel"

    def process_of(self, record: SocketRecord) -> Process | None:
        """Return the process that has a socket; None for no process, or one that is not seen."""
        return self._owners.of(record.inode)

    def is_hidden(self, record: SocketRecord) -> bool:
        """Whether a socket has a process that is not seen."""
        return bool(record.inode) and self.process_of(record) is None

    def is_for_root(self, record: SocketRecord) -> bool:
        """Whether root would see the process of a socket, and we do not."""
        return bool(self._owners.hidden) and self.is_hidden(record)

    def name(self, record: SocketRecord) -> str:
        """Return whose a socket is, in a few words."""
        return self._of(record, str)

    def describe(self, record: SocketRecord) -> str:
        """Return whose a socket is, with the command line of a process."""
        return self._of(record, lambda process: process.described)

    def _of(self, record: SocketRecord, described: Callable[[Process], str]) -> str:
        process = self.process_of(record)
        if process is not None:
            return described(process)
        if record.inode:
            return self.hidden
        listener = self._listener_of(record)
        if listener is None:
            return NOBODY
        accepting = self.process_of(listener)
        return f"not accepted yet by {described(accepting) if accepting else self.hidden}"

    def descriptor(self, record: SocketRecord) -> int | None:
        """Return the number under which its process has a socket, if it can be seen."""
        process = self.process_of(record)
        if process is None:
            return None
        if process.pid not in self._descriptors:
            self._descriptors[process.pid] = processes.socket_descriptors(process.pid)
        return self._descriptors[process.pid].get(record.inode)

    def _listener_of(self, record: SocketRecord) -> SocketRecord | None:
        """The listener in whose queue a connection waits."""
        if record.inode or record.state not in _IN_A_QUEUE:
            return None
        for each in self._listeners.get(record.source_port, ()):
            address = unmapped(each.source)
            if not any(address) or address == unmapped(record.source):
                return each
        return None

    def way(self, record: SocketRecord) -> str:
        """Return where a connection goes, or for one that came in, where it was accepted."""
        if record.source_port in self._listeners:
            return f", accepted on {Endpoint(text(unmapped(record.source)), record.source_port)}"
        return f" to {Endpoint(text(unmapped(record.destination)), record.destination_port)}"
