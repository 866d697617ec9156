"""connectx for asyncio, uvloop and trio; importing it imports asyncio.

Sockets from `create_connection` are ordinary ones, connected and non-blocking. Other
libraries wrap them: ``anyio.abc.SocketStream.from_socket(sock)``. trio's
``trio.socket.from_stdlib_socket()`` takes no subclass of socket.socket, so give it
``socket.socket(fileno=sock.detach())``.
"""

from connectx.aio.connecting import create_connection
from connectx.aio.dialer import Dialer
from connectx.aio.loops import loop_with
from connectx.aio.streams import create_datagram_endpoint, open_connection

__all__ = [
    "Dialer",
    "create_connection",
    "create_datagram_endpoint",
    "loop_with",
    "open_connection",
]
