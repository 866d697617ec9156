"""Counters of the calling thread's network namespace, as /proc shows them."""

from __future__ import annotations

from pathlib import Path

#: /proc/net follows the process's first thread; this follows the calling one.
_NET = Path("/proc/thread-self/net")
_CONNTRACK = Path("/proc/sys/net/netfilter")


def read_tcp_ext(name: str) -> int:
    """A counter of /proc/net/netstat's TcpExt, such as "TCPTimeWaitOverflow".

    Raises OSError where it cannot be read, LookupError where this kernel has none of that name.
    """
    lines = (_NET / "netstat").read_text("ascii").splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if names.startswith("TcpExt:"):
            counters = dict(zip(names.split(), values.split(), strict=False))
            return int(counters[name])
    raise LookupError(name)


def read_time_waits() -> int:
    """How many TIME_WAITs there are, of both IP versions (/proc/net/sockstat). Raises OSError."""
    for line in (_NET / "sockstat").read_text("ascii").splitlines():
        fields = line.split()
        if fields[0] == "TCP:":
            return int(fields[fields.index("tw") + 1])
    return 0


def read_conntrack() -> tuple[int, int] | None:
    """Tracked connections, and as many as there may be; None where none are tracked.

    Raises OSError where it cannot be read.
    """
    try:
        count = int((_CONNTRACK / "nf_conntrack_count").read_text())
        most = int((_CONNTRACK / "nf_conntrack_max").read_text())
    except FileNotFoundError:
        return None
    return count, most
