"""Tables that fill up as connections come and go: conntrack's, and that of TIME_WAIT.

Both belong to the calling thread's network namespace; each call reads anew. Cost: about
20 µs together.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from connectx.linux import sysctl

#: Of the thread, not of the process: a thread may have moved to another namespace.
_SOCKSTAT: Final = "/proc/thread-self/net/sockstat"

_CONNTRACK: Final = "/proc/sys/net/netfilter/nf_conntrack_"


class Table(NamedTuple):
    """How full a table is: its entries, and how many there may be; a limit of 0 is none."""

    entries: int
    limit: int


def time_wait() -> Table:
    """TIME_WAIT's, against net.ipv4.tcp_max_tw_buckets: beyond that, closes skip TIME_WAIT.

    Raises OSError where /proc is not mounted; ValueError for a file that says nothing of it.
    """
    return Table(
        parse_time_wait(_read(_SOCKSTAT)),
        sysctl.read_int("tcp_max_tw_buckets"),
    )


def conntrack() -> Table | None:
    """Connection tracking's, against net.netfilter.nf_conntrack_max; None where it is not loaded.

    The limit is the machine's, and is compared with each namespace's entries by themselves
    (__nf_conntrack_alloc).

    Raises OSError.
    """
    try:
        return Table(int(_read(f"{_CONNTRACK}count")), int(_read(f"{_CONNTRACK}max")))
    except FileNotFoundError:
        return None


def parse_time_wait(text: str) -> int:
    """The number after "tw" in /proc/net/sockstat's line for TCP; ValueError without one."""
    for line in text.splitlines():
        name, *fields = line.split()
        if name == "TCP:" and "tw" in fields[:-1]:
            return int(fields[fields.index("tw") + 1])
    raise ValueError(f"no number of TIME_WAIT in {_SOCKSTAT}")


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:  # noqa: PTH123 - read anew with each scrape
        return file.read()
