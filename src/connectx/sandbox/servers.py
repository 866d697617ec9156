"""The far side of an experiment: listeners, receivers, and an echo server.

Most experiments need no more than a listener: on the loopback the kernel
completes the handshake, and connections nobody accepts wait in the accept
queue. The echo server is for those that must see data come back, or that ask
how the peers look from the server's side.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import struct
import traceback
import warnings
from typing import TYPE_CHECKING, Final, NoReturn, Self

from connectx.linux import uapi
from connectx.sandbox.networks import BACKLOG

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

#: Outside of the kernel's default port range, and of those that tests use for clients.
SERVER_PORT: Final = 9000

_LENGTH: Final = struct.Struct("!I")


def family_of(host: str) -> socket.AddressFamily:
    """The address family of an IP address in text form."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def listen(
    host: str = "127.0.0.1",
    port: int = SERVER_PORT,
    *,
    protocol: int = uapi.IPPROTO_TCP,
    backlog: int = BACKLOG,
) -> socket.socket:
    """Make a TCP or MPTCP listener; the caller closes it.

    backlog: how many connections may wait un-accepted; net.core.somaxconn caps it.

    Raises OSError as socket(2), bind(2) and listen(2).
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
    """Make a bound UDP or UDP-Lite socket; the caller closes it.

    Raises OSError as socket(2) and bind(2).
    """
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(socket.socket(family_of(host), socket.SOCK_DGRAM, protocol))
        sock.bind((host, port))
        on_error.pop_all()
    return sock


class EchoServer:
    """A child process that sends back whatever arrives at the sockets it is given.

    It takes the sockets over: this process's copies are closed, so that what
    the child holds is all there is. Close the server, or use it as a context
    manager. It ends with its parent too, even with one that was killed.

    sockets: listeners and bound datagram sockets.

    A reply is sent with a blocking call, so a client should read what it wrote
    before it writes more than a socket buffer holds.
    """

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._control, far_end = socket.socketpair()
        parent = os.getpid()
        with warnings.catch_warnings():
            # Python 3.12 and newer warn of fork() in a process with threads,
            # such as a pytest-xdist worker. The child calls nothing that could
            # wait for a lock some other thread held, and a fresh interpreter
            # would cost each test a hundred times as much.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            _run_child(parent, sockets, far_end)
        far_end.close()
        for sock in sockets:
            sock.close()
        # Until the child has closed what it inherited, it keeps the test's ports too.
        _receive_exactly(self._control, 1)

    def peers(self) -> list[tuple[str, int]]:
        """Who talked to it: the (host, port) of each connection, and of each sender of datagrams.

        Connections come in the order in which they were accepted, senders in
        the order in which they first sent; both stay listed when they are gone.
        Connections that wait in the accept queue and datagrams already received
        count, since the server takes them all before it answers.
        """
        self._control.sendall(b"?")
        (length,) = _LENGTH.unpack(_receive_exactly(self._control, _LENGTH.size))
        peers: list[tuple[str, int]] = [
            (host, port) for host, port in json.loads(_receive_exactly(self._control, length))
        ]
        return peers

    def close(self) -> None:
        """End the child process and wait until it is gone, its ports with it.

        Raises RuntimeError when it had already ended by itself.
        """
        if self._control.fileno() < 0:
            return
        os.kill(self._pid, signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        self._control.close()
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            raise RuntimeError("the echo server failed; its traceback is on standard error")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Servers:
    """All the servers of one experiment, closed together.

    A context manager; the same functions as in this module, minus the closing.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def listen(
        self,
        host: str = "127.0.0.1",
        port: int = SERVER_PORT,
        *,
        protocol: int = uapi.IPPROTO_TCP,
        backlog: int = BACKLOG,
    ) -> socket.socket:
        """Make a listener; see the function."""
        return self._stack.enter_context(listen(host, port, protocol=protocol, backlog=backlog))

    def receive(
        self,
        host: str = "127.0.0.1",
        port: int = SERVER_PORT,
        *,
        protocol: int = uapi.IPPROTO_UDP,
    ) -> socket.socket:
        """Make a bound datagram socket; see the function."""
        return self._stack.enter_context(receive(host, port, protocol=protocol))

    def echo(self, *sockets: socket.socket) -> EchoServer:
        """Start an echo server on sockets from listen() and receive(), which it takes over."""
        return self._stack.enter_context(EchoServer(sockets))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


def _receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise ConnectionResetError("the echo server has died")
        data += chunk
    return bytes(data)


def _run_child(parent: int, sockets: Iterable[socket.socket], control: socket.socket) -> NoReturn:
    status = 1
    try:
        ctypes.CDLL(None).prctl(uapi.PR_SET_PDEATHSIG, signal.SIGKILL)
        # The signal comes only for a parent that dies from now on.
        if os.getppid() == parent:
            _close_all_except([control, *sockets])
            control.sendall(b"!")
            _EchoLoop(sockets, control).run()
        status = 0
    except BaseException:
        # Not by sys.stderr: its buffer may hold what the parent is about to write.
        os.write(2, traceback.format_exc().encode())
        raise
    finally:
        # Not sys.exit(): pytest, whose frames are below, would go on in the child.
        os._exit(status)


def _close_all_except(kept: Iterable[socket.socket]) -> None:
    # A descriptor inherited from a test would keep its connection, and its
    # port, alive after the test has closed it.
    low = 3
    for descriptor in sorted(sock.fileno() for sock in kept):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


class _EchoLoop:
    """What the child does: take what comes, send it back, remember who sent it."""

    def __init__(self, sockets: Iterable[socket.socket], control: socket.socket) -> None:
        self._sockets = list(sockets)
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, self._report)
        for sock in self._sockets:
            sock.settimeout(0)
            self._selector.register(sock, selectors.EVENT_READ, self._take)
        self._finished = False
        self._peers: list[tuple[str, int]] = []
        self._senders: set[tuple[str, int]] = set()

    def run(self) -> None:
        """Serve until the parent closes its end of the control channel."""
        while not self._finished:
            for key, _ in self._selector.select():
                key.data(key.fileobj)

    def _report(self, control: socket.socket) -> None:
        if not control.recv(1):
            self._finished = True
            return
        for sock in self._sockets:
            self._take(sock)
        answer = json.dumps(self._peers).encode()
        control.sendall(_LENGTH.pack(len(answer)) + answer)

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
