"""Private network namespaces: make one, enter it, configure it, go back.

Experiments and tests change sysctls, addresses and devices, and none of that
may ever happen to the machine's own network. So configuring is a method of
PrivateNetwork, a value that only making a namespace yields, and each such
method first checks that the calling thread is still inside that namespace.

A namespace belongs to a thread, not to a process: unshare(2) and setns(2) move
the calling thread alone, and a new thread starts in its creator's namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from connectx.linux import uapi
from connectx.linux.netlink import messages, status
from connectx.linux.structs import NLMSGHDR, RTATTR, RTMSG, layout

if TYPE_CHECKING:
    from collections.abc import Iterator

_OWN_NAMESPACE = Path("/proc/thread-self/ns/net")

#: linux/rtnetlink.h ``ifinfomsg``: family, type, index, flags, which flags to change.
_IFINFOMSG = layout("BxHiII", 16)

#: linux/if_addr.h ``ifaddrmsg``: family, prefix length, flags, scope, index.
_IFADDRMSG = layout("BBBBI", 8)

#: How long the kernel may take to route a new IPv6 address, in seconds.
_ROUTE_TIMEOUT = 10.0

_CREATE = uapi.NLM_F_CREATE | uapi.NLM_F_EXCL

#: The settings that forbid an ordinary user a namespace: path, the value that
#: forbids, what to do. Missing files mean that this kernel has no such setting.
_FORBIDDING_SYSCTLS = (
    ("user/max_user_namespaces", "0", "set user.max_user_namespaces above 0"),
    ("user/max_net_namespaces", "0", "set user.max_net_namespaces above 0"),
    ("kernel/unprivileged_userns_clone", "0", "set kernel.unprivileged_userns_clone to 1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "set kernel.apparmor_restrict_unprivileged_userns to 0",
    ),
)


class Identity(NamedTuple):
    """What tells namespaces apart: the device and inode of their /proc/*/ns/net file.

    Unique among the namespaces alive; the kernel reuses the inode of a dead one
    (namespaces(7)).
    """

    device: int
    inode: int


def current() -> Identity:
    """The network namespace that the calling thread is in."""
    status = _OWN_NAMESPACE.stat()
    return Identity(status.st_dev, status.st_ino)


def identify(descriptor: int) -> Identity:
    """The network namespace that a descriptor from open_namespace() stands for."""
    status = os.fstat(descriptor)
    return Identity(status.st_dev, status.st_ino)


def open_namespace() -> int:
    """Open the calling thread's network namespace; the caller closes the descriptor.

    The descriptor keeps the namespace alive, also when no thread is left in it.
    """
    return os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)


def enter(descriptor: int) -> None:
    """Move the calling thread into the namespace that a descriptor stands for: setns(2).

    Raises PermissionError (EPERM) without CAP_SYS_ADMIN in the user namespace
    that owns the target. An ordinary user who has entered a user namespace of
    its own lacks it for the namespace it came from: there is no way back.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, uapi.CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: cannot enter the network namespace")


@dataclass(frozen=True, slots=True)
class PrivateNetwork:
    """A network namespace that this process made, and what may be changed in it.

    identity: which namespace it is.
    rootless: whether a user namespace had to be made for it, with the user as
        its root; the thread can then not return to the namespace it came from.

    Every method raises RuntimeError when the calling thread is in another
    namespace, before anything is changed.
    """

    identity: Identity
    rootless: bool

    def get_sysctl(self, name: str) -> str:
        """The value of a "net." sysctl in this namespace, as /proc/sys shows it."""
        return self._sysctl(name).read_text().strip()

    def set_sysctl(self, name: str, value: str | int) -> None:
        """Set a "net." sysctl in this namespace.

        Raises ValueError for a name outside of "net.", since only these belong
        to a network namespace, and OSError as the kernel gives it: EINVAL for a
        value out of range, EROFS where /proc/sys is mounted read-only, EACCES
        for a setting that only the machine's own namespace may change.
        """
        path = self._sysctl(name)
        try:
            # The line end matters: the kernel takes a write of no bytes as no
            # write at all, and a list of ports could then not be emptied.
            path.write_text(f"{value}\n")
        except OSError as error:
            error.add_note(f"while setting {name} to {value!r}")
            raise

    def add_address(self, address: str, prefix: int | None = None, device: str = "lo") -> None:
        """Give a device another IPv4 or IPv6 address, usable at once.

        prefix: the length of the network's prefix in bits; by default all of
            the address, so that no route but the local one comes with it.

        device: must be up.

        Raises OSError: EEXIST when the device has it, ENODEV for an unknown one;
        TimeoutError when the kernel does not route a new IPv6 address.
        """
        self._require_inside()
        ip = ipaddress.ip_address(address)
        length = ip.max_prefixlen if prefix is None else prefix
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        # Without NODAD an IPv6 address is tentative, and bind() refuses it, for
        # a second or two of duplicate address detection.
        header = _IFADDRMSG.pack(family, length, uapi.IFA_F_NODAD, 0, socket.if_nametoindex(device))
        local = _attribute(uapi.IFA_LOCAL, ip.packed)
        body = header + local + _attribute(uapi.IFA_ADDRESS, ip.packed)
        # A new IPv6 address is routed by a work item that runs some time later
        # (addrconf_dad_work); until then connecting to it gives ENETUNREACH.
        route = _attribute(uapi.RTA_DST, ip.packed) if ip.version == 6 else b""
        _rtnetlink(uapi.RTM_NEWADDR, body, _CREATE, awaited=route)

    def add_device_pair(self, name: str, peer: str) -> None:
        """Make two Ethernet devices joined by a cable (veth), both up, without addresses.

        Raises OSError: EEXIST for a name in use, EOPNOTSUPP on a kernel without veth.
        """
        self._require_inside()
        # veth and not dummy, although one device would often do: kernels for
        # containers and small guests are built without dummy.
        peer_info = _link_header() + _attribute(uapi.IFLA_IFNAME, peer.encode() + b"\0")
        kind = _attribute(uapi.IFLA_INFO_KIND, b"veth")
        data = _attribute(uapi.IFLA_INFO_DATA, _attribute(uapi.VETH_INFO_PEER, peer_info))
        _rtnetlink(
            uapi.RTM_NEWLINK,
            _link_header()
            + _attribute(uapi.IFLA_IFNAME, name.encode() + b"\0")
            + _attribute(uapi.IFLA_LINKINFO, kind + data),
            _CREATE,
        )
        for device in (name, peer):
            _set_up(device)

    def _sysctl(self, name: str) -> Path:
        self._require_inside()
        if not name.startswith("net.") or "/" in name:
            raise ValueError(
                f"{name!r} is not a sysctl of a network namespace, such as 'net.core.somaxconn'"
            )
        # /proc/sys/net shows each thread the namespace that it is in
        # (net_ctl_header_lookup), whatever namespace /proc was mounted from.
        return Path("/proc/sys", *name.split("."))

    def _require_inside(self) -> None:
        if current() != self.identity:
            raise RuntimeError(
                "the calling thread is not in this private network namespace; nothing was changed"
            )


def unshare_network() -> PrivateNetwork:
    """Move the calling thread into a new network namespace with the loopback up.

    With CAP_SYS_ADMIN that is all. Without it, a process of one thread also
    gets a user namespace of its own, in which it appears as root and may do as
    it likes with the new network.

    Raises OSError, most often PermissionError, saying which privilege or sysctl
    is missing: EPERM, ENOSPC for a limit on namespaces, EINVAL for an ordinary
    user's process that has other threads.
    """
    before = current()
    libc = ctypes.CDLL(None, use_errno=True)
    rootless = False
    if libc.unshare(uapi.CLONE_NEWNET) != 0:
        if ctypes.get_errno() != errno.EPERM:
            raise _refusal(ctypes.get_errno())
        # In the new user namespace all ids read as nobody's until mapped.
        user, group = os.geteuid(), os.getegid()
        if libc.unshare(uapi.CLONE_NEWUSER | uapi.CLONE_NEWNET) != 0:
            raise _refusal(ctypes.get_errno())
        rootless = True
        _become_root(user, group)
    identity = current()
    if identity == before:
        raise RuntimeError("unshare(2) succeeded and yet the network namespace is the same")
    _set_up("lo")
    return PrivateNetwork(identity, rootless)


@contextlib.contextmanager
def private_network() -> Iterator[PrivateNetwork]:
    """Run a block in a new network namespace, then return to the former one.

    Enter and leave it in the same thread. An ordinary user's first private
    network comes with a user namespace, from which there is no way back
    (``rootless``): the thread then stays in it, so give it a process of its own,
    or nest the others in the first, between which it can come and go.

    Raises as unshare_network().
    """
    former = open_namespace()
    try:
        network = unshare_network()
        try:
            yield network
        finally:
            if not network.rootless:
                enter(former)
    finally:
        os.close(former)


def _become_root(user: int, group: int) -> None:
    # setgroups must go first: the kernel refuses an ordinary user's gid_map as
    # long as setgroups(2) could drop a group that denies access (CVE-2014-8989).
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {user} 1"),
        ("gid_map", f"0 {group} 1"),
    ):
        try:
            Path("/proc/self", name).write_text(text)
        except OSError as error:
            raise _refusal(error.errno or errno.EPERM) from error


def _refusal(number: int) -> OSError:
    remedies = [remedy for path, value, remedy in _FORBIDDING_SYSCTLS if _reads(path, value)]
    if number == errno.EINVAL:
        remedies.append(
            "call it before the process starts threads: "
            "only a process of one thread may enter a user namespace"
        )
    remedies.append("run as root (CAP_SYS_ADMIN)")
    return OSError(
        number,
        f"{os.strerror(number)}: cannot make a private network namespace; {', or '.join(remedies)}",
    )


def _reads(path: str, value: str) -> bool:
    setting = Path("/proc/sys", path)
    return setting.exists() and setting.read_text().strip() == value


def _set_up(device: str) -> None:
    _rtnetlink(uapi.RTM_NEWLINK, _link_header(socket.if_nametoindex(device), uapi.IFF_UP))


def _link_header(index: int = 0, flags: int = 0) -> bytes:
    return _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, flags, flags)


def _attribute(kind: int, payload: bytes) -> bytes:
    # struct rtattr: length (without the padding to 4 bytes), type, payload.
    return RTATTR.pack(RTATTR.size + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _is_local(route: memoryview) -> bool:
    # A prefix of the address's full length has two routes to it: first one out of
    # the device, then the one that makes the address ours.
    *_, kind, _flags = RTMSG.unpack_from(route)
    return bool(kind == uapi.RTN_LOCAL)


def _rtnetlink(kind: int, body: bytes, flags: int = 0, *, awaited: bytes = b"") -> None:
    # Not NetlinkSocket.request(), which may send a request again if its reply is
    # lost: that is harmless for the questions it is made for, not for changes.
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
