"""Socket options: a typed getter and setter for each, by its C name.

They raise OSError as getsockopt(2) and setsockopt(2) fail: ENOPROTOOPT if the kernel lacks the
option, EPERM if a privilege is missing. Options of level IPPROTO_IP work on AF_INET6 sockets too.
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
    IP_MULTICAST_IF,
    IP_TOS,
    IP_TRANSPARENT,
    IP_UNICAST_IF,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_ADDR_PREFERENCES,
    IPV6_MULTICAST_IF,
    IPV6_TCLASS,
    IPV6_UNICAST_IF,
    IPV6_V6ONLY,
    SO_BINDTOIFINDEX,
    SO_COOKIE,
    SO_MARK,
    SO_NETNS_COOKIE,
    SO_REUSEADDR,
    SOL_SOCKET,
    TCP_FASTOPEN_CONNECT,
    TCP_TIMESTAMP,
)

if TYPE_CHECKING:
    import _socket
    import socket


def get_so_cookie(sock: socket.socket) -> bytes:
    """Return SO_COOKIE: 8 octets that no other socket on this machine ever has. Linux 4.12."""
    return sock.getsockopt(SOL_SOCKET, SO_COOKIE, 8)


def get_so_netns_cookie(sock: _socket.socket) -> int | None:
    """Return SO_NETNS_COOKIE, the number of the socket's network namespace; None before 5.14."""
    try:
        value = sock.getsockopt(SOL_SOCKET, SO_NETNS_COOKIE, 8)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return None
        raise
    return int.from_bytes(value, sys.byteorder)


def get_so_mark(sock: socket.socket) -> int:
    """Return SO_MARK, which routing rules can match: 0 to 2**32 - 1, 0 for none (socket(7))."""
    # As octets: as an int, marks from 2**31 on would be negative.
    return int.from_bytes(sock.getsockopt(SOL_SOCKET, SO_MARK, 4), sys.byteorder)


def set_so_mark(sock: socket.socket, mark: int) -> None:
    """Set SO_MARK; needs CAP_NET_ADMIN or CAP_NET_RAW in the network namespace (EPERM)."""
    sock.setsockopt(SOL_SOCKET, SO_MARK, mark.to_bytes(4, sys.byteorder))


def get_so_bindtoifindex(sock: socket.socket) -> int:
    """Return SO_BINDTOIFINDEX, the index of the device that the socket is bound to. Linux 5.0.

    0 for none. SO_BINDTODEVICE sets the same by name, and connect() to a link-local address
    sets it too.
    """
    return sock.getsockopt(SOL_SOCKET, SO_BINDTOIFINDEX)


def set_so_bindtoifindex(sock: socket.socket, interface: int) -> None:
    """Set SO_BINDTOIFINDEX; 0 removes the binding, which needs CAP_NET_RAW (EPERM)."""
    sock.setsockopt(SOL_SOCKET, SO_BINDTOIFINDEX, interface)


def get_so_reuseaddr(sock: socket.socket) -> bool:
    """Return SO_REUSEADDR: whether the source port may be shared (socket(7))."""
    return bool(sock.getsockopt(SOL_SOCKET, SO_REUSEADDR))


def set_so_reuseaddr(sock: socket.socket, *, on: bool) -> None:
    """Set SO_REUSEADDR, at any time: on a bound or a connected socket too."""
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, on)


def pack_port_range(low: int, high: int) -> bytes:
    """Return the value of IP_LOCAL_PORT_RANGE: ``low | high << 16`` as a u32 of host order.

    As octets: Python's setsockopt() refuses an int from 2**31 on, that is a high end of 32,768
    or more.
    """
    return LOCAL_PORT_RANGE.pack(low | high << 16)


def get_ip_local_port_range(sock: socket.socket) -> PortRange:
    """Return IP_LOCAL_PORT_RANGE, the socket's window; an end of 0 is the sysctl's (ip(7))."""
    (value,) = LOCAL_PORT_RANGE.unpack(sock.getsockopt(IPPROTO_IP, IP_LOCAL_PORT_RANGE, 4))
    return PortRange(value & 0xFFFF, value >> 16)


def set_ip_local_port_range(sock: socket.socket, low: int, high: int) -> None:
    """Set IP_LOCAL_PORT_RANGE; an end of 0 means the sysctl's. Linux 6.3 and 6.1.32.

    An end outside ip_local_port_range is no error: the kernel silently uses the sysctl's end
    instead (inet_sk_get_local_port_range).

    Raises:
        OSError: EINVAL if the low end is above the high end.
    """
    sock.setsockopt(IPPROTO_IP, IP_LOCAL_PORT_RANGE, pack_port_range(low, high))


def get_ip_bind_address_no_port(sock: socket.socket) -> bool:
    """Return IP_BIND_ADDRESS_NO_PORT: whether bind() leaves port 0 to connect() (ip(7))."""
    return bool(sock.getsockopt(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT))


def set_ip_bind_address_no_port(sock: socket.socket, *, on: bool) -> None:
    """Set IP_BIND_ADDRESS_NO_PORT. Linux 4.2."""
    sock.setsockopt(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, on)


def get_ip_freebind(sock: socket.socket) -> bool:
    """Return IP_FREEBIND: whether bind() accepts an address that is not local (ip(7))."""
    return bool(sock.getsockopt(IPPROTO_IP, IP_FREEBIND))


def set_ip_freebind(sock: socket.socket, *, on: bool) -> None:
    """Set IP_FREEBIND."""
    sock.setsockopt(IPPROTO_IP, IP_FREEBIND, on)


def get_ip_transparent(sock: socket.socket) -> bool:
    """Return IP_TRANSPARENT: whether the socket may use addresses that are not local (ip(7))."""
    return bool(sock.getsockopt(IPPROTO_IP, IP_TRANSPARENT))


def set_ip_transparent(sock: socket.socket, *, on: bool) -> None:
    """Set IP_TRANSPARENT; needs CAP_NET_ADMIN or CAP_NET_RAW in the network namespace (EPERM)."""
    sock.setsockopt(IPPROTO_IP, IP_TRANSPARENT, on)


def get_ip_tos(sock: socket.socket) -> int:
    """Return IP_TOS, which routing rules can match (ip(7))."""
    return sock.getsockopt(IPPROTO_IP, IP_TOS)


def get_ip_unicast_if(sock: socket.socket) -> int:
    """Return IP_UNICAST_IF: the index of the device that packets leave by; 0 for any. Linux 3.4."""
    return int.from_bytes(sock.getsockopt(IPPROTO_IP, IP_UNICAST_IF, 4), "big")


def get_ip_multicast_if(sock: socket.socket) -> bytes:
    """Return the address of IP_MULTICAST_IF, 4 octets, zeros for none.

    The device that may be set instead of an address is not reported (ip(7)).
    """
    return sock.getsockopt(IPPROTO_IP, IP_MULTICAST_IF, 4)


def get_ipv6_tclass(sock: socket.socket) -> int:
    """Return IPV6_TCLASS, IPv6's IP_TOS."""
    return sock.getsockopt(IPPROTO_IPV6, IPV6_TCLASS)


def get_ipv6_unicast_if(sock: socket.socket) -> int:
    """Return IPV6_UNICAST_IF, as `get_ip_unicast_if`. Linux 3.4."""
    return int.from_bytes(sock.getsockopt(IPPROTO_IPV6, IPV6_UNICAST_IF, 4), "big")


def get_ipv6_multicast_if(sock: socket.socket) -> int:
    """Return IPV6_MULTICAST_IF: the index of the device for multicast; 0 for any (ipv6(7))."""
    return sock.getsockopt(IPPROTO_IPV6, IPV6_MULTICAST_IF)


def get_ipv6_addr_preferences(sock: socket.socket) -> int:
    """Return IPV6_ADDR_PREFERENCES: which of a device's addresses is the source (RFC 5014)."""
    return sock.getsockopt(IPPROTO_IPV6, IPV6_ADDR_PREFERENCES)


def get_ipv6_v6only(sock: socket.socket) -> bool:
    """Return IPV6_V6ONLY: whether an AF_INET6 socket refuses IPv4-mapped addresses (ipv6(7))."""
    return bool(sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY))


def set_ipv6_v6only(sock: socket.socket, *, on: bool) -> None:
    """Set IPV6_V6ONLY; EINVAL once the socket is bound."""
    sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, on)


def get_tcp_timestamp(sock: socket.socket) -> int:
    """Return TCP_TIMESTAMP: the timestamp that the socket would send now, in milliseconds.

    It has the connection's own offset, which connect() sets, and is taken modulo 2**32.
    """
    return sock.getsockopt(IPPROTO_TCP, TCP_TIMESTAMP) & 0xFFFFFFFF


def get_tcp_fastopen_connect(sock: socket.socket) -> bool:
    """Return TCP_FASTOPEN_CONNECT: whether connect() waits for the first data (tcp(7))."""
    return bool(sock.getsockopt(IPPROTO_TCP, TCP_FASTOPEN_CONNECT))


def set_tcp_fastopen_connect(sock: socket.socket, *, on: bool) -> None:
    """Set TCP_FASTOPEN_CONNECT. Linux 4.11.

    Raises:
        OSError: EOPNOTSUPP if bit 0 of net.ipv4.tcp_fastopen is off, EINVAL if the socket is
            connected or listening.
    """
    sock.setsockopt(IPPROTO_TCP, TCP_FASTOPEN_CONNECT, on)
