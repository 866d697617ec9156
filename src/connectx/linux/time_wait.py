"""Which TIME_WAITs a connect() may take over now: ports that look used and are as good as free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.addresses import unmapped
from connectx.linux import sysctl
from connectx.linux.uapi import TCP_TIME_WAIT

if TYPE_CHECKING:
    from connectx.linux.sock_diag import SocketRecord

#: How long a TIME_WAIT lasts, in milliseconds: TCP_TIMEWAIT_LEN in include/net/tcp.h.
_LIFETIME: Final = 60_000

#: The age from which on one may be taken over, in milliseconds, in kernels that do not have
#: net.ipv4.tcp_tw_reuse_delay, which came with Linux 6.14.
_DELAY: Final = 1000

_LOOPBACK: Final = bytes(15) + b"\x01"


class Reuse(NamedTuple):
    """The conditions under which a connect() takes over a TIME_WAIT (tcp_twsk_unique).

    Attributes:
        mode: net.ipv4.tcp_tw_reuse: 0 for never, 1 for always, 2 for loopback addresses.
        timestamps: Whether net.ipv4.tcp_timestamps is on.
        delay: The age that a TIME_WAIT must have reached, in milliseconds.
    """

    mode: int
    timestamps: bool
    delay: int

    def applies(self, source: bytes, destination: bytes) -> bool:
        """Return whether TIME_WAITs between two addresses can be taken over at all."""
        if not self.timestamps or not self.mode:
            return False
        return self.mode == 1 or _is_loopback(source) or _is_loopback(destination)

    def takes(self, record: SocketRecord) -> bool:
        """Return whether a socket is a TIME_WAIT that can be taken over now.

        A TIME_WAIT whose peer has not closed yet is reported as FIN_WAIT2, and cannot. The
        peer must have timestamps too, which nothing reports.
        """
        return (
            record.state == TCP_TIME_WAIT
            and _LIFETIME - record.expires >= self.delay
            and self.applies(record.source, record.destination)
        )


def read_reuse() -> Reuse:
    """Read the conditions of the calling thread's network namespace.

    Raises:
        OSError: A sysctl cannot be read.
        ValueError: A sysctl is not a number.
    """
    try:
        delay = sysctl.read_int("tcp_tw_reuse_delay")
    except FileNotFoundError:
        delay = _DELAY
    return Reuse(sysctl.read_int("tcp_tw_reuse"), bool(sysctl.read_int("tcp_timestamps")), delay)


def _is_loopback(address: bytes) -> bool:
    address = unmapped(address)
    return address[0] == 127 if len(address) == 4 else address == _LOOPBACK
