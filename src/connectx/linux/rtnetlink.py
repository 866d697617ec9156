"""Addresses and devices of the calling thread's network namespace: RTNETLINK requests.

Nothing here checks which namespace that is. Call the methods of
`connectx.linux.netns.PrivateNetwork` instead: they make sure that it is not the machine's own.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Final

from connectx.linux import uapi
from connectx.linux.netlink import messages, status
from connectx.linux.structs import IFADDRMSG, IFINFOMSG, NLMSGHDR, RTATTR, RTMSG

#: How long the kernel may take to route a new IPv6 address, in seconds.
_ROUTE_TIMEOUT: Final = 10.0

_CREATE: Final = uapi.NLM_F_CREATE | uapi.NLM_F_EXCL


def add_address(address: str, prefix: int | None, device: str) -> None:
    """Give a device an address, and wait until it can be used.

    Args:
        address: An IPv4 or IPv6 address that the device does not have (EEXIST).
        prefix: The length of the network's prefix in bits. None for the whole address, which
            makes no route but the local one.
        device: The name of a device that is up.

    Raises:
        OSError: EEXIST, or ENODEV for an unknown device.
        TimeoutError: The kernel did not route a new IPv6 address in time.
    """
    ip = ipaddress.ip_address(address)
    length = ip.max_prefixlen if prefix is None else prefix
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    # Without NODAD an IPv6 address is tentative, and bind() refuses it, for the second or two
    # that duplicate address detection takes.
    header = IFADDRMSG.pack(family, length, uapi.IFA_F_NODAD, 0, socket.if_nametoindex(device))
    local = _attribute(uapi.IFA_LOCAL, ip.packed)
    body = header + local + _attribute(uapi.IFA_ADDRESS, ip.packed)
    # The kernel routes a new IPv6 address some time later, in a work item (addrconf_dad_work).
    # Until then, connecting to it fails with ENETUNREACH.
    route = _attribute(uapi.RTA_DST, ip.packed) if ip.version == 6 else b""
    _change(uapi.RTM_NEWADDR, body, _CREATE, awaited=route)


def add_device_pair(name: str, peer: str) -> None:
    """Add two Ethernet devices that are joined by a cable (veth), and set both up.

    Raises:
        OSError: EEXIST if a name is in use, EOPNOTSUPP if the kernel lacks veth.
    """
    # Not dummy devices, of which one would often do: kernels for containers and small virtual
    # machines are built without them.
    peer_info = _link() + _attribute(uapi.IFLA_IFNAME, peer.encode() + b"\0")
    kind = _attribute(uapi.IFLA_INFO_KIND, b"veth")
    data = _attribute(uapi.IFLA_INFO_DATA, _attribute(uapi.VETH_INFO_PEER, peer_info))
    body = _link() + _attribute(uapi.IFLA_IFNAME, name.encode() + b"\0")
    body += _attribute(uapi.IFLA_LINKINFO, kind + data)
    _change(uapi.RTM_NEWLINK, body, _CREATE)
    for device in (name, peer):
        set_up(device)


def set_up(device: str) -> None:
    """Set a device up, as ``ip link set up`` does.

    Raises:
        OSError: ENODEV for an unknown device.
    """
    _change(uapi.RTM_NEWLINK, _link(socket.if_nametoindex(device), uapi.IFF_UP))


def _link(index: int = 0, flags: int = 0) -> bytes:
    return IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, flags, flags)


def _attribute(kind: int, payload: bytes) -> bytes:
    """Return an rtattr; its length leaves out the padding to 4 octets."""
    return RTATTR.pack(RTATTR.size + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _is_local(route: memoryview) -> bool:
    # There are two routes to an address whose prefix is its full length: first one out of the
    # device, then the local one.
    *_, kind, _flags = RTMSG.unpack_from(route)
    return bool(kind == uapi.RTN_LOCAL)


def _change(kind: int, body: bytes, flags: int = 0, *, awaited: bytes = b"") -> None:
    """Make a change; return when it is acknowledged and the awaited local route is announced."""
    # Not with NetlinkSocket, which hears no announcements.
    length = NLMSGHDR.size + len(body)
    header = NLMSGHDR.pack(length, kind, uapi.NLM_F_REQUEST | uapi.NLM_F_ACK | flags, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, uapi.NETLINK_ROUTE) as channel:
        channel.settimeout(_ROUTE_TIMEOUT)
        channel.bind((0, uapi.RTMGRP_IPV6_ROUTE if awaited else 0))
        channel.send(header + body)
        acknowledged = False
        while not acknowledged or awaited:
            for message in messages(channel.recv(8192)):
                if message.type == uapi.NLMSG_ERROR:
                    if number := status(message.payload):
                        raise OSError(number, os.strerror(number))
                    acknowledged = True
                elif _is_local(message.payload) and awaited in bytes(message.payload):
                    awaited = b""
