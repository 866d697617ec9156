"""The ways to open a connection that are compared, each a small function.

A way is given the fill that lies ahead and returns the function that opens one
connection; what it needs to prepare, it prepares before anything is timed. The
same fill in C is in c/ and native.py.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import connectx
from bench.harness import LOOPBACK
from connectx.linux.uapi import (
    INET_DIAG_NOCOOKIE,
    IP_BIND_ADDRESS_NO_PORT,
    IP_LOCAL_PORT_RANGE,
    IPPROTO_IP,
    IPPROTO_UDP,
    NETLINK_SOCK_DIAG,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    SO_COOKIE,
    SO_NETNS_COOKIE,
    SO_REUSEADDR,
    SOCK_DIAG_BY_FAMILY,
    SOL_SOCKET,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from connectx.addresses import PortRange

Address: TypeAlias = tuple[str, int]
Opener: TypeAlias = "Callable[[Address], socket.socket]"
Way: TypeAlias = "Callable[[Fill], Opener]"


@dataclass(frozen=True)
class Fill:
    """What there is to open.

    kind: socket.SOCK_STREAM or socket.SOCK_DGRAM.
    source: the source address asked for, or None for any.
    destinations: where to connect to, in this order, a connection each.
    ports: the range that the source ports come from.
    """

    kind: socket.SocketKind
    source: str | None
    destinations: Sequence[Address]
    ports: PortRange

    def shuffled_ports(self) -> list[int]:
        """A source port for each connection: what a free list would give.

        Toward one destination each port occurs once, so this serves up to the
        last port without looking anything up.
        """
        everything = range(self.ports.low, self.ports.high + 1)
        lists = {
            destination: iter(random.sample(everything, len(everything)))
            for destination in set(self.destinations)
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
    # As an int, since the socket module takes that faster than a buffer; the
    # kernel wants the high port in the upper half, and Python a signed number.
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
        destination: (request[:_SOURCE_PORT], request[_SOURCE_PORT + 2 :])
        for destination in set(fill.destinations)
        for request in [_lookup_request((host, 0), destination)]
    }
    make, family, kind = socket.socket, socket.AF_INET, fill.kind
    netlink = open_sock_diag()
    send, receive = netlink.send, netlink.recv

    def open_one(destination: Address) -> socket.socket:
        port = next_port()
        before, after = requests[destination]
        sock = make(family, kind)
        sock.getsockopt(SOL_SOCKET, SO_NETNS_COOKIE, 8)
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
        send(before + port.to_bytes(2, "big") + after)
        if receive(_REPLY_SIZE)[_COOKIE] != sock.getsockopt(SOL_SOCKET, SO_COOKIE, 8):
            raise _taken((host, port), destination)
        sock.connect(destination)
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        return sock

    return open_one


def linear_probing(fill: Fill) -> Opener:
    """The published algorithm: from a random port on, look up each until one is free.

    Written from its description in "How to stop running out of ephemeral ports
    and start to love long-lived connections" (2022). Kinder than it in one
    respect: the netlink socket is kept open from one lookup to the next.
    """
    host = fill.source or LOOPBACK
    low, high = fill.ports
    netlink = open_sock_diag()

    def open_one(destination: Address) -> socket.socket:
        start = random.randint(low, high)  # noqa: S311 - as published
        for port in itertools.chain(range(start, high + 1), range(low, start)):
            source = (host, port)
            if _look_up(netlink, source, destination) is None:
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
    if _look_up(netlink, source, destination) != cookie:
        raise _taken(source, destination)
    sock.connect(destination)
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    return sock


def open_sock_diag() -> socket.socket:
    """A netlink socket for lookups in the calling thread's network namespace."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)


# struct nlmsghdr, then struct inet_diag_req_v2: family, protocol, extensions,
# states, and struct inet_diag_sockid (two ports in network order, two addresses
# of 16 bytes, interface, cookie).
_REQUEST: Final = struct.Struct("=IHHII BBBxI 2s2s 4s12x4s12x III")
_REPLY_SIZE: Final = 512
#: Where the source port lies in the request: behind nlmsghdr, 8 bytes and the other port.
_SOURCE_PORT: Final = 26
#: Where idiag_cookie lies in the reply: nlmsghdr, 4 bytes of inet_diag_msg, and
#: 40 of inet_diag_sockid come before it.
_COOKIE: Final = slice(60, 68)


def _lookup_request(source: Address, destination: Address) -> bytes:
    # The kernel takes the two ends as a datagram would carry them that comes
    # in: our destination is its source (udp_dump_one).
    return _REQUEST.pack(
        _REQUEST.size,
        SOCK_DIAG_BY_FAMILY,
        NLM_F_REQUEST,
        0,
        0,
        socket.AF_INET,
        IPPROTO_UDP,
        0,
        0xFFFFFFFF,
        destination[1].to_bytes(2, "big"),
        source[1].to_bytes(2, "big"),
        socket.inet_aton(destination[0]),
        socket.inet_aton(source[0]),
        0,
        INET_DIAG_NOCOOKIE,
        INET_DIAG_NOCOOKIE,
    )


def _look_up(netlink: socket.socket, source: Address, destination: Address) -> bytes | None:
    """The cookie of the socket that a datagram from the destination reaches, if there is one."""
    netlink.send(_lookup_request(source, destination))
    reply = netlink.recv(_REPLY_SIZE)
    kind, number = struct.unpack_from("=4xH10xi", reply)
    if kind != NLMSG_ERROR:
        return reply[_COOKIE]
    if number != -errno.ENOENT:
        raise OSError(-number, os.strerror(-number))
    return None


def _taken(source: Address, destination: Address) -> OSError:
    return OSError(errno.EADDRINUSE, f"{source} to {destination} is taken")
