"""Connecting as the standard library does, where connectx cannot and its caller prefers that."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from connectx.errors import NotSupported

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from connectx._connect.request import Request
    from connectx._connect.steps import Steps
    from connectx.errors import ConnectxError

#: As people call them.
_PLATFORMS: Final = {"darwin": "macOS", "win32": "Windows", "cygwin": "Cygwin"}


def not_linux(request: Request) -> ConnectxError:
    """Return the error for a call on another platform."""
    here = _PLATFORMS.get(sys.platform, "another platform")
    return request.error(
        NotSupported,
        f"connectx needs Linux, and this is {here} ({sys.platform}): ask connectx.supported() "
        'before, or give fallback="plain" to connect as the standard library does',
    )


def plainly(
    sock: socket.socket, request: Request, shake_hands: Callable[[], Steps[None]] | None
) -> Steps[None]:
    """Connect a socket, from the source that was asked for and from whatever port.

    shake_hands: what waits for the end of the handshake; None where connect() does.
    """
    origin = request.origin
    if origin.source.host or origin.source.port:
        sock.bind(origin.source.sockaddr(origin.family))
    try:
        sock.connect(request.address)
    except BlockingIOError:
        if shake_hands is None:
            raise
        yield from shake_hands()
