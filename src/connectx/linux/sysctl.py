"""Sysctls about ports, in the calling thread's network namespace.

Those of net.ipv4 apply to IPv6 too. /proc/sys/net shows the namespace of the thread that
opens a file (net_ctl_header_lookup in net/sysctl_net.c), and a thread may move to another
namespace, so each call opens its file anew, which takes about 3 µs.
"""

from __future__ import annotations

import errno
import io
import os
from typing import Final

from connectx.addresses import HIGHEST_PORT, PortRange

_DIRECTORY: Final = "/proc/sys/net/ipv4/"

#: Octets, enough for any list of reserved ports: 32,768 of 6 octets are 192 KiB.
_WHOLE: Final = 1 << 20


def read_port_range() -> PortRange:
    """Read net.ipv4.ip_local_port_range, from which the kernel picks source ports.

    Raises:
        OSError: As `read` does.
    """
    return parse_port_range(read("ip_local_port_range"))


def read_reserved_ports() -> tuple[PortRange, ...]:
    """Read net.ipv4.ip_local_reserved_ports, which the kernel excludes, in ascending order.

    Raises:
        OSError: As `read` does.
    """
    return parse_reserved_ports(read("ip_local_reserved_ports"))


def read_unprivileged_port_start() -> int:
    """Read net.ipv4.ip_unprivileged_port_start: lower ports need CAP_NET_BIND_SERVICE.

    Before Linux 4.11 there is no such sysctl, and 1024 is built in.

    Raises:
        OSError: As `read` does.
    """
    return read_int("ip_unprivileged_port_start")


def read_port_step_width() -> int:
    """Read net.ipv4.ip_local_port_step_width, which bounds the steps of connect()'s search.

    0, the default, means no such bound: a search goes on port by port. So it does before Linux
    7.1, where there is no such sysctl.

    Raises:
        OSError: As `read` does, but for a kernel that lacks it.
    """
    try:
        return read_int("ip_local_port_step_width")
    except FileNotFoundError:
        if os.access(_DIRECTORY, os.F_OK):
            return 0
        raise


def read_int(name: str) -> int:
    """Read a sysctl of net.ipv4 that is a number, such as "tcp_tw_reuse".

    Raises:
        OSError: As `read` does.
        ValueError: It is not a number.
    """
    return int(read(name))


def read(name: str) -> str:
    """Read a sysctl of net.ipv4 as text; its name is given without "net.ipv4.".

    Raises:
        OSError: ENOENT if this kernel has none of that name, or if /proc is not mounted or
            hides it; the message says which.
    """
    try:
        # An object and not a descriptor: a signal's exception that comes before the next line
        # would leave that open for good.
        file = io.FileIO(_DIRECTORY + name)
    except FileNotFoundError as error:
        cause = (
            f"this kernel has no sysctl net.ipv4.{name}"
            if os.access(_DIRECTORY, os.F_OK)
            else f"cannot read the sysctl net.ipv4.{name}: is /proc mounted?"
        )
        raise FileNotFoundError(errno.ENOENT, cause, _DIRECTORY + name) from error
    except PermissionError as error:
        cause = f"cannot read the sysctl net.ipv4.{name}: {error.strerror}"
        raise PermissionError(error.errno, cause, _DIRECTORY + name) from error
    with file:
        text = file.read(4096)
        if len(text) == 4096:
            # The kernel writes a bitmap in one go and cuts off what does not fit. A second
            # read at the new offset returns nothing (proc_do_large_bitmap), so
            # open().read() would lose the rest silently.
            text = os.pread(file.fileno(), _WHOLE, 0)
    return text.decode("ascii")


def parse_port_range(text: str) -> PortRange:
    """Return the range in "32768 60999"; ValueError for anything but two ports in order."""
    fields = text.split()
    if len(fields) != 2:
        raise ValueError(f"not a range of ports: {text!r}")
    return _range(*fields)


def parse_reserved_ports(text: str) -> tuple[PortRange, ...]:
    """Return the ranges in "8080,9148,10000-20000", or in an empty list; ValueError otherwise."""
    listed = text.strip()
    if not listed:
        return ()
    ranges = []
    for item in listed.split(","):
        low, hyphen, high = item.partition("-")
        ranges.append(_range(low, high if hyphen else low))
    return tuple(ranges)


def _range(low: str, high: str) -> PortRange:
    for port in (low, high):
        # int() would also take signs, blanks, underscores and other scripts' digits.
        if not (port.isascii() and port.isdigit()) or int(port) > HIGHEST_PORT:
            raise ValueError(f"not a port: {port!r}")
    if int(low) > int(high):
        raise ValueError(f"not a range of ports: {low!r} to {high!r}")
    return PortRange(int(low), int(high))
