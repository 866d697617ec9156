"""SOCK_DIAG dumps: the sockets that there are, filtered in the kernel, one by one or counted.

A dump walks a protocol's whole table, needs no privilege, and shows the sockets of the
network namespace that the netlink socket belongs to. See inet_diag_bc_run() in
net/ipv4/inet_diag.c.

A dump is not a snapshot. A socket that changes meanwhile may be missing, or there twice. So
may one that does not change: the kernel finds its place in a hash bucket again by counting,
and a socket that has come or gone there shifts the others. NLM_F_DUMP_INTR does not report
that (tests/kernel/test_dumps.py). It is rare, except where many sockets have one UDP port.

Every function raises NetlinkError with the kernel's errno, DumpInterrupted for a dump that
was inconsistent 8 times in a row, and MalformedMessage.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter, defaultdict
from functools import lru_cache
from itertools import chain
from socket import ntohs
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from connectx.addresses import family_of, needs_scope, packed, resolve_scope, unmapped
from connectx.linux.netlink import DumpInterrupted, MalformedMessage
from connectx.linux.route import attributes_in
from connectx.linux.sock_diag import (
    ALL_STATES,
    ANY_COOKIE,
    LITTLE_ENDIAN,
    SocketRecord,
    address_size,
    decode_record,
    diag_protocol,
    record_layout,
    record_of,
)
from connectx.linux.structs import (
    INET_DIAG_BC_OP,
    INET_DIAG_HOSTCOND,
    INET_DIAG_MSG,
    INET_DIAG_REQ,
    INET_DIAG_REQ_V2,
    INET_DIAG_SOCKID,
    NLMSGHDR,
    RTATTR,
    TCP_INFO_IDLE,
)
from connectx.linux.uapi import (
    AF_INET,
    AF_INET6,
    INET_DIAG_BC_D_COND,
    INET_DIAG_BC_DEV_COND,
    INET_DIAG_BC_JMP,
    INET_DIAG_BC_NOP,
    INET_DIAG_BC_S_COND,
    INET_DIAG_BC_S_GE,
    INET_DIAG_BC_S_LE,
    INET_DIAG_INFO,
    INET_DIAG_REQ_BYTECODE,
    INET_DIAG_SKV6ONLY,
    IPPROTO_TCP,
    SOCK_DIAG_BY_FAMILY,
    STATE_NAMES,
    TCP_BOUND_INACTIVE,
    TCP_CLOSE,
    TCP_LISTEN,
    TCPDIAG_GETSOCK,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from connectx.addresses import Endpoint, PortRange
    from connectx.linux.netlink import NetlinkSocket, Run

_T = TypeVar("_T")

#: The states of sockets without a destination: those that listen, are bound, or neither.
UNCONNECTED: Final = 1 << TCP_LISTEN | 1 << TCP_CLOSE | 1 << TCP_BOUND_INACTIVE

#: How often an inconsistent dump is repeated.
_DUMP_ATTEMPTS: Final = 8


def records(netlink: NetlinkSocket, wanted: Filter) -> list[SocketRecord]:
    """List the sockets of a filter."""
    found = list(chain.from_iterable(_dump(netlink, wanted, _records)))
    if wanted.source_port or wanted.destination_port:
        found = [record for record in found if wanted.has_ports_of(record)]
    return found


def ports_toward(
    netlink: NetlinkSocket,
    protocol: int,
    family: int,
    source: bytes | None,
    destination: bytes,
    destination_port: int,
    states: int = ALL_STATES,
    *,
    interface: int = 0,
) -> dict[int, array[int]]:
    """Return the source ports in use toward a destination, by state.

    The arguments are the fields of `Filter`. These are the sockets that `records` lists,
    at a fraction of the cost: only two fields are decoded, by column.
    """
    wanted = Filter(
        protocol, states, source, 0, destination, destination_port, interface, family=family
    )
    ports: dict[int, array[int]] = {}
    for found in _dump(netlink, wanted, _ports_by_state):
        for state, some in found:
            ports.setdefault(state, array("H")).extend(some)
    if LITTLE_ENDIAN:
        for some in ports.values():
            some.byteswap()
    return ports


def sources_toward(
    netlink: NetlinkSocket,
    protocol: int,
    family: int,
    destination: bytes,
    destination_port: int,
    *,
    interface: int = 0,
) -> dict[tuple[bytes, int], set[int]]:
    """Return the ports in use toward a destination, by source and state.

    The arguments are the fields of `Filter`. One dump serves any number of sources.
    """
    wanted = Filter(
        protocol, ALL_STATES, None, 0, destination, destination_port, interface, family=family
    )
    size = address_size(family)
    ports: dict[tuple[bytes, int], set[int]] = {}
    for found in _dump(netlink, wanted, _sources):
        for (table, state, source), some in found.items():
            # An IPv4-mapped one has the IPv4 address at its end.
            octets = source[:size] if table == family else source[-size:]
            ports.setdefault((octets, state), set()).update(some)
    return ports


class Group(NamedTuple):
    """Sockets of one family and state that go from one address to one destination.

    Attributes:
        table: The sockets' own family, AF_INET or AF_INET6. IPv4-mapped addresses are on
            AF_INET6 sockets.
        state: TCP_ESTABLISHED and so on.
        source: The octets of an address, 4 or 16 by table.
        destination: The same.
        destination_port: The peer's port.
        interface: The index of the device that the sockets are bound to; 0 for none.
    """

    table: int
    state: int
    source: bytes
    destination: bytes
    destination_port: int
    interface: int = 0

    @property
    def state_name(self) -> str:
        """The state as ss(8) prints it."""
        return STATE_NAMES.get(self.state, str(self.state))


def tally(netlink: NetlinkSocket, wanted: Filter) -> dict[Group, int]:
    """Count the sockets of a filter by group.

    It takes a third of the time that `records` takes, and memory for the groups only: no
    socket is decoded by itself.
    """
    counted: dict[Group, int] = {}
    for found in _dump(netlink, wanted, _groups):
        for (table, state, port, source, destination, interface), number in found.items():
            if table not in {AF_INET, AF_INET6}:
                raise MalformedMessage(f"idiag_family {table}")
            size = address_size(table)
            ends = source[:size], destination[:size], ntohs(port), interface
            group = Group(table, state, *ends)
            # Not "=": groups may differ in the 12 octets that an IPv4 address leaves unused.
            counted[group] = counted.get(group, 0) + number
    return counted


def source_ports(netlink: NetlinkSocket, wanted: Filter) -> set[int]:
    """Return the source ports of the sockets of a filter.

    Cheaper than `tally`, since only one field is decoded, by column.
    """
    return {ntohs(port) for found in _dump(netlink, wanted, _ports) for port in found}


def with_v6only(netlink: NetlinkSocket, wanted: Filter) -> list[tuple[SocketRecord, bool]]:
    """List the sockets of a filter, each with whether IPV6_V6ONLY is on.

    The kernel reports the option for AF_INET6 sockets that listen or are not connected
    (TCP_CLOSE), and not for those that are only bound (TCP_BOUND_INACTIVE).
    """
    found = chain.from_iterable(_dump(netlink, wanted, _records_with_v6only))
    return [(record, v6only) for record, v6only in found if wanted.has_ports_of(record)]


def idle(netlink: NetlinkSocket, wanted: Filter, milliseconds: int) -> int:
    """Count the TCP sockets of a filter that have carried no data for so long.

    For a connection that has never carried any, the time since it was made counts
    (tcp_finish_connect).
    """
    found = _dump(netlink, wanted._replace(information=True), _tcp_informations)
    return sum(
        min(TCP_INFO_IDLE.unpack_from(each)) >= milliseconds for some in found for each in some
    )


class Filter(NamedTuple):
    """The sockets that a dump lists; None and 0 stand for any.

    Attributes:
        protocol: The IPPROTO_* number of the table; IPPROTO_MPTCP stands for TCP.
        states: A bit for each state, as in ``1 << TCP_TIME_WAIT``.
        source: The octets of the sockets' own address.
        source_port: Their own port.
        destination: The octets of the peer's address.
        destination_port: The peer's port.
        interface: The index of the device that they are bound to.
        ports: Ranges that their own port lies in, in any order.
        information: Whether to ask for tcp_info as well.
        family: The family of the addresses. AF_INET includes IPv4-mapped addresses on
            AF_INET6 sockets, which occupy the same 4-tuples. None for both families, if
            no address is wanted.
    """

    protocol: int
    states: int = ALL_STATES
    source: bytes | None = None
    source_port: int = 0
    destination: bytes | None = None
    destination_port: int = 0
    interface: int = 0
    ports: tuple[PortRange, ...] | None = None
    information: bool = False
    family: int | None = None

    def has_ports_of(self, record: SocketRecord) -> bool:
        """Return whether a record has the single ports, if any are wanted.

        The kernel does not compare these for TCP sockets that are only bound
        (tests/kernel/test_dumps.py).
        """
        return self.source_port in (0, record.source_port) and self.destination_port in (
            0,
            record.destination_port,
        )


def filter_between(
    protocol: int,
    states: int,
    source: str,
    destination: Endpoint,
    ports: tuple[PortRange, ...] | None = None,
) -> Filter:
    """Return the filter for the sockets between two ends.

    Args:
        protocol: As in `Filter`.
        states: As in `Filter`.
        source: An IP address, with its scope if it has one ("fe80::7%eth0"); "" for any.
            A scope counts only where the address needs it, as for the kernel.
        destination: The other end; host "" and port 0 for any.
        ports: As in `Filter`.

    Raises:
        ValueError: A host is no IP address, or the two ends have different IP versions or
            different interfaces.
        OSError: ENODEV, if a scope names no interface of this network namespace.
    """
    ends = [resolve_scope(source), resolve_scope(destination.host, destination.scope_id)]
    octets = [_octets(host) for host, _ in ends]
    families = {family_of(each) for each in octets if each is not None}
    scopes = {
        scope
        for each, (_, scope) in zip(octets, ends, strict=True)
        if scope and each is not None and needs_scope(each)
    }
    if len(families) > 1:
        raise ValueError(f"{source} and {destination.host} are not of the same IP version")
    if len(scopes) > 1:
        raise ValueError(f"{source} and {destination.host} are not on the same interface")
    return Filter(
        protocol,
        states,
        octets[0],
        0,
        octets[1],
        destination.port,
        scopes.pop() if scopes else 0,
        ports,
        family=families.pop() if families else None,
    )


def _octets(host: str) -> bytes | None:
    """The octets of an address, IPv4's for an IPv4-mapped one; None for ""."""
    if not host:
        return None
    octets = packed(host)
    if octets is None:
        raise ValueError(f"not an IP address: {host!r}")
    return unmapped(octets)


def encode_dump(table: int, family: int, wanted: Filter) -> bytes:
    """Return the request for a dump: inet_diag_req_v2, and INET_DIAG_REQ_BYTECODE.

    Args:
        table: The family of the sockets to walk.
        family: The family of the addresses they must have; another one for IPv4-mapped
            addresses.
        wanted: The filter.
    """
    protocol = diag_protocol(wanted.protocol)
    extensions = 1 << (INET_DIAG_INFO - 1) if wanted.information else 0
    request = INET_DIAG_REQ_V2.pack(table, protocol, extensions, wanted.states, _ports_only(wanted))
    return request + _attribute(encode_filter(family, wanted))


def encode_tcp_dump(family: int, wanted: Filter) -> bytes:
    """Return the request for a dump by TCPDIAG_GETSOCK: inet_diag_req, and the same attribute.

    It lists both tables.

    Args:
        family: As for `encode_dump`.
        wanted: The filter.
    """
    request = INET_DIAG_REQ.pack(_ports_only(wanted), wanted.states)
    return request + _attribute(encode_filter(family, wanted))


def _ports_only(wanted: Filter) -> bytes:
    """The inet_diag_sockid of a dump, where addresses have no meaning."""
    return INET_DIAG_SOCKID.pack(
        wanted.source_port.to_bytes(2, "big"),
        wanted.destination_port.to_bytes(2, "big"),
        bytes(16),
        bytes(16),
        0,
        ANY_COOKIE,
    )


def _attribute(program: bytes) -> bytes:
    if not program:
        return b""
    return RTATTR.pack(RTATTR.size + len(program), INET_DIAG_REQ_BYTECODE) + program


def encode_filter(family: int, wanted: Filter) -> bytes:
    """Return the program for inet_diag_bc_run() that lets the wanted sockets pass.

    A condition that holds goes on to the next one. Otherwise it jumps 4 octets past the
    end, which is how a program says no. Single ports are not part of it: the request has
    fields for them, which the kernel compares before it runs the program.
    """
    conditions = []
    if wanted.source is not None or family == AF_INET:
        # An AF_INET condition holds for IPv4-mapped addresses and for no other IPv6
        # address, so for AF_INET there must be one, if only of prefix length 0.
        conditions.append((INET_DIAG_BC_S_COND, _host(family, wanted.source)))
    if wanted.destination is not None:
        conditions.append((INET_DIAG_BC_D_COND, _host(family, wanted.destination)))
    if wanted.interface:
        conditions.append((INET_DIAG_BC_DEV_COND, wanted.interface.to_bytes(4, sys.byteorder)))
    program = _within(wanted.ports)
    for code, operand in reversed(conditions):
        size = INET_DIAG_BC_OP.size + len(operand)
        program = INET_DIAG_BC_OP.pack(code, size, size + len(program) + 4) + operand + program
    return program


def _within(ports: tuple[PortRange, ...] | None) -> bytes:
    """The part of a program that asks whether a source port lies in one of the ranges.

    It asks about one range after the other, in order. Below the low end of a range the
    answer is no, since the rest lies above. Up to its high end the answer is yes, a jump
    to the end.
    """
    if ports is None:
        return b""
    program = INET_DIAG_BC_OP.pack(INET_DIAG_BC_JMP, 4, 8)
    for low, high in sorted(ports, reverse=True):
        rest = len(program)
        program = (
            INET_DIAG_BC_OP.pack(INET_DIAG_BC_S_GE, 8, 8 + 8 + 4 + rest + 4)
            + INET_DIAG_BC_OP.pack(INET_DIAG_BC_NOP, 0, low)
            + INET_DIAG_BC_OP.pack(INET_DIAG_BC_S_LE, 8, 8 + 4)
            + INET_DIAG_BC_OP.pack(INET_DIAG_BC_NOP, 0, high)
            + INET_DIAG_BC_OP.pack(INET_DIAG_BC_JMP, 4, 4 + rest)
            + program
        )
    return program


def _host(family: int, address: bytes | None) -> bytes:
    size = address_size(family)
    if address is None:
        return INET_DIAG_HOSTCOND.pack(family, 0, -1) + bytes(size)
    if len(address) != size:
        raise ValueError("family and address do not match")
    return INET_DIAG_HOSTCOND.pack(family, 8 * size, -1) + address


def _dump(
    netlink: NetlinkSocket, wanted: Filter, collect: Callable[[Iterable[Run]], _T]
) -> list[_T]:
    """Dump each table that can hold such sockets, and collect what it lists."""
    # AF_INET6 for both families, without the condition on addresses that AF_INET would bring.
    family = AF_INET6 if wanted.family is None else wanted.family
    tables: tuple[int, ...] = (AF_INET, AF_INET6)
    if wanted.family is not None and address_size(family) and family == AF_INET6:
        tables = (AF_INET6,)
    elif diag_protocol(wanted.protocol) == IPPROTO_TCP and not wanted.information:
        # TCP's table holds sockets of both families, and each dump walks all of it. The
        # older request, which knows no family, takes half the time of two dumps.
        return [_repeated_dump(netlink, TCPDIAG_GETSOCK, encode_tcp_dump(family, wanted), collect)]
    return [
        _repeated_dump(netlink, SOCK_DIAG_BY_FAMILY, encode_dump(table, family, wanted), collect)
        for table in tables
    ]


def _repeated_dump(
    netlink: NetlinkSocket, kind: int, request: bytes, collect: Callable[[Iterable[Run]], _T]
) -> _T:
    for _ in range(_DUMP_ATTEMPTS - 1):
        try:
            return collect(netlink.dump(kind, request))
        except DumpInterrupted:
            continue
    return collect(netlink.dump(kind, request))


def _checked(run: Run) -> Run:
    # Each request's replies have its own type.
    if run.type not in {SOCK_DIAG_BY_FAMILY, TCPDIAG_GETSOCK}:
        raise MalformedMessage(f"nlmsg_type {run.type} in a dump of sockets")
    if (size := len(run.first_payload)) < INET_DIAG_MSG.size:
        raise MalformedMessage(f"{size} octets are too few for inet_diag_msg")
    # A message may lack its padding if it is the last in a datagram. The kernel's have it.
    if len(run.messages) % run.stride:
        raise MalformedMessage(f"a message of {size} octets without its padding")
    return run


def _records(runs: Iterable[Run]) -> list[SocketRecord]:
    records: list[SocketRecord] = []
    for run in runs:
        layout = record_layout(NLMSGHDR.size, _checked(run).stride)
        records += map(record_of, layout.iter_unpack(run.messages))
    return records


def _groups(runs: Iterable[Run]) -> Counter[tuple[int, int, int, bytes, bytes, int]]:
    """Count by idiag_family, idiag_state, idiag_dport, idiag_src, idiag_dst and idiag_if."""
    counted: Counter[Any] = Counter()
    for run in runs:
        # Unpacked and counted in C, a socket at a time.
        counted.update(_group_layout(_checked(run).stride).iter_unpack(run.messages))
    return counted


def _payloads(runs: Iterable[Run]) -> Iterator[memoryview]:
    for run in runs:
        for start in range(0, len(_checked(run).messages), run.stride):
            yield run.messages[start + NLMSGHDR.size : start + run.stride]


def _tcp_informations(runs: Iterable[Run]) -> list[bytes]:
    """The struct tcp_info of each socket, except those in TIME_WAIT, which have none."""
    found = []
    for payload in _payloads(runs):
        for kind, value in attributes_in(payload[INET_DIAG_MSG.size :]):
            if kind == INET_DIAG_INFO and len(value) >= TCP_INFO_IDLE.size:
                found.append(value)
    return found


def _records_with_v6only(runs: Iterable[Run]) -> list[tuple[SocketRecord, bool]]:
    found = []
    for payload in _payloads(runs):
        attributes = attributes_in(payload[INET_DIAG_MSG.size :])
        v6only = any(kind == INET_DIAG_SKV6ONLY and any(value) for kind, value in attributes)
        found.append((decode_record(payload), v6only))
    return found


def _ports(runs: Iterable[Run]) -> set[int]:
    """Source ports in network byte order."""
    found: set[int] = set()
    for run in runs:
        found.update(_column_of_ports(_checked(run)))
    return found


def _sources(runs: Iterable[Run]) -> dict[tuple[int, int, bytes], set[int]]:
    """The ports by idiag_family, idiag_state and idiag_src."""
    found: defaultdict[tuple[int, int, bytes], set[int]] = defaultdict(set)
    for run in runs:
        layout = _source_layout(_checked(run).stride)
        for table, state, port, source in layout.iter_unpack(run.messages):
            found[table, state, source].add(port)
    return found


@lru_cache(maxsize=32)
def _source_layout(stride: int) -> Struct:
    """A message with its header; only the fields that tell where a socket connects from."""
    before = NLMSGHDR.size
    return Struct(f">{before}xBBxxHxx16s{stride - before - 24}x")


@lru_cache(maxsize=32)
def _group_layout(stride: int) -> Struct:
    """A message with its header; only the fields that a group has in common are unpacked."""
    before = NLMSGHDR.size
    return Struct(f"={before}xBBxx2xH16s16sI{stride - before - 44}x")


def _ports_by_state(runs: Iterable[Run]) -> list[tuple[int, array[int]]]:
    """Pairs of idiag_state and the ports in that state; a state may come several times."""
    return [each for run in runs for each in _ports_of(run).items()]


def _column_of_ports(run: Run) -> list[int]:
    return run.messages.cast("H")[(NLMSGHDR.size + 4) // 2 :: run.stride // 2].tolist()


def _ports_of(run: Run) -> dict[int, array[int]]:
    octets, stride = _checked(run).messages, run.stride
    states = octets[NLMSGHDR.size + 1 :: stride].tolist()
    ports = _column_of_ports(run)
    if states.count(states[0]) == len(states):
        return {states[0]: array("H", ports)}
    found: dict[int, array[int]] = {}
    for state, port in zip(states, ports, strict=True):
        found.setdefault(state, array("H")).append(port)
    return found
