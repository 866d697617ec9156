"""Notifications that sockets of this network namespace have ended.

NETLINK_SOCK_DIAG has multicast groups for TCP and UDP, one for each family. Listening needs no
privilege (NL_CFG_F_NONROOT_RECV). The kernel sends a message when it frees a socket that belonged
to a process. It sends none when a TIME_WAIT that the socket left behind expires.

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

#: Both families, since an IPv6 socket may occupy an IPv4 4-tuple (IPv4-mapped).
_STREAMS: Final = (SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY)
_DATAGRAMS: Final = (SKNLGRP_INET_UDP_DESTROY, SKNLGRP_INET6_UDP_DESTROY)

_BUFFER: Final = 4096


class DestroyEvents:
    """Listens for the ends of sockets in the calling thread's network namespace.

    Close it, or use it as a context manager.

    Args:
        stream: Listen for TCP sockets and MPTCP's subflows; otherwise for UDP sockets. The
            kernel reports no UDP-Lite sockets.

    Raises:
        OSError: The kernel has no such groups, or no descriptor is left.
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
        """Return the descriptor, which is readable when there are notifications."""
        return self._socket.fileno()

    def take(self, concerns: Callable[[SocketRecord | None], bool]) -> bool:
        """Read all notifications; return whether one of them concerns the caller.

        Args:
            concerns: Is called for every socket that has ended, and with None if messages were
                lost (ENOBUFS).
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
        """Stop listening."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
