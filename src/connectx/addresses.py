"""Addresses as values: what identifies a connection, and a range of ports.

Nothing here touches a socket. Hosts are text as the kernel prints them
(``inet_ntop``): comparing two values compares what the kernel would compare.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

#: An address tuple as the socket module takes it: ``(host, port)``, or for IPv6
#: also ``(host, port, flowinfo, scope_id)``.
Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]

HIGHEST_PORT = 65535


class Endpoint(NamedTuple):
    """One end of a connection.

    host: an IP address in text form, "" where any will do.
    port: 0 to 65535, 0 where any will do.
    flowinfo, scope_id: as in ``sockaddr_in6``; 0 for IPv4.
    """

    host: str
    port: int
    flowinfo: int = 0
    scope_id: int = 0

    def __str__(self) -> str:
        scope = f"%{self.scope_id}" if self.scope_id else ""
        host = f"[{self.host}{scope}]" if ":" in self.host else self.host or "*"
        return f"{host}:{self.port or '*'}"


class FourTuple(NamedTuple):
    """What the kernel keeps unique: a protocol and two ends."""

    protocol: str
    source: Endpoint
    destination: Endpoint

    def __str__(self) -> str:
        return f"{self.protocol} {self.source} -> {self.destination}"


class PortRange(NamedTuple):
    """An inclusive range of ports, as ``net.ipv4.ip_local_port_range`` has it."""

    low: int
    high: int

    @property
    def size(self) -> int:
        """How many ports the range holds."""
        return self.high - self.low + 1

    def contains(self, port: int) -> bool:
        """Whether the port lies within the range, ends included."""
        return self.low <= port <= self.high

    def __str__(self) -> str:
        return f"{self.low}-{self.high}"
