"""Which TIME_WAITs a connect() may take over now: what looks in use and is as good as free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.addresses import unmapped
from connectx.linux import sysctl
from connectx.linux.uapi import TCP_TIME_WAIT

if TYPE_CHECKING:
    from connectx.linux.sock_diag import SocketRecord

#: TCP_TIMEWAIT_LEN in include/net/tcp.h, in milliseconds.
_WHOLE: Final = 60_000

#: How old a TIME_WAIT has to be, in milliseconds, before net.ipv4.tcp_tw_reuse_delay (6.14).
_DELAY: Final = 1000

_LOOPBACK: Final = bytes(15) + b"\x01"


class Reuse(NamedTuple):
    """Under what conditions a connect() takes over a TIME_WAIT (tcp_twsk_unique).

    mode: net.ipv4.tcp_tw_reuse: 0 never, 1 always, 2 between loopback addresses.
    timestamps: net.ipv4.tcp_timestamps. delay: milliseconds that it must be old.
    """

    mode: int
    timestamps: bool
    delay: int

    def applies(self, source: bytes, destination: bytes) -> bool:
        """Whether TIME_WAITs between two addresses can be taken over at all."""
        if not self.timestamps or not self.mode:
            return False
        return self.mode == 1 or _is_loopback(source) or _is_loopback(destination)

    def takes(self, record: SocketRecord) -> bool:
        """Whether a socket is a TIME_WAIT that can be taken over now.

        Not one whose peer has not closed yet, which is reported as FIN_WAIT2. Whether the
        peer has timestamps as well is not to be seen.
        """
        return (
            record.state == TCP_TIME_WAIT
            and _WHOLE - record.expires >= self.delay
            and self.applies(record.source, record.destination)
        )


def read_reuse() -> Reuse:
    """As the calling thread's network namespace has it. Raises OSError, ValueError."""
    try:
        delay = sysctl.read_int("tcp_tw_reuse_delay")
    except FileNotFoundError:
        delay = _DELAY
    return Reuse(sysctl.read_int("tcp_tw_reuse"), bool(sysctl.read_int("tcp_timestamps")), delay)


def _is_loopback(address: bytes) -> bool:
    address = unmapped(address)
    return address[0] == 127 if len(address) == 4 else address == _LOOPBACK
