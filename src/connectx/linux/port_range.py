"""The range of source ports, found out by asking for ports, where /proc/sys cannot be read.

The kernel ignores an end of a window that lies outside of net.ipv4.ip_local_port_range, and takes
the range's own end instead (inet_sk_get_local_port_range). So a window of one port gives that
port just when it lies inside. The ports inside are consecutive: some 30 windows find both ends,
in a fifth of a millisecond.
"""

from __future__ import annotations

import errno
import socket
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from connectx.addresses import HIGHEST_PORT, PROTOCOLS, PortRange
from connectx.linux.sockopts import set_ip_freebind, set_ip_local_port_range, set_so_reuseaddr

if TYPE_CHECKING:
    from connectx.addresses import Protocol

#: In this order: datagram sockets that share are in hardly anybody's way, and a TCP socket that
#: is bound is, for the microseconds that this takes.
_TRIED: Final = (PROTOCOLS["udp"], PROTOCOLS["tcp"])


def find_port_range() -> PortRange | None:
    """Find net.ipv4.ip_local_port_range of the calling thread's network namespace.

    Returns:
        The range; None if the kernel has no windows, or every port of it is held.

    Raises:
        OSError: A socket cannot be made.
    """
    for protocol in _TRIED:
        inside = _bound_port(protocol, 0)
        if inside:
            break
    else:
        return None
    try:
        low = bisect_left(
            range(inside), x=True, lo=1, key=lambda port: _lies_inside(protocol, port)
        )
        outside = bisect_left(
            range(HIGHEST_PORT + 1),
            x=True,
            lo=inside,
            key=lambda port: not _lies_inside(protocol, port),
        )
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return None
    return PortRange(low, outside - 1)


def _lies_inside(protocol: Protocol, port: int) -> bool:
    # A port that is refused is in use, or reserved: another one would have been had.
    return _bound_port(protocol, port) in (0, port)


def _bound_port(protocol: Protocol, port: int) -> int:
    """Bind a socket with a window of one port, or with none for 0; its port, 0 if refused."""
    with socket.socket(socket.AF_INET, protocol.type, protocol.number) as scratch:
        set_so_reuseaddr(scratch, on=True)
        # The loopback device may be down.
        set_ip_freebind(scratch, on=True)
        if port:
            set_ip_local_port_range(scratch, port, port)
        try:
            scratch.bind(("127.0.0.1", 0))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return 0
        found: int = scratch.getsockname()[1]
        return found
