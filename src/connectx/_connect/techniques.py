"""How one source port is put to the kernel: a window for streams, the lock for datagrams.

All raise what `connectx._connect.connection.refused` takes: OSError as bind() and connect(),
Contested, NotVisible, ConnectxError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from connectx._connect.udp_lock import claim, claim_releasable
from connectx.errors import SourceNotLocal
from connectx.linux.sockopts import (
    get_ip_freebind,
    get_ip_transparent,
    set_ip_freebind,
    set_ip_transparent,
    set_so_bindtoifindex,
    set_so_mark,
)
from connectx.linux.uapi import (
    IP_BIND_ADDRESS_NO_PORT,
    IP_FREEBIND,
    IP_LOCAL_PORT_RANGE,
    IPPROTO_IP,
    SO_LINGER,
    SO_REUSEADDR,
    SOL_SOCKET,
)

if TYPE_CHECKING:
    from connectx._connect.namespace import Prepared
    from connectx._connect.request import Request
    from connectx.addresses import Address

#: struct linger: close() resets the connection.
_RESET: Final = struct.pack("@ii", 1, 0)


def offer(sock: socket.socket, prepared: Prepared, port: int) -> None:
    """Narrow a stream socket down to a port; it has yet to connect."""
    # SO_REUSEADDR does not help us, it helps others: a tool that binds the port
    # explicitly gets in beside us, and can take over our TIME_WAIT.
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    if prepared.binds:
        sock.setsockopt(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        try:
            sock.bind(prepared.any_port)
        except OSError as error:
            require_local(prepared, error)
            raise
    # As an int, which setsockopt() takes quickest; unsigned for the kernel and
    # signed for Python, hence the wrap.
    sock.setsockopt(IPPROTO_IP, IP_LOCAL_PORT_RANGE, port * 0x10001 - (port >> 15 << 32))


def claim_for_good(sock: socket.socket, prepared: Prepared, port: int) -> None:
    """The lock for a datagram socket that cannot be replaced: do not get it stuck on the port."""
    lookup, netlink, request = prepared.lookup, prepared.network.diag, prepared.request
    source = prepared.source_at(port)
    if prepared.network.honours(request.protocol, port):
        if not prepared.options.interface:
            _require_sharable(request, source)
        claim_releasable(sock, lookup, netlink, source, request.address)
        return
    # What bind() is told here stays, so the caller's socket comes last: a placeholder
    # goes through the lock and holds the 4-tuple until the real one is on it as well.
    options = prepared.options
    with socket.socket(request.family, request.type, request.proto) as placeholder:
        if options.mark:
            set_so_mark(placeholder, options.mark)
        if options.interface:
            set_so_bindtoifindex(placeholder, options.interface)
        if get_ip_freebind(sock):
            set_ip_freebind(placeholder, on=True)
        if get_ip_transparent(sock):
            set_ip_transparent(placeholder, on=True)
        try:
            claim(placeholder, lookup, netlink, source, request.address)
            sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            sock.bind(source)
        except OSError as error:
            require_local(prepared, error)
            raise
        # No lock: whoever looks the 4-tuple up finds the placeholder on it.
        sock.connect(request.address)


def _require_sharable(request: Request, source: Address) -> None:
    """Raise OSError (EADDRINUSE) if the port's holder does not share it.

    A window that is refused costs milliseconds, for the search it ends in ignores
    its size; a refused bind of another socket, which need not be kept, microseconds.
    """
    with socket.socket(request.family, request.type, request.proto) as scratch:
        scratch.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        # Whether the address is local is the real socket's affair: it may be
        # transparent, or have this option itself.
        scratch.setsockopt(IPPROTO_IP, IP_FREEBIND, 1)
        scratch.bind(source)


def bind_source(sock: socket.socket, prepared: Prepared) -> None:
    """Bind the source's host, if one was asked for, without taking a port yet."""
    if not prepared.binds:
        return
    # For TCP the port is then connect()'s to choose and to share. UDP knows the
    # option as well, but chooses an exclusive port all the same.
    sock.setsockopt(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    bind(sock, prepared, 0)


def bind(sock: socket.socket, prepared: Prepared, port: int) -> None:
    """Bind the source and a port, and say so if the source is not local."""
    try:
        sock.bind(prepared.source_at(port))
    except OSError as error:
        require_local(prepared, error)
        raise


def require_local(prepared: Prepared, error: OSError) -> None:
    """Raise SourceNotLocal if that is what an error of bind() means."""
    if error.errno == errno.EADDRNOTAVAIL:
        raise prepared.request.error(
            SourceNotLocal,
            f"the source address {prepared.host} is not local in this network namespace: "
            "add it to an interface, or if it is routed here set IP_FREEBIND on the socket "
            "(a Dialer: freebind=True)",
        ) from error


def discard(sock: socket.socket) -> None:
    """Close a socket that its caller will never see: at once, if it is connected by now.

    Else its port would stay in FIN_WAIT2 or TIME_WAIT for a minute, for nothing.
    """
    if sock.type == socket.SOCK_STREAM:
        with contextlib.suppress(OSError):
            sock.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
    sock.close()


def replace(sock: socket.socket) -> None:
    """Put a new socket in the place of one that is stuck on a port, under the same descriptor."""
    with socket.socket(sock.family, sock.type, sock.proto) as fresh:
        fresh.settimeout(sock.gettimeout())
        if get_ip_freebind(sock):
            set_ip_freebind(fresh, on=True)
        os.dup2(fresh.fileno(), sock.fileno(), inheritable=False)
