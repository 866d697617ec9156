"""Sockets of our own on which a caller wants options set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from connectx._connect import own_socket
from connectx._connect.callers_socket import CallersConnection
from connectx._connect.connection import Connection
from connectx._connect.request import PLAIN, request_with

if TYPE_CHECKING:
    from collections.abc import Iterable

    from connectx._connect.request import Request

#: Arguments of setsockopt(), one option after the other.
SocketOptions: TypeAlias = "Iterable[tuple[Any, ...]]"


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
