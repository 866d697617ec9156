"""connect(AF_UNSPEC) on streams, and what a refused connection leaves of a socket."""

import errno
import os
import socket
from typing import Final

import pytest

from connectx.linux import uapi
from connectx.linux.disconnect import disconnect
from connectx.sandbox.networks import Network
from tests import limits
from tests.kernel.raw import (
    FIRST,
    INUSE,
    SECOND,
    STREAMS,
    TCP,
    TCP6,
    Sockets,
    Technique,
    connect_class,
)

PORT: Final = 20004
NOBODY: Final = 9999
EXPLICIT: Final = Technique("REUSEADDR + bind(ip, port)", reuseaddr=True, bind=PORT)
EXCLUSIVE: Final = Technique("bind(ip, port)", bind=PORT)


@pytest.fixture(autouse=True)
def _one_port(network: Network) -> None:
    network.port_range(PORT, PORT)


def assert_free_yet_named(sockets: Sockets, sock: socket.socket) -> None:
    """The socket holds no port any more; getsockname() still shows the one it had.

    inet_put_port() clears inet_num, which is what counts; getsockname() reads inet_sport.
    """
    other = sockets.bound(EXCLUSIVE)
    assert sock.getsockname()[1] == PORT
    other.close()


@pytest.mark.parametrize("transport", STREAMS, ids=str)
@pytest.mark.parametrize("technique", connect_class((PORT, PORT), reuseaddr=True), ids=str)
def test_a_port_that_connect_picked_is_released_and_the_socket_can_connect_again(
    sockets: Sockets, technique: Technique
) -> None:
    sock = sockets.open(technique, FIRST)
    disconnect(sock)
    assert_free_yet_named(sockets, sock)
    sock.connect((sockets.transport.source, SECOND))
    assert sock.getpeername()[1] == SECOND


@pytest.mark.parametrize("transport", [TCP, TCP6], ids=str)
def test_a_port_given_to_bind_is_kept(sockets: Sockets) -> None:
    sock = sockets.open(EXPLICIT, FIRST)
    disconnect(sock)
    assert sock.getsockname()[1] == PORT
    assert sockets.outcome(EXCLUSIVE) == INUSE


@pytest.mark.parametrize("transport", STREAMS, ids=str)
@pytest.mark.parametrize("technique", connect_class((PORT, PORT)), ids=str)
def test_a_refused_connection_releases_the_port_that_connect_picked(
    sockets: Sockets, technique: Technique
) -> None:
    sock = sockets.bound(technique)
    with pytest.raises(ConnectionRefusedError):
        sock.connect((sockets.transport.source, NOBODY))
    assert_free_yet_named(sockets, sock)
    sock.bind((sockets.transport.source, PORT + 1))
    sock.connect((sockets.transport.source, FIRST))
    assert sock.getsockname()[1] == PORT + 1


@pytest.mark.parametrize("transport", [TCP, TCP6], ids=str)
def test_a_refused_connection_keeps_a_port_given_to_bind(sockets: Sockets) -> None:
    sock = sockets.bound(EXPLICIT)
    with pytest.raises(ConnectionRefusedError):
        sock.connect((sockets.transport.source, NOBODY))
    assert sock.getsockname()[1] == PORT
    assert sockets.outcome(EXCLUSIVE) == INUSE


@pytest.mark.parametrize("transport", [TCP, TCP6], ids=str)
def test_so_bindtodevice_is_kept(sockets: Sockets) -> None:
    sock = sockets.new()
    sock.setsockopt(socket.SOL_SOCKET, uapi.SO_BINDTODEVICE, b"lo\0")
    sock.connect((sockets.transport.source, FIRST))
    disconnect(sock)
    assert sock.getsockopt(socket.SOL_SOCKET, uapi.SO_BINDTODEVICE, 16) == b"lo\0"


@pytest.mark.parametrize("transport", STREAMS, ids=str)
def test_the_connection_is_aborted(sockets: Sockets) -> None:
    listener = sockets.bound(Technique("", reuseaddr=True, bind=NOBODY))
    listener.listen()
    sock = sockets.bound(Technique("connect"))
    sock.connect((sockets.transport.source, NOBODY))
    accepted, _ = limits.accept(listener)
    with accepted:
        disconnect(sock)
        accepted.settimeout(limits.LIMIT)
        with pytest.raises(OSError, match=os.strerror(errno.ECONNRESET)):
            limits.receive(accepted)
