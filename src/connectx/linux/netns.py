"""Network namespaces: which one a thread is in, how to enter one, and how to make one.

Experiments and tests change sysctls, addresses and devices. They must never change those of
the machine itself. So every change is a method of `PrivateNetwork`, a value that exists only
for a namespace that was made here; each method first checks that the calling thread is in
that namespace.

A namespace belongs to a thread, not to a process. unshare(2) and setns(2) move only the
calling thread, and a new thread starts in the namespace of the thread that creates it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.linux import rtnetlink, uapi

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Of the thread, not of the process.
_OWN_NAMESPACE: Final = Path("/proc/thread-self/ns/net")

#: The settings that forbid ordinary users a namespace: the path, the value that forbids, and
#: the remedy. A kernel that lacks the setting lacks the file.
_FORBIDDING_SYSCTLS: Final = (
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
    """What identifies a namespace: the device and the inode of its /proc/*/ns/net file.

    It is unique among live namespaces. The kernel reuses the inode of a dead one
    (namespaces(7)).
    """

    device: int
    inode: int


def current() -> Identity:
    """Return the identity of the calling thread's network namespace."""
    status = _OWN_NAMESPACE.stat()
    return Identity(status.st_dev, status.st_ino)


def identify(descriptor: int) -> Identity:
    """Return the identity of the namespace behind a descriptor from open_namespace()."""
    status = os.fstat(descriptor)
    return Identity(status.st_dev, status.st_ino)


def open_namespace() -> int:
    """Open the calling thread's network namespace and return the descriptor.

    The descriptor keeps the namespace alive, even when no thread is left in it. The caller
    closes it.
    """
    return os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)


def enter(descriptor: int) -> None:
    """Move the calling thread into the namespace behind a descriptor: setns(2).

    Raises:
        PermissionError: EPERM without CAP_SYS_ADMIN in the user namespace that owns the
            target. An ordinary user who has entered a user namespace lacks it for the
            namespace they came from, and so cannot go back.
        OSError: EINVAL if the descriptor is not of a network namespace.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, uapi.CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: cannot enter the network namespace")


@dataclass(frozen=True, slots=True)
class PrivateNetwork:
    """A network namespace that this process made, and the changes that may be made to it.

    Every method raises RuntimeError, and changes nothing, if the calling thread is in another
    namespace.

    Attributes:
        identity: Which namespace it is.
        rootless: Whether it came with a user namespace in which the user is root. The thread
            can then not return to the namespace that it came from.
    """

    identity: Identity
    rootless: bool

    def get_sysctl(self, name: str) -> str:
        """Return the value of a "net." sysctl in this namespace, as /proc/sys shows it."""
        return self._sysctl(name).read_text().strip()

    def set_sysctl(self, name: str, value: str | int) -> None:
        """Set a "net." sysctl in this namespace.

        Raises:
            ValueError: The name does not begin with "net.": it would belong to the machine.
            OSError: EINVAL for a value out of range, EROFS if /proc/sys is mounted read-only,
                EACCES for a setting that only the machine's own namespace may change.
        """
        path = self._sysctl(name)
        try:
            # With a line end: the kernel ignores a write of no octets, so without it a list of
            # ports could not be emptied.
            path.write_text(f"{value}\n")
        except OSError as error:
            error.add_note(f"while setting {name} to {value!r}")
            raise

    def add_address(self, address: str, prefix: int | None = None, device: str = "lo") -> None:
        """Give a device an address; arguments and errors as `rtnetlink.add_address`."""
        self._require_inside()
        rtnetlink.add_address(address, prefix, device)

    def add_device_pair(self, name: str, peer: str) -> None:
        """Add two joined devices; errors as `rtnetlink.add_device_pair`."""
        self._require_inside()
        rtnetlink.add_device_pair(name, peer)

    def _sysctl(self, name: str) -> Path:
        self._require_inside()
        if not name.startswith("net.") or "/" in name:
            raise ValueError(
                f"{name!r} is not a sysctl of a network namespace, such as 'net.core.somaxconn'"
            )
        # /proc/sys/net shows each thread the namespace that it is in (net_ctl_header_lookup),
        # whichever namespace /proc was mounted from.
        return Path("/proc/sys", *name.split("."))

    def _require_inside(self) -> None:
        if current() != self.identity:
            raise RuntimeError(
                "the calling thread is not in this private network namespace; nothing was changed"
            )


def unshare_network() -> PrivateNetwork:
    """Move the calling thread into a new network namespace, and set its loopback up.

    Without CAP_SYS_ADMIN, the process also gets a user namespace of its own, in which it is
    root and may change the new network. Only a process with a single thread can.

    Raises:
        OSError: EPERM; ENOSPC for a limit on namespaces; EINVAL for an ordinary user's process
            that has more than one thread. The message names the missing privilege or the
            sysctl.
    """
    before = current()
    libc = ctypes.CDLL(None, use_errno=True)
    rootless = False
    if libc.unshare(uapi.CLONE_NEWNET) != 0:
        if ctypes.get_errno() != errno.EPERM:
            raise _refusal(ctypes.get_errno())
        # Before: in the new user namespace, every id reads as nobody's until it is mapped.
        user, group = os.geteuid(), os.getegid()
        if libc.unshare(uapi.CLONE_NEWUSER | uapi.CLONE_NEWNET) != 0:
            raise _refusal(ctypes.get_errno())
        rootless = True
        _become_root(user, group)
    identity = current()
    if identity == before:
        raise RuntimeError("unshare(2) succeeded, but the network namespace is the same")
    rtnetlink.set_up("lo")
    return PrivateNetwork(identity, rootless)


@contextlib.contextmanager
def private_network() -> Iterator[PrivateNetwork]:
    """Run a block in a new network namespace, then return to the former one.

    Enter and leave it in the same thread. There is no way back from a ``rootless`` one: the
    thread stays in it. So give an ordinary user's private network a process of its own, or
    nest others in it, between which the thread can come and go.

    Raises:
        OSError: As `unshare_network` does.
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
    # setgroups first: the kernel refuses an ordinary user's gid_map as long as setgroups(2)
    # could drop a group that denies access (CVE-2014-8989).
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
