"""Connections on other platforms than Linux: none, or plain ones where the caller prefers that."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

from connectx._connect.connection import Connection
from connectx._connect.plain import not_linux
from connectx._connect.request import PLAIN, parse, require_served

if TYPE_CHECKING:
    from connectx._connect.request import Request
    from connectx._connect.steps import Steps
    from connectx.addresses import Address, PortRange


class PlainConnection(Connection):
    """A connection on a socket of its own."""

    __slots__ = ()

    def begin(self) -> Steps[None] | None:
        """Connect as the standard library does; NotSupported if that is not asked for."""
        if not self.request.origin.options.plain:
            self._failed()
            raise not_linux(self.request)
        return self._plainly()


class PlainCallersConnection(PlainConnection):
    """A connection on a socket that a caller has made."""

    leaves_handshake = True

    __slots__ = ("_data", "taken")

    def __init__(self, sock: socket.socket, ports: PortRange | None = None) -> None:
        """Take a socket; ports: have no meaning here."""
        del ports
        if not isinstance(sock, socket.socket):
            raise TypeError(f"connectx() takes a socket, not {sock!r}")
        require_served(int(sock.family), int(sock.type), sock.proto)
        self.sock = sock
        self.retries = self.taken = 0
        self.under_way = self.reports = False
        self._apart = None
        self._data: bytes | bytearray | memoryview = b""

    def ask(self, source: Address | None, destination: Address, strategy: str) -> Request:
        """Return what a call asks for; errors as `connectx._connect.request.parse`."""
        sock = self.sock
        kind, proto = int(sock.type), sock.proto
        return parse(int(sock.family), kind, proto, strategy, source, destination, PLAIN)

    def prepare(
        self, request: Request, data: bytes | bytearray | memoryview = b""
    ) -> PlainCallersConnection:
        """Settle what to connect to, and the first data."""
        self.request = request
        self._data = data
        return self

    def result(self) -> int:
        """Return how many bytes of data were taken; BlockingIOError while it is connecting."""
        if self.under_way:
            raise BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))
        return self.taken

    def _made(self, port: int) -> None:
        super()._made(port)
        if len(self._data):
            self.taken = self.sock.send(self._data)

    def _failed(self) -> None:
        """Leave the socket to its owner."""
        if self._apart is not None and self._apart[1]:
            self.sock.settimeout(self._apart[0])


class PlainConfiguredConnection(PlainConnection):
    """A connection on a socket of its own that has options set."""

    __slots__ = ()

    def __init__(
        self, request: Request, timeout: float | None, options: tuple[tuple[Any, ...], ...]
    ) -> None:
        """Make a socket, and set the options; OSError as setsockopt() raises it."""
        super().__init__(request, timeout)
        try:
            for option in options:
                self.sock.setsockopt(*option)
        except BaseException:
            self.sock.close()
            raise


#: The name under which this is asked for.
configured = PlainConfiguredConnection
