"""The protocols and families that an experiment with source ports goes through."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.linux import uapi

if TYPE_CHECKING:
    from collections.abc import Mapping

    from connectx.addresses import Address
    from connectx.sandbox.servers import Servers

#: The destinations: ports of the source address itself, outside of every range of
#: source ports used here. Another address would do as well, and need configuring.
FIRST: Final = 9000
SECOND: Final = 9001

FAMILIES: Final = (4, 6)


class Protocol(NamedTuple):
    """A transport protocol.

    title: as people write it.
    kind, number: for socket().
    """

    title: str
    kind: socket.SocketKind
    number: int


PROTOCOLS: Final[Mapping[str, Protocol]] = {
    "tcp": Protocol("TCP", socket.SOCK_STREAM, uapi.IPPROTO_TCP),
    "mptcp": Protocol("MPTCP", socket.SOCK_STREAM, uapi.IPPROTO_MPTCP),
    "udp": Protocol("UDP", socket.SOCK_DGRAM, uapi.IPPROTO_UDP),
    "udplite": Protocol("UDP-Lite", socket.SOCK_DGRAM, uapi.IPPROTO_UDPLITE),
}

#: What says that a kernel has no such protocol or family: kernels before 5.6 take no
#: protocol above 255 (EINVAL), net.mptcp.enabled=0 gives ENOPROTOOPT, and with IPv6
#: off there is no ::1 (EADDRNOTAVAIL).
_ABSENT: Final = frozenset(
    {
        errno.EPROTONOSUPPORT,
        errno.EAFNOSUPPORT,
        errno.EINVAL,
        errno.ENOPROTOOPT,
        errno.EADDRNOTAVAIL,
    }
)


class Transport(NamedTuple):
    """A protocol over one family, on the loopback.

    protocol: a key of PROTOCOLS.
    family: 4 or 6, as in IPv4 and IPv6.
    """

    protocol: str
    family: int

    @property
    def title(self) -> str:
        """As people write it."""
        return f"{PROTOCOLS[self.protocol].title} over IPv{self.family}"

    @property
    def stream(self) -> bool:
        """Whether it has connections, as TCP, or datagrams, as UDP."""
        return PROTOCOLS[self.protocol].kind == socket.SOCK_STREAM

    @property
    def source(self) -> str:
        """The one source address."""
        return "127.0.0.1" if self.family == 4 else "::1"

    @property
    def wildcard(self) -> str:
        """The address that stands for all."""
        return "0.0.0.0" if self.family == 4 else "::"

    def at(self, port: int) -> Address:
        """The address tuple of a port of the source address."""
        return (self.source, port)

    def socket(self) -> socket.socket:
        """A new socket; the caller closes it."""
        family = socket.AF_INET if self.family == 4 else socket.AF_INET6
        protocol = PROTOCOLS[self.protocol]
        return socket.socket(family, protocol.kind, protocol.number)

    def absence(self) -> str:
        """Why there is no such transport here, as the kernel says it; "" if there is one."""
        try:
            with self.socket() as scratch:
                scratch.bind(self.at(0))
        except OSError as error:
            if error.errno in _ABSENT:
                return error.strerror or str(error)
            raise
        return ""

    def serve(self, servers: Servers) -> None:
        """Listen at both destinations; datagrams need nobody there, connect() sends nothing."""
        if self.stream:
            for port in (FIRST, SECOND):
                servers.listen(self.source, port, protocol=PROTOCOLS[self.protocol].number)
