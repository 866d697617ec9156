"""Tasks for workers: an echo server, and saying something over every connection.

Each connection gets a token of its own. Only its coming back to the very socket
that sent it shows that the connection is alive and that no other socket has
taken over its 4-tuple.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from connectx.sandbox.workers import Held, Report

#: How long a reply may take, in seconds; on the loopback it never takes as long.
TIMEOUT: Final = 30.0

#: Tokens under way at a time. A UDP server's socket holds some 270 small
#: datagrams by default (net.core.rmem_default) and drops what exceeds that.
WINDOW: Final = 64

_TOKEN: Final = struct.Struct("!Q")
#: struct linger: on, after no time. close() then resets the connection.
_ABORT: Final = struct.pack("ii", 1, 0)
_READ_SIZE: Final = 64


def serve_streams(listeners: Sequence[socket.socket], _: Report, counts: Sequence[int]) -> NoReturn:
    """Accept so many connections from each listener, then echo until killed.

    The connections are reset when the worker ends: an orderly end would take
    four segments and leave a TIME_WAIT for each.
    """
    connections = {}
    with select.epoll() as poller:
        for listener, count in zip(listeners, counts, strict=True):
            for _number in range(count):
                connection, _address = listener.accept()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                connections[connection.fileno()] = connection
                poller.register(connection, select.EPOLLIN)
        while True:
            for descriptor, _events in poller.poll():
                data = os.read(descriptor, _READ_SIZE)
                if data:
                    os.write(descriptor, data)
                else:
                    connections.pop(descriptor).close()


def serve_datagrams(sockets: Sequence[socket.socket], _: Report) -> NoReturn:
    """Echo datagrams, in the order in which they came to each socket, until killed."""
    by_descriptor = {sock.fileno(): sock for sock in sockets}
    poller = select.poll()
    for descriptor in by_descriptor:
        poller.register(descriptor, select.POLLIN)
    while True:
        for descriptor, _events in poller.poll():
            sock = by_descriptor[descriptor]
            data, sender = sock.recvfrom(_READ_SIZE)
            sock.sendto(data, sender)


def echo_streams(held: Held, report: Report, first: int) -> int:
    """Send a token over every connection and count those that come back.

    first: the first socket's token; the others have those that follow.

    Raises TimeoutError after TIMEOUT without a reply, OSError as send(2) and recv(2).
    """
    echoed = 0
    for window in _windows(held.sockets, first):
        for sock, token in window:
            sock.settimeout(TIMEOUT)
            sock.sendall(token)
        for sock, token in window:
            # All of it comes at once: so little is never segmented.
            echoed += sock.recv(_READ_SIZE) == token
        report(echoed)
    return echoed


def echo_datagrams(
    held: Held,
    report: Report,
    first: int,
    marker_source: str,
    destinations: Sequence[tuple[str, int]],
) -> int:
    """Send a token over every connected socket and count those that come back to it.

    A token does not come back when a newer socket is on the same 4-tuple, and
    waiting for what never comes would take for ever. So each window ends with a
    marker to each destination: when these are back, the server has answered
    all that came before.

    marker_source: a local address that none of the sockets is bound to, since
        the marker's socket must not be on a 4-tuple of theirs.

    Raises TimeoutError after TIMEOUT without a marker, OSError as send(2) and recv(2).
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as marker:
        marker.bind((marker_source, 0))
        marker.settimeout(TIMEOUT)
        sent = 0
        for window in _windows(held.sockets, first):
            for sock, token in window:
                sock.settimeout(0)
                sock.send(token)
            for destination in destinations:
                marker.sendto(b"", destination)
            for _destination in destinations:
                marker.recv(_READ_SIZE)
            sent += len(window)
            report(sent)
    # Only now, when other sockets' tokens that came to the wrong one are there as well.
    return sum(
        _has_come(sock, token) for window in _windows(held.sockets, first) for sock, token in window
    )


def _windows(
    sockets: Sequence[socket.socket], first: int
) -> Iterator[list[tuple[socket.socket, bytes]]]:
    for start in range(0, len(sockets), WINDOW):
        yield [
            (sock, _TOKEN.pack(number))
            for number, sock in enumerate(sockets[start : start + WINDOW], first + start)
        ]


def _has_come(sock: socket.socket, token: bytes) -> bool:
    while True:
        try:
            if sock.recv(_READ_SIZE) == token:
                return True
        except BlockingIOError:
            return False
