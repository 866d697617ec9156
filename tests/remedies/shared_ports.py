"""Remedies against a port that connect() gave away by chance, and sockets that receive nothing."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest

import connectx
from connectx._diagnosis import causes
from tests import limits
from tests.observe.helpers import HERE, HIGH, LOW, PORT
from tests.remedies.world import World, follows

if TYPE_CHECKING:
    from collections.abc import Iterator

UDP = socket.SOCK_DGRAM
SERVICE = ("127.0.0.1", LOW)
ASKED = ("--errno", "98", "--source", f"127.0.0.1:{LOW}")


def given_away(world: World) -> socket.socket:
    """A connection that got the port of a service, which then cannot start."""
    world.network.port_range(LOW, LOW)
    world.servers.listen("127.0.0.1", PORT)
    sock = world.connect()
    assert sock.getsockname() == SERVICE
    world.fails(errno.EADDRINUSE, world.servers.listen, *SERVICE)
    return sock


@follows(causes.PORT_BY_CHANCE, "reserve the port")
def reserved(world: World) -> None:
    """Open connections stay, and the next ones get other ports."""
    sock = given_away(world)
    world.follow(*ASKED)
    sock.send(b"x")
    sock.close()
    world.fails(errno.EADDRNOTAVAIL, world.connect)
    world.network.port_range(LOW, HIGH)
    for _ in range(HIGH - LOW):
        world.connect()
    world.servers.listen(*SERVICE)


@follows(causes.PORT_BY_CHANCE, "close the connection")
def closed(world: World) -> None:
    sock = given_away(world)
    world.follow(*ASKED)
    with pytest.raises(ConnectionAbortedError):
        limits.receive(sock)
    world.servers.listen(*SERVICE)


@follows(causes.PORT_BY_CHANCE, "or make outgoing connections")
def made_by_connectx(world: World) -> None:
    given_away(world).close()
    world.closing.enter_context(connectx.create_connection(HERE))
    world.servers.listen(*SERVICE)


def opened(world: World, *options: int, port: int = LOW) -> Iterator[socket.socket]:
    """Two UDP sockets that are bound alike."""
    for _ in range(2):
        sock = world.closing.enter_context(socket.socket(type=UDP))
        for option in options:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        sock.bind(("127.0.0.1", port))
        yield sock


def deaf(world: World) -> tuple[socket.socket, socket.socket, socket.socket]:
    """A sender, and two sockets that share a port, of which the older receives nothing."""
    older, newer = opened(world, socket.SO_REUSEADDR)
    sender = world.closing.enter_context(socket.socket(type=UDP))
    sender.bind(("127.0.0.7", 0))
    sender.sendto(b"x", SERVICE)
    assert limits.receive(newer) == b"x"
    with pytest.raises(BlockingIOError):
        older.recv(1, socket.MSG_DONTWAIT)
    world.read()
    return sender, older, newer


@follows(causes.DEAF, "open them without SO_REUSEADDR")
def ports_of_their_own(world: World) -> None:
    sender, older, newer = deaf(world)
    older.close()
    newer.close()
    for sock in opened(world, port=0):
        sender.sendto(b"y", sock.getsockname())
        assert limits.receive(sock) == b"y"


@follows(causes.DEAF, "or connect() them")
def connected(world: World) -> None:
    sender, older, newer = deaf(world)
    older.close()
    newer.close()
    other = world.closing.enter_context(socket.socket(type=UDP))
    other.bind(("127.0.0.8", 0))
    for peer in (sender, other):
        to = peer.getsockname()
        sock = connectx.create_connection(to, source_address=SERVICE, type=UDP)
        world.closing.enter_context(sock)
        peer.sendto(b"y", SERVICE)
        assert limits.receive(sock) == b"y"


@follows(causes.DEAF, "to spread datagrams")
def spread(world: World) -> None:
    """The kernel chooses a socket by the sender's address and port."""
    _, older, newer = deaf(world)
    older.close()
    newer.close()
    sockets = list(opened(world, socket.SO_REUSEPORT))
    heard: set[socket.socket] = set()
    for _ in range(100):
        with socket.socket(type=UDP) as sender:
            sender.sendto(b"y", SERVICE)
        for sock in sockets:
            try:
                sock.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            heard.add(sock)
    assert heard == set(sockets)
