"""Socket options, one typed getter and setter each, by their C names.

All raise OSError as getsockopt(2) and setsockopt(2): ENOPROTOOPT where the kernel
does not know the option, EPERM where a privilege is missing. They change what
they say and nothing else. The IPPROTO_IP ones work on AF_INET6 sockets as well.
"""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING

from connectx.addresses import PortRange
from connectx.linux.structs import LOCAL_PORT_RANGE
from connectx.linux.uapi import (
    IP_BIND_ADDRESS_NO_PORT,
    IP_FREEBIND,
    IP_LOCAL_PORT_RANGE,
    IP_TRANSPARENT,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_V6ONLY,
    SO_BINDTOIFINDEX,
    SO_COOKIE,
    SO_MARK,
    SO_NETNS_COOKIE,
    SO_REUSEADDR,
    SOL_SOCKET,
    TCP_FASTOPEN_CONNECT,
)

if TYPE_CHECKING:
    import _socket
    import socket


def get_so_cookie(sock: socket.socket) -> bytes:
    """SO_COOKIE: 8 octets that no other socket of this machine has or will have (socket(7))."""
    return sock.getsockopt(SOL_SOCKET, SO_COOKIE, 8)


def get_so_netns_cookie(sock: _socket.socket) -> int | None:
    """SO_NETNS_COOKIE: which network namespace the socket is in; None before Linux 5.14."""
    try:
        value = sock.getsockopt(SOL_SOCKET, SO_NETNS_COOKIE, 8)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return None
        raise
    return int.from_bytes(value, sys.byteorder)


def get_so_mark(sock: socket.socket) -> int:
    """SO_MARK: the mark that routing rules see, 0 to 2**32 - 1; 0 for none (socket(7))."""
    # As octets: for getsockopt() of an int, marks from 2**31 would be negative.
    return int.from_bytes(sock.getsockopt(SOL_SOCKET, SO_MARK, 4), sys.byteorder)


def set_so_mark(sock: socket.socket, mark: int) -> None:
    """Set SO_MARK; needs CAP_NET_ADMIN or CAP_NET_RAW in the namespace (EPERM)."""
    sock.setsockopt(SOL_SOCKET, SO_MARK, mark.to_bytes(4, sys.byteorder))


def get_so_bindtoifindex(sock: socket.socket) -> int:
    """SO_BINDTOIFINDEX: the device that the socket is bound to, 0 for none. Linux 5.0.

    SO_BINDTODEVICE by number: it shows what that one has set, and what connect()
    to a link-local address has.
    """
    return sock.getsockopt(SOL_SOCKET, SO_BINDTOIFINDEX)


def set_so_bindtoifindex(sock: socket.socket, interface: int) -> None:
    """Bind to a device, or with 0 to none; taking a binding away needs CAP_NET_RAW (EPERM)."""
    sock.setsockopt(SOL_SOCKET, SO_BINDTOIFINDEX, interface)


def get_so_reuseaddr(sock: socket.socket) -> bool:
    """SO_REUSEADDR: whether the source port may be shared (socket(7))."""
    return bool(sock.getsockopt(SOL_SOCKET, SO_REUSEADDR))


def set_so_reuseaddr(sock: socket.socket, *, on: bool) -> None:
    """Set SO_REUSEADDR; it can be changed on a bound or connected socket."""
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, on)


def pack_port_range(low: int, high: int) -> bytes:
    """The value of IP_LOCAL_PORT_RANGE: ``low | high << 16`` as a u32 of host order.

    As octets, since setsockopt() refuses an int from 2**31 (a high end from 32768).
    """
    return LOCAL_PORT_RANGE.pack(low | high << 16)


def get_ip_local_port_range(sock: socket.socket) -> PortRange:
    """IP_LOCAL_PORT_RANGE: the socket's window, 0 where an end is the sysctl's (ip(7))."""
    (value,) = LOCAL_PORT_RANGE.unpack(sock.getsockopt(IPPROTO_IP, IP_LOCAL_PORT_RANGE, 4))
    return PortRange(value & 0xFFFF, value >> 16)


def set_ip_local_port_range(sock: socket.socket, low: int, high: int) -> None:
    """Set IP_LOCAL_PORT_RANGE; 0 for an end means the sysctl's. Linux 6.3 and 6.1.32.

    EINVAL for low > high. An end outside ip_local_port_range is no error: the
    kernel silently uses the sysctl's end instead (inet_sk_get_local_port_range).
    """
    sock.setsockopt(IPPROTO_IP, IP_LOCAL_PORT_RANGE, pack_port_range(low, high))


def get_ip_bind_address_no_port(sock: socket.socket) -> bool:
    """IP_BIND_ADDRESS_NO_PORT: whether bind() to port 0 leaves the port to connect() (ip(7))."""
    return bool(sock.getsockopt(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT))


def set_ip_bind_address_no_port(sock: socket.socket, *, on: bool) -> None:
    """Set IP_BIND_ADDRESS_NO_PORT. Linux 4.2."""
    sock.setsockopt(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, on)


def get_ip_freebind(sock: socket.socket) -> bool:
    """IP_FREEBIND: whether bind() takes an address that is not local (ip(7))."""
    return bool(sock.getsockopt(IPPROTO_IP, IP_FREEBIND))


def set_ip_freebind(sock: socket.socket, *, on: bool) -> None:
    """Set IP_FREEBIND."""
    sock.setsockopt(IPPROTO_IP, IP_FREEBIND, on)


def get_ip_transparent(sock: socket.socket) -> bool:
    """IP_TRANSPARENT: whether the socket may use addresses that are not local (ip(7))."""
    return bool(sock.getsockopt(IPPROTO_IP, IP_TRANSPARENT))


def set_ip_transparent(sock: socket.socket, *, on: bool) -> None:
    """Set IP_TRANSPARENT; needs CAP_NET_ADMIN or CAP_NET_RAW in the namespace (EPERM)."""
    sock.setsockopt(IPPROTO_IP, IP_TRANSPARENT, on)


def get_ipv6_v6only(sock: socket.socket) -> bool:
    """IPV6_V6ONLY: whether an AF_INET6 socket refuses IPv4-mapped addresses (ipv6(7))."""
    return bool(sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY))


def set_ipv6_v6only(sock: socket.socket, *, on: bool) -> None:
    """Set IPV6_V6ONLY; EINVAL once the socket is bound."""
    sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, on)


def get_tcp_fastopen_connect(sock: socket.socket) -> bool:
    """TCP_FASTOPEN_CONNECT: whether connect() waits for the first data (tcp(7))."""
    return bool(sock.getsockopt(IPPROTO_TCP, TCP_FASTOPEN_CONNECT))


def set_tcp_fastopen_connect(sock: socket.socket, *, on: bool) -> None:
    """Set TCP_FASTOPEN_CONNECT. Linux 4.11.

    EOPNOTSUPP where bit 0 of net.ipv4.tcp_fastopen is off, EINVAL once the socket
    is connected or listens.
    """
    sock.setsockopt(IPPROTO_TCP, TCP_FASTOPEN_CONNECT, on)
