"""How the end of a socket is noticed, when the socket itself does not report it.

Sockets that a Dialer makes report their end (connectx._connect.own_socket). Two kinds of
ends are left:

- The dialer's own sockets that have another owner now: SSL's, detached ones, and those that
  were made elsewhere. They are looked for by their 4-tuple (`Unreported`), some at each
  call, and all before a call is refused. Where a sandbox refuses netlink, it is looked whether
  the descriptor is still theirs.
- Other programs' sockets, whose end frees a port for a call that waits. While a call is the
  first in its queue it gets the kernel's notifications (`Endings`).
"""

from __future__ import annotations

import errno
import os
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from connectx._connect.namespace import NAMESPACES, NetlinkRefused, identity_of
from connectx._connect.request import parse
from connectx.addresses import AF_INET6, V4_MAPPED_TEXT, text, unmapped
from connectx.linux.sockopts import get_so_bindtoifindex
from connectx.linux.uapi import IPPROTO_MPTCP, SO_COOKIE, SOL_SOCKET

if TYPE_CHECKING:
    from connectx._connect.namespace import Namespace
    from connectx._connect.request import Request
    from connectx._dial.slots import Slot
    from connectx.addresses import Endpoint
    from connectx.linux.destroy_events import DestroyEvents
    from connectx.linux.sock_diag import SocketRecord

#: How many of the unreported sockets each call looks at, and one that is refused at least.
SWEPT_BY_A_CALL: Final = 8
_SWEPT_AT_LEAST: Final = 256

#: How many times as long as looking at all of them has taken that is not done again.
_LOOK_REST: Final = 9.0


class Unreported:
    """The sockets of a dialer that do not report their end.

    They are looked for in turns, since each takes some microseconds and there may be
    thousands.

    Attributes:
        sockets: By SO_COOKIE, which a notification has as well; those looked at come last.
    """

    def __init__(self) -> None:
        self.sockets: OrderedDict[bytes, _Watched] = OrderedDict()
        self._look_again = 0.0

    def add(self, slot: Slot, sock: Any) -> None:
        """Look for the end of a socket from now on, and give its slot back then."""
        try:
            watched = _Watched(slot, sock)
        except (OSError, ValueError):
            # Closed already, as uvloop does before it detaches; or unconnected by now.
            slot.release()
        else:
            self.sockets[watched.key] = watched

    def ended(self, cookie: bytes) -> None:
        """Note that a socket has ended, which may be one of these."""
        watched = self.sockets.pop(cookie, None)
        if watched is not None:
            watched.slot.release()

    def sweep(self, most: int) -> None:
        """Look at so many of them, and give back the slots of closed ones."""
        if not self.sockets:
            return
        try:
            self._sweep(NAMESPACES.here(), most)
        except OSError as error:
            # The last descriptor is the connection's: the next call looks.
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise

    def _sweep(self, namespace: Namespace, most: int) -> None:
        for _ in range(min(most, len(self.sockets))):
            try:
                key, watched = self.sockets.popitem(last=False)
            except KeyError:
                return  # Another thread is at it.
            try:
                ended = watched.ended(namespace)
            except BaseException:
                self.sockets.setdefault(key, watched)
                raise
            if not ended:
                # Unless it has been connected anew meanwhile.
                self.sockets.setdefault(key, watched)

    def look(self) -> None:
        """Look at all of them, before a call is refused; if many, a tenth of the time at most."""
        begun = time.monotonic()
        if len(self.sockets) > _SWEPT_AT_LEAST and begun < self._look_again:
            self.sweep(_SWEPT_AT_LEAST)
            return
        self.sweep(len(self.sockets))
        now = time.monotonic()
        self._look_again = now + _LOOK_REST * (now - begun)


class _Watched:
    """A connection that is looked for by its 4-tuple.

    Attributes:
        key: Its SO_COOKIE.
        slot: Its place.
    """

    __slots__ = ("_cookie", "_descriptor", "_file", "_identity", "_lookup", "_port", "key", "slot")

    def __init__(self, slot: Slot, sock: Any) -> None:
        from connectx.linux.sock_diag import TupleLookup  # noqa: PLC0415 - as in namespace.py

        family = int(sock.family)
        name = sock.getsockname()
        try:
            peer = sock.getpeername()
        except OSError:
            # The handshake is not done yet, or the peer is gone.
            to: Endpoint = slot.path.destination.key[1]  # type: ignore[index] # of a request
            if family == AF_INET6 and ":" not in to.host:
                to = to._replace(host=f"{V4_MAPPED_TEXT}{to.host}")
            peer = to.sockaddr(family)
        ends = parse(family, int(sock.type), int(sock.proto), "auto", name, peer)
        self.slot = slot
        self.key = sock.getsockopt(SOL_SOCKET, SO_COOKIE, 8)
        self._identity = identity_of(sock)
        self._descriptor = sock.fileno()
        self._file = _file_of(self._descriptor)
        # Of MPTCP, what is found is a subflow with a cookie of its own: the first look
        # takes its word.
        self._cookie = None if sock.proto == IPPROTO_MPTCP else self.key
        self._port: int = name[1]
        self._lookup = TupleLookup(
            ends.origin.table,
            ends.origin.wire_family,
            ends.origin.wire_source,
            ends.wire_destination,
            ends.destination.port,
            get_so_bindtoifindex(sock) or ends.scope,
        )

    def ended(self, namespace: Namespace) -> bool:
        """Return whether the socket is gone; its slot is given back then."""
        if namespace.identity != self._identity:
            return False
        try:
            netlink = namespace.diag
        except NetlinkRefused:
            return self._left()
        record = self._lookup.find_record(netlink, self._port)
        if record is not None and record.inode and self._cookie in (None, record.cookie):
            self._cookie = record.cookie
            return False
        self.slot.release()
        return True

    def _left(self) -> bool:
        """Return whether the descriptor is the socket's no more; its slot is given back then.

        The socket may be open under another one, or in another process. But a place that is
        never given back would be lost for good.
        """
        try:
            if _file_of(self._descriptor) == self._file:
                return False
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
        self.slot.release()
        return True


def _file_of(descriptor: int) -> tuple[int, int]:
    """Return what tells an open socket from every other one, as long as it is open."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


class Ending(NamedTuple):
    """The end of a connection, or what may have been one.

    Attributes:
        host: The source address; None for any.
        certain: Whether it was one, and has freed a 4-tuple.
    """

    host: str | None
    certain: bool


class Endings:
    """The kernel's notifications of sockets that end, as far as they concern a destination.

    Sockets that were reset have no port any more by then, but their address
    (tcp_disconnect), and so have sockets that were refused: these are hints.
    """

    def __init__(self, to: Request, events: DestroyEvents, unreported: Unreported) -> None:
        self._to = to
        self._events = events
        self._unreported = unreported
        self._found: list[Ending] = []

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something to take."""
        return self._events.fileno()

    def take(self) -> list[Ending]:
        """Return what has ended since the last call."""
        self._found = []
        self._events.take(self._note)
        return self._found

    def close(self) -> None:
        """Notice no more."""
        self._events.close()

    def _note(self, record: SocketRecord | None) -> bool:
        """Take a socket that has ended; None if notifications were lost."""
        if record is None:
            self._found.append(Ending(None, certain=True))
            return True
        self._unreported.ended(record.cookie)
        to = self._to
        if unmapped(record.destination) != to.wire_destination or (
            record.destination_port not in (0, to.destination.port)
        ):
            return False
        host = text(unmapped(record.source))
        self._found.append(Ending(host, certain=bool(record.destination_port)))
        return True


def listen(to: Request, unreported: Unreported) -> Endings | None:
    """Begin to notice ends; None where that is not possible."""
    from connectx.linux.destroy_events import DestroyEvents  # noqa: PLC0415 - as in namespace.py

    try:
        return Endings(to, DestroyEvents(stream=to.origin.stream), unreported)
    except OSError:
        # An old kernel, or no descriptor left: looking now and then has to do.
        return None
