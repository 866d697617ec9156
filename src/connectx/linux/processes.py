"""Which processes own which sockets, and how many descriptors they have left: /proc/PID."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A container's id, as runtimes name control groups after it.
_CONTAINER: Final = re.compile(r"(?:^|[-_:/])([0-9a-f]{64})(?:\.scope)?(?=/|$)")
_UNIT: Final = re.compile(r"([^/]+\.(?:service|scope|slice))(?=/|$)")
_SOCKET: Final = "socket:["

#: How much of a command line is shown, in characters.
_ARGUMENTS: Final = 48


class Process(NamedTuple):
    """A process that has sockets.

    Characters that a terminal would not print are escaped, as in a Python string.

    Attributes:
        pid: Its id in the PID namespace of /proc.
        command: Its name, as in the COMMAND column of ps(1).
        unit: Its systemd unit, or the first 12 digits of its container's id; "" for neither.
        arguments: Its command line, its program without a directory; "" if it has none.
    """

    pid: int
    command: str
    unit: str
    arguments: str = ""

    def __str__(self) -> str:
        unit = f", {self.unit}" if self.unit else ""
        return f"{self.command} ({self.pid}{unit})"

    @property
    def described(self) -> str:
        """The process with its command line, where no service's name says which program it is."""
        if self.arguments in ("", self.command) or self.unit.endswith(".service"):
            return str(self)
        longer = len(self.arguments) > _ARGUMENTS
        return f"{self} [{self.arguments[:_ARGUMENTS]}{'...' if longer else ''}]"


class Owners(NamedTuple):
    """The owners of sockets.

    Attributes:
        by_inode: The processes that have a socket open, usually one, by the socket's inode.
        hidden: The number of processes whose descriptors we may not read. Those of another
            user take CAP_SYS_PTRACE.
    """

    by_inode: dict[int, tuple[Process, ...]]
    hidden: int

    def of(self, inode: int) -> Process | None:
        """Return the owner of a socket: the oldest, where a fork has left several.

        None for a socket without a process, such as one in TIME_WAIT (whose inode is 0),
        and for one whose owner is hidden.
        """
        return min(self.by_inode.get(inode, ()), default=None) if inode else None

    def know(self, inodes: Iterable[int]) -> bool:
        """Return whether the process of each of these sockets is known, if it has one."""
        return all(inode in self.by_inode for inode in inodes if inode)


class Descriptors(NamedTuple):
    """A process's open files, and the limits on them (RLIMIT_NOFILE).

    Attributes:
        used: How many it has open.
        limit: The soft limit, which open() and socket() meet.
        hard: The hard limit, up to which the soft one can be raised without a privilege.
    """

    used: int
    limit: int
    hard: int


def owners() -> Owners:
    """Find the owners of all sockets, with one readlink(2) for each open file of each process.

    Raises:
        OSError: /proc is not mounted.
    """
    found: dict[int, tuple[Process, ...]] = {}
    hidden = 0
    for name in os.listdir("/proc"):  # noqa: PTH208 - a tenth of pathlib's time
        if not name.isdecimal():
            continue
        try:
            inodes = _inodes(f"/proc/{name}/fd")
            process = _process(int(name)) if inodes else None
        except PermissionError:
            hidden += 1
            continue
        except (FileNotFoundError, ProcessLookupError):
            # It has ended meanwhile.
            continue
        for inode in inodes:
            found[inode] = (*found.get(inode, ()), process)  # type: ignore[arg-type]  # see above
    return Owners(found, hidden)


def descriptors(pid: int) -> Descriptors | None:
    """Count a process's descriptors.

    Returns:
        None for a process that has ended, that we may not look into, or that has no limit.
    """
    try:
        used = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - thousands of names
        limits = _read(f"/proc/{pid}/limits")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    (line,) = (each for each in limits.splitlines() if each.startswith("Max open files"))
    soft, hard = line.split()[3:5]
    if soft == "unlimited":
        return None
    return Descriptors(used, int(soft), sys.maxsize if hard == "unlimited" else int(hard))


def socket_descriptors(pid: int) -> dict[int, int]:
    """Return a process's descriptors of sockets, by the socket's inode: of several, the lowest.

    Empty for a process that has ended, or that we may not look into.
    """
    try:
        return _inodes(f"/proc/{pid}/fd")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}


def _inodes(directory: str) -> dict[int, int]:
    """The sockets among a process's descriptors; a socket that was duplicated counts once."""
    inodes: dict[int, int] = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                target = os.readlink(entry.path)  # noqa: PTH115 - as above
            except FileNotFoundError:
                continue
            if target.startswith(_SOCKET):
                inode = int(target[len(_SOCKET) : -1])
                inodes[inode] = min(int(entry.name), inodes.get(inode, sys.maxsize))
    return inodes


def _process(pid: int) -> Process:
    command = _read(f"/proc/{pid}/comm").removesuffix("\n")
    program, *arguments = _read(f"/proc/{pid}/cmdline").rstrip("\0").split("\0")
    return Process(
        pid,
        _printable(command),
        _printable(unit_in(_read(f"/proc/{pid}/cgroup"))),
        _printable(" ".join([program.rpartition("/")[2], *arguments])),
    )


def _printable(name: str) -> str:
    # A process can give itself any name (prctl(2)), which root then reads on a terminal.
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in name
    )


def unit_in(cgroups: str) -> str:
    """Return the systemd unit or the container that /proc/PID/cgroup names; "" for neither."""
    paths = [line.rpartition(":")[2] for line in cgroups.splitlines()]
    for path in paths:
        # The innermost of several: a container may run containers.
        containers = _CONTAINER.findall(path)
        if containers:
            return str(containers[-1][:12])
    for path in paths:
        units = _UNIT.findall(path)
        if units:
            return str(units[-1])
    return ""


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - as above
        return file.read()
