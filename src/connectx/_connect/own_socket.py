"""Sockets that we make: they report when their port is free again, and can be replaced."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

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


#: struct linger: close() resets the connection.
_RESET: Final = struct.pack("@ii", 1, 0)


class OwnSocket(socket.socket):
    """A socket.socket that reports when it is closed.

    The report is a hint: after dup() or a fork the port stays in use longer, and the
    kernel says so to whoever tries it. A slot is given back when the last of the sockets
    that dup() has made of one is closed.

    Attributes:
        ledger, ledger_port: Who gets the report, about which port; unset until the socket
            is connected.
        slot: The connection's place under a Dialer's limit; unset for other sockets.
    """

    __slots__ = ("ledger", "ledger_port", "slot")

    ledger: Ledger | None
    ledger_port: int
    slot: Slot | None

    def dup(self) -> Self:
        """As socket.dup(); both sockets have the slot."""
        copy = super().dup()
        slot = getattr(self, "slot", None)
        if slot is not None:
            slot.shared()
            copy.slot = slot
        return copy

    def detach(self) -> int:
        """As socket.detach(); the descriptor's new owner will not report its end."""
        ledger = getattr(self, "ledger", None)
        if ledger is not None:
            self.ledger = None
            ledger.held(self.ledger_port)
        slot = getattr(self, "slot", None)
        if slot is not None:
            self.slot = None
            slot.detached(self)
        return super().detach()

    def _real_close(self, *args: Any) -> None:
        # The hook that close() and the last makefile() end in; ssl relies on it too.
        super()._real_close(*args)  # type: ignore[misc]  # not in the stubs
        ledger = getattr(self, "ledger", None)
        if ledger is not None:
            self.ledger = None
            ledger.released(self.ledger_port)
        slot = getattr(self, "slot", None)
        if slot is not None:
            self.slot = None
            slot.closed()


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
