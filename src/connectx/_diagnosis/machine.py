"""A look at a network namespace: everything that the rules draw on, gathered once."""

from __future__ import annotations

import contextlib
import math
import os
import select
import time
from collections import Counter, defaultdict
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx._diagnosis import census, sharing, snapshot
from connectx._diagnosis.call import holder, investigate
from connectx._diagnosis.census import locked, tells_binds_apart
from connectx._diagnosis.facts import Call, Facts, Holder, WatchedPair
from connectx._diagnosis.finding import SHOWN
from connectx._diagnosis.ownership import Ownership
from connectx.addresses import (
    PROTOCOLS,
    Endpoint,
    FourTuple,
    needs_scope,
    packed,
    ports_in,
    resolve_scope,
    text,
    unmapped,
)
from connectx.linux import features, nat_rules, proc_net, processes, sysctl
from connectx.linux.features import Probe, probe
from connectx.linux.netlink import NetlinkError, NetlinkSocket
from connectx.linux.sock_diag import ALL_STATES
from connectx.linux.socket_dump import (
    UNCONNECTED,
    Filter,
    filter_between,
    idle,
    records,
    source_ports,
)
from connectx.linux.uapi import (
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPPROTO_UDPLITE,
    NETLINK_SOCK_DIAG,
    TCP_CLOSE_WAIT,
    TCP_ESTABLISHED,
    TCP_LISTEN,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from connectx._diagnosis.facts import Row
    from connectx.addresses import PortRange
    from connectx.linux.processes import Descriptors, Process
    from connectx.linux.sock_diag import SocketRecord

#: The processes whose descriptors are counted: those with the most connections.
_PROCESSES: Final = 20

#: Connections on one port from which on a listener has left them, and not a bind() each.
_SERVED: Final = 3

#: Seconds before the second count in which ports are tried, owners found, and so on.
_WORKING: Final = 1.0

#: The pairs whose connections are asked how long they have been idle: the fullest, if they
#: are at least so full. Each costs a walk through the whole TCP table.
_PAIRS: Final = 20
_WORTH_ASKING: Final = 0.3


class _Sockets(NamedTuple):
    """The sockets of a namespace, one by one.

    streams: TCP's in the range; datagrams: UDP's; light: UDP-Lite's; listening: TCP's listeners.
    """

    streams: list[SocketRecord]
    datagrams: list[SocketRecord]
    light: list[SocketRecord]
    listening: list[SocketRecord]

    @classmethod
    def read(cls) -> _Sockets:
        """List them; no UDP-Lite sockets on a kernel that has or lists none."""
        with NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
            streams = records(netlink, Filter(IPPROTO_TCP, ports=(sysctl.read_port_range(),)))
            datagrams = records(netlink, Filter(IPPROTO_UDP))
            listening = records(netlink, Filter(IPPROTO_TCP, 1 << TCP_LISTEN))
            light: list[SocketRecord] = []
            with contextlib.suppress(NetlinkError):
                light = records(netlink, Filter(IPPROTO_UDPLITE))
        return cls(streams, datagrams, light, listening)


def look(
    calls: Sequence[Call],
    *,
    seconds: float,
    idle_after: float,
    progress: Callable[[str], object],
) -> tuple[Facts, tuple[Call, ...]]:
    """Look at the calling thread's network namespace, and at calls that failed in it.

    Args:
        calls: The calls. Of several, those to an IPv6 address are left out where there is
            no IPv6.
        seconds: The time between two counts, from which rates follow.
        idle_after: The time without data, in seconds, after which a connection is idle.
        progress: Called with what is being done, whenever that changes.

    Returns:
        The facts, and the calls with what was found out about them.

    Raises:
        OSError: The sockets or the port range cannot be read. What else cannot be read is
            named in the facts.
    """
    unseen: list[str] = []

    def seen(what: str, read: Callable[[], int], otherwise: int) -> int:
        try:
            return read()
        except (OSError, LookupError, ValueError) as error:
            unseen.append(f"{what}: {error}")
            return otherwise

    def overflows() -> int:
        return seen("TCPTimeWaitOverflow", lambda: proc_net.read_tcp_ext("TCPTimeWaitOverflow"), 0)

    before = {row[:3]: row for row in snapshot.take(("tcp", "udp")).rows}
    overflowed = overflows()
    begun = time.monotonic()
    # What takes long is done while there is to be waited anyway.
    if seconds > _WORKING:
        progress(f"watching for {seconds:g} s")
        _wait(seconds - _WORKING)
    tried = _try_ports(progress)
    idle_in = _count_idle(before.values(), idle_after, progress)
    progress("finding the owners of sockets")
    owners = processes.owners()
    progress("watching")
    _wait(max(0.0, begun + seconds - time.monotonic()))
    sockets = _Sockets.read()
    if not owners.know(each.inode for some in sockets for each in some):
        # Some sockets are newer than the look at their owners.
        owners = processes.owners()
    ownership = Ownership(owners, sockets.listening)
    taken = snapshot.take(("tcp", "udp"), owners=owners)
    passed = max(time.monotonic() - begun, 0.001)
    overflowed_now = overflows()
    reserved = sysctl.read_reserved_ports()
    progress(f"counting {sum(row.in_use for row in taken.rows):,} sockets")
    pairs = tuple(
        WatchedPair(
            row,
            (row.in_use - (before[row[:3]].in_use if row[:3] in before else 0)) / passed,
            idle_in.get(row[:3], 0),
            shared=row.protocol == "tcp" or _is_shared(row, sockets.datagrams),
        )
        for row in taken.rows
    )
    if any(ownership.is_for_root(each) for some in sockets for each in some):
        unseen.append("the owners of some sockets, which only root may see")
    holders = _holders(sockets.streams, reserved, ownership, tried, unseen)
    with NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        progress("counting ports toward the destination")
        answers = tuple(
            answer
            for call in calls
            for answer in _from_each_full_source(
                investigate(call, netlink, ownership, tried),
                pairs,
                holders,
                lambda each: investigate(each, netlink, ownership, tried),
            )
        )
    datagrams = sockets.datagrams
    by_protocol = {"udp": datagrams, "udplite": sockets.light}
    ipv6 = bool(proc_net.ipv6_addresses())
    if not ipv6:
        answers = tuple(each for each in answers if not each.needs_ipv6) or answers[:1]
    rules = nat_rules.read()
    unseen += rules.unseen
    buckets = tracked = None
    try:
        buckets = proc_net.time_wait()
        tracked = proc_net.conntrack()
    except (OSError, ValueError) as error:
        unseen.append(f"tables of connections: {error}")
    facts = Facts(
        ports=taken.ports,
        reserved=reserved,
        step_width=seen("ip_local_port_step_width", sysctl.read_port_step_width, 0),
        ipv6=ipv6,
        addresses=_addresses(),
        has_ipv6_switch=proc_net.devices_without_ipv6() is not None,
        link_local=proc_net.link_local_devices(),
        unprivileged_port_start=seen(
            "ip_unprivileged_port_start", sysctl.read_unprivileged_port_start, 1024
        ),
        udp_unused=_count_unused(datagrams, taken.ports, reserved),
        udp_unused_by_ipv6=len(
            set(range(taken.ports.low, taken.ports.high + 1))
            - {each.source_port for each in datagrams}
            - ports_in(reserved)
        ),
        udp_owners=Counter(
            ownership.describe(each) for each in datagrams if taken.ports.contains(each.source_port)
        ),
        pairs=pairs,
        holders=holders,
        services=frozenset(each.source_port for each in sockets.listening)
        | _unconnected_out_of(taken.ports, datagrams),
        tells_binds_apart=tells_binds_apart(),
        overshadowed=tuple(
            each
            for protocol, some in by_protocol.items()
            for each in sharing.overshadowed(protocol, some, ownership)
        ),
        deaf=tuple(
            each
            for protocol, some in by_protocol.items()
            for each in sharing.deaf(protocol, some, ownership)
        ),
        unseen_owner=ownership.hidden,
        close_wait=Counter(
            f"{ownership.describe(record)}{ownership.way(record)}"
            for record in sockets.streams
            if record.state == TCP_CLOSE_WAIT
        ),
        close_wait_gain=_total(taken.rows, "CLOSE-WAIT") - _total(before.values(), "CLOSE-WAIT"),
        time_wait=buckets,
        time_wait_overflows=overflowed_now,
        overflows_gain=overflowed_now - overflowed,
        tcp_tw_reuse=seen("tcp_tw_reuse", lambda: sysctl.read_int("tcp_tw_reuse"), 2),
        tcp_timestamps=seen("tcp_timestamps", lambda: sysctl.read_int("tcp_timestamps"), 1),
        descriptors=_descriptors(taken.rows),
        conntrack=tracked,
        rules=rules,
        offset_by_port=census.offset_depends_on_port() if rules.random else None,
        conntrack_is_ours=proc_net.conntrack_is_ours(),
        kernel=os.uname().release.partition("-")[0],
        lacking=tuple(
            f"{feature.name} (Linux {feature.since[0]}.{feature.since[1]}): {feature.gives}"
            for feature in (features.IP_LOCAL_PORT_RANGE, features.STEP_OF_ONE)
            if probe(feature) is Probe.NO
        ),
        seconds=passed,
        unseen=tuple(dict.fromkeys(unseen)),
        call=None,
    )
    return facts, answers


def _from_each_full_source(
    call: Call,
    pairs: Iterable[WatchedPair],
    holders: Collection[Holder],
    look_at: Callable[[Call], Call],
) -> Iterator[Call]:
    """The call, and the same call from each other source that has no port toward its destination.

    A call that names no source may have been one from any: a program that asks for a source
    and reports an errno does not say which it asked for.
    """
    yield call
    if call.census is None or call.source.host:
        return
    table = PROTOCOLS[call.protocol].table
    # Locked ports, too, are lost to every source; a row does not count them.
    locked = len(holders) if call.stream else 0
    full = 0
    for row in (pair.row for pair in pairs):
        if (
            PROTOCOLS[row.protocol].table == table
            and row.destination == call.destination
            and row.source != call.census_source
            and row.taken + locked >= row.capacity
            and full < SHOWN
        ):
            host, scope = resolve_scope(row.source)
            asked = Call(
                call.protocol,
                call.number,
                Endpoint(host, call.source.port, 0, scope),
                call.destination,
                call.ports,
            )
            other = look_at(asked)
            if other.census is not None and not other.census.free and not other.census.untold:
                full += 1
                yield other


def _try_ports(progress: Callable[[str], object]) -> dict[int, bool]:
    """Find out which of the ports in use are locked; empty if they cannot be tried."""
    ports = sysctl.read_port_range()
    with NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        of_connections, held = (
            source_ports(netlink, Filter(IPPROTO_TCP, states, ports=(ports,)))
            for states in (ALL_STATES & ~UNCONNECTED, UNCONNECTED)
        )
    untold = of_connections - held - ports_in(sysctl.read_reserved_ports())
    progress(f"trying which of {len(untold):,} ports are locked")
    try:
        refused = set(locked(untold) or ())
    except OSError:
        # They are tried again below, where somebody learns of it.
        return {}
    return {port: port in refused for port in untold}


def _wait(seconds: float) -> None:
    """Wait between the two counts."""
    select.select((), (), (), seconds)


def _count_idle(
    rows: Iterable[Row],
    seconds: float,
    progress: Callable[[str], object],
) -> Mapping[tuple[str, str, Endpoint], int]:
    """Count the idle connections of the fullest pairs, unless they are far from full."""
    found = {}
    with NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        for row in islice(rows, _PAIRS):
            if row.protocol == "tcp" and row.utilisation >= _WORTH_ASKING:
                progress(f"looking for idle connections to {row.destination}")
                wanted = filter_between(
                    IPPROTO_TCP, 1 << TCP_ESTABLISHED, row.source, row.destination
                )
                found[row[:3]] = idle(netlink, wanted, math.ceil(seconds * 1000))
    return found


def _is_shared(row: Row, datagrams: Iterable[SocketRecord]) -> bool:
    """Whether a port of a UDP pair may be used toward other destinations; of a full pair only."""
    if row.utilisation < _WORTH_ASKING:
        return True
    host, scope = resolve_scope(row.source)
    source = Endpoint(host, 0, 0, scope)
    octets = packed(host)
    port = next(
        (
            each.source_port
            for each in datagrams
            if unmapped(each.source) == octets and each.destination_port == row.destination.port
        ),
        0,
    )
    try:
        return not port or census.shares(FourTuple("udp", source, row.destination), port)
    except OSError:
        return True


def _total(rows: Iterable[Row], state: str) -> int:
    return sum(row.states.get(state, 0) for row in rows)


def _holders(
    streams: Iterable[SocketRecord],
    reserved: tuple[PortRange, ...],
    ownership: Ownership,
    tried: Mapping[int, bool],
    unseen: list[str],
) -> tuple[Holder, ...]:
    """Find the TCP sockets of the range that refuse to share their ports.

    `tried` has ports for which it is known whether they are locked.
    """
    on_port: defaultdict[int, list[SocketRecord]] = defaultdict(list)
    found: list[Holder] = []
    for record in streams:
        if 1 << record.state & UNCONNECTED:
            state = "LISTEN" if record.state == TCP_LISTEN else "bound"
            found.append(holder(record, state, ownership))
        else:
            on_port[record.source_port].append(record)
    # connect() refuses a reserved port whether it is locked or not.
    untold = on_port.keys() - {each.port for each in found} - ports_in(reserved)
    try:
        refused = sorted(
            [port for port in untold if tried.get(port)] + (locked(untold - tried.keys()) or [])
        )
    except OSError as error:
        # The loopback device is down, for example.
        unseen.append(f"ports locked by bind(): {error}")
        return tuple(found)
    for port in refused:
        some = on_port[port]
        alive = [record for record in some if not record.in_time_wait]
        state = "TIME-WAIT" if not alive else "accepted" if len(some) >= _SERVED else "connected"
        # One with a process, if there is one.
        named = max(alive or some, key=lambda record: record.inode > 0)
        found.append(holder(named, state, ownership))
    return tuple(found)


def _count_unused(
    datagrams: Iterable[SocketRecord], ports: PortRange, reserved: tuple[PortRange, ...]
) -> int:
    """The ports of the range on which IPv4 has no UDP socket.

    A socket on "::" counts as IPv4's too, since the dump does not report IPV6_V6ONLY here.
    """
    used = {
        each.source_port
        for each in datagrams
        if len(unmapped(each.source)) == 4 or not any(each.source)
    }
    return len(set(range(ports.low, ports.high + 1)) - used - ports_in(reserved))


def _unconnected_out_of(ports: PortRange, datagrams: Iterable[SocketRecord]) -> set[int]:
    """The ports of UDP services: nothing else is on a port that connect() does not give out."""
    return {
        each.source_port
        for each in datagrams
        if 1 << each.state & UNCONNECTED and not ports.contains(each.source_port)
    }


def _addresses() -> tuple[str, ...]:
    """The namespace's own addresses but for loopback and link-local ones, IPv4 first."""
    own = [*proc_net.ipv4_addresses(), *map(text, proc_net.ipv6_addresses())]
    return tuple(
        each
        for each in own
        if not each.startswith("127.") and each != "::1" and not needs_scope(packed(each) or b"")
    )


def _descriptors(rows: Iterable[Row]) -> Mapping[Process, Descriptors]:
    """Count the open files of the processes with the most connections."""
    connections: Counter[Process] = Counter()
    for row in rows:
        for process, number in row.processes.items():
            if process is not None:
                connections[process] += number
    found = {
        process: processes.descriptors(process.pid)
        for process, _ in connections.most_common(_PROCESSES)
    }
    return {process: each for process, each in found.items() if each is not None}
