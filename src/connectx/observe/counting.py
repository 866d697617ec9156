"""The connections of one protocol, counted by source and destination."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.addresses import family_of, needs_scope, unmapped
from connectx.linux.socket_dump import records, tally
from connectx.linux.uapi import AF_INET, AF_INET6, STATE_NAMES, TCP_TIME_WAIT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from connectx.addresses import PortRange
    from connectx.linux.netlink import NetlinkSocket
    from connectx.linux.processes import Process
    from connectx.linux.reuse import Reuse
    from connectx.linux.sock_diag import SocketRecord
    from connectx.linux.socket_dump import Filter, Group

#: Ranges of ports in one dump: the kernel tries them one after the other for each socket.
_RANGES: Final = 1000

#: Pairs that are asked about one by one: each dump walks the whole table.
_FEW: Final = 4

_TIME_WAIT: Final = STATE_NAMES[TCP_TIME_WAIT]


class Ends(NamedTuple):
    """Whose connections are counted together.

    source, destination: packed addresses, IPv4's where they are IPv4-mapped.
    scope: the device that they mean something on, if they are such addresses.
    """

    source: bytes
    destination: bytes
    port: int
    scope: int

    @classmethod
    def between(cls, source: bytes, destination: bytes, port: int, interface: int) -> Ends:
        """Those of sockets between two addresses, as a dump has them, bound to a device."""
        source, destination = unmapped(source), unmapped(destination)
        # One that was chosen otherwise (SO_BINDTODEVICE) is not told apart. Two of them also
        # have a 4-tuple each, but one socket that is bound to none shuts it for all of them
        # (tests/kernel/test_devices.py).
        scope = interface if needs_scope(source) or needs_scope(destination) else 0
        return cls(source, destination, port, scope)

    @classmethod
    def of(cls, found: Group | SocketRecord) -> Ends:
        """Those of a socket, or of several."""
        return cls.between(found.source, found.destination, found.destination_port, found.interface)


class Count:
    """Connections from a source to a destination, as a `Row` of a snapshot has them."""

    __slots__ = ("processes", "reusable", "states")

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.processes: Counter[Process | None] = Counter()
        self.reusable = 0


def dumps(
    asked: Filter, family: int | None, ports: Mapping[int, Sequence[PortRange]]
) -> list[tuple[int | None, Filter]]:
    """The dumps that it takes to see the connections of a filter: families, and filters.

    family: that of the filter's addresses; None if it has none. ports: by family, those to
    count.
    """
    if family is not None:
        families: tuple[int | None, ...] = (family,)
    elif ports[AF_INET] == ports[AF_INET6]:
        # At once, which takes half the time.
        families = (None,)
    else:
        families = (AF_INET, AF_INET6)
    return [
        (each, asked._replace(ports=tuple(ranges[start : start + _RANGES])))
        for each in families
        for ranges in [ports[each or AF_INET]]
        for start in range(0, len(ranges), _RANGES)
    ]


def count(
    netlink: NetlinkSocket,
    wanted: Iterable[tuple[int | None, Filter]],
    known: Mapping[int, tuple[Process, ...]] | None,
) -> dict[Ends, Count]:
    """The connections that dumps show; known: owners by inode, if they are to be told."""
    found: defaultdict[Ends, Count] = defaultdict(Count)
    for family, some in wanted:
        if known is None:
            for group, number in tally(netlink, family, some).items():
                ends = Ends.of(group)
                if _belongs(ends, family):
                    found[ends].states[_state(group.state)] += number
            continue
        for record in records(netlink, family, some):
            ends = Ends.of(record)
            if _belongs(ends, family):
                each = found[ends]
                each.states[_state(record.state)] += 1
                # Of several processes that share it, after a fork, the one that had it first.
                of = min(known.get(record.inode, ()), default=None) if record.inode else None
                each.processes[of] += 1
    return found


def count_reusable(
    netlink: NetlinkSocket,
    wanted: Sequence[tuple[int | None, Filter]],
    found: Mapping[Ends, Count],
    reuse: Reuse,
) -> None:
    """Add to what was found how many TIME_WAITs a connect() may take over now.

    Costs nothing where there is none between addresses that allow it.
    """
    pairs = [
        ends
        for ends, each in found.items()
        if _TIME_WAIT in each.states and reuse.applies(ends.source, ends.destination)
    ]
    if not pairs:
        return
    if len(pairs) <= _FEW:
        wanted = [_narrowed(some, ends) for ends in pairs for _, some in wanted]
    for family, some in wanted:
        taken = Counter(
            (each.source, each.destination, each.destination_port, each.interface)
            for each in records(netlink, family, some._replace(states=1 << TCP_TIME_WAIT))
            if reuse.takes(each)
        )
        for (source, destination, port, interface), number in taken.items():
            ends = Ends.between(source, destination, port, interface)
            if ends in found:
                found[ends].reusable += number
    for ends in pairs:
        # Some may have come since they were counted.
        found[ends].reusable = min(found[ends].reusable, found[ends].states[_TIME_WAIT])


def _belongs(ends: Ends, family: int | None) -> bool:
    """Whether a dump of a family was to show it: one of AF_INET6 has IPv4-mapped ones as well."""
    return family != AF_INET6 or len(ends.source) == 16


def _narrowed(wanted: Filter, ends: Ends) -> tuple[int, Filter]:
    source, destination, port, scope = ends
    return family_of(source), wanted._replace(
        source=source, destination=destination, destination_port=port, interface=scope
    )


def _state(number: int) -> str:
    return STATE_NAMES.get(number, str(number))
