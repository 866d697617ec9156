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
    AF_INET6,
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


class RouteLookup:
    """Finds the routes of the packets of one socket, or of sockets that are like it.

    Immutable, so threads may share one. Each brings its own netlink socket.

    Args:
        family: AF_INET or AF_INET6.
        mark, tos: The socket's SO_MARK and IP_TOS.
        interface: The device it is bound to, or the scope of a link-local destination.
        uid: The socket's owner; None for the calling process.
        protocol: For rules that look at it; 0 leaves it out.

    Raises:
        ValueError: That is not a family.
    """

    __slots__ = ("_family", "_heads", "_options", "_size")

    def __init__(
        self,
        family: int,
        *,
        mark: int = 0,
        interface: int = 0,
        uid: int | None = None,
        tos: int = 0,
        protocol: int = 0,
    ) -> None:
        if family not in (AF_INET, AF_INET6):
            raise ValueError(f"not a family of IP addresses: {family}")
        self._family = family
        self._size = size = 4 if family == AF_INET else 16
        # Without and with a source.
        self._heads = tuple(
            RTMSG.pack(family, 8 * size, bits, tos, 0, 0, 0, 0, 0) + _header(RTA_DST, size)
            for bits in (0, 8 * size)
        )
        self._options = _encode_options(mark, interface, uid, protocol)

    def find(
        self,
        netlink: NetlinkSocket,
        destination: bytes,
        destination_port: int = 0,
        source: bytes = b"",
    ) -> Route:
        """Return the route to a destination, as it is now.

        Args:
            netlink: A NETLINK_ROUTE socket.
            destination: 4 or 16 octets; an IPv4-mapped one is the caller's to unwrap.
            destination_port: For rules that look at it; 0 leaves it out.
            source: The address that the socket is bound to, which must be local; b"" for none.

        Raises:
            NetlinkError: With the errno that connect() would give: ENETUNREACH without a
                route, EHOSTUNREACH, EACCES or EINVAL for one of type unreachable, prohibit
                or blackhole, EADDRNOTAVAIL where no source address fits; ENODEV or
                ENETUNREACH for a device that is not there.
            MalformedMessage: The kernel's answer makes no sense.
            ValueError: The destination is not of the lookup's family.
        """
        request = self.encode(destination, destination_port, source)
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
            return decode_route(self._family, reply[NLMSGHDR.size :], source)
        for message in messages(reply):
            if message.sequence == sequence and message.type == NLMSG_ERROR:
                raise failure(message.payload)
        # Lost, or another request's, which a signal handler has made in between.
        return decode_route(self._family, bytes(netlink.request(RTM_GETROUTE, request)), source)

    def encode(self, destination: bytes, destination_port: int, source: bytes) -> bytes:
        """Return the RTM_GETROUTE request without its netlink header: rtmsg and attributes."""
        if len(destination) != self._size:
            raise ValueError("family and destination do not match")
        parts = [self._heads[bool(source)], destination, self._options]
        if source:
            parts += (_header(RTA_SRC, len(source)), source)
        if destination_port:
            parts += (_header(RTA_DPORT, 2), destination_port.to_bytes(2, "big"), b"\0\0")
        return b"".join(parts)


@lru_cache(maxsize=32)
def _header(kind: int, size: int) -> bytes:
    """Return the header of an attribute, by its type and the octets of its value."""
    return RTATTR.pack(RTATTR.size + size, kind)


def _encode_options(mark: int, interface: int, uid: int | None, protocol: int) -> bytes:
    """Return the attributes that many destinations have in common."""
    if protocol == IPPROTO_MPTCP:
        protocol = IPPROTO_TCP
    values = {RTA_OIF: interface, RTA_MARK: mark, RTA_UID: uid}
    attributes = b"".join(
        _header(kind, 4) + value.to_bytes(4, sys.byteorder)
        for kind, value in values.items()
        if value or (kind == RTA_UID and value is not None)
    )
    # rtm_getroute_parse_ip_proto() refuses UDP-Lite, which no rule for UDP matches.
    if protocol and protocol != IPPROTO_UDPLITE:
        attributes += _header(RTA_IP_PROTO, 1) + bytes([protocol, 0, 0, 0])
    return attributes


def decode_route(family: int, payload: bytes, asked: bytes = b"") -> Route:
    """Return the route in an RTM_NEWROUTE message without its netlink header.

    asked: the source that was asked for, which the kernel then does not repeat; for IPv6 it
        names the one that it would have chosen.
    """
    if len(payload) < RTMSG.size or payload[0] != family:
        raise MalformedMessage("not an rtmsg of the family asked for")
    source, interface = asked, b""
    # As attributes_in() does, which takes three times as long, and no further than needed.
    offset, end, unpack = RTMSG.size, len(payload), RTATTR.unpack_from
    while offset < end and not (source and interface):
        if end - offset < RTATTR.size:
            raise MalformedMessage(f"{end - offset} octets are too few for rtattr")
        length, kind = unpack(payload, offset)
        if not RTATTR.size <= length <= end - offset:
            raise MalformedMessage(f"rta_len {length}, with {end - offset} octets left")
        if kind == RTA_PREFSRC and not asked:
            source = payload[offset + RTATTR.size : offset + length]
        elif kind == RTA_OIF:
            interface = payload[offset + RTATTR.size : offset + length]
        offset += length + 3 & ~3
    if not source:
        # Every address of the device is tentative, or it has none of this family.
        raise NetlinkError(errno.EADDRNOTAVAIL, "no source address fits the destination")
    if len(source) != (4 if family == AF_INET else 16) or len(interface) not in (0, 4):
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
