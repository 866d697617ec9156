"""Sockets of our own on which a caller wants options set."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from connectx._connect import own_socket
from connectx._connect.callers_socket import CallersConnection
from connectx._connect.connection import Connection
from connectx._connect.request import PLAIN, request_with

if TYPE_CHECKING:
    from collections.abc import Iterable

    from connectx._connect.request import Request

#: Arguments of setsockopt(), one option after the other.
SocketOptions: TypeAlias = "Iterable[tuple[Any, ...]]"


#: Options that bear on neither the route nor the source nor the port. HTTP clients set them.
_NEUTRAL: Final = {
    (level, getattr(socket, name))
    for level, names in (
        (socket.SOL_SOCKET, ("SO_KEEPALIVE",)),
        (
            socket.IPPROTO_TCP,
            ("TCP_NODELAY", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT"),
        ),
    )
    for name in names
    # Other platforms lack some.
    if hasattr(socket, name)
}


def configured(
    request: Request, timeout: float | None, options: tuple[tuple[Any, ...], ...]
) -> Connection:
    """Return a connection on a socket of its own, with options that `checked` has returned.

    Raises OSError as setsockopt() does.
    """
    if _NEUTRAL.issuperset(option[:2] for option in options):
        return TunedConnection(request, timeout, options)
    return ConfiguredConnection(request, timeout, options)


class TunedConnection(Connection):
    """A connection on a socket that has options set which do not bear on where it goes.

    It takes the quick way. To treat the socket as a caller's would take three times as long
    (`make bench ARGS='--only "socket options"'`).
    """

    __slots__ = ("_options",)

    def __init__(
        self, request: Request, timeout: float | None, options: tuple[tuple[Any, ...], ...]
    ) -> None:
        """Make a socket, and set the options; OSError as setsockopt() raises it."""
        super().__init__(request, timeout)
        self._options = options
        try:
            self._tune()
        except BaseException:
            self.sock.close()
            raise

    def _tune(self) -> None:
        for option in self._options:
            self.sock.setsockopt(*option)

    def _renew(self) -> None:
        """Have a socket without a port, and with the options."""
        super()._renew()
        self._tune()


class ConfiguredConnection(CallersConnection):
    """A connection on a socket of its own that has options set.

    They decide the route, the source and the port as on a socket that a caller has made, so
    it is treated as such; only that nobody else has it yet.
    """

    leaves_handshake = False

    __slots__ = ()

    def __init__(self, request: Request, timeout: float | None, options: SocketOptions) -> None:
        """Make a socket, and set the options; OSError as setsockopt() raises it."""
        made = Connection(request, timeout)
        try:
            for option in options:
                made.sock.setsockopt(*option)
            wanted = request.origin.options
            super().__init__(made.sock, wanted.ports)
            self.reports = made.reports
            self.prepare(
                request_with(request, PLAIN._replace(exclude=wanted.exclude, plain=wanted.plain))
            )
        except BaseException:
            made.sock.close()
            raise

    def _failed(self) -> None:
        """Leave nothing behind."""
        own_socket.discard(self.sock)


def checked(options: Any) -> tuple[tuple[Any, ...], ...]:
    """Return options as they are kept; TypeError for what setsockopt() cannot take."""
    if options is None:
        return ()
    if isinstance(options, str | bytes):
        raise TypeError(_form(options))
    try:
        found = tuple(tuple(option) for option in options)
    except TypeError:
        raise TypeError(_form(options)) from None
    for option in found:
        if len(option) not in (3, 4) or not all(isinstance(part, int) for part in option[:2]):
            raise TypeError(_form(option))
    return found


def _form(options: object) -> str:
    return (
        "socket_options is a list of arguments of setsockopt(), such as "
        f"[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)], not {options!r}"
    )
