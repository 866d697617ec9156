"""How many source ports are in use, from each source toward each destination.

What counts is a 4-tuple: a port that is in use toward one destination is free toward
every other. Of the range in force, reserved ports and ports that refuse to be shared
(listeners, and sockets that are bound and not connected) are no part of the capacity.
"""

from __future__ import annotations

import datetime as dt
import os
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from connectx.addresses import Endpoint, PortRange
from connectx.linux import sysctl
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.sock_diag import ALL_STATES
from connectx.linux.socket_dump import UNCONNECTED, Filter, records, tally
from connectx.linux.tcp_states import STATE_NAMES
from connectx.linux.uapi import (
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPPROTO_UDPLITE,
    NETLINK_SOCK_DIAG,
)
from connectx.observe.namespace import visiting
from connectx.observe.octets import packed, text_of, unmapped
from connectx.observe.processes import owners

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from connectx.observe.processes import Process

#: By name, as in FourTuple. MPTCP's subflows are TCP's sockets.
PROTOCOLS: Final = {"tcp": IPPROTO_TCP, "udp": IPPROTO_UDP, "udplite": IPPROTO_UDPLITE}

#: Ranges of ports in one dump: the kernel tries them one after the other for each socket.
_RANGES: Final = 1000


class Row(NamedTuple):
    """The ports of one source address in use toward one destination.

    protocol: "tcp", "udp" or "udplite". source: an IP address.
    capacity: ports that there are for it; one that is in use against all rules may exceed it.
    states: connections by state, as ss(8) names it. processes: by owner, if they were
    asked for; None is nobody's, as in TIME_WAIT, or somebody's whom we may not see.
    """

    protocol: str
    source: str
    destination: Endpoint
    in_use: int
    capacity: int
    states: Mapping[str, int]
    processes: Mapping[Process | None, int]

    @property
    def utilisation(self) -> float:
        """The share of the ports that are in use, 0 to 1."""
        return self.in_use / self.capacity if self.capacity else 1.0

    @property
    def free(self) -> int:
        """How many more connections there can be."""
        return max(0, self.capacity - self.in_use)


class Snapshot(NamedTuple):
    """The ports in use in a network namespace.

    netns: what readlink(2) gives for the namespace's file, such as "net:[4026531833]".
    ports: the range they are counted in. reserved: how many of them
    net.ipv4.ip_local_reserved_ports keeps out. held: by protocol, how many listeners and
    sockets that are bound only have for themselves, on every address.
    rows: the fullest first.
    """

    taken_at: dt.datetime
    netns: str
    ports: PortRange
    reserved: int
    held: Mapping[str, int]
    rows: tuple[Row, ...]


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
    source, destination: count only these; of the destination, "" and 0 mean any.
    processes: find out whose the sockets are too, which costs a look at every process.

    Of something that changes: what opens or closes meanwhile may be missing, or there
    twice, and so may, rarely, something else beside it (see socket_dump.dump).
    Connections that came in at a listener do not count.

    Raises ValueError for unknown protocols and for what is no address; OSError as
    `connectx.observe.namespace.visiting` does, and NetlinkError where this kernel cannot
    list a protocol's sockets (ENOENT).
    """
    wanted = {name: _number_of(name) for name in protocols}
    toward = destination or Endpoint("", 0)
    family, octets = packed(source, toward.host)
    with visiting(netns), NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        taken_at = dt.datetime.now(dt.UTC)
        ports = port_range or sysctl.read_port_range()
        reserved = _set_of(sysctl.read_reserved_ports(), ports)
        known = owners().by_inode if processes else None
        rows: list[Row] = []
        held = {}
        for name, protocol in wanted.items():
            holders = _holders(netlink, protocol, ports)
            everywhere = _everywhere(holders, stream=protocol == IPPROTO_TCP) - reserved
            held[name] = len(everywhere)
            left = without(ports, reserved | everywhere)
            states = ALL_STATES & ~UNCONNECTED
            counting = Filter(protocol, states, octets[0], 0, octets[1], toward.port)
            counted: defaultdict[_Pair, _Count] = defaultdict(_Count)
            for start in range(0, len(left), _RANGES):
                some = counting._replace(ports=tuple(left[start : start + _RANGES]))
                _count(counted, netlink, family, some, known)
            total = sum(each.size for each in left)
            for (source_octets, destination_octets, port), count in counted.items():
                # Of UDP, what is bound on this address alone.
                own = holders.get(source_octets, set()) - reserved - everywhere
                rows.append(
                    Row(
                        name,
                        text_of(source_octets),
                        Endpoint(text_of(destination_octets), port),
                        sum(count.states.values()),
                        total - len(own),
                        dict(count.states),
                        dict(count.processes),
                    )
                )
        where = os.readlink("/proc/thread-self/ns/net")  # noqa: PTH115 - the text itself
    rows.sort(key=lambda row: (-row.utilisation, -row.in_use, row[:3]))
    return Snapshot(taken_at, where, ports, len(reserved), held, tuple(rows))


def _holders(netlink: NetlinkSocket, protocol: int, ports: PortRange) -> dict[bytes, set[int]]:
    """The ports in a range that unconnected sockets hold, by the address they are bound to."""
    by_source: dict[bytes, set[int]] = {}
    for record in records(netlink, None, Filter(protocol, UNCONNECTED, ports=(ports,))):
        by_source.setdefault(unmapped(record.source), set()).add(record.source_port)
    return by_source


def _everywhere(holders: Mapping[bytes, set[int]], *, stream: bool) -> set[int]:
    """The ports that no source address can use.

    connect() passes over a TCP port that is bound on any address (__inet_hash_connect),
    and over a UDP port that is bound on its own address or on all.
    """
    return {
        port for source, ports in holders.items() if stream or not any(source) for port in ports
    }


class _Count:
    """Connections from a source to a destination."""

    __slots__ = ("processes", "states")

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.processes: Counter[Process | None] = Counter()


_Pair: TypeAlias = tuple[bytes, bytes, int]


def _count(
    found: defaultdict[_Pair, _Count],
    netlink: NetlinkSocket,
    family: int | None,
    counting: Filter,
    known: Mapping[int, tuple[Process, ...]] | None,
) -> None:
    """Add the connections of a filter; known: owners by inode, if they are to be told."""
    if known is None:
        for group, number in tally(netlink, family, counting).items():
            pair = unmapped(group.source), unmapped(group.destination), group.destination_port
            found[pair].states[_state(group.state)] += number
        return
    for record in records(netlink, family, counting):
        pair = unmapped(record.source), unmapped(record.destination), record.destination_port
        count = found[pair]
        count.states[_state(record.state)] += 1
        # Of several processes that share it, after a fork, the one that had it first.
        of = min(known.get(record.inode, ()), default=None) if record.inode else None
        count.processes[of] += 1


def _state(number: int) -> str:
    return STATE_NAMES.get(number, str(number))


def _number_of(name: str) -> int:
    if name not in PROTOCOLS:
        raise ValueError(f"a protocol is one of {', '.join(map(repr, PROTOCOLS))}, not {name!r}")
    return PROTOCOLS[name]


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
