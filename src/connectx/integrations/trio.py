"""trio through a Dialer."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final

from connectx.integrations import _dialers

with _dialers.library("trio", "0.26"):
    import trio

if TYPE_CHECKING:
    from connectx._dial.policy import AnyDialer

__all__ = ["open_tcp_stream"]

#: trio's own, which None stands for.
_DELAY: Final = 0.25


async def open_tcp_stream(
    host: str | bytes,
    port: int,
    *,
    happy_eyeballs_delay: float | None = _DELAY,
    local_address: str | None = None,
    dialer: AnyDialer | None = None,
    sources: _dialers.Sources = None,
    ports: _dialers.Ports = None,
) -> trio.SocketStream:
    """Do what trio.open_tcp_stream does, by a dialer.

    Args:
        host, port, happy_eyeballs_delay: As trio.open_tcp_stream takes them.
        local_address: An address of the dialer's, if it has sources.
        dialer, sources, ports: As `connectx.integrations` describes them.

    Raises:
        OSError: As trio.open_tcp_stream raises it; its cause is connectx's, and has the errno.
    """
    by = _dialers.awaiting(dialer, sources, ports)
    name = host.decode("ascii") if isinstance(host, bytes) else host
    sock = await _dialers.dial(
        by,
        (name, port),
        (local_address, 0),
        f"all attempts to connect to {f'[{name}]' if ':' in name else name}:{port} failed",
        happy_eyeballs_delay=_DELAY if happy_eyeballs_delay is None else happy_eyeballs_delay,
    )
    return stream_over(sock)


def stream_over(sock: socket.socket) -> trio.SocketStream:
    """Make a stream of a connected socket, which goes on reporting its end."""
    # trio takes the standard library's class only, so as not to wrap an SSLSocket. One that has
    # lost its class would have to be looked for: that takes 50 µs.
    stand_in = socket.socket(sock.family, sock.type, sock.proto, sock.fileno())
    wrapped: Any = trio.socket.from_stdlib_socket(stand_in)
    wrapped._sock = sock  # noqa: SLF001 - as said
    stand_in.detach()
    return trio.SocketStream(wrapped)
