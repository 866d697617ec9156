"""Which source address and device the routing table gives for a destination.

RTM_GETROUTE asks what connect() would ask, but without a socket: a throwaway UDP
socket, connected to the destination to read its address, could take a live
flow's packets. Encoding and decoding are pure; see inet_rtm_getroute() in
net/ipv4/route.c and inet6_rtm_getroute() in net/ipv6/route.c.
"""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, NamedTuple

from connectx.linux.netlink import MalformedMessage, NetlinkError
from connectx.linux.structs import RTATTR, RTMSG
from connectx.linux.uapi import (
    AF_INET,
    AF_INET6,
    IPPROTO_MPTCP,
    IPPROTO_TCP,
    IPPROTO_UDPLITE,
    RTA_DPORT,
    RTA_DST,
    RTA_IP_PROTO,
    RTA_MARK,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_SRC,
    RTA_UID,
    RTM_GETROUTE,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectx.linux.netlink import NetlinkSocket


class Route(NamedTuple):
    """Where the routing table sends a destination's packets.

    source: the address they would come from, packed, 4 or 16 octets.
    interface: the device they would leave by; 0 where the kernel names none.
    """

    source: bytes
    interface: int


class RouteLookup:
    """Looks one destination up, for a socket with the given options.

    family, destination: AF_INET with 4 octets, AF_INET6 with 16; an IPv4-mapped
    destination is the caller's to unwrap.
    mark, tos: the socket's SO_MARK and IP_TOS.
    interface: the device it is bound to, or the scope of a link-local destination.
    uid: the socket's owner; None for the calling process.
    protocol, destination_port: for rules that look at them; 0 leaves them out.
    source: the address it is bound to, which must be local; b"" for none.

    Immutable, hence shared by threads at will; each brings its own netlink socket
    (NETLINK_ROUTE).
    """

    __slots__ = ("_family", "_request", "_source")

    def __init__(
        self,
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
    ) -> None:
        self._family = family
        self._source = source
        attributes = {RTA_DST: destination}
        if source:
            attributes[RTA_SRC] = source
        if interface:
            attributes[RTA_OIF] = _u32(interface)
        if mark:
            attributes[RTA_MARK] = _u32(mark)
        if uid is not None:
            attributes[RTA_UID] = _u32(uid)
        if protocol == IPPROTO_MPTCP:
            protocol = IPPROTO_TCP
        # rtm_getroute_parse_ip_proto() refuses UDP-Lite, which no rule for UDP matches.
        if protocol and protocol != IPPROTO_UDPLITE:
            attributes[RTA_IP_PROTO] = bytes([protocol])
        if destination_port:
            attributes[RTA_DPORT] = destination_port.to_bytes(2, "big")
        self._request = encode_request(family, tos, attributes)

    def find(self, netlink: NetlinkSocket) -> Route:
        """The route as it is now.

        Raises NetlinkError with the errno connect() would give: ENETUNREACH without
        a route, EHOSTUNREACH, EACCES or EINVAL for one of type unreachable, prohibit
        or blackhole, EADDRNOTAVAIL where no source address fits; ENODEV or
        ENETUNREACH for a device that is not there. MalformedMessage.
        """
        reply = netlink.request(RTM_GETROUTE, self._request)
        return decode_route(self._family, reply, self._source)


def source_address(
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
) -> bytes:
    """The source address for a destination, packed; arguments and errors as `RouteLookup`."""
    lookup = RouteLookup(
        family,
        destination,
        mark=mark,
        interface=interface,
        uid=uid,
        tos=tos,
        protocol=protocol,
        destination_port=destination_port,
    )
    return lookup.find(netlink).source


def encode_request(family: int, tos: int, attributes: dict[int, bytes]) -> bytes:
    """An RTM_GETROUTE request without its netlink header: rtmsg and attributes."""
    destination = attributes[RTA_DST]
    if len(destination) != {AF_INET: 4, AF_INET6: 16}.get(family):
        raise ValueError("family and destination do not match")
    bits = 8 * len(destination)
    request = RTMSG.pack(family, bits, bits if RTA_SRC in attributes else 0, tos, 0, 0, 0, 0, 0)
    for kind, value in attributes.items():
        request += RTATTR.pack(RTATTR.size + len(value), kind) + value + bytes(-len(value) % 4)
    return request


def decode_route(family: int, payload: bytes, asked: bytes = b"") -> Route:
    """The route in an RTM_NEWROUTE message without its netlink header.

    asked: the source that was asked for, which the kernel then does not repeat.
    """
    if len(payload) < RTMSG.size or payload[0] != family:
        raise MalformedMessage("not an rtmsg of the family asked for")
    found = dict(attributes_in(memoryview(payload)[RTMSG.size :]))
    source, interface = found.get(RTA_PREFSRC, asked), found.get(RTA_OIF, bytes(4))
    if not source:
        # Every address of the device is tentative, or it has none of this family.
        raise NetlinkError(errno.EADDRNOTAVAIL, "no source address fits the destination")
    if len(source) != (4 if family == AF_INET else 16) or len(interface) != 4:
        raise MalformedMessage("RTA_PREFSRC or RTA_OIF of a wrong length")
    return Route(source, int.from_bytes(interface, sys.byteorder))


def attributes_in(view: memoryview) -> Iterator[tuple[int, bytes]]:
    """The types and values of rtattr after rtattr; raises MalformedMessage."""
    offset = 0
    while offset < len(view):
        remaining = len(view) - offset
        if remaining < RTATTR.size:
            raise MalformedMessage(f"{remaining} octets are too few for rtattr")
        length, kind = RTATTR.unpack_from(view, offset)
        if not RTATTR.size <= length <= remaining:
            raise MalformedMessage(f"rta_len {length}, with {remaining} octets left")
        yield kind, bytes(view[offset + RTATTR.size : offset + length])
        offset += length + 3 & ~3


def _u32(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)
