"""What /proc shows of the calling thread's network namespace: tables, counters, addresses.

Nothing is cached: each call reads its file, which takes 10 to 80 µs. /proc/net follows the
process's first thread, which may be in another namespace; /proc/thread-self/net follows
the calling thread.
"""

from __future__ import annotations

import os
import re
import sys
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Final, NamedTuple

from connectx.addresses import V4_MAPPED
from connectx.linux import sysctl
from connectx.linux.uapi import TCP_TIME_WAIT

_NET: Final = "/proc/thread-self/net/"

_IPV6: Final = "/proc/sys/net/ipv6/conf/"

#: The scope of link-local addresses in /proc/net/if_inet6: IFA_LINK (net/if_inet6.h).
_LINK: Final = "20"

#: The multicast groups that the kernel joins by itself.
_KERNELS_OWN: Final = re.compile(r"224\.0\.0\.[12]|ff0[125]::[12]|ff02::1:ff.*")

#: The timer of a TIME_WAIT in /proc/net/tcp.
_TIME_WAIT_TIMER: Final = "03"

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


def conntrack_is_ours() -> bool:
    """Whether nf_conntrack_max can be set here: only in the machine's first namespace."""
    try:
        return bool(os.stat(f"{_CONNTRACK}max").st_mode & 0o200)  # noqa: PTH116 - a name is all
    except FileNotFoundError:
        return False


def parse_time_wait(text: str) -> int:
    """Return the number after "tw" in the TCP line of /proc/net/sockstat; ValueError without."""
    for line in text.splitlines():
        name, *fields = line.split()
        if name == "TCP:" and "tw" in fields[:-1]:
            return int(fields[fields.index("tw") + 1])
    raise ValueError(f"no number of TIME_WAIT in {_NET}sockstat")


class TcpSocket(NamedTuple):
    """A TCP socket in /proc/net/tcp: its state, and whether only a TIME_WAIT is left of it."""

    state: int
    in_time_wait: bool


def tcp_sockets(
    source: bytes, source_port: int, destination: bytes, destination_port: int
) -> list[TcpSocket]:
    """Find the TCP sockets on a 4-tuple without netlink, in time that grows with all sockets.

    Args:
        source: The octets of an address, or b"" for any.
        source_port: The port.
        destination: The octets of an address: 4, of an IPv4-mapped one too.
        destination_port: The port.

    Raises:
        OSError: /proc is not mounted, or hides the file.
    """
    names = ("tcp6",) if len(destination) == 16 else ("tcp", "tcp6")
    found = []
    for name in names:
        mapped = V4_MAPPED if name == "tcp6" and len(destination) == 4 else b""
        try:
            text = _read(f"{_NET}{name}")
        except FileNotFoundError:
            if mapped:  # A kernel without IPv6.
                continue
            raise
        pattern = (
            f" {_hex(mapped + source) if source else '[0-9A-F]+'}:{source_port:04X} "
            f"{_hex(mapped + destination)}:{destination_port:04X} ([0-9A-F]+) [0-9A-F:]+ ([0-9]+):"
        )
        for state, timer in re.findall(pattern, text):
            number = int(state, 16)
            # A TIME_WAIT shows its substate, which may be FIN_WAIT2 (get_timewait4_sock).
            resting = number == TCP_TIME_WAIT or timer == _TIME_WAIT_TIMER
            found.append(TcpSocket(number, resting))
    return found


def _hex(octets: bytes) -> str:
    """Write an address as /proc/net does: words of 4 octets, each as a number of this machine."""
    words = (octets[at : at + 4] for at in range(0, len(octets), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


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


def multicast_groups() -> set[str]:
    """Return the multicast groups that programs have joined, as text.

    Not those that the kernel joins by itself: all nodes, all routers, and one group for each
    IPv6 address (RFC 4291, section 2.7.1).
    """
    found = set()
    for line in _read(f"{_NET}igmp").splitlines():
        # The number in memory order, as in 010000E0 for 224.0.0.1 on a little-endian machine.
        if line.startswith("\t") and len(octets := line.split()[0]) == 8:
            number = int(octets, 16).to_bytes(4, sys.byteorder)
            found.add(inet_ntop(AF_INET, number))
    try:
        lines = _read(f"{_NET}igmp6").splitlines()
    except FileNotFoundError:
        lines = []
    found |= {inet_ntop(AF_INET6, bytes.fromhex(line.split()[2])) for line in lines}
    return {each for each in found if not _KERNELS_OWN.fullmatch(each)}


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


def link_local_devices() -> tuple[str, ...]:
    """Return the names of the devices that have a link-local IPv6 address."""
    try:
        listing = _read(f"{_NET}if_inet6")
    except FileNotFoundError:
        return ()
    found = [line.split() for line in listing.splitlines()]
    return tuple(dict.fromkeys(each[5] for each in found if each[3] == _LINK))


def ipv4_addresses() -> tuple[str, ...]:
    """Return the namespace's own IPv4 addresses, those of the loopback device too."""
    return parse_ipv4_addresses(_read(f"{_NET}fib_trie"))


def parse_ipv4_addresses(text: str) -> tuple[str, ...]:
    """Return the addresses of the local routes to one host in /proc/net/fib_trie."""
    found = []
    address = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("|-- "):
            address = line.removeprefix("|-- ")
        elif line == "/32 host LOCAL":
            found.append(address)
    return tuple(dict.fromkeys(found))


def devices_without_ipv6() -> tuple[str, ...] | None:
    """Return the devices whose disable_ipv6 is 1, which may include "all".

    Returns:
        None if there are no such sysctls: the kernel was started without IPv6, or has none.
    """
    try:
        names = os.listdir(_IPV6)  # noqa: PTH208 - names are all it takes
    except FileNotFoundError:
        return None
    return tuple(name for name in names if _is_off(name))


def _is_off(device: str) -> bool:
    try:
        return _read(f"{_IPV6}{device}/disable_ipv6").strip() == "1"
    except FileNotFoundError:
        # It has gone.
        return False


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:  # noqa: PTH123 - read anew with each scrape
        return file.read()
