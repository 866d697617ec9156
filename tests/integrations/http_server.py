"""An HTTP server in a process of its own: it answers with who asked.

The body is the client's address and port as the server sees them, and how many connections there
had been before, as a line: "192.0.2.7 40000 0". As a proxy it answers for the server where the
request is not for itself, and goes on from the client's address where it is to connect to one.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import select
import socket
import struct
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    import ssl
    from multiprocessing.connection import Connection

#: struct linger: on, for zero seconds. close() then resets the connection.
ABORT: Final = struct.pack("ii", 1, 0)


def answer(
    listener: socket.socket, tls: ssl.SSLContext | None, pipe: Connection, *, socks: bool = False
) -> None:
    """Serve until the process is killed.

    socks: whether to be a SOCKS proxy first, and then the server that it is asked for.
    """
    # Descriptors are about to be used anew: no collector may close them for former owners.
    gc.freeze()
    numbers = itertools.count()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Or a reply would wait for the acknowledgement of its own head.
        disable_nagle_algorithm = True

        def setup(self) -> None:
            self.number = next(numbers)
            if socks:
                pass_on(self.request)
            if tls is not None:
                self.request = tls.wrap_socket(self.request, server_side=True)
            super().setup()

        def do_GET(self) -> None:
            host, port = self.client_address[:2]
            self._reply(f"{host} {port} {self.number}\n".encode())

        def do_CONNECT(self) -> None:
            host, _, port = self.path.rpartition(":")
            source = (self.client_address[0], 0)
            with socket.create_connection((host.strip("[]"), int(port)), None, source) as onward:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                relay(self.connection, onward)
            self.close_connection = True

        def _reply(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """Say nothing of clients that have gone away."""

    server = Server(listener.getsockname()[:2], Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    pipe.send(None)
    server.serve_forever()


def pass_on(connection: socket.socket) -> None:
    """Take a request of SOCKS 5 as if there was a connection to its destination."""
    with connection.makefile("rb", 0) as file:
        _version, methods = file.read(2)
        file.read(methods)
        connection.sendall(b"\5\0")
        _version, _command, _reserved, kind = file.read(4)
        file.read({1: 4, 4: 16}.get(kind) or file.read(1)[0])
        file.read(2)
        connection.sendall(b"\5\0\0\1" + bytes(6))


def reset(listener: socket.socket, _: ssl.SSLContext | None, pipe: Connection) -> NoReturn:
    """Reset every connection as soon as something comes from it."""
    gc.freeze()
    pipe.send(None)
    while True:
        connection, _address = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)


def relay(one: socket.socket, other: socket.socket) -> None:
    """Pass on what comes from either to the other, until one has ended."""
    while True:
        for sock in select.select([one, other], [], [])[0]:
            data = sock.recv(65536)
            if not data:
                return
            (other if sock is one else one).sendall(data)
