"""Which processes have a socket: by its inode, from /proc."""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple

#: A container's id, as runtimes name control groups after it.
_CONTAINER: Final = re.compile(r"(?:^|[-_:/])([0-9a-f]{64})(?:\.scope)?(?=/|$)")
_UNIT: Final = re.compile(r"([^/]+\.(?:service|scope|slice))(?=/|$)")
_SOCKET: Final = "socket:["


class Process(NamedTuple):
    """A process that has sockets.

    pid: its id, in the PID namespace of /proc. command: as in ps(1)'s comm.
    unit: systemd's unit, or a container's id of 12 digits; "" for neither.
    What a terminal would not print is escaped in both, as in a string of Python's.
    """

    pid: int
    command: str
    unit: str

    def __str__(self) -> str:
        unit = f", {self.unit}" if self.unit else ""
        return f"{self.command} ({self.pid}{unit})"


class Owners(NamedTuple):
    """Who has which socket.

    by_inode: the processes that have a socket, usually one.
    hidden: processes whose descriptors we may not see: another user's, without
    CAP_SYS_PTRACE.
    """

    by_inode: dict[int, tuple[Process, ...]]
    hidden: int


def owners() -> Owners:
    """The owners of all sockets whose owners may be seen.

    Raises OSError where /proc is not mounted. Cost: a readlink(2) for each descriptor there is.
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


def _inodes(directory: str) -> set[int]:
    """The sockets among a process's descriptors; several of one count once."""
    inodes = set()
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                target = os.readlink(entry.path)  # noqa: PTH115 - as above
            except FileNotFoundError:
                continue
            if target.startswith(_SOCKET):
                inodes.add(int(target[len(_SOCKET) : -1]))
    return inodes


def _process(pid: int) -> Process:
    command = _read(f"/proc/{pid}/comm").removesuffix("\n")
    return Process(pid, _printable(command), _printable(unit_in(_read(f"/proc/{pid}/cgroup"))))


def _printable(name: str) -> str:
    # Any process names itself as it likes (prctl(2)), and root reads that on a terminal.
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in name
    )


def unit_in(cgroups: str) -> str:
    """The systemd unit or the container that /proc/PID/cgroup names; "" for none."""
    paths = [line.rpartition(":")[2] for line in cgroups.splitlines()]
    for path in paths:
        # The innermost, as of units: a container may run containers.
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
