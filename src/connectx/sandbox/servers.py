"""The far side of an experiment: listeners, receivers, and an echo server.

Most experiments need no more than a listener: on the loopback the kernel completes the
handshake, and connections that nobody accepts wait in the accept queue. The echo server is
for those that must see data come back, or that ask which addresses the server sees.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import selectors
import signal
import socket
from typing import TYPE_CHECKING, Final, Self

from connectx.linux import uapi
from connectx.sandbox.children import Child
from connectx.sandbox.networks import BACKLOG

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from multiprocessing.connection import Connection

#: Outside of the kernel's default port range, and of those that tests use for clients.
SERVER_PORT: Final = 9000


def family_of(host: str) -> socket.AddressFamily:
    """Return the address family of an IP address in text form."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def listen(
    host: str = "127.0.0.1",
    port: int = SERVER_PORT,
    *,
    protocol: int = uapi.IPPROTO_TCP,
    backlog: int = BACKLOG,
) -> socket.socket:
    """Make a TCP or MPTCP listener, which the caller closes.

    Args:
        host: IP address to listen on.
        port: Port to listen on.
        protocol: IPPROTO_TCP or IPPROTO_MPTCP.
        backlog: How many connections may wait unaccepted; net.core.somaxconn caps it.

    Raises:
        OSError: As socket(2), bind(2) and listen(2) do.
    """
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(
            socket.socket(family_of(host), socket.SOCK_STREAM, protocol),
        )
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(backlog)
        on_error.pop_all()
    return sock


def receive(
    host: str = "127.0.0.1", port: int = SERVER_PORT, *, protocol: int = uapi.IPPROTO_UDP
) -> socket.socket:
    """Make a bound UDP or UDP-Lite socket, which the caller closes.

    Raises:
        OSError: As socket(2) and bind(2) do.
    """
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(socket.socket(family_of(host), socket.SOCK_DGRAM, protocol))
        sock.bind((host, port))
        on_error.pop_all()
    return sock


class EchoServer:
    """A child process that sends back whatever arrives at the sockets it is given.

    It takes the sockets over: this process's copies are closed, so that only the child holds
    them. Close the server, or use it as a context manager.

    It replies with a blocking call, so a client should read what it wrote before it writes
    more than a socket buffer holds.

    Args:
        sockets: Listeners and bound datagram sockets.
    """

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._child: Child | None = Child(functools.partial(_serve, sockets))
        for sock in sockets:
            sock.close()
        # Until the child has closed what it inherited, it keeps the test's ports too.
        self._child.receive()

    def peers(self) -> list[tuple[str, int]]:
        """Return who talked to it: the (host, port) of each client.

        Connections come in the order in which they were accepted, senders of datagrams in the
        order in which they first sent. Both stay listed when they are gone. Connections that
        wait in the accept queue and datagrams that were received count, since the server takes
        them all before it answers.

        Raises:
            ChildProcessError: The server failed; its traceback is on standard error.
        """
        if self._child is None:
            raise ValueError("the echo server is closed")
        self._child.send(None)
        peers: list[tuple[str, int]] = self._child.receive()
        return peers

    def close(self) -> None:
        """End the child process and wait until it is gone, its ports with it.

        Raises:
            RuntimeError: It had already ended by itself.
        """
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        if child.wait() != -signal.SIGKILL:
            raise RuntimeError("the echo server failed; its traceback is on standard error")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Servers(contextlib.ExitStack):
    """All the servers of one experiment, closed together at the end of a with block."""

    def listen(
        self,
        host: str = "127.0.0.1",
        port: int = SERVER_PORT,
        *,
        protocol: int = uapi.IPPROTO_TCP,
        backlog: int = BACKLOG,
    ) -> socket.socket:
        """Make a listener as the function of this name does."""
        return self.enter_context(listen(host, port, protocol=protocol, backlog=backlog))

    def receive(
        self,
        host: str = "127.0.0.1",
        port: int = SERVER_PORT,
        *,
        protocol: int = uapi.IPPROTO_UDP,
    ) -> socket.socket:
        """Make a bound datagram socket as the function of this name does."""
        return self.enter_context(receive(host, port, protocol=protocol))

    def echo(self, *sockets: socket.socket) -> EchoServer:
        """Start an echo server on sockets from listen() and receive(), which it takes over."""
        return self.enter_context(EchoServer(sockets))


def _serve(sockets: Sequence[socket.socket], pipe: Connection) -> None:
    # The descriptors of the other inherited sockets are about to be used anew: no collector
    # may close them on behalf of their former owners.
    gc.freeze()
    _close_all_except({pipe.fileno(), *(sock.fileno() for sock in sockets)})
    pipe.send(None)
    _EchoLoop(sockets, pipe).run()


def _close_all_except(kept: Iterable[int]) -> None:
    # A descriptor inherited from a test would keep its connection, and its port, alive after
    # the test has closed it.
    low = 3
    for descriptor in sorted(kept):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


class _EchoLoop:
    """What the child does: take what comes, send it back, remember who sent it."""

    def __init__(self, sockets: Iterable[socket.socket], pipe: Connection) -> None:
        self._sockets = list(sockets)
        self._selector = selectors.DefaultSelector()
        self._selector.register(pipe, selectors.EVENT_READ, self._report)
        for sock in self._sockets:
            sock.settimeout(0)
            self._selector.register(sock, selectors.EVENT_READ, self._take)
        self._peers: list[tuple[str, int]] = []
        self._senders: set[tuple[str, int]] = set()

    def run(self) -> None:
        """Serve until the process is killed."""
        while True:
            for key, _ in self._selector.select():
                key.data(key.fileobj)

    def _report(self, pipe: Connection) -> None:
        pipe.recv()
        for sock in self._sockets:
            self._take(sock)
        pipe.send(self._peers)

    def _take(self, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                if sock.type == socket.SOCK_STREAM:
                    self._accept(sock)
                else:
                    self._return_datagram(sock)

    def _accept(self, listener: socket.socket) -> None:
        connection, peer = listener.accept()
        self._peers.append(peer[:2])
        self._selector.register(connection, selectors.EVENT_READ, self._echo)

    def _return_datagram(self, sock: socket.socket) -> None:
        data, peer = sock.recvfrom(65536)
        if peer[:2] not in self._senders:
            self._senders.add(peer[:2])
            self._peers.append(peer[:2])
        sock.sendto(data, peer)

    def _echo(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(65536)
            if data:
                connection.sendall(data)
                return
        except ConnectionError:
            pass  # A client that resets its connection is done with it.
        self._selector.unregister(connection)
        connection.close()
