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
    """How full a table is: its entries, and how many it may have.

    A limit of 0 stands for no limit in conntrack's table, and for no TIME_WAIT at all in
    the other.
    """

    entries: int
    limit: int


def time_wait() -> Table:
    """Read the number of TIME_WAITs, and net.ipv4.tcp_max_tw_buckets.

    Beyond the limit, connections end without a TIME_WAIT.

    Raises:
        OSError: /proc is not mounted.
        ValueError: A file does not have the number.
    """
    return Table(
        parse_time_wait(_read(f"{_NET}sockstat")),
        sysctl.read_int("tcp_max_tw_buckets"),
    )


def conntrack() -> Table | None:
    """Read the number of tracked connections, and net.netfilter.nf_conntrack_max.

    The limit is one for the machine, and each namespace may have as many entries
    (__nf_conntrack_alloc).

    Returns:
        None if connection tracking is not loaded.

    Raises:
        OSError: The files cannot be read.
    """
    try:
        return Table(int(_read(f"{_CONNTRACK}count")), int(_read(f"{_CONNTRACK}max")))
    except FileNotFoundError:
        return None


def parse_time_wait(text: str) -> int:
    """Return the number after "tw" in the TCP line of /proc/net/sockstat; ValueError without."""
    for line in text.splitlines():
        name, *fields = line.split()
        if name == "TCP:" and "tw" in fields[:-1]:
            return int(fields[fields.index("tw") + 1])
    raise ValueError(f"no number of TIME_WAIT in {_NET}sockstat")


def read_tcp_ext(name: str) -> int:
    """Read a TcpExt counter of /proc/net/netstat, such as "TCPTimeWaitOverflow".

    Raises:
        OSError: The file cannot be read.
        LookupError: This kernel has no counter of that name.
    """
    lines = _read(f"{_NET}netstat").splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if names.startswith("TcpExt:"):
            counters = dict(zip(names.split(), values.split(), strict=False))
            return int(counters[name])
    raise LookupError(name)


def ipv6_addresses() -> dict[bytes, int]:
    """Return the octets and the flags (IFA_F_*) of each IPv6 address in the namespace.

    There is none if IPv6 is off: disable_ipv6 takes ::1 away too.
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
