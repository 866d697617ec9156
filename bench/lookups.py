"""Netlink requests for the loops that are compared with connectx, with no connectx in them."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from connectx.linux.uapi import (
    INET_DIAG_NOCOOKIE,
    IPPROTO_UDP,
    NETLINK_ROUTE,
    NETLINK_SOCK_DIAG,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    RTA_DPORT,
    RTA_DST,
    RTA_IP_PROTO,
    RTA_SRC,
    RTA_UID,
    RTM_GETROUTE,
    SOCK_DIAG_BY_FAMILY,
)

if TYPE_CHECKING:
    from bench.harness import Address

REPLY_SIZE: Final = 512

#: struct nlmsghdr, then struct inet_diag_req_v2: family, protocol, extensions, states, and
#: struct inet_diag_sockid (two ports in network order, two addresses of 16 bytes, interface,
#: cookie).
_SOCKET: Final = struct.Struct("=IHHII BBBxI 2s2s 4s12x4s12x III")
#: Where the source port is in the request: after nlmsghdr, 8 bytes and the other port.
SOURCE_PORT: Final = 26
#: Where idiag_cookie is in the reply: after nlmsghdr, 4 bytes of inet_diag_msg and 40 of
#: inet_diag_sockid.
COOKIE: Final = slice(60, 68)

#: struct nlmsghdr, struct rtmsg, and the attributes that a UDP route depends on.
_ROUTE: Final = struct.Struct("=IHHII BBBBBBBBI HH4s HHI HHB3x HH2s2x")
_ROUTE_FROM: Final = struct.Struct("=IHHII BBBBBBBBI HH4s HH4s HHI HHB3x HH2s2x")


def open_netlink(protocol: int) -> socket.socket:
    """Open a netlink socket for lookups in the calling thread's network namespace."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)


def open_sock_diag() -> socket.socket:
    """Open a netlink socket for lookups of sockets."""
    return open_netlink(NETLINK_SOCK_DIAG)


def open_route() -> socket.socket:
    """Open a netlink socket for lookups of routes."""
    return open_netlink(NETLINK_ROUTE)


def socket_request(source: Address, destination: Address) -> bytes:
    """Encode an exact lookup of a UDP socket.

    The kernel takes the two ends as a datagram would carry them that comes in: our
    destination is its source (udp_dump_one).
    """
    return _SOCKET.pack(
        _SOCKET.size,
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


def find_socket(netlink: socket.socket, source: Address, destination: Address) -> bytes | None:
    """Return the cookie of the socket that a datagram from the destination reaches, if any."""
    netlink.send(socket_request(source, destination))
    reply = netlink.recv(REPLY_SIZE)
    kind, number = struct.unpack_from("=4xH10xi", reply)
    if kind != NLMSG_ERROR:
        return reply[COOKIE]
    if number != -errno.ENOENT:
        raise OSError(-number, os.strerror(-number))
    return None


def route_request(destination: Address, source: bytes = b"") -> bytes:
    """Encode a lookup of the route that a UDP socket of this process takes."""
    host = socket.inet_aton(destination[0])
    tail = (8, RTA_UID, os.geteuid(), 5, RTA_IP_PROTO, IPPROTO_UDP, 6, RTA_DPORT)
    port = destination[1].to_bytes(2, "big")
    if not source:
        return _ROUTE.pack(
            *(_ROUTE.size, RTM_GETROUTE, NLM_F_REQUEST, 0, 0),
            *(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0),
            *(8, RTA_DST, host, *tail, port),
        )
    return _ROUTE_FROM.pack(
        *(_ROUTE_FROM.size, RTM_GETROUTE, NLM_F_REQUEST, 0, 0),
        *(socket.AF_INET, 32, 32, 0, 0, 0, 0, 0, 0),
        *(8, RTA_DST, host, 8, RTA_SRC, source, *tail, port),
    )
