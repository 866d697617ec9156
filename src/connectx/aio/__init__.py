"""connectx for asyncio and uvloop; importing it imports asyncio.

Sockets from `create_connection` are ordinary ones, connected and non-blocking. Other
libraries wrap them: ``anyio.abc.SocketStream.from_socket(sock)``,
``trio.socket.from_stdlib_socket(sock)``.
"""

from connectx.aio.connecting import create_connection, create_datagram_endpoint, open_connection
from connectx.aio.dialer import Dialer

__all__ = ["Dialer", "create_connection", "create_datagram_endpoint", "open_connection"]
