"""Which sockets of this network namespace come to their end, as they do.

A multicast group of NETLINK_SOCK_DIAG for TCP and one for UDP, for each family: no
privilege is needed (NL_CFG_F_NONROOT_RECV). A message comes when the kernel frees a
socket that a process had; what stays behind in TIME_WAIT ends without one.

Source: sock_diag_broadcast_destroy() in net/core/sock_diag.c (Linux 4.7).
"""

from __future__ import annotations

import errno
from _socket import socket as _Socket  # noqa: N812 - as in netlink.py
from typing import TYPE_CHECKING, Final, Self

from connectx.linux.netlink import messages
from connectx.linux.sock_diag import decode_record
from connectx.linux.uapi import (
    AF_NETLINK,
    NETLINK_SOCK_DIAG,
    SKNLGRP_INET6_TCP_DESTROY,
    SKNLGRP_INET6_UDP_DESTROY,
    SKNLGRP_INET_TCP_DESTROY,
    SKNLGRP_INET_UDP_DESTROY,
    SOCK_CLOEXEC,
    SOCK_DIAG_BY_FAMILY,
    SOCK_RAW,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx.linux.sock_diag import SocketRecord

#: IPv6 sockets may be on IPv4 tuples (IPv4-mapped), so both families are heard.
_STREAMS: Final = (SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY)
_DATAGRAMS: Final = (SKNLGRP_INET_UDP_DESTROY, SKNLGRP_INET6_UDP_DESTROY)

_BUFFER: Final = 4096


class DestroyEvents:
    """Hears of the ends of sockets, in the namespace that the calling thread is in.

    stream: TCP (and MPTCP's subflows); otherwise UDP. Of UDP-Lite nothing is told.

    Close it, or use it as a context manager. Raises OSError where the kernel has no
    such groups, or no descriptor is left.
    """

    def __init__(self, *, stream: bool) -> None:
        self._socket = _Socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
        try:
            self._socket.settimeout(0)
            groups = _STREAMS if stream else _DATAGRAMS
            self._socket.bind((0, sum(1 << group - 1 for group in groups)))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The descriptor, readable when there is something to take."""
        return self._socket.fileno()

    def take(self, concerns: Callable[[SocketRecord | None], bool]) -> bool:
        """Read all there is; whether any of it concerns the caller.

        concerns: is asked about every end, and with None if messages were lost (ENOBUFS).
        """
        found = False
        while True:
            try:
                datagram = self._socket.recv(_BUFFER)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found |= concerns(None)
                continue
            for message in messages(datagram):
                if message.type == SOCK_DIAG_BY_FAMILY:
                    found |= concerns(decode_record(message.payload))

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
