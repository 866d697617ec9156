"""SOCK_DESTROY: have the kernel close somebody else's socket, TIME_WAIT included.

A socket is named by its 4-tuple and its cookie, so that one which took the tuple over
meanwhile is left alone: tcp_diag_destroy() and udp_diag_destroy() look the tuple up,
compare the cookie (ENOENT where it differs), and only then ask for the privilege.
Needs CAP_NET_ADMIN in the user namespace that owns the network namespace, and a kernel
built with INET_DIAG_DESTROY (4.5; UDP 4.9). See also tcp_abort(), udp_abort().
"""

from __future__ import annotations

import errno
import os
from socket import IPPROTO_TCP as LEVEL_TCP
from socket import SOCK_STREAM, socket
from typing import TYPE_CHECKING, Final

from connectx.linux.mapped import V4_MAPPED
from connectx.linux.netlink import NetlinkError
from connectx.linux.sock_diag import (
    ALL_STATES,
    LITTLE_ENDIAN,
    SocketRecord,
    diag_protocol,
)
from connectx.linux.structs import INET_DIAG_REQ_V2, INET_DIAG_SOCKID
from connectx.linux.uapi import AF_INET, AF_INET6, SOCK_DESTROY, TCP_CLOSE, TCP_REPAIR

if TYPE_CHECKING:
    from connectx.linux.netlink import NetlinkSocket

#: No socket's cookie: the kernel counts from 1 (gen_cookie_next).
_NOBODYS_COOKIE: Final = bytes(8)

#: Toward port 0 of the wildcard address nobody is connected, and nobody has that cookie.
_NOBODY: Final = SocketRecord(
    AF_INET, TCP_CLOSE, bytes(4), 0, bytes(4), 0, 0, _NOBODYS_COOKIE, 0, 0
)


def destroy(netlink: NetlinkSocket, protocol: int, record: SocketRecord) -> None:
    """Close the socket that a dump described, if it is still there.

    protocol: IPPROTO_TCP or IPPROTO_UDP; IPPROTO_MPTCP stands for TCP.

    A connected TCP socket sends a reset, and its owner gets ECONNABORTED, as that of a
    UDP socket does; a TIME_WAIT just goes. A UDP socket is disconnected, and stays on
    a port that bind() gave it.

    Raises NetlinkError: ENOENT where the lookup does not lead to this socket, most often
    because it is gone; EPERM; EOPNOTSUPP for a kernel without it, and for UDP-Lite.
    """
    netlink.change(SOCK_DESTROY, encode_destroy(protocol, record))


def encode_destroy(protocol: int, record: SocketRecord) -> bytes:
    """The request's inet_diag_req_v2; unlike a lookup's, source comes first for UDP as well."""
    family, source, destination = record.family, record.source, record.destination
    if family == AF_INET6 and source[:12] == destination[:12] == V4_MAPPED:
        family, source, destination = AF_INET, source[12:], destination[12:]
    cookie = record.cookie if LITTLE_ENDIAN else record.cookie[4:] + record.cookie[:4]
    identity = INET_DIAG_SOCKID.pack(
        record.source_port.to_bytes(2, "big"),
        record.destination_port.to_bytes(2, "big"),
        source,
        destination,
        record.interface,
        cookie,
    )
    return INET_DIAG_REQ_V2.pack(family, diag_protocol(protocol), 0, ALL_STATES, identity)


def require_destroy(netlink: NetlinkSocket, protocol: int) -> None:
    """Find out whether `destroy` would be allowed and possible, without closing anything.

    The calling thread must be in the namespace of the netlink socket.

    Raises PermissionError (EPERM) without CAP_NET_ADMIN, OSError (EOPNOTSUPP) for a kernel
    without INET_DIAG_DESTROY, each saying so.
    """
    if not may_administer():
        raise PermissionError(
            errno.EPERM, f"{os.strerror(errno.EPERM)}: closing others' sockets needs CAP_NET_ADMIN"
        )
    try:
        destroy(netlink, protocol, _NOBODY)
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return
        if error.errno == errno.EOPNOTSUPP:
            raise OSError(
                errno.EOPNOTSUPP,
                f"{os.strerror(errno.EOPNOTSUPP)}: "
                "this kernel cannot close others' sockets (built without INET_DIAG_DESTROY)",
            ) from error
        raise


def may_administer() -> bool:
    """Whether the calling thread has CAP_NET_ADMIN in its network namespace.

    Asked of the kernel: the capabilities in /proc/self/status are those in the thread's
    user namespace, which need not be the network's owner. TCP_REPAIR has the very check of
    sock_diag_destroy(), and no effect on a socket that is closed again.

    Raises OSError where no socket can be made.
    """
    with socket(AF_INET, SOCK_STREAM) as scratch:
        try:
            scratch.setsockopt(LEVEL_TCP, TCP_REPAIR, 1)
        except PermissionError:
            return False
    return True
