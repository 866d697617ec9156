"""Sockets that we make: they report when their port is free again, and can be replaced.

The report comes from `_real_close`, in which close() and the close() of the last makefile()
end: in the standard library's class and in gevent's, which takes its place in a program that
gevent has patched. Any other class that takes its place is used as it is, without a report.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, Final

from connectx._connect.unpatched import Socket
from connectx.linux.sockopts import get_ip_freebind, set_ip_freebind
from connectx.linux.uapi import SO_LINGER, SOL_SOCKET

if TYPE_CHECKING:
    from typing import Protocol, Self

    from connectx._connect.ledger import Ledger

    class Slot(Protocol):
        """A connection's place under a limit, for as long as a socket is open."""

        def closed(self) -> None:
            """Give it back, if that was the last of the sockets that have it."""

        def shared(self) -> None:
            """Have one more socket have it."""

        def detached(self, sock: socket.socket) -> None:
            """Go on without the socket, whose descriptor is about to have another owner."""


#: What a class has that leaves the attributes to those made of it, which could not have other
#: bases with attributes of their own otherwise.
_NO_SLOTS: Final[tuple[str, ...]] = ()

#: struct linger: close() resets the connection.
_RESET: Final = struct.pack("@ii", 1, 0)


class Reports:
    """What makes a class of sockets report when one is closed.

    The report is a hint: after dup() or a fork the port stays in use longer, and the
    kernel says so to whoever tries it. A slot is given back when the last of the sockets
    that dup() has made of one is closed.

    Attributes:
        ledger, ledger_port: Who gets the report, about which port; unset until the socket
            is connected.
        slot: The connection's place under a Dialer's limit; unset for other sockets.
    """

    __slots__ = _NO_SLOTS

    ledger: Ledger | None
    ledger_port: int
    slot: Slot | None

    def dup(self) -> Self:
        """As socket.dup(); both sockets have the slot."""
        copy: Self = super().dup()  # type: ignore[misc] # socket.socket's
        slot = getattr(self, "slot", None)
        if slot is not None:
            slot.shared()
            copy.slot = slot
        return copy

    def detach(self) -> int:
        """As socket.detach(); the descriptor's new owner will not report its end."""
        self._report_no_more()
        return super().detach()  # type: ignore[misc, no-any-return] # as above

    def __reduce_ex__(self, protocol: Any) -> Any:
        # multiprocessing looks a socket's class up in a table, in which subclasses are not. It
        # is imported where it sends something, and only there: that takes 10 ms. Any other
        # pickler is refused, as by every socket.
        if sys._getframe(1).f_globals.get("__name__") != "multiprocessing.reduction":  # noqa: SLF001 - no pickler says who it is
            return super().__reduce_ex__(protocol)
        from multiprocessing.reduction import DupFd  # noqa: PLC0415 - as said

        sock: Any = self
        copy = DupFd(sock.fileno()), int(sock.family), int(sock.type), sock.proto
        # The port is in use until the other process has closed its copy as well.
        self._report_no_more()
        return _received, copy

    def _report_no_more(self) -> None:
        """Go on as a socket whose end the kernel has to be asked about."""
        ledger = getattr(self, "ledger", None)
        if ledger is not None:
            self.ledger = None
            ledger.held(self.ledger_port)
        slot = getattr(self, "slot", None)
        if slot is not None:
            self.slot = None
            slot.detached(self)

    def _real_close(self, *args: Any) -> None:
        super()._real_close(*args)  # type: ignore[misc] # as above
        ledger = getattr(self, "ledger", None)
        if ledger is not None:
            self.ledger = None
            ledger.released(self.ledger_port)
        slot = getattr(self, "slot", None)
        if slot is not None:
            self.slot = None
            slot.closed()


class OwnSocket(Reports, Socket):
    """A socket.socket that reports when it is closed."""

    __slots__ = ("ledger", "ledger_port", "slot")


@functools.cache
def reporting(kind: type[socket.socket]) -> type[socket.socket]:
    """Return a class that reports, for what has taken the place of socket.socket.

    A subclass of the standard library's class stays as it is. So does one without `_real_close`.
    No slots: gevent's class looks for what it has not got on the socket that it wraps, which
    raises OSError once that is closed.
    """
    if issubclass(kind, Socket) or not hasattr(kind, "_real_close"):
        return kind
    return type(OwnSocket.__name__, (Reports, kind), {"ledger": None, "slot": None})


def _received(descriptor: Any, family: int, kind: int, proto: int) -> socket.socket:
    """Return the socket that another process has sent."""
    return socket.socket(family, kind, proto, fileno=descriptor.detach())


def set_timeout(sock: socket.socket, seconds: float | None) -> None:
    """As settimeout(), but say what it is that is wrong."""
    try:
        sock.settimeout(seconds)
    except TypeError:
        raise TypeError(f"timeout is a number of seconds or None, not {seconds!r}") from None


def discard(sock: socket.socket) -> None:
    """Close a socket that its caller will never see: at once, if it is connected by now.

    Otherwise its port would stay in FIN_WAIT2 or TIME_WAIT for a minute, for nothing.
    """
    if sock.type == socket.SOCK_STREAM:
        with contextlib.suppress(OSError):
            sock.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
    sock.close()


def replace(sock: socket.socket) -> None:
    """Put a new socket in the place of one that is stuck on a port, under the same descriptor.

    Nothing is left of a connection that it may have.
    """
    if sock.type == socket.SOCK_STREAM:
        sock.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
    with socket.socket(sock.family, sock.type, sock.proto) as fresh:
        fresh.settimeout(sock.gettimeout())
        if get_ip_freebind(sock):
            set_ip_freebind(fresh, on=True)
        os.dup2(fresh.fileno(), sock.fileno(), inheritable=False)
