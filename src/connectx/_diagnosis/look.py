"""A look at a network namespace: the facts that connectx._diagnosis.rules draws on."""

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

from connectx._connect.namespace import NAMESPACES
from connectx._connect.plan import NEW_SOCKET, Options, make_plan
from connectx._connect.request import parse
from connectx._diagnosis.explanation import locked, source_of, take_census, tells_binds_apart
from connectx._diagnosis.facts import Asked, Facts, Holder, Limit, Overshadowing, Pair
from connectx.addresses import PROTOCOLS, Endpoint, packed, text, unmapped
from connectx.errors import RangeNotHonoured
from connectx.linux import features, proc_net, sysctl
from connectx.linux.features import Probe, probe
from connectx.linux.nat_rules import read_translations
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.processes import owners
from connectx.linux.sock_diag import ALL_STATES
from connectx.linux.socket_dump import (
    UNCONNECTED,
    Filter,
    filter_between,
    idle,
    records,
    with_v6only,
)
from connectx.linux.sockopts import set_ip_bind_address_no_port
from connectx.linux.uapi import (
    AF_INET,
    AF_INET6,
    IPPROTO_TCP,
    IPPROTO_UDP,
    NETLINK_SOCK_DIAG,
    STATE_NAMES,
    TCP_CLOSE_WAIT,
    TCP_ESTABLISHED,
    TCP_LISTEN,
)
from connectx.observe.usage import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from connectx.addresses import PortRange
    from connectx.linux.processes import Process
    from connectx.linux.sock_diag import SocketRecord
    from connectx.observe.usage import Row

#: Processes whose descriptors are counted: those with the most connections.
_COUNTED: Final = 20

#: Connections on one port that a listener has left there, rather than a bind() before each.
_SERVED: Final = 3

#: Flags of an IPv6 address that cannot be used: IFA_F_TENTATIVE, IFA_F_DADFAILED (if_addr.h).
_UNUSABLE: Final = 0x40 | 0x08

#: Pairs whose connections are asked how idle they are, if they are full enough.
_ASKED: Final = 20

#: Share of a capacity from which on it is worth asking each connection how idle it is.
_WORTH_ASKING: Final = 0.3


class Question(NamedTuple):
    """What somebody wants to know about; see connectx.observe.diagnose."""

    protocol: str = "tcp"
    number: int = 0
    source: Endpoint = Endpoint("", 0)
    destination: Endpoint | None = None
    ports: PortRange | None = None


def look(
    questions: Sequence[Question], *, seconds: float, idle_after: float
) -> tuple[Facts, tuple[Asked, ...]]:
    """Look at the calling thread's network namespace, and answer questions about it.

    Of several questions those are left out that are about IPv6, where there is none.
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
        return seen("TCPTimeWaitOverflow", lambda: proc_net.read_tcp_ext("TCPTimeWaitOverflow"), 0)

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
            _pair(
                row,
                before.get(row[:3]),
                passed,
                # The fullest come first. Each costs a walk through all of TCP's sockets.
                _idle(netlink, row, idle_after) if number < _ASKED else 0,
            )
            for number, row in enumerate(taken.rows)
        )
        streams = records(netlink, None, Filter(IPPROTO_TCP, ALL_STATES, ports=(taken.ports,)))
        holders = _holders(streams, reserved, known.by_inode, unseen)
        datagrams = records(netlink, None, Filter(IPPROTO_UDP))
        answers = tuple(_answer(each, netlink, known.by_inode) for each in questions)
    ipv6 = bool(proc_net.ipv6_addresses())
    if not ipv6:
        answers = tuple(each for each in answers if not each.needs_ipv6) or answers[:1]
    translations, not_listed = read_translations()
    unseen += not_listed
    buckets = tracked = None
    try:
        buckets = proc_net.time_wait()
        tracked = proc_net.conntrack()
    except (OSError, ValueError) as error:
        unseen.append(f"tables of connections: {error}")
    facts = Facts(
        ports=taken.ports,
        reserved=reserved,
        ipv6=ipv6,
        unprivileged_port_start=seen(
            "ip_unprivileged_port_start", sysctl.read_unprivileged_port_start, 1024
        ),
        udp_unused=_unused(datagrams, taken.ports, reserved),
        pairs=pairs,
        holders=holders,
        tells_binds_apart=tells_binds_apart(),
        overshadowed=_overshadowed(datagrams, known.by_inode),
        close_wait=Counter(
            _owner(known.by_inode, record.inode)
            for record in streams
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
        translations=translations,
        kernel=os.uname().release.partition("-")[0],
        lacking=tuple(
            f"{feature.name} (Linux {feature.since[0]}.{feature.since[1]}): {feature.gives}"
            for feature in (features.IP_LOCAL_PORT_RANGE, features.STEP_OF_ONE)
            if probe(feature) is Probe.NO
        ),
        seconds=passed,
        unseen=tuple(dict.fromkeys(unseen)),
        asked=None,
    )
    return facts, answers


def _wait(seconds: float) -> None:
    """Between two counts."""
    select.select((), (), (), seconds)


def _idle(netlink: NetlinkSocket, row: Row, seconds: float) -> int:
    """How many connections of a pair are idle; 0 of one that is far from full."""
    if row.protocol != "tcp" or row.utilisation < _WORTH_ASKING:
        return 0
    family, wanted = filter_between(IPPROTO_TCP, 1 << TCP_ESTABLISHED, row.source, row.destination)
    return idle(netlink, family, wanted, math.ceil(seconds * 1000))


def _pair(row: Row, before: Row | None, passed: float, still: int) -> Pair:
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
        row.reusable,
    )


def _has_hidden_owner(row: Row) -> bool:
    """Whether more sockets are nobody's than those that nobody can own."""
    return row.processes.get(None, 0) > row.states.get("TIME-WAIT", 0)


def _name(process: Process | None) -> str:
    return "" if process is None else str(process)


def _owner(known: Mapping[int, tuple[Process, ...]], inode: int) -> str:
    return _name(min(known.get(inode, ()), default=None))


def _total(rows: Iterable[Row], state: str) -> int:
    return sum(row.states.get(state, 0) for row in rows)


def _holders(
    streams: Iterable[SocketRecord],
    reserved: tuple[PortRange, ...],
    known: Mapping[int, tuple[Process, ...]],
    unseen: list[str],
) -> tuple[Holder, ...]:
    """Of the TCP sockets in the range those that refuse to share their port."""
    on_port: defaultdict[int, list[SocketRecord]] = defaultdict(list)
    shut: list[Holder] = []
    for record in streams:
        if 1 << record.state & UNCONNECTED:
            state = "LISTEN" if record.state == TCP_LISTEN else "bound"
            shut.append(_holder(record, state, known))
        else:
            on_port[record.source_port].append(record)
    # What is reserved is refused to connect() whether it is shut or not.
    untold = on_port.keys() - {each.port for each in shut}
    untold -= {port for hole in reserved for port in range(hole.low, hole.high + 1)}
    try:
        refused = locked(untold) or []
    except OSError as error:
        # The loopback is down, say.
        unseen.append(f"ports locked by bind(): {error}")
        return tuple(shut)
    for port in refused:
        some = on_port[port]
        alive = [record for record in some if record.inode]
        state = "TIME-WAIT" if not alive else "accepted" if len(some) >= _SERVED else "connected"
        shut.append(_holder((alive or some)[0], state, known))
    return tuple(shut)


def _holder(record: SocketRecord, state: str, known: Mapping[int, tuple[Process, ...]]) -> Holder:
    address = text(unmapped(record.source))
    return Holder("tcp", address, record.source_port, state, _owner(known, record.inode))


def _unused(
    datagrams: Iterable[SocketRecord], ports: PortRange, reserved: tuple[PortRange, ...]
) -> int:
    """How many ports of the range no socket has that IPv4 would share them with.

    A socket on an IPv6 address alone is none of these; one on "::" is, unless it is for
    IPv6 only, which is not told here.
    """
    unused = set(range(ports.low, ports.high + 1)) - {
        each.source_port
        for each in datagrams
        if len(unmapped(each.source)) == 4 or not any(each.source)
    }
    for hole in reserved:
        unused.difference_update(range(hole.low, hole.high + 1))
    return len(unused)


def _overshadowed(
    datagrams: Iterable[SocketRecord], known: Mapping[int, tuple[Process, ...]]
) -> tuple[Overshadowing, ...]:
    """UDP 4-tuples with several sockets, those on one device taken together."""
    on_tuple: defaultdict[tuple[bytes, int, bytes, int, int], list[SocketRecord]]
    on_tuple = defaultdict(list)
    for record in datagrams:
        if record.state != TCP_ESTABLISHED:
            continue
        source, destination = unmapped(record.source), unmapped(record.destination)
        on_tuple[
            source, record.source_port, destination, record.destination_port, record.interface
        ].append(record)
    return tuple(
        Overshadowing(
            Endpoint(text(source), port),
            Endpoint(text(destination), destination_port),
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


def _answer(
    question: Question, netlink: NetlinkSocket, known: Mapping[int, tuple[Process, ...]]
) -> Asked:
    """What can be found out about the call that failed."""
    source, destination = question.source, question.destination
    asked = Asked(
        question.protocol,
        question.number,
        source,
        destination,
        question.ports,
        needs_ipv6=":" in source.host or (destination is not None and ":" in destination.host),
    )
    addresses = proc_net.ipv6_addresses()
    if asked.needs_ipv6 and not addresses:
        return asked
    if source.host:
        flags = addresses.get(packed(source.host) or b"", 0)
        asked = asked._replace(
            source_is_local=_is_local(source), is_tentative=bool(flags & _UNUSABLE)
        )
    if asked.source_is_local is False:
        return asked
    if destination is not None:
        try:
            asked = _with_census(asked, destination)
        except RangeNotHonoured:
            # There is nothing to count, and a finding of its own.
            return asked
        except OSError as error:
            asked = asked._replace(unreachable=f"connect() would meet with {error}")
    return _with_port(asked, netlink, known) if source.port else asked


def _with_port(
    asked: Asked, netlink: NetlinkSocket, known: Mapping[int, tuple[Process, ...]]
) -> Asked:
    """The same, with who is on the source port, if that keeps the call from it."""
    port, stream = asked.source.port, asked.protocol in ("tcp", "mptcp")
    chosen = asked.source.host or asked.census_source
    everybody = with_v6only(netlink, Filter(PROTOCOLS[asked.protocol].table, source_port=port))
    on_tuple = False
    if asked.destination is not None and chosen:
        ends = [packed(host) for host in (chosen, asked.destination.host)]
        on_tuple = any(
            [unmapped(each.source), unmapped(each.destination)] == ends
            and each.destination_port == asked.destination.port
            for each, _ in everybody
        )
    if asked.number == errno.EADDRNOTAVAIL and stream:
        # connect() looks at no address, but may share what is not locked.
        if not on_tuple and not locked([port]):
            return asked
        found = [record for record, _ in everybody]
    else:
        found = [
            record
            for record, v6only in everybody
            if _share_an_address(record, asked.source, v6only=v6only)
        ]
    found.sort(key=lambda record: (record.state != TCP_LISTEN, not record.inode))
    holders = [
        _holder(record, STATE_NAMES.get(record.state, str(record.state)), known) for record in found
    ]
    return asked._replace(on_port=tuple(holders), on_tuple=on_tuple)


def _share_an_address(record: SocketRecord, source: Endpoint, *, v6only: bool) -> bool:
    """Whether a socket has an address in common with one that is bound to the source."""
    wanted = packed(source.host)
    own = unmapped(record.source)
    if wanted is not None and any(wanted):
        if source.scope_id and record.interface not in (0, source.scope_id):
            return False
        return own == wanted or (not any(own) and not (v6only and len(wanted) == 4))
    # A wildcard: IPv4's, or everybody's.
    return wanted is None or len(wanted) == 16 or len(own) == 4 or not (any(own) or v6only)


def _is_local(source: Endpoint) -> bool | None:
    """Whether bind() takes an address; None where it fails for another reason."""
    family = socket.AF_INET6 if ":" in source.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as scratch:
        # Without a port, which might be held, and which nobody needs.
        set_ip_bind_address_no_port(scratch, on=True)
        try:
            scratch.bind(source._replace(port=0).sockaddr(family))
        except OSError as error:
            return False if error.errno == errno.EADDRNOTAVAIL else None
    return True


def _with_census(asked: Asked, destination: Endpoint) -> Asked:
    """The same, with the ports toward the destination, from the source that connect() would take.

    Raises RangeNotHonoured for ports out of range, and other OSErrors where there is no route.
    """
    protocol = PROTOCOLS[asked.protocol]
    source = (asked.source.host, 0) if asked.source.host else None
    family = AF_INET6 if ":" in destination.host else AF_INET
    request = parse(0, protocol.type, protocol.number, "auto", source, destination.sockaddr(family))
    options = Options(ports=asked.ports, replaceable=True) if asked.ports else NEW_SOCKET
    prepared = make_plan(NAMESPACES.here(), request, options)
    return asked._replace(census=take_census(prepared), census_source=source_of(prepared))
