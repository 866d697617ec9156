"""Sockets that tell the ledger when their port is free again."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from typing import Protocol, Self

    from connectx._connect.ledger import Ledger

    class Lease(Protocol):
        """A place that a socket has somewhere, as long as it is open."""

        def closed(self) -> None:
            """A socket that has it is closed: give it back if that was the last one."""

        def shared(self) -> None:
            """One more socket has it."""

        def detached(self, sock: socket.socket) -> None:
            """The descriptor is about to have another owner, who will not tell of its end."""


#: The standard library's class, as it was before anybody patched it.
STANDARD_SOCKET: Final = socket.socket


class TrackedSocket(socket.socket):
    """A socket.socket that reports to its ledger when it is closed.

    ledger, ledger_port: whom to tell, and which port; unset until it is connected.
    lease: its place in a dialer's budget; unset if it is not a dialer's.

    The report is a hint: after dup() or a fork the port stays in use longer, and
    the kernel says so to whoever tries it. A place is given back when the last of
    the sockets that dup() has made of one is closed.
    """

    __slots__ = ("lease", "ledger", "ledger_port")

    ledger: Ledger | None
    ledger_port: int
    lease: Lease | None

    def dup(self) -> Self:
        """As socket.dup(); both sockets have the place in a budget."""
        copy = super().dup()
        lease = getattr(self, "lease", None)
        if lease is not None:
            lease.shared()
            copy.lease = lease
        return copy

    def detach(self) -> int:
        """As socket.detach(); the descriptor's new owner will not report its end."""
        ledger = getattr(self, "ledger", None)
        if ledger is not None:
            self.ledger = None
            ledger.held(self.ledger_port)
        lease = getattr(self, "lease", None)
        if lease is not None:
            self.lease = None
            lease.detached(self)
        return super().detach()

    def _real_close(self, *args: Any) -> None:
        # The hook that close() and the last makefile() end in; ssl relies on it too.
        super()._real_close(*args)  # type: ignore[misc]  # not in the stubs
        ledger = getattr(self, "ledger", None)
        if ledger is not None:
            self.ledger = None
            ledger.released(self.ledger_port)
        lease = getattr(self, "lease", None)
        if lease is not None:
            self.lease = None
            lease.closed()
