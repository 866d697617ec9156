"""A WebSocket server in a process of its own: it answers as http_server does."""

from __future__ import annotations

import gc
import itertools
from typing import TYPE_CHECKING

from websockets.sync.server import ServerConnection, serve

if TYPE_CHECKING:
    import socket
    import ssl
    from multiprocessing.connection import Connection


def answer(listener: socket.socket, tls: ssl.SSLContext | None, pipe: Connection) -> None:
    """Serve until the process is killed."""
    # As in http_server.
    gc.freeze()
    numbers = itertools.count()

    def handle(connection: ServerConnection) -> None:
        number = next(numbers)
        host, port = connection.remote_address[:2]
        for _ in connection:
            connection.send(f"{host} {port} {number}")

    with serve(handle, sock=listener, ssl=tls) as serving:
        pipe.send(None)
        serving.serve_forever()
