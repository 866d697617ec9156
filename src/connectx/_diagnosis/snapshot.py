"""The source ports in use, counted per source and destination.

A 4-tuple is what the kernel keeps unique: a port that is in use toward one destination is
free toward every other. So ports are counted per source and destination, and compared with
the ports that the source has toward the destination: those of the range that are neither
reserved nor held by a socket that refuses to share its port.

A snapshot takes time, and what opens or closes meanwhile may be missing, or counted twice.
So may, rarely, a socket that shares a hash bucket with one that does: the kernel finds its
place in the table again by counting (tests/kernel/test_dumps.py).

A snapshot does not show:

- which ports are locked by sockets that were bound before they connected: SOCK_DIAG does
  not report it, and `connectx._diagnosis.census.locked` has to try;
- which connections were accepted, once nobody listens on their port any more.
"""

from __future__ import annotations

import datetime as dt
import os
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx._diagnosis.facts import Row, Snapshot
from connectx.addresses import (
    PROTOCOLS,
    Endpoint,
    PortRange,
    family_of,
    needs_scope,
    ports_in,
    text,
    unmapped,
    with_scope,
)
from connectx.linux import sysctl
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.sock_diag import ALL_STATES
from connectx.linux.socket_dump import (
    UNCONNECTED,
    Filter,
    filter_between,
    records,
    source_ports,
    tally,
    with_v6only,
)
from connectx.linux.time_wait import read_reuse
from connectx.linux.uapi import (
    AF_INET,
    AF_INET6,
    IPPROTO_TCP,
    NETLINK_SOCK_DIAG,
    STATE_NAMES,
    TCP_TIME_WAIT,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from connectx.linux.processes import Owners, Process
    from connectx.linux.sock_diag import SocketRecord
    from connectx.linux.socket_dump import Group
    from connectx.linux.time_wait import Reuse

#: The protocols whose sockets are counted. MPTCP's are TCP's.
COUNTED: Final = ("tcp", "udp", "udplite")

#: The ranges of ports in one dump: for each socket, the kernel tries one after the other.
_RANGES_IN_A_DUMP: Final = 1000

#: As many pairs are asked about one by one. Each dump walks the protocol's whole table.
_FEW: Final = 4

_ANYWHERE: Final = Endpoint("", 0)
_TIME_WAIT: Final = STATE_NAMES[TCP_TIME_WAIT]


def take(
    protocols: Iterable[str],
    ports: PortRange | None = None,
    source: str = "",
    destination: Endpoint = _ANYWHERE,
    owners: Owners | None = None,
) -> Snapshot:
    """Count the source ports in use in the calling thread's network namespace.

    Args:
        protocols: Some of `COUNTED`.
        ports: The range to count in; None for net.ipv4.ip_local_port_range.
        source: Count only this source address; "" for all.
        destination: Count only this destination; host "" and port 0 for any.
        owners: The owners of sockets, if processes are to be counted.

    Raises:
        ValueError: A protocol is unknown, a host is no IP address, or the two ends do not
            go together.
        OSError: ENODEV for an interface that does not exist; ENOENT (NetlinkError) where
            this kernel cannot list a protocol's sockets.
    """
    names = list(dict.fromkeys(protocols))
    for name in names:
        if name not in COUNTED:
            raise ValueError(f"a protocol is one of {', '.join(map(repr, COUNTED))}, not {name!r}")
    with NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        taken_at = dt.datetime.now(dt.UTC)
        ports = ports or sysctl.read_port_range()
        reserved = ports_in(sysctl.read_reserved_ports()) & set(range(ports.low, ports.high + 1))
        rows: list[Row] = []
        held, unshared = {}, {}
        for name in names:
            table = PROTOCOLS[name].table
            asked = filter_between(table, ALL_STATES & ~UNCONNECTED, source, destination)
            holding = _read_held(netlink, table, ports, reserved)
            held[name] = len(set().union(*holding.by_family.values()))
            rows += _rows(netlink, name, asked, holding, ports, reserved, owners)
            if table != IPPROTO_TCP:
                used = source_ports(netlink, Filter(table, ports=(ports,)))
                unshared[name] = ports.size - len(used | reserved)
        netns = os.readlink("/proc/thread-self/ns/net")  # noqa: PTH115 - the text itself
    rows.sort(key=lambda row: (-row.utilisation, -row.in_use, row[:3]))
    return Snapshot(taken_at, netns, ports, len(reserved), held, tuple(rows), unshared)


class _Held(NamedTuple):
    """The ports that sockets without a destination hold.

    by_family: those that no source address of an IP version can use.
    by_source: those that one source address, with its scope, cannot use.
    """

    by_family: Mapping[int, set[int]]
    by_source: Mapping[tuple[bytes, int], set[int]]


def _read_held(netlink: NetlinkSocket, table: int, ports: PortRange, reserved: set[int]) -> _Held:
    """Find the ports of a range that are held and not reserved.

    connect() passes over a TCP port that is bound on any address of either IP version
    (__inet_hash_connect), and over a UDP port that is bound on its own address, or on the
    wildcard of its IP version. "::" is the wildcard of both, without IPV6_V6ONLY.
    """
    by_family: dict[int, set[int]] = {AF_INET: set(), AF_INET6: set()}
    by_source: defaultdict[tuple[bytes, int], set[int]] = defaultdict(set)
    for record, v6only in with_v6only(netlink, Filter(table, UNCONNECTED, ports=(ports,))):
        if record.source_port in reserved:
            continue
        source = unmapped(record.source)
        if table == IPPROTO_TCP or not any(source):
            if table == IPPROTO_TCP or len(source) == 4 or not v6only:
                by_family[AF_INET].add(record.source_port)
            if table == IPPROTO_TCP or len(source) == 16:
                by_family[AF_INET6].add(record.source_port)
        else:
            scope = record.interface if needs_scope(source) else 0
            by_source[source, scope].add(record.source_port)
    return _Held(by_family, by_source)


class _Ends(NamedTuple):
    """The connections that are counted together.

    source, destination: octets, IPv4's of an IPv4-mapped address.
    scope: the interface index, if one of the two needs it.
    """

    source: bytes
    destination: bytes
    port: int
    scope: int

    @classmethod
    def of(cls, source: bytes, destination: bytes, port: int, interface: int) -> _Ends:
        """The ends of sockets, as a dump reports them."""
        source, destination = unmapped(source), unmapped(destination)
        # The interface of other addresses (SO_BINDTODEVICE) does not count. Each device does
        # have a 4-tuple of its own, but one socket that is bound to no device shuts it for
        # all of them (tests/kernel/test_devices.py).
        scope = interface if needs_scope(source) or needs_scope(destination) else 0
        return cls(source, destination, port, scope)


class _Count:
    """The connections between two ends, counted as a `Row` has them."""

    __slots__ = ("hidden", "processes", "reusable", "states")

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.processes: Counter[Process | None] = Counter()
        self.reusable = 0
        self.hidden = 0


def _rows(
    netlink: NetlinkSocket,
    name: str,
    asked: Filter,
    held: _Held,
    ports: PortRange,
    reserved: set[int],
    owners: Owners | None,
) -> Iterator[Row]:
    """Count a protocol's connections from ports that are neither held nor reserved."""
    left = {family: _without(ports, reserved | shut) for family, shut in held.by_family.items()}
    capacity = {family: sum(each.size for each in ranges) for family, ranges in left.items()}
    dumps = _dumps(asked, left)
    counts = _count(netlink, dumps, owners)
    if PROTOCOLS[name].stream:
        _count_reusable(netlink, dumps, counts, read_reuse())
    for ends, count in counts.items():
        source, destination, port, scope = ends
        family = family_of(source)
        own = held.by_source.get((source, scope), set()) - held.by_family[family]
        if source == destination and any(each.contains(port) for each in left[family]):
            # From there a socket would be connected to itself.
            own = own | {port}
        yield Row(
            name,
            with_scope(text(source), scope if needs_scope(source) else 0),
            Endpoint(text(destination), port, 0, scope if needs_scope(destination) else 0),
            sum(count.states.values()),
            capacity[family] - len(own),
            dict(count.states),
            {} if owners is None else dict(count.processes),
            count.reusable,
            count.hidden,
        )


def _dumps(asked: Filter, left: Mapping[int, Sequence[PortRange]]) -> list[Filter]:
    """The dumps that show the wanted connections from the ports that are left."""
    if asked.family is not None:
        families: tuple[int | None, ...] = (asked.family,)
    elif left[AF_INET] == left[AF_INET6]:
        # Both in one dump, which takes half the time.
        families = (None,)
    else:
        families = (AF_INET, AF_INET6)
    return [
        asked._replace(family=family, ports=tuple(ranges[start : start + _RANGES_IN_A_DUMP]))
        for family in families
        for ranges in [left[family or AF_INET]]
        for start in range(0, len(ranges), _RANGES_IN_A_DUMP)
    ]


def _count(
    netlink: NetlinkSocket, dumps: Iterable[Filter], owners: Owners | None
) -> dict[_Ends, _Count]:
    found: defaultdict[_Ends, _Count] = defaultdict(_Count)
    for wanted in dumps:
        sockets: Iterable[tuple[Group | SocketRecord, int, int, Process | None]]
        if owners is None:
            sockets = ((group, n, 0, None) for group, n in tally(netlink, wanted).items())
        else:
            sockets = (
                (each, 1, each.inode, owners.of(each.inode)) for each in records(netlink, wanted)
            )
        for each, number, inode, owner in sockets:
            ends = _Ends.of(each.source, each.destination, each.destination_port, each.interface)
            # A dump of AF_INET6 also has IPv4-mapped sockets.
            if wanted.family != AF_INET6 or len(ends.source) == 16:
                count = found[ends]
                count.states[each.state_name] += number
                count.processes[owner] += number
                if inode and owner is None:
                    count.hidden += number
    return found


def _count_reusable(
    netlink: NetlinkSocket,
    dumps: Sequence[Filter],
    counts: Mapping[_Ends, _Count],
    reuse: Reuse,
) -> None:
    """Add how many TIME_WAITs a connect() may take over now.

    Makes no system call unless there are some between addresses that allow it.
    """
    pairs = [
        ends
        for ends, count in counts.items()
        if _TIME_WAIT in count.states and reuse.applies(ends.source, ends.destination)
    ]
    if not pairs:
        return
    if len(pairs) <= _FEW:
        dumps = [
            wanted._replace(
                source=source,
                destination=destination,
                destination_port=port,
                interface=scope,
                family=family_of(source),
            )
            for source, destination, port, scope in pairs
            for wanted in dumps
        ]
    for wanted in dumps:
        # Counted as the dump reports them first, since there may be one for each port.
        takable = Counter(
            (each.source, each.destination, each.destination_port, each.interface)
            for each in records(netlink, wanted._replace(states=1 << TCP_TIME_WAIT))
            if reuse.takes(each)
        )
        for between, number in takable.items():
            ends = _Ends.of(*between)
            if ends in counts:
                counts[ends].reusable += number
    for ends in pairs:
        # Some may have come since they were counted.
        counts[ends].reusable = min(counts[ends].reusable, counts[ends].states[_TIME_WAIT])


def _without(ports: PortRange, holes: Collection[int]) -> list[PortRange]:
    """What is left of a range, in order."""
    ranges = []
    low = ports.low
    for hole in [*sorted(holes), ports.high + 1]:
        if low < hole:
            ranges.append(PortRange(low, hole - 1))
        low = hole + 1
    return ranges
