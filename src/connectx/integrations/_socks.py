"""SOCKS over a connection to the proxy that is there already, with PySocks."""

from __future__ import annotations

import socket
from typing import Any

import socks


class _Connected(socket.socket):
    """What a socket of PySocks's connects with: it is connected to the proxy as it is made."""

    def connect(self, _: Any) -> None:
        """Do nothing."""


class _Negotiating(socks.socksocket, _Connected):  # type: ignore[misc] # has no types
    pass


def port_of(version: int, port: int | None) -> int:
    """Return the proxy's port, which may be left out."""
    return port or int(socks.DEFAULT_PORTS[version])


def negotiate(
    sock: socket.socket,
    proxy: tuple[str, int],
    timeout: float | None,
    version: int,
    *,
    by_name: bool,
    user: str | None,
    password: str | None,
    destination: tuple[str, int],
) -> socket.socket:
    """Have the proxy connect to a destination.

    Args:
        sock: Connected to the proxy; it is used up.
        proxy: Its address, for messages.
        timeout: Seconds for each step, unless it is the default.
        version: Of SOCKS, as PySocks numbers them.
        by_name: Whether the proxy resolves the destination's name.
        user, password: For the proxy.
        destination: Where to.

    Raises:
        OSError: As the socket and PySocks raise it.
    """
    through = _Negotiating(sock.family, sock.type, sock.proto, sock.detach())
    try:
        if timeout is None or isinstance(timeout, int | float):
            through.settimeout(timeout)
        through.set_proxy(version, *proxy, by_name, user, password)
        through.connect(destination)
    except socks.ProxyError as error:
        # The socket is closed. Its own message says less than what it comes from.
        if isinstance(error.socket_err, OSError):
            raise error.socket_err from error
        raise
    except BaseException:
        through.close()
        raise
    return through
