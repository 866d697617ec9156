"""What the owner of a datagram socket has set that decides the route, and so the source.

connect() takes it into account by itself. It matters to us where the source has to be known
before that: to look up a 4-tuple on a port that others have.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from connectx._connect.request import Routing
from connectx.addresses import AF_INET6, packed, unmapped
from connectx.linux import sockopts
from connectx.linux.uapi import (
    IP_MULTICAST_IF,
    IP_TOS,
    IP_UNICAST_IF,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_ADDR_PREFERENCES,
    IPV6_MULTICAST_IF,
    IPV6_TCLASS,
    IPV6_UNICAST_IF,
)

if TYPE_CHECKING:
    import socket

    from connectx._connect.request import Request

_IPV4_OPTIONS: Final = ((IPPROTO_IP, IP_TOS), (IPPROTO_IP, IP_UNICAST_IF))
_IPV6_OPTIONS: Final = (
    (IPPROTO_IPV6, IPV6_TCLASS),
    (IPPROTO_IPV6, IPV6_UNICAST_IF),
    (IPPROTO_IPV6, IPV6_MULTICAST_IF),
    (IPPROTO_IPV6, IPV6_ADDR_PREFERENCES),
)

#: IPV6_ADDR_PREFERENCES of a new socket: IPV6_PREFER_SRC_PUBTMP_DEFAULT and
#: IPV6_PREFER_SRC_HOME (linux/in6.h).
_NO_PREFERENCE: Final = 0x0500

#: How many random ports are tried for one that nobody has.
_TRIES: Final = 64

_LOWEST_PORT: Final = 1024


def routing_of(sock: socket.socket, request: Request) -> Routing | None:
    """Return what a socket has set that decides a request's route; None if nothing is."""
    to = request.wire_destination
    source = b""
    if request.origin.wire_family == AF_INET6:
        tos = sockopts.get_ipv6_tclass(sock)
        interface = (
            sockopts.get_ipv6_multicast_if(sock)
            if to[0] == 0xFF
            else sockopts.get_ipv6_unicast_if(sock)
        )
    elif to[0] & 0xF0 == 0xE0:
        # Routing finds the device by its address.
        tos, interface = sockopts.get_ip_tos(sock), 0
        address = sockopts.get_ip_multicast_if(sock)
        source = address if any(address) else b""
    else:
        tos, interface = sockopts.get_ip_tos(sock), sockopts.get_ip_unicast_if(sock)
    uid = os.fstat(sock.fileno()).st_uid
    found = Routing(tos, interface, source, uid)
    return found if found != Routing(0, 0, b"", os.geteuid()) else None


def prefers_a_source(sock: socket.socket, request: Request) -> bool:
    """Return whether IPV6_ADDR_PREFERENCES decides the source, about which routing is silent."""
    return (
        request.origin.wire_family == AF_INET6
        and not request.origin.wire_source
        and sockopts.get_ipv6_addr_preferences(sock) != _NO_PREFERENCE
    )


def source_by_trying(scratch: socket.socket, request: Request) -> bytes:
    """Connect a socket that is to be thrown away, and return the octets of its source.

    It has a port to itself, so that nobody's packets reach it.

    Raises:
        OSError: As connect() does; EADDRINUSE if no port was found that nobody has.
    """
    for _ in range(_TRIES):
        port = max(_LOWEST_PORT, int.from_bytes(os.urandom(2), "big"))
        with contextlib.suppress(OSError):
            scratch.bind(("", port))
            break
    else:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    scratch.connect(request.address)
    return unmapped(packed(scratch.getsockname()[0]) or b"")


def copy_routing(sock: socket.socket, twin: socket.socket) -> None:
    """Set on a socket what another one of its family has set that decides the route.

    None of it needs a privilege.
    """
    options = _IPV4_OPTIONS + _IPV6_OPTIONS if twin.family == AF_INET6 else _IPV4_OPTIONS
    for level, option in options:
        value = sock.getsockopt(level, option, 4)
        if value != twin.getsockopt(level, option, 4):
            twin.setsockopt(level, option, value)
    address = sockopts.get_ip_multicast_if(sock)
    if any(address):
        twin.setsockopt(IPPROTO_IP, IP_MULTICAST_IF, address)
