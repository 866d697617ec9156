"""A small HTTP server for a WSGI application with one or two clients, such as Prometheus."""

from __future__ import annotations

import io
import select
import socket
import sys
import threading
import time
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from _typeshed import WriteableBuffer

    from connectx.addresses import Endpoint

#: Seconds that a client may take to send its request, and to receive the answer.
_PATIENCE: Final = 10.0

#: Clients that are served at a time. Connections beyond that are closed at once.
_AT_ONCE: Final = 64


class _InTime(io.RawIOBase):
    """What a client sends within some seconds from now; then TimeoutError.

    The socket's own timeout would begin anew with each octet.
    """

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._sock = sock
        self._until = time.monotonic() + seconds

    def readable(self) -> bool:
        """Return True, for io.BufferedReader."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Wait for octets, and read them."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        former = self._sock.gettimeout()
        self._sock.settimeout(left)
        try:
            return self._sock.recv_into(buffer)
        finally:
            self._sock.settimeout(former)


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE

    def setup(self) -> None:
        """Prepare to read and write, for socketserver."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_InTime(self.connection, _PATIENCE))

    def log_message(self, *_: object) -> None:
        """Do not log requests."""


class Server(ThreadingMixIn, WSGIServer):
    """Listens at an address as soon as it is made. A context manager, which closes it.

    Args:
        address: Where to listen: host "" for all addresses of both IP versions, port 0 for
            any free port. `url` has the result.
        application: The application that answers.

    Raises:
        OSError: EADDRINUSE; EADDRNOTAVAIL for an address that is not local; EACCES for a
            privileged port.
    """

    #: A client that stays connected must not keep the process from ending.
    daemon_threads = True
    #: A client that has gone before it was accepted must not hold up the others.
    timeout = 0
    #: Otherwise a second exporter would get half of the first one's scrapes.
    allow_reuse_port = False
    request_queue_size = 64

    def __init__(self, address: Endpoint, application: WSGIApplication) -> None:
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        self._all = not address.host
        host = address.host or ("::" if socket.has_dualstack_ipv6() else "0.0.0.0")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, address.port), _Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        """Bind, without asking the resolver for the host's name, as HTTPServer does."""
        if self._all and self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()

    @property
    def url(self) -> str:
        """The address of the metrics."""
        host, port = self.socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    def serve(self, until: int) -> None:
        """Serve until a descriptor becomes readable.

        serve_forever() would end only by an exception of a signal handler, wherever that
        strikes, or half a second late.
        """
        poll = select.poll()
        poll.register(until, select.POLLIN)
        poll.register(self.fileno(), select.POLLIN)
        while all(descriptor != until for descriptor, _ in poll.poll()):
            self.handle_request()

    def verify_request(self, *_: object) -> bool:
        """Return whether there is room for one more client."""
        return self._places.acquire(blocking=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread."""
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            # No thread could be started, so nobody else gives the place back.
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and give the place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an error, unless the client has gone or was silent."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)
