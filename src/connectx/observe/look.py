"""A look at a network namespace: the facts that connectx.core.findings draws on."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.addresses import Endpoint
from connectx.core.facts import Asked, Facts, Holder, Limit, Overshadowing, Pair
from connectx.explanation import shared, take_census, tells_binds_apart
from connectx.linux import counters, features, sysctl, tables
from connectx.linux.features import Probe, probe
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.sock_diag import ALL_STATES
from connectx.linux.socket_dump import Filter, idle, records
from connectx.linux.sockopts import set_ip_bind_address_no_port
from connectx.linux.uapi import (
    IPPROTO_MPTCP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPPROTO_UDPLITE,
    NETLINK_SOCK_DIAG,
    TCP_ESTABLISHED,
    TCP_LISTEN,
)
from connectx.network import NETWORKS, NEW_SOCKET
from connectx.observe.octets import packed, text_of, unmapped
from connectx.observe.processes import owners
from connectx.observe.translation import read_translations
from connectx.observe.usage import UNCONNECTED, snapshot
from connectx.requests import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from connectx.addresses import PortRange
    from connectx.core.census import Census
    from connectx.linux.sock_diag import SocketRecord
    from connectx.observe.processes import Process
    from connectx.observe.usage import Row

#: Nobody's destination: toward it every port is free that is not shut.
_DISCARD: Final = ("127.0.0.1", 9)

#: Processes whose descriptors are counted: those with the most connections.
_COUNTED: Final = 20

#: Share of a capacity from which on it is worth asking each connection how idle it is.
_WORTH_ASKING: Final = 0.3


#: The type and protocol of sockets, by the name of a protocol.
SOCKETS: Final = {
    "tcp": (socket.SOCK_STREAM, 0),
    "mptcp": (socket.SOCK_STREAM, IPPROTO_MPTCP),
    "udp": (socket.SOCK_DGRAM, 0),
    "udplite": (socket.SOCK_DGRAM, IPPROTO_UDPLITE),
}


class Question(NamedTuple):
    """What somebody wants to know about; see connectx.observe.diagnose."""

    protocol: str = "tcp"
    number: int = 0
    source: str = ""
    destination: Endpoint | None = None
    ports: PortRange | None = None


def look(question: Question | None, *, seconds: float, idle_after: float) -> Facts:
    """Look at the calling thread's network namespace.

    seconds: between two counts, which give rates. idle_after: seconds without data that
    make a connection idle.

    Raises OSError where the sockets or the range cannot be read at all. What else cannot be
    seen is named in the facts.
    """
    unseen: list[str] = []

    def seen(what: str, read: Callable[[], int], otherwise: int) -> int:
        try:
            return read()
        except (OSError, LookupError, ValueError) as error:
            unseen.append(f"{what}: {error}")
            return otherwise

    def overflows() -> int:
        return seen("TCPTimeWaitOverflow", lambda: counters.read_tcp_ext("TCPTimeWaitOverflow"), 0)

    before = {row[:3]: row for row in snapshot().rows}
    overflowed = overflows()
    begun = time.monotonic()
    _wait(seconds)
    taken = snapshot(processes=True)
    passed = max(time.monotonic() - begun, 0.001)
    overflowed_now = overflows()
    reserved = sysctl.read_reserved_ports()
    with NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        known = owners()
        if known.hidden and any(_has_hidden_owner(row) for row in taken.rows):
            unseen.append("the owners of some sockets, which only root may see")
        pairs = tuple(
            _pair(netlink, row, before.get(row[:3]), passed, idle_after) for row in taken.rows
        )
        holders = _holders(netlink, taken.ports, reserved, known.by_inode, unseen)
        shadows = _overshadowed(netlink, known.by_inode)
    translations, not_listed = read_translations()
    unseen += not_listed
    buckets = tracked = None
    try:
        buckets = tables.time_wait()
        tracked = tables.conntrack()
    except (OSError, ValueError) as error:
        unseen.append(f"tables of connections: {error}")
    return Facts(
        ports=taken.ports,
        reserved=reserved,
        pairs=pairs,
        holders=holders,
        tells_binds_apart=tells_binds_apart(),
        overshadowed=shadows,
        close_wait=_by_owner(taken.rows, "CLOSE-WAIT"),
        close_wait_gain=_total(taken.rows, "CLOSE-WAIT") - _total(before.values(), "CLOSE-WAIT"),
        time_wait=buckets,
        time_wait_overflows=overflowed_now,
        overflows_gain=overflowed_now - overflowed,
        tcp_tw_reuse=seen("tcp_tw_reuse", lambda: sysctl.read_int("tcp_tw_reuse"), 2),
        tcp_timestamps=seen("tcp_timestamps", lambda: sysctl.read_int("tcp_timestamps"), 1),
        descriptors=_descriptors(taken.rows),
        conntrack=tracked,
        translations=translations,
        kernel=os.uname().release.partition("-")[0],
        lacking=tuple(
            f"{feature.name} (Linux {feature.since[0]}.{feature.since[1]}): {feature.gives}"
            for feature in (features.IP_LOCAL_PORT_RANGE, features.STEP_OF_ONE)
            if probe(feature) is Probe.NO
        ),
        seconds=passed,
        unseen=tuple(dict.fromkeys(unseen)),
        asked=None if question is None else _answer(question),
    )


def _wait(seconds: float) -> None:
    """Between two counts."""
    select.select((), (), (), seconds)


def _pair(
    netlink: NetlinkSocket, row: Row, before: Row | None, passed: float, idle_after: float
) -> Pair:
    still = 0
    if row.protocol == "tcp" and row.utilisation >= _WORTH_ASKING:
        family, octets = packed(row.source, row.destination.host)
        wanted = Filter(
            IPPROTO_TCP, 1 << TCP_ESTABLISHED, octets[0], 0, octets[1], row.destination.port
        )
        still = idle(netlink, family, wanted, math.ceil(idle_after * 1000))
    gained = row.in_use - (before.in_use if before is not None else 0)
    return Pair(
        row.protocol,
        row.source,
        row.destination,
        row.in_use,
        row.capacity,
        row.states,
        {_name(process): number for process, number in row.processes.items()},
        gained / passed,
        still,
    )


def _has_hidden_owner(row: Row) -> bool:
    """Whether more sockets are nobody's than those that nobody can own."""
    return row.processes.get(None, 0) > row.states.get("TIME-WAIT", 0)


def _name(process: Process | None) -> str:
    return "" if process is None else str(process)


def _owner(known: Mapping[int, tuple[Process, ...]], inode: int) -> str:
    return _name(min(known.get(inode, ()), default=None))


def _by_owner(rows: Iterable[Row], state: str) -> Counter[str]:
    """Connections in a state by owner; only of destinations that have some."""
    found: Counter[str] = Counter()
    for row in rows:
        number = row.states.get(state, 0)
        if not number:
            continue
        # Which of a destination's connections are in the state is not told apart.
        for process, of_it in row.processes.items():
            found[_name(process)] += round(number * of_it / row.in_use)
    return found


def _total(rows: Iterable[Row], state: str) -> int:
    return sum(row.states.get(state, 0) for row in rows)


def _holders(
    netlink: NetlinkSocket,
    ports: PortRange,
    reserved: tuple[PortRange, ...],
    known: Mapping[int, tuple[Process, ...]],
    unseen: list[str],
) -> tuple[Holder, ...]:
    """TCP ports of the range that refuse to be shared."""
    on_port: defaultdict[int, list[SocketRecord]] = defaultdict(list)
    shut: list[Holder] = []
    for record in records(netlink, None, Filter(IPPROTO_TCP, ALL_STATES, ports=(ports,))):
        if 1 << record.state & UNCONNECTED:
            state = "LISTEN" if record.state == TCP_LISTEN else "bound"
            shut.append(_holder(record, state, known))
        else:
            on_port[record.source_port].append(record)
    # What is reserved is refused to connect() whether it is shut or not.
    untold = on_port.keys() - {each.port for each in shut}
    untold -= {port for hole in reserved for port in range(hole.low, hole.high + 1)}
    try:
        locked = _locked(untold)
    except OSError as error:
        # The loopback is down, say.
        unseen.append(f"ports locked by bind(): {error}")
        return tuple(shut)
    for port in locked:
        alive = [record for record in on_port[port] if record.inode]
        state = "connected" if alive else "TIME-WAIT"
        shut.append(_holder((alive or on_port[port])[0], state, known))
    return tuple(shut)


def _locked(ports: Iterable[int]) -> list[int]:
    """Those of the ports in use that connect() would not give out; none where nobody can tell."""
    if not tells_binds_apart():
        return []
    prepared = NETWORKS.here().prepare(
        parse(socket.AF_INET, socket.SOCK_STREAM, 0, "auto", None, _DISCARD), NEW_SOCKET
    )
    return [port for port in sorted(ports) if not shared(prepared, port)]


def _holder(record: SocketRecord, state: str, known: Mapping[int, tuple[Process, ...]]) -> Holder:
    address = text_of(unmapped(record.source))
    return Holder("tcp", address, record.source_port, state, _owner(known, record.inode))


def _overshadowed(
    netlink: NetlinkSocket, known: Mapping[int, tuple[Process, ...]]
) -> tuple[Overshadowing, ...]:
    """UDP 4-tuples with several sockets, those on one device taken together."""
    on_tuple: defaultdict[tuple[bytes, int, bytes, int, int], list[SocketRecord]]
    on_tuple = defaultdict(list)
    for record in records(netlink, None, Filter(IPPROTO_UDP, 1 << TCP_ESTABLISHED)):
        source, destination = unmapped(record.source), unmapped(record.destination)
        on_tuple[
            source, record.source_port, destination, record.destination_port, record.interface
        ].append(record)
    return tuple(
        Overshadowing(
            Endpoint(text_of(source), port),
            Endpoint(text_of(destination), destination_port),
            tuple(_owner(known, record.inode) or "hidden" for record in some),
        )
        for (source, port, destination, destination_port, _), some in on_tuple.items()
        if len({record.cookie for record in some}) > 1
    )


def _descriptors(rows: Iterable[Row]) -> tuple[Limit, ...]:
    """How many descriptors the processes with the most connections have."""
    connections: Counter[Process] = Counter()
    for row in rows:
        for process, number in row.processes.items():
            if process is not None:
                connections[process] += number
    found = []
    for process, _ in connections.most_common(_COUNTED):
        # It may have ended meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            used = len(os.listdir(f"/proc/{process.pid}/fd"))  # noqa: PTH208 - thousands of names
            limits = Path(f"/proc/{process.pid}/limits").read_text()
            (line,) = (each for each in limits.splitlines() if each.startswith("Max open files"))
            soft = line.split()[3]
            if soft != "unlimited":
                found.append(Limit(str(process), process.pid, used, int(soft)))
    return tuple(found)


def _answer(question: Question) -> Asked:
    """What can be found out about the call that failed."""
    hosts = [question.source, question.destination.host if question.destination else ""]
    ipv6 = None
    if any(":" in host for host in hosts):
        ipv6 = _has_ipv6()
    local = None
    if question.source and ipv6 is not False:
        local = _is_local(question.source)
    census, unreachable = None, ""
    destination = question.destination
    if destination is not None and ipv6 is not False and local is not False:
        try:
            census = _census(question, destination)
        except OSError as error:
            unreachable = f"connect() would meet with {error}"
    return Asked(
        question.protocol,
        question.number,
        question.source,
        destination,
        question.ports,
        local,
        ipv6,
        census,
        unreachable,
    )


def _has_ipv6() -> bool:
    """Whether any device has an IPv6 address; disable_ipv6 leaves the loopback without one."""
    try:
        return bool(Path("/proc/thread-self/net/if_inet6").read_text())
    except FileNotFoundError:
        return False


def _is_local(source: str) -> bool | None:
    """Whether bind() takes an address; None where it fails for another reason."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as scratch:
        # Without a port, which might be held, and which nobody needs.
        set_ip_bind_address_no_port(scratch, on=True)
        try:
            scratch.bind((source, 0))
        except OSError as error:
            return False if error.errno == errno.EADDRNOTAVAIL else None
    return True


def _census(question: Question, destination: Endpoint) -> Census:
    """The ports toward the destination that was asked about."""
    kind, proto = SOCKETS[question.protocol]
    source = (question.source, 0) if question.source else None
    to = (destination.host, destination.port)
    request = parse(0, kind, proto, "auto", source, to)
    network = NETWORKS.here()
    # Raises where there is no route.
    network.routed_source(request, NEW_SOCKET)
    return take_census(network.prepare(request, NEW_SOCKET))
