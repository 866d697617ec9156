"""Counters of the calling thread's network namespace, as /proc shows them."""

from __future__ import annotations

from pathlib import Path

#: /proc/net follows the process's first thread; this follows the calling one.
_NET = Path("/proc/thread-self/net")


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
