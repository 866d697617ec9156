"""Which connections there are on this platform, and the one that a call makes."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from connectx._connect.connection import DEFAULT_TIMEOUT
from connectx._connect.request import NEW_SOCKET, request_with

if TYPE_CHECKING or sys.platform == "linux":
    from connectx._connect.callers_socket import CallersConnection
    from connectx._connect.configured import configured
    from connectx._connect.connection import Connection
else:
    from connectx._connect.elsewhere import PlainCallersConnection as CallersConnection
    from connectx._connect.elsewhere import PlainConnection as Connection
    from connectx._connect.elsewhere import configured

if TYPE_CHECKING:
    import socket
    from typing import Any

    from connectx._connect.request import Request
    from connectx._connect.steps import Steps

__all__ = ["CallersConnection", "Connection", "configured", "opening", "plain_if"]


def opening(
    request: Request,
    timeout: float | None,
    *,
    awaited: bool,
    options: tuple[tuple[Any, ...], ...] = (),
    plain: bool = False,
) -> Steps[socket.socket]:
    """Return a connected socket.

    awaited: whether the driver waits for the handshake, and the socket is non-blocking;
    timeout is then how long. Otherwise it is the socket's, as create_connection() takes it.
    options: what to set on it. plain: whether to connect as the standard library does where
    connectx cannot.
    """
    if plain:
        request = request_with(request, NEW_SOCKET._replace(plain=True))
    if awaited:
        seconds, timeout = timeout, DEFAULT_TIMEOUT
    make = partial(configured, options=options) if options else Connection
    connection = make(request, timeout)
    if awaited:
        connection.apart(seconds, blocking=False)
    steps = connection.begin()
    if steps is not None:
        yield from steps
    return connection.sock


def plain_if(fallback: object) -> bool:
    """Return what a `fallback` argument means; TypeError or ValueError for what is none."""
    if fallback is None:
        return False
    if not isinstance(fallback, str):
        raise TypeError(f'fallback is "plain" or None, not {fallback!r}')
    if fallback != "plain":
        raise ValueError(f'fallback is "plain" or None, not {fallback!r}')
    return True
