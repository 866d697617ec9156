"""connectx for asyncio and uvloop; importing it imports asyncio.

Sockets from `create_connection` are ordinary ones, connected and non-blocking. Other
libraries wrap them: ``anyio.abc.SocketStream.from_socket(sock)``. Under trio, which has no
asyncio loop, ``trio.to_thread.run_sync(connectx.create_connection, address)`` gives one, and
``socket.socket(fileno=sock.detach())`` is what ``trio.socket.from_stdlib_socket()`` and anyio's
trio backend take, since they take no subclass.
"""

from connectx.aio.connecting import create_connection, create_datagram_endpoint, open_connection
from connectx.aio.dialer import Dialer

__all__ = ["Dialer", "create_connection", "create_datagram_endpoint", "open_connection"]
