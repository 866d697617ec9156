"""A WebSocket server in a process of its own, and a SOCKS proxy; it answers as http_server does."""

from __future__ import annotations

import gc
import itertools
import socket
import threading
from typing import TYPE_CHECKING, Any

from websockets.sync.server import ServerConnection, serve

from tests.integrations import http_server

if TYPE_CHECKING:
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


def socks(to: tuple[str, int], listener: socket.socket, _: Any, pipe: Any) -> None:
    """Be a SOCKS proxy, which connects to one server on."""
    pipe.send(None)
    while True:
        connection, (host, _port) = listener.accept()
        http_server.pass_on(connection)
        onward = socket.create_connection(to, None, (host, 0))
        threading.Thread(target=relay, args=(connection, onward)).start()


def relay(one: socket.socket, other: socket.socket) -> None:
    with one, other:
        http_server.relay(one, other)
