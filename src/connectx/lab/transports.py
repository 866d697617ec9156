"""The protocols and families that an experiment with source ports goes through.

The articles also list DCCP, which Linux 6.16 removed.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.addresses import PROTOCOLS, Protocol

if TYPE_CHECKING:
    from connectx.sandbox.servers import Servers

#: The destinations: ports of the source address itself, outside of every range of source
#: ports used here. Another address would do as well, but would have to be added.
FIRST: Final = 9000
SECOND: Final = 9001

FAMILIES: Final = (4, 6)

#: What means that a kernel lacks a protocol or a family: kernels before 5.6 take no protocol
#: above 255 (EINVAL), net.mptcp.enabled=0 gives ENOPROTOOPT, and with IPv6 off there is no ::1
#: (EADDRNOTAVAIL).
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

    Attributes:
        name: The protocol's, a key of connectx.addresses.PROTOCOLS.
        family: 4 or 6, as in IPv4 and IPv6.
    """

    name: str
    family: int

    @property
    def protocol(self) -> Protocol:
        """The protocol."""
        return PROTOCOLS[self.name]

    @property
    def title(self) -> str:
        """The transport as people write it."""
        return f"{self.protocol.title} over IPv{self.family}"

    @property
    def stream(self) -> bool:
        """Whether it carries a stream, as opposed to datagrams."""
        return self.protocol.stream

    @property
    def source(self) -> str:
        """The one source address."""
        return "127.0.0.1" if self.family == 4 else "::1"

    @property
    def wildcard(self) -> str:
        """The address that stands for all."""
        return "0.0.0.0" if self.family == 4 else "::"

    def at(self, port: int) -> tuple[str, int]:
        """Return the address tuple of a port of the source address."""
        return (self.source, port)

    def socket(self) -> socket.socket:
        """Make a socket, which the caller closes."""
        family = socket.AF_INET if self.family == 4 else socket.AF_INET6
        return socket.socket(family, self.protocol.type, self.protocol.number)

    def as_json(self) -> dict[str, str | int]:
        """Return the same in JSON's types."""
        return {"protocol": self.name, "family": self.family}

    def absence(self) -> str:
        """Return why the kernel has no such transport, in its words; "" if it has one."""
        try:
            with self.socket() as scratch:
                scratch.bind(self.at(0))
        except OSError as error:
            if error.errno in _ABSENT:
                return error.strerror or str(error)
            raise
        return ""

    def serve(self, servers: Servers) -> None:
        """Listen at both destinations; datagrams need no server, since connect() sends nothing."""
        if self.stream:
            for port in (FIRST, SECOND):
                servers.listen(self.source, port, protocol=self.protocol.number)
