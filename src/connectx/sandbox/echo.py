"""Tasks for workers: accept and echo, and check that every connection echoes.

Each connection sends a token of its own. Only when that token comes back to the same socket
is the connection alive, and its 4-tuple its own.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from connectx.sandbox.holders import Held
    from connectx.sandbox.workers import Report

#: Seconds that a reply may take; on the loopback it never takes that long.
TIMEOUT: Final = 30.0

#: Tokens in flight at a time. A UDP server's socket holds some 270 small datagrams by
#: default (net.core.rmem_default) and drops the rest.
BATCH: Final = 64

_TOKEN: Final = struct.Struct("!Q")
#: struct linger: on, for zero seconds. close() then resets the connection.
_ABORT: Final = struct.pack("ii", 1, 0)
_READ_SIZE: Final = 64


def serve_streams(listeners: Sequence[socket.socket], _: Report, counts: Sequence[int]) -> NoReturn:
    """Accept some connections from each listener, then echo until the worker is killed.

    The connections are reset when the worker ends: an orderly end would take four segments
    and leave a TIME_WAIT for each.

    Args:
        listeners: The worker's state.
        counts: How many connections to accept from each listener.
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


def echo_streams(held: Held, report: Report, first: int) -> int:
    """Send a token over every connection, and count those that come back.

    Args:
        held: The worker's state.
        report: Called with how many tokens have come back so far.
        first: The first socket's token; the other sockets get those that follow.

    Raises:
        TimeoutError: No reply came within TIMEOUT.
        OSError: As send(2) and recv(2) do.
    """
    echoed = 0
    for batch in _batches(held.sockets, first):
        for sock, token in batch:
            sock.settimeout(TIMEOUT)
            sock.sendall(token)
        for sock, token in batch:
            # It comes in one piece: so little is never segmented.
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
    """Send a token over every connected socket, and count those that come back to it.

    A token does not come back when a newer socket is on the same 4-tuple, and then waiting
    for it would never end. So each batch of tokens ends with a marker to each destination:
    when the markers are back, the server has answered all that came before them.

    Args:
        held: The worker's state.
        report: Called with how many tokens were answered, or lost, so far.
        first: The first socket's token; the other sockets get those that follow.
        marker_source: A local address that none of the sockets is bound to, so that the
            marker's socket is on a 4-tuple of its own.
        destinations: What the sockets are connected to.

    Raises:
        TimeoutError: No marker came within TIMEOUT.
        OSError: As send(2) and recv(2) do.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as marker:
        marker.bind((marker_source, 0))
        marker.settimeout(TIMEOUT)
        sent = 0
        for batch in _batches(held.sockets, first):
            for sock, token in batch:
                sock.settimeout(0)
                sock.send(token)
            for destination in destinations:
                marker.sendto(b"", destination)
            for _destination in destinations:
                marker.recv(_READ_SIZE)
            sent += len(batch)
            report(sent)
    # Counted last, when tokens that went to the wrong socket have arrived there as well.
    return sum(
        _has_come(sock, token) for batch in _batches(held.sockets, first) for sock, token in batch
    )


def _batches(
    sockets: Sequence[socket.socket], first: int
) -> Iterator[list[tuple[socket.socket, bytes]]]:
    for start in range(0, len(sockets), BATCH):
        yield [
            (sock, _TOKEN.pack(number))
            for number, sock in enumerate(sockets[start : start + BATCH], first + start)
        ]


def _has_come(sock: socket.socket, token: bytes) -> bool:
    while True:
        try:
            if sock.recv(_READ_SIZE) == token:
                return True
        except BlockingIOError:
            return False
