"""How many source ports are in use: counted, added up, and looked at closer.

What is counted, and what a snapshot cannot show, is described in
`connectx._diagnosis.snapshot`, which does the counting.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from connectx._diagnosis.facts import Row, Snapshot
from connectx._diagnosis.snapshot import COUNTED, take
from connectx.addresses import PROTOCOLS, Endpoint
from connectx.linux import sysctl
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.processes import owners
from connectx.linux.sock_diag import ALL_STATES
from connectx.linux.socket_dump import UNCONNECTED, filter_between, records
from connectx.linux.uapi import NETLINK_SOCK_DIAG
from connectx.observe.namespace import visiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from connectx.addresses import PortRange
    from connectx.linux.processes import Process
    from connectx.observe.history import Pair

__all__ = [
    "COUNTED",
    "GROUPINGS",
    "UNKNOWN",
    "Detail",
    "Group",
    "Row",
    "Snapshot",
    "group",
    "look_at",
    "snapshot",
]

#: The name of the group of sockets whose process is not known.
UNKNOWN: Final = "nobody's, or hidden"


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

    Connections that a listener accepted are not counted. What opens or closes meanwhile may
    be missing, or counted twice.

    Args:
        protocols: Some of "tcp", "udp" and "udplite".
        netns: Another network namespace, by name, path or pid, which takes CAP_SYS_ADMIN.
        port_range: The ports to count in; net.ipv4.ip_local_port_range by default.
        source: Count only this source address, which may name an interface, as in
            "fe80::9%eth0"; "" for all.
        destination: Count only this destination; host "" and port 0 for any.
        processes: Whether to count by process too. This reads every open file of every
            process.

    Raises:
        ValueError: A protocol is unknown, a host is no IP address, or the two ends do not go
            together.
        OSError: ENODEV for an interface that does not exist; EPERM or ENOENT for a namespace
            that cannot be entered; ENOENT (NetlinkError) if this kernel cannot list a
            protocol's sockets.
    """
    with visiting(netns):
        return take(
            protocols,
            port_range,
            source,
            destination or Endpoint("", 0),
            owners() if processes else None,
        )


class Detail(NamedTuple):
    """The connections of a pair.

    Attributes:
        states: The number of connections by state, as ss(8) names it.
        processes: The number of connections by owner. None stands for connections without
            an owner, as in TIME_WAIT, and for owners that we may not see.
        hidden: The number of processes whose descriptors we may not read; 0 where none of them
            can be an owner of these connections.
        within: The range in which they were looked for.
        ports: Their source ports in the range, in order, including reserved ones, which a
            snapshot leaves out.
    """

    states: Mapping[str, int]
    processes: Mapping[Process | None, int]
    hidden: int
    within: PortRange
    ports: tuple[int, ...]


def look_at(pair: Pair, *, netns: str | None = None, port_range: PortRange | None = None) -> Detail:
    """Look closer at a pair's connections; arguments and errors are those of `snapshot`.

    This reads every open file of every process, beside the pair's own connections.
    """
    protocol, source, destination = pair
    with visiting(netns), NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        within = port_range or sysctl.read_port_range()
        wanted = filter_between(
            PROTOCOLS[protocol].table, ALL_STATES & ~UNCONNECTED, source, destination, (within,)
        )
        found = records(netlink, wanted)
        known = owners()
    return Detail(
        Counter(record.state_name for record in found),
        Counter(known.of(record.inode) for record in found),
        known.hidden if any(each.inode and known.of(each.inode) is None for each in found) else 0,
        within,
        tuple(sorted({record.source_port for record in found})),
    )


#: What the connections of a group have in common.
Common: TypeAlias = "str | Process | None"


class Group(NamedTuple):
    """Connections that have something in common.

    Attributes:
        protocol: "tcp", "udp" or "udplite".
        name: What they have in common: a source, a destination, a process or a state.
        in_use: The number of connections.
        pairs: The number of pairs of a source and a destination that they belong to.
        capacity: For a destination, the ports of all the sources that it is reached from;
            None for other groups, since ports are counted per destination.
        fullest: The one of the pairs that is nearest to exhaustion.
        process: For a process, which one; None if it is not known, and for other groups.
    """

    protocol: str
    name: str
    in_use: int
    pairs: int
    capacity: int | None
    fullest: Row
    process: Process | None = None


def _sources(row: Row) -> Iterator[tuple[Common, int]]:
    yield row.source, row.in_use


def _destinations(row: Row) -> Iterator[tuple[Common, int]]:
    yield str(row.destination), row.in_use


def _processes(row: Row) -> Iterator[tuple[Common, int]]:
    yield from row.processes.items()


def _states(row: Row) -> Iterator[tuple[Common, int]]:
    yield from row.states.items()


#: What to group by: what a row's connections have in common with others, with how many each.
GROUPINGS: Final[Mapping[str, Callable[[Row], Iterator[tuple[Common, int]]]]] = {
    "source": _sources,
    "destination": _destinations,
    "process": _processes,
    "state": _states,
}


def group(rows: Iterable[Row], by: str) -> list[Group]:
    """Add up rows by what they have in common, the largest group first.

    Args:
        rows: Rows of a snapshot, with processes if these are grouped by.
        by: One of `GROUPINGS`.
    """
    members: dict[tuple[str, Common], list[tuple[Row, int]]] = {}
    for row in rows:
        for common, number in GROUPINGS[by](row):
            members.setdefault((row.protocol, common), []).append((row, number))
    groups = [
        Group(
            protocol,
            UNKNOWN if common is None else str(common),
            sum(number for _, number in some),
            len(some),
            sum(row.capacity for row, _ in some) if by == "destination" else None,
            max((row for row, _ in some), key=lambda row: row.utilisation),
            None if isinstance(common, str) else common,
        )
        for (protocol, common), some in members.items()
    ]
    return sorted(groups, key=lambda each: (-each.in_use, each[:2]))
