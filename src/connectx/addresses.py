"""Addresses, ports and protocols as values, and every conversion between their forms.

An IP address has three forms here:

- octets, 4 or 16 of them in network order, as they go on the wire;
- text as the kernel prints it: ``"192.0.2.7"``, ``"2001:db8::7"``;
- text with a scope, which names the interface of a link-local address: ``"fe80::7%eth0"``.

An IPv4-mapped address (``"::ffff:192.0.2.7"``) is how an AF_INET6 socket writes an
IPv4 address. Its sockets send IPv4 packets and occupy IPv4's 4-tuples, so `unmapped`
octets are what connections are compared by.

The module works on every platform: it uses no constant that only Linux has.
"""

from __future__ import annotations

import errno
import socket
from socket import inet_ntop, inet_pton
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: An address tuple as the socket module takes it: ``(host, port)``, or for IPv6
#: also ``(host, port, flowinfo, scope_id)``.
Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]

HIGHEST_PORT: Final = 65535

AF_INET: Final = int(socket.AF_INET)
AF_INET6: Final = int(socket.AF_INET6)
SOCK_STREAM: Final = int(socket.SOCK_STREAM)
SOCK_DGRAM: Final = int(socket.SOCK_DGRAM)

#: The 12 octets that an IPv4-mapped address begins with (RFC 4291, section 2.5.5.2).
V4_MAPPED: Final = bytes(10) + b"\xff\xff"

_ANY_IPV4: Final = bytes(4)

#: The same in text form.
V4_MAPPED_TEXT: Final = "::ffff:"


class Endpoint(NamedTuple):
    """One end of a connection.

    Attributes:
        host: An IP address in text form; "" for any.
        port: 0 to 65535; 0 for any.
        flowinfo: As in ``sockaddr_in6``; 0 for IPv4.
        scope_id: The interface index of a link-local address; 0 for none.
    """

    host: str
    port: int
    flowinfo: int = 0
    scope_id: int = 0

    def __str__(self) -> str:
        host = self.host or "*"
        if ":" in host:
            host = f"[{with_scope(host, self.scope_id)}]"
        return f"{host}:{self.port or '*'}"

    def sockaddr(self, family: int) -> Address:
        """The address tuple that sockets of a family (AF_INET or AF_INET6) take."""
        if family == AF_INET:
            return self.host, self.port
        return self.host, self.port, self.flowinfo, self.scope_id


class FourTuple(NamedTuple):
    """What the kernel keeps unique: a protocol and two ends."""

    protocol: str
    source: Endpoint
    destination: Endpoint

    def __str__(self) -> str:
        return f"{self.protocol} {self.source} -> {self.destination}"


class PortRange(NamedTuple):
    """An inclusive range of ports, such as ``net.ipv4.ip_local_port_range``."""

    low: int
    high: int

    @property
    def size(self) -> int:
        """The number of ports in the range."""
        return self.high - self.low + 1

    def contains(self, port: int) -> bool:
        """Return whether the port lies within the range, ends included."""
        return self.low <= port <= self.high

    def covers(self, other: PortRange) -> bool:
        """Return whether another range lies within this one."""
        return self.low <= other.low <= other.high <= self.high

    def __str__(self) -> str:
        return f"{self.low}-{self.high}"


def ports_in(ranges: Iterable[PortRange]) -> set[int]:
    """Return every port of some ranges."""
    return {port for low, high in ranges for port in range(low, high + 1)}


def ranges_of(ports: Iterable[int]) -> list[PortRange]:
    """Return the fewest ranges that hold just these ports, in order."""
    ranges: list[PortRange] = []
    for port in sorted(set(ports)):
        if ranges and ranges[-1].high == port - 1:
            ranges[-1] = PortRange(ranges[-1].low, port)
        else:
            ranges.append(PortRange(port, port))
    return ranges


class Protocol(NamedTuple):
    """A transport protocol that connectx serves.

    Attributes:
        name: "tcp", "mptcp", "udp" or "udplite", as in every ``protocol`` argument.
        type: The type for socket(): SOCK_STREAM or SOCK_DGRAM.
        number: The protocol for socket(): 0 for TCP and UDP, the defaults of their types.
        table: The IPPROTO_* number of the kernel's table that holds its sockets, and so
            its ports. MPTCP's is TCP's, because its subflows are TCP sockets.
        title: The name as people write it, such as "UDP-Lite".
    """

    name: str
    type: int
    number: int
    table: int
    title: str

    @property
    def stream(self) -> bool:
        """Whether it carries a stream, as opposed to datagrams."""
        return self.type == SOCK_STREAM


_IPPROTO_TCP: Final = 6
_IPPROTO_UDP: Final = 17
# Linux 2.6.20 to 7.0; Linux 5.6. No other platform has them.
_IPPROTO_UDPLITE: Final = 136
_IPPROTO_MPTCP: Final = 262

#: The protocols by name.
PROTOCOLS: Final[Mapping[str, Protocol]] = {
    each.name: each
    for each in (
        Protocol("tcp", SOCK_STREAM, 0, _IPPROTO_TCP, "TCP"),
        Protocol("mptcp", SOCK_STREAM, _IPPROTO_MPTCP, _IPPROTO_TCP, "MPTCP"),
        Protocol("udp", SOCK_DGRAM, 0, _IPPROTO_UDP, "UDP"),
        Protocol("udplite", SOCK_DGRAM, _IPPROTO_UDPLITE, _IPPROTO_UDPLITE, "UDP-Lite"),
    )
}

#: The protocols by a socket's type and protocol number. socket() takes 0 where
#: SO_PROTOCOL reports TCP's or UDP's own number.
PROTOCOL_OF: Final[Mapping[tuple[int, int], Protocol]] = {
    **{(each.type, each.number): each for each in PROTOCOLS.values()},
    (SOCK_STREAM, _IPPROTO_TCP): PROTOCOLS["tcp"],
    (SOCK_DGRAM, _IPPROTO_UDP): PROTOCOLS["udp"],
}


def packed(host: str) -> bytes | None:
    """Return an address's octets: 4, or 16; None for text that is no IP address.

    Text with a scope is not an address here: see `resolve_scope`.
    """
    try:
        return inet_pton(AF_INET6 if ":" in host else AF_INET, host)
    except (OSError, ValueError):
        # ValueError for text with a null character or a lone surrogate.
        return None


def canonical(host: str) -> tuple[str, bytes, bytes] | None:
    """Return an address as the kernel prints it, its octets, and those that go on the wire.

    The text is "" for a wildcard address. None stands for text that is no IP address.
    """
    try:
        if ":" not in host:
            octets = inet_pton(AF_INET, host)
            # There is one way to write an IPv4 address, and several for IPv6.
            return (host if octets != _ANY_IPV4 else ""), octets, octets
        octets = inet_pton(AF_INET6, host)
    except (OSError, ValueError):
        return None
    wire = octets.removeprefix(V4_MAPPED)
    return (inet_ntop(AF_INET6, octets) if any(wire) else ""), octets, wire


def text(octets: bytes) -> str:
    """Return an address as the kernel prints it; an IPv4-mapped one as "::ffff:192.0.2.7"."""
    return inet_ntop(AF_INET if len(octets) == 4 else AF_INET6, octets)


def unmapped(octets: bytes) -> bytes:
    """Return the IPv4 address within an IPv4-mapped one, and any other address as it is."""
    return octets.removeprefix(V4_MAPPED)


def family_of(octets: bytes) -> int:
    """Return AF_INET for an address of 4 octets, AF_INET6 for one of 16."""
    return AF_INET if len(octets) == 4 else AF_INET6


def needs_scope(octets: bytes) -> bool:
    """Return whether an address means another host on each interface (RFC 4007, section 4).

    These are link-local addresses, and multicast addresses whose scope is an interface or
    a link (the kernel's ``__ipv6_addr_needs_scope_id``). The kernel ignores a scope on
    any other address.
    """
    if len(octets) != 16:
        return False
    if octets[0] == 0xFF:
        return octets[1] & 0x0F in (1, 2)
    return octets[0] == 0xFE and octets[1] & 0xC0 == 0x80


def interface_index(scope: str) -> int:
    """Return the index of an interface that is given by name ("eth0") or by index ("2").

    Raises:
        OSError: ENODEV if the calling thread's network namespace has no such interface. An
            index is not checked.
    """
    if scope.isascii() and scope.isdecimal():
        return int(scope)
    try:
        return socket.if_nametoindex(scope)
    except OSError as error:
        raise OSError(errno.ENODEV, f"no interface is named {scope!r}") from error


def resolve_scope(host: str, scope_id: int = 0) -> tuple[str, int]:
    """Split "fe80::7%eth0" into the address and the index of its interface.

    Args:
        host: An address, with or without a scope.
        scope_id: The index to return for an address without a scope in its text.

    Raises:
        OSError: ENODEV, as `interface_index` does.
    """
    host, percent, scope = host.partition("%")
    return host, interface_index(scope) if percent else scope_id


def with_scope(host: str, scope_id: int) -> str:
    """Return an address's text with its scope, as in "fe80::7%2"; 0 stands for no scope."""
    return f"{host}%{scope_id}" if scope_id else host
