"""Which source address and device the routing table gives for a destination.

RTM_GETROUTE asks what connect() would ask, but without a socket: a throwaway UDP
socket, connected to the destination to read its address, could take a live
flow's packets. Encoding and decoding are pure; see inet_rtm_getroute() in
net/ipv4/route.c and inet6_rtm_getroute() in net/ipv6/route.c.
"""

from __future__ import annotations

import errno
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.linux.netlink import MalformedMessage, NetlinkError, failure, messages
from connectx.linux.structs import NLMSGHDR, RTATTR, RTMSG
from connectx.linux.uapi import (
    AF_INET,
    IPPROTO_MPTCP,
    IPPROTO_TCP,
    IPPROTO_UDPLITE,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    RTA_DPORT,
    RTA_DST,
    RTA_IP_PROTO,
    RTA_MARK,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_SRC,
    RTA_UID,
    RTM_GETROUTE,
    RTM_NEWROUTE,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectx.linux.netlink import NetlinkSocket


#: More octets than a route has.
_REPLY: Final = 4096
_NEWROUTE: Final = RTM_NEWROUTE.to_bytes(2, sys.byteorder)


class Route(NamedTuple):
    """Where the routing table sends a destination's packets.

    source: the address they would come from, packed, 4 or 16 octets.
    interface: the device they would leave by; 0 where the kernel names none.
    """

    source: bytes
    interface: int


def find_route(
    netlink: NetlinkSocket,
    family: int,
    destination: bytes,
    *,
    mark: int = 0,
    interface: int = 0,
    uid: int | None = None,
    tos: int = 0,
    protocol: int = 0,
    destination_port: int = 0,
    source: bytes = b"",
) -> Route:
    """Return the route of a socket's packets, as it is now.

    Args:
        netlink: A NETLINK_ROUTE socket.
        family: AF_INET or AF_INET6.
        destination: 4 or 16 octets; an IPv4-mapped one is the caller's to unwrap.
        mark, tos: The socket's SO_MARK and IP_TOS.
        interface: The device it is bound to, or the scope of a link-local destination.
        uid: The socket's owner; None for the calling process.
        protocol, destination_port: For rules that look at them; 0 leaves them out.
        source: The address it is bound to, which must be local; b"" for none.

    Raises:
        NetlinkError: With the errno that connect() would give: ENETUNREACH without a
            route, EHOSTUNREACH, EACCES or EINVAL for one of type unreachable, prohibit
            or blackhole, EADDRNOTAVAIL where no source address fits; ENODEV or
            ENETUNREACH for a device that is not there.
        MalformedMessage: The kernel's answer makes no sense.
    """
    request = encode_request(
        family, destination, source, tos, mark, interface, uid, protocol, destination_port
    )
    # As netlink.request() does, but for what is nearly always the answer: one datagram.
    sequence = netlink.next_sequence()
    length = NLMSGHDR.size + len(request)
    netlink.send(NLMSGHDR.pack(length, RTM_GETROUTE, NLM_F_REQUEST, sequence, 0) + request)
    try:
        reply = netlink.recv(_REPLY)
    except OSError as error:
        if error.errno not in {errno.EAGAIN, errno.ENOBUFS}:
            raise
        reply = b""
    if (
        NLMSGHDR.size < len(reply) < _REPLY
        and NLMSGHDR.unpack_from(reply)[:4:3] == (len(reply), sequence)
        and reply[4:6] == _NEWROUTE
    ):
        return decode_route(family, reply[NLMSGHDR.size :], source)
    for message in messages(reply):
        if message.sequence == sequence and message.type == NLMSG_ERROR:
            raise failure(message.payload)
    # Lost, or another request's, which a signal handler has made in between.
    return decode_route(family, netlink.request(RTM_GETROUTE, request), source)


def encode_request(
    family: int,
    destination: bytes,
    source: bytes = b"",
    tos: int = 0,
    mark: int = 0,
    interface: int = 0,
    uid: int | None = None,
    protocol: int = 0,
    destination_port: int = 0,
) -> bytes:
    """Return an RTM_GETROUTE request without its netlink header: rtmsg and attributes."""
    if len(destination) != (4 if family == AF_INET else 16):
        raise ValueError("family and destination do not match")
    request = _encode_beginning(family, tos, bool(source)) + destination
    if source:
        request += _ATTRIBUTE[RTA_SRC, len(source)] + source
    request += _encode_options(mark, interface, uid, protocol)
    if destination_port:
        request += _ATTRIBUTE[RTA_DPORT, 2] + destination_port.to_bytes(2, "big") + b"\0\0"
    return request


#: The headers of attributes, by type and octets of the value.
_ATTRIBUTE: Final = {
    (kind, size): RTATTR.pack(RTATTR.size + size, kind)
    for kind, sizes in {
        RTA_DST: (4, 16),
        RTA_SRC: (4, 16),
        RTA_OIF: (4,),
        RTA_MARK: (4,),
        RTA_UID: (4,),
        RTA_IP_PROTO: (1,),
        RTA_DPORT: (2,),
    }.items()
    for size in sizes
}


@lru_cache(maxsize=32)
def _encode_beginning(family: int, tos: int, with_source: bool) -> bytes:  # noqa: FBT001
    """Return an RTM_GETROUTE request without its netlink header, as far as the destination."""
    size = 4 if family == AF_INET else 16
    rtmsg = RTMSG.pack(family, 8 * size, 8 * size * with_source, tos, 0, 0, 0, 0, 0)
    return rtmsg + _ATTRIBUTE[RTA_DST, size]


@lru_cache(maxsize=128)
def _encode_options(mark: int, interface: int, uid: int | None, protocol: int) -> bytes:
    """Return the attributes that many destinations have in common."""
    if protocol == IPPROTO_MPTCP:
        protocol = IPPROTO_TCP
    values = {RTA_OIF: interface, RTA_MARK: mark, RTA_UID: uid}
    attributes = b"".join(
        _ATTRIBUTE[kind, 4] + value.to_bytes(4, sys.byteorder)
        for kind, value in values.items()
        if value or (kind == RTA_UID and value is not None)
    )
    # rtm_getroute_parse_ip_proto() refuses UDP-Lite, which no rule for UDP matches.
    if protocol and protocol != IPPROTO_UDPLITE:
        attributes += _ATTRIBUTE[RTA_IP_PROTO, 1] + bytes([protocol, 0, 0, 0])
    return attributes


def decode_route(family: int, payload: bytes, asked: bytes = b"") -> Route:
    """Return the route in an RTM_NEWROUTE message without its netlink header.

    asked: the source that was asked for, which the kernel then does not repeat.
    """
    if len(payload) < RTMSG.size or payload[0] != family:
        raise MalformedMessage("not an rtmsg of the family asked for")
    source, interface = asked, bytes(4)
    for kind, value in attributes_in(payload, RTMSG.size):
        if kind == RTA_PREFSRC:
            source = value
        elif kind == RTA_OIF:
            interface = value
    if not source:
        # Every address of the device is tentative, or it has none of this family.
        raise NetlinkError(errno.EADDRNOTAVAIL, "no source address fits the destination")
    if len(source) != (4 if family == AF_INET else 16) or len(interface) != 4:
        raise MalformedMessage("RTA_PREFSRC or RTA_OIF of a wrong length")
    return Route(source, int.from_bytes(interface, sys.byteorder))


def attributes_in(octets: bytes | memoryview, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the types and values of rtattr after rtattr; raises MalformedMessage."""
    end = len(octets)
    while offset < end:
        remaining = end - offset
        if remaining < RTATTR.size:
            raise MalformedMessage(f"{remaining} octets are too few for rtattr")
        length, kind = RTATTR.unpack_from(octets, offset)
        if not RTATTR.size <= length <= remaining:
            raise MalformedMessage(f"rta_len {length}, with {remaining} octets left")
        yield kind, bytes(octets[offset + RTATTR.size : offset + length])
        offset += length + 3 & ~3
