"""What /proc shows of the calling thread's network namespace: tables, counters, addresses.

Nothing is cached: each call reads its file, which takes 10 to 80 µs. /proc/net follows the
process's first thread, which may be in another namespace; /proc/thread-self/net follows
the calling thread.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from connectx.linux import sysctl

_NET: Final = "/proc/thread-self/net/"

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
        parse_time_wait(_read(f"{_NET}sockstat")),
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
    raise ValueError(f"no number of TIME_WAIT in {_NET}sockstat")


def read_tcp_ext(name: str) -> int:
    """A counter of /proc/net/netstat's TcpExt, such as "TCPTimeWaitOverflow".

    Raises OSError where it cannot be read, LookupError where this kernel has none of that name.
    """
    lines = _read(f"{_NET}netstat").splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if names.startswith("TcpExt:"):
            counters = dict(zip(names.split(), values.split(), strict=False))
            return int(counters[name])
    raise LookupError(name)


def ipv6_addresses() -> dict[bytes, int]:
    """The IPv6 addresses that devices have, and their flags; none where IPv6 is off.

    disable_ipv6 leaves the loopback without one, too.
    """
    try:
        listing = _read(f"{_NET}if_inet6")
    except FileNotFoundError:
        return {}
    fields = [line.split() for line in listing.splitlines()]
    return {bytes.fromhex(each[0]): int(each[4], 16) for each in fields}


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:  # noqa: PTH123 - read anew with each scrape
        return file.read()
