"""The ways to open a connection that are compared, each a small function.

A way is given the fill that lies ahead and returns the function that opens one connection.
What it needs to prepare, it prepares before anything is timed. The same fill in C is in c/
and native.py.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import connectx
from bench import lookups
from bench.harness import LOOPBACK
from connectx.linux.uapi import (
    IP_BIND_ADDRESS_NO_PORT,
    IP_LOCAL_PORT_RANGE,
    IPPROTO_IP,
    SO_COOKIE,
    SO_NETNS_COOKIE,
    SO_REUSEADDR,
    SOL_SOCKET,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.harness import Address
    from connectx.addresses import PortRange

Opener: TypeAlias = "Callable[[Address], socket.socket]"
Way: TypeAlias = "Callable[[Fill], Opener]"

#: Where the preferred source is in the reply to a lookup of a route that names no source.
_PREFERRED_SOURCE: Final = slice(56, 60)


@dataclass(frozen=True)
class Fill:
    """What there is to open.

    Attributes:
        kind: socket.SOCK_STREAM or socket.SOCK_DGRAM.
        source: The source address to connect from; None for any.
        destinations: Where to connect to, in this order, with one connection each.
        ports: The range that the source ports come from.
    """

    kind: socket.SocketKind
    source: str | None
    destinations: Sequence[Address]
    ports: PortRange

    @property
    def source_address(self) -> Address | None:
        """The source as create_connection() takes it."""
        return None if self.source is None else (self.source, 0)

    def shuffled_ports(self) -> list[int]:
        """Return a source port for each connection: what a free list would give.

        Toward one destination each port occurs once, so this serves up to the last port
        without a lookup.
        """
        everything = range(self.ports.low, self.ports.high + 1)
        lists = {
            destination: iter(random.sample(everything, count))
            for destination, count in Counter(self.destinations).items()
        }
        return [next(lists[destination]) for destination in self.destinations]


def with_connectx(fill: Fill) -> Opener:
    """connectx.create_connection(), called as its users would."""
    create_connection = connectx.create_connection
    kind = fill.kind
    source = (fill.source or "", 0)
    # Not functools.partial(), which takes longer to pass keywords on than a call does.
    if kind is socket.SOCK_STREAM:
        if fill.source is None:
            return create_connection
        return lambda destination: create_connection(destination, source_address=source)
    if fill.source is None:
        return lambda destination: create_connection(destination, type=kind)
    return lambda destination: create_connection(destination, type=kind, source_address=source)


def with_own_socket(fill: Fill) -> Opener:
    """connectx.connectx() on a socket that the caller has made."""
    connect, kind, source = connectx.connectx, fill.kind, fill.source_address

    def open_one(destination: Address) -> socket.socket:
        sock = socket.socket(socket.AF_INET, kind)
        connect(sock, source, destination)
        return sock

    return open_one


def with_dialer(*sources: str) -> Way:
    """Return the way that opens with a Dialer of these sources."""

    def way(fill: Fill) -> Opener:
        kind = fill.kind
        create_connection = connectx.Dialer(sources or None).create_connection
        return lambda destination: create_connection(destination, type=kind)

    return way


def with_nodelay(_: Fill) -> Opener:
    """A Dialer that sets TCP_NODELAY, as HTTP clients have it do."""
    create_connection = connectx.Dialer([LOOPBACK]).create_connection
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    return lambda destination: create_connection(destination, socket_options=options)


def standard_library(fill: Fill) -> Opener:
    """socket.create_connection(), for TCP."""
    create_connection, source = socket.create_connection, fill.source_address
    if source is None:
        return create_connection
    return lambda destination: create_connection(destination, source_address=source)


def plain_connect(fill: Fill) -> Opener:
    """A socket and connect(): what everybody writes."""
    kind = fill.kind

    def open_one(destination: Address) -> socket.socket:
        sock = socket.socket(socket.AF_INET, kind)
        sock.connect(destination)
        return sock

    return open_one


def bare_tcp(fill: Fill) -> Opener:
    """The system calls that connectx issues for TCP, and nothing else.

    It checks nothing, keeps no ledger, and would not notice a failed option.
    """
    # As an int, since the socket module takes that faster than a buffer. The kernel wants the
    # high port in the upper half, and Python a signed number.
    next_window = iter(
        [(port << 16 | port) - (port >> 15 << 32) for port in fill.shuffled_ports()]
    ).__next__
    make, family, kind = socket.socket, socket.AF_INET, fill.kind

    def open_one(destination: Address) -> socket.socket:
        sock = make(family, kind)
        sock.getsockopt(SOL_SOCKET, SO_NETNS_COOKIE, 8)
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        sock.setsockopt(IPPROTO_IP, IP_LOCAL_PORT_RANGE, next_window())
        sock.connect(destination)
        return sock

    if fill.source is None:
        return open_one
    source = (fill.source, 0)

    def open_one_from(destination: Address) -> socket.socket:
        sock = make(family, kind)
        sock.getsockopt(SOL_SOCKET, SO_NETNS_COOKIE, 8)
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        sock.setsockopt(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind(source)
        sock.setsockopt(IPPROTO_IP, IP_LOCAL_PORT_RANGE, next_window())
        sock.connect(destination)
        return sock

    return open_one_from


def bare_udp(fill: Fill) -> Opener:
    """The system calls that connectx issues for UDP, and nothing else.

    It does compare the cookies: without that there would be no reason to ask.
    """
    # What the routing table chooses here, where no source is asked for.
    host = fill.source or LOOPBACK
    next_port = iter(fill.shuffled_ports()).__next__
    # Each lookup has its port written into it, as any loop would have to.
    requests = {
        destination: (request[: lookups.SOURCE_PORT], request[lookups.SOURCE_PORT + 2 :])
        for destination in set(fill.destinations)
        for request in [lookups.socket_request((host, 0), destination)]
    }
    make, family, kind = socket.socket, socket.AF_INET, fill.kind
    netlink = lookups.open_sock_diag()
    send, receive, size, at = netlink.send, netlink.recv, lookups.REPLY_SIZE, lookups.COOKIE

    def open_one(destination: Address) -> socket.socket:
        port = next_port()
        before, after = requests[destination]
        sock = make(family, kind)
        sock.getsockopt(SOL_SOCKET, SO_NETNS_COOKIE, 8)
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
        send(before + port.to_bytes(2, "big") + after)
        if receive(size)[at] != sock.getsockopt(SOL_SOCKET, SO_COOKIE, 8):
            raise _taken((host, port), destination)
        sock.connect(destination)
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        return sock

    return open_one


def bare_udp_anywhere(fill: Fill) -> Opener:
    """The same toward destinations that it has never seen: it also asks for the route.

    Twice where no source is asked for: once for the source, and once for the route from there.
    """
    source = None if fill.source is None else socket.inet_aton(fill.source)
    next_port = iter(fill.shuffled_ports()).__next__
    diag, route = lookups.open_sock_diag(), lookups.open_route()

    def open_one(destination: Address) -> socket.socket:
        port = next_port()
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.getsockopt(SOL_SOCKET, SO_NETNS_COOKIE, 8)
        packed = source
        if packed is None:
            route.send(lookups.route_request(destination))
            packed = route.recv(lookups.REPLY_SIZE)[_PREFERRED_SOURCE]
        route.send(lookups.route_request(destination, packed))
        route.recv(lookups.REPLY_SIZE)
        # For the order in which the destination's ports are given out.
        os.urandom(4)
        here = (socket.inet_ntoa(packed), port)
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        sock.bind(here)
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
        diag.send(lookups.socket_request(here, destination))
        found = diag.recv(lookups.REPLY_SIZE)[lookups.COOKIE]
        if found != sock.getsockopt(SOL_SOCKET, SO_COOKIE, 8):
            raise _taken(here, destination)
        sock.connect(destination)
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        return sock

    return open_one


def linear_probing(fill: Fill) -> Opener:
    """The published algorithm: from a random port on, look up each until one is free.

    Written from its description in "How to stop running out of ephemeral ports and start to
    love long-lived connections" (2022). It is kinder than that in one respect: the netlink
    socket is kept open from one lookup to the next.
    """
    host = fill.source or LOOPBACK
    low, high = fill.ports
    netlink = lookups.open_sock_diag()

    def open_one(destination: Address) -> socket.socket:
        start = random.randint(low, high)  # noqa: S311 - as published
        for port in itertools.chain(range(start, high + 1), range(low, start)):
            source = (host, port)
            if lookups.find_socket(netlink, source, destination) is None:
                return _claim(netlink, source, destination)
        raise OSError(errno.EAGAIN, f"no port is free toward {destination}")

    return open_one


def _claim(netlink: socket.socket, source: Address, destination: Address) -> socket.socket:
    """SO_REUSEADDR as a lock, as published."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    cookie = sock.getsockopt(SOL_SOCKET, SO_COOKIE, 8)
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    sock.bind(source)
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
    if lookups.find_socket(netlink, source, destination) != cookie:
        raise _taken(source, destination)
    sock.connect(destination)
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    return sock


def _taken(source: Address, destination: Address) -> OSError:
    return OSError(errno.EADDRINUSE, f"{source} to {destination} is taken")
