"""How many source ports are in use, from each source toward each destination.

What counts is a 4-tuple: a port that is in use toward one destination is free toward
every other. Of the range in force, reserved ports and ports that refuse to be shared
(listeners, and sockets that are bound and not connected) are no part of the capacity.

UDP sockets share a port only with SO_REUSEADDR, as connectx makes them. What a plain
connect() or sendto() needs is a port that no socket has at all: `Snapshot.unshared`.

Two things do not show in a snapshot. Sockets that were bound before they connected lock
their port to connect() toward every destination, which nothing tells of them
(connectx._diagnosis.locked finds it out by trying). And connections that were accepted look
like ones that were made, once nobody listens on their port any more.
"""

from __future__ import annotations

import datetime as dt
import os
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.addresses import (
    PROTOCOLS,
    Endpoint,
    PortRange,
    family_of,
    needs_scope,
    text,
    with_scope,
)
from connectx.linux import sysctl
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.processes import owners
from connectx.linux.reuse import read_reuse
from connectx.linux.sock_diag import ALL_STATES
from connectx.linux.socket_dump import UNCONNECTED, Filter, filter_between, source_ports
from connectx.linux.uapi import IPPROTO_TCP, NETLINK_SOCK_DIAG
from connectx.observe.counting import count, count_reusable, dumps
from connectx.observe.holders import read_holders
from connectx.observe.namespace import visiting

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from connectx.linux.processes import Process
    from connectx.observe.counting import Count, Ends
    from connectx.observe.holders import Holders

#: The protocols whose sockets are counted. MPTCP's are TCP's.
COUNTED: Final = ("tcp", "udp", "udplite")


class Row(NamedTuple):
    """The ports of one source address in use toward one destination.

    protocol: "tcp", "udp" or "udplite".
    source: an IP address, link-local ones with their scope: "fe80::7%2".
    in_use: its sockets. capacity: ports that there are for it; it may be exceeded where
    sockets are bound to several devices, or share a 4-tuple against all rules.
    states: connections by state, as ss(8) names it. processes: by owner, if they were
    asked for; None is nobody's, as in TIME_WAIT, or somebody's whom we may not see.
    reusable: TIME_WAITs among those in use that a connect() may take over now, if the port
    was chosen by a connect() and the peer has timestamps, too.
    """

    protocol: str
    source: str
    destination: Endpoint
    in_use: int
    capacity: int
    states: Mapping[str, int]
    processes: Mapping[Process | None, int]
    reusable: int = 0

    @property
    def taken(self) -> int:
        """Ports in use that cannot be had now."""
        return self.in_use - self.reusable

    @property
    def utilisation(self) -> float:
        """The share of the ports that cannot be had now, 0 to 1."""
        return self.taken / self.capacity if self.capacity else 1.0

    @property
    def free(self) -> int:
        """How many more connections there can be now."""
        return max(0, self.capacity - self.taken)


class Snapshot(NamedTuple):
    """The ports in use in a network namespace.

    netns: what readlink(2) gives for the namespace's file, such as "net:[4026531833]".
    ports: the range they are counted in. reserved: how many of them
    net.ipv4.ip_local_reserved_ports keeps out. held: by protocol, how many listeners and
    sockets that are bound only have for themselves, on every address of an IP version.
    rows: the fullest first.
    unshared: for UDP and UDP-Lite, how many ports no socket has at all. A socket without
    SO_REUSEADDR needs one of these whatever its destination is, since connect() binds it to
    every address first (inet_autobind); of IPv4, it may also have one that is bound to an
    IPv6 address alone.
    """

    taken_at: dt.datetime
    netns: str
    ports: PortRange
    reserved: int
    held: Mapping[str, int]
    rows: tuple[Row, ...]
    unshared: Mapping[str, int] = MappingProxyType({})


def snapshot(
    *,
    protocols: Iterable[str] = ("tcp", "udp"),
    netns: str | None = None,
    port_range: PortRange | None = None,
    source: str = "",
    destination: Endpoint | None = None,
    processes: bool = False,
) -> Snapshot:
    """Count the source ports in use, per protocol, source address and destination.

    protocols: of "tcp", "udp", "udplite".
    netns: another network namespace, by name, path or pid; CAP_SYS_ADMIN in it.
    port_range: ports to count; net.ipv4.ip_local_port_range by default.
    source, destination: count only these; of the destination, "" and 0 mean any. An
    address may name a device, as in "fe80::9%eth0".
    processes: find out whose the sockets are too, which costs a look at every process.

    Of something that changes: what opens or closes meanwhile may be missing, or there
    twice, and so may, rarely, something else beside it (see socket_dump.dump).
    Connections that came in at a listener do not count.

    Raises ValueError for unknown protocols and for what is no address; OSError as
    `connectx.observe.namespace.visiting` does, for a device that there is not (ENODEV), and
    NetlinkError where this kernel cannot list a protocol's sockets (ENOENT).
    """
    wanted = list(dict.fromkeys(protocols))
    for name in wanted:
        if name not in COUNTED:
            raise ValueError(f"a protocol is one of {', '.join(map(repr, COUNTED))}, not {name!r}")
    toward = destination or Endpoint("", 0)
    with visiting(netns), NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        taken_at = dt.datetime.now(dt.UTC)
        ports = port_range or sysctl.read_port_range()
        reserved = _set_of(sysctl.read_reserved_ports(), ports)
        known = owners().by_inode if processes else None
        rows: list[Row] = []
        held, unshared = {}, {}
        for name in wanted:
            protocol = PROTOCOLS[name].table
            family, asked = filter_between(protocol, ALL_STATES & ~UNCONNECTED, source, toward)
            holders = read_holders(netlink, protocol, ports, reserved)
            held[name] = len(set().union(*holders.everywhere.values()))
            rows += _rows(netlink, name, asked, family, holders, ports, reserved, known)
            if protocol != IPPROTO_TCP:
                used = source_ports(netlink, Filter(protocol, ports=(ports,)))
                unshared[name] = ports.size - len(used | reserved)
        where = os.readlink("/proc/thread-self/ns/net")  # noqa: PTH115 - the text itself
    rows.sort(key=lambda row: (-row.utilisation, -row.in_use, row[:3]))
    return Snapshot(taken_at, where, ports, len(reserved), held, tuple(rows), unshared)


def _rows(
    netlink: NetlinkSocket,
    name: str,
    asked: Filter,
    family: int | None,
    holders: Holders,
    ports: PortRange,
    reserved: set[int],
    known: Mapping[int, tuple[Process, ...]] | None,
) -> Iterator[Row]:
    """The connections of a protocol, on ports that are neither held nor reserved."""
    left = {each: without(ports, reserved | shut) for each, shut in holders.everywhere.items()}
    total = {each: sum(some.size for some in ranges) for each, ranges in left.items()}
    wanted = dumps(asked, family, left)
    found = count(netlink, wanted, known)
    if asked.protocol == IPPROTO_TCP:
        count_reusable(netlink, wanted, found, read_reuse())
    for ends, each in found.items():
        own = holders.own_of(ends.source, ends.scope)
        yield _row(name, ends, each, total[family_of(ends.source)] - len(own))


def _row(name: str, ends: Ends, counted: Count, capacity: int) -> Row:
    source, destination, port, scope = ends
    return Row(
        name,
        with_scope(text(source), scope if needs_scope(source) else 0),
        Endpoint(text(destination), port, 0, scope if needs_scope(destination) else 0),
        sum(counted.states.values()),
        capacity,
        dict(counted.states),
        dict(counted.processes),
        counted.reusable,
    )


def _set_of(holes: Iterable[PortRange], within: PortRange) -> set[int]:
    return {
        port
        for hole in holes
        for port in range(max(hole.low, within.low), min(hole.high, within.high) + 1)
    }


def without(ports: PortRange, holes: Collection[int]) -> list[PortRange]:
    """What is left of a range, in order."""
    ranges = []
    low = ports.low
    for hole in [*sorted(holes), ports.high + 1]:
        if low < hole:
            ranges.append(PortRange(low, hole - 1))
        low = hole + 1
    return ranges
