"""SOCK_DESTROY: make the kernel close another process's socket, or a TIME_WAIT.

A request names a socket by its 4-tuple and its cookie, so a socket that has taken over the
4-tuple since is left alone: tcp_diag_destroy() and udp_diag_destroy() look up the 4-tuple,
compare the cookie (ENOENT if it differs), and only then check the privilege.

It needs CAP_NET_ADMIN in the user namespace that owns the network namespace, and a kernel built
with INET_DIAG_DESTROY (4.5; UDP 4.9). See also tcp_abort() and udp_abort().
"""

from __future__ import annotations

import errno
import os
from socket import SOCK_STREAM, socket
from typing import TYPE_CHECKING, Final

from connectx.addresses import V4_MAPPED
from connectx.linux.netlink import NetlinkError
from connectx.linux.sock_diag import ALL_STATES, LITTLE_ENDIAN, SocketRecord, diag_protocol
from connectx.linux.structs import INET_DIAG_REQ_V2, INET_DIAG_SOCKID
from connectx.linux.uapi import AF_INET, AF_INET6, IPPROTO_TCP, SOCK_DESTROY, TCP_CLOSE, TCP_REPAIR

if TYPE_CHECKING:
    from connectx.linux.netlink import NetlinkSocket

#: No socket's cookie: the kernel counts from 1 (gen_cookie_next).
_NOBODYS_COOKIE: Final = bytes(8)

#: A socket that cannot exist: connected to port 0 of the wildcard address, with that cookie.
_NOBODY: Final = SocketRecord(
    AF_INET, TCP_CLOSE, bytes(4), 0, bytes(4), 0, 0, _NOBODYS_COOKIE, 0, 0
)


def destroy(netlink: NetlinkSocket, protocol: int, record: SocketRecord) -> None:
    """Close the socket that a dump described, if it still exists.

    A connected TCP socket sends a reset, and its owner gets ECONNABORTED. A TIME_WAIT
    disappears. A UDP socket is disconnected, its owner gets ECONNABORTED, and it keeps a port
    that was given to bind().

    Args:
        netlink: A NETLINK_SOCK_DIAG socket in the socket's namespace.
        protocol: IPPROTO_TCP or IPPROTO_UDP. IPPROTO_MPTCP means TCP.
        record: The socket.

    Raises:
        NetlinkError: ENOENT if the lookup finds another socket or none, most often because
            this one has been closed; EPERM; EOPNOTSUPP if the kernel cannot do it, or for
            UDP-Lite.
    """
    netlink.change(SOCK_DESTROY, encode_destroy(protocol, record))


def encode_destroy(protocol: int, record: SocketRecord) -> bytes:
    """Return the inet_diag_req_v2; unlike in a lookup, the source comes first for UDP too."""
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
    """Check that `destroy` is allowed and possible, without closing anything.

    The calling thread must be in the namespace of the netlink socket.

    Raises:
        PermissionError: EPERM without CAP_NET_ADMIN.
        OSError: EOPNOTSUPP for a kernel without INET_DIAG_DESTROY.
    """
    if not may_administer():
        raise PermissionError(
            errno.EPERM,
            f"{os.strerror(errno.EPERM)}: closing sockets of others needs CAP_NET_ADMIN",
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
                "this kernel cannot close sockets of others (built without INET_DIAG_DESTROY)",
            ) from error
        raise


def may_administer() -> bool:
    """Return whether the calling thread has CAP_NET_ADMIN in its network namespace.

    /proc/self/status does not tell: it shows the capabilities in the thread's user namespace,
    which need not own the network namespace. So this sets TCP_REPAIR, for which the kernel
    makes the same check as sock_diag_destroy(), on a socket that is closed at once.

    Raises:
        OSError: No socket can be created.
    """
    with socket(AF_INET, SOCK_STREAM) as scratch:
        try:
            scratch.setsockopt(IPPROTO_TCP, TCP_REPAIR, 1)
        except PermissionError:
            return False
    return True
