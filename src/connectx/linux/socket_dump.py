"""Dumps of SOCK_DIAG: which sockets there are, filtered in the kernel, counted or by themselves.

A dump walks a protocol's whole table, needs no privilege, and shows the sockets of the
network namespace that the netlink socket belongs to. See inet_diag_bc_run() in
net/ipv4/inet_diag.c.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
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

#: The states of sockets without a destination: they listen, are bound, or not connected.
UNCONNECTED: Final = 1 << TCP_LISTEN | 1 << TCP_CLOSE | 1 << TCP_BOUND_INACTIVE

#: How often an inconsistent dump is repeated.
_DUMP_ATTEMPTS: Final = 8


def dump(
    netlink: NetlinkSocket,
    protocol: int,
    family: int,
    states: int = ALL_STATES,
    *,
    source: bytes | None = None,
    source_port: int = 0,
    destination: bytes | None = None,
    destination_port: int = 0,
    interface: int = 0,
) -> list[SocketRecord]:
    """The sockets of a protocol and family, filtered in the kernel.

    states: a bit for each wanted state, as in ``1 << TCP_TIME_WAIT``.
    family: AF_INET gives IPv4-mapped sockets of AF_INET6 as well, since they
    occupy the same tuples.
    source, source_port, destination, destination_port, interface: only sockets
    with these; None and 0 for any.

    A dump is no snapshot: what changes meanwhile may be missing, or there twice. So may
    what does not: the kernel finds its place in a bucket again by counting, and one that
    has come or gone there shifts the others, of which NLM_F_DUMP_INTR says nothing
    (tests/kernel/test_dumps.py). Rare, but where many sockets have one UDP port.

    Raises NetlinkError; DumpInterrupted if the dump was inconsistent 8 times in a
    row; MalformedMessage.
    """
    wanted = Filter(protocol, states, source, source_port, destination, destination_port, interface)
    return records(netlink, family, wanted)


def records(netlink: NetlinkSocket, family: int | None, wanted: Filter) -> list[SocketRecord]:
    """The same for a filter; family None for both, if no address is wanted."""
    return list(chain.from_iterable(_dump(netlink, family, wanted, _records)))


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
    """The source ports in use toward a destination, by state; arguments as for `dump`.

    The same sockets as `dump` gives, at a fraction of the cost: it decodes two
    fields, and those by column.
    """
    wanted = Filter(protocol, states, source, 0, destination, destination_port, interface)
    ports: dict[int, array[int]] = {}
    for found in _dump(netlink, family, wanted, _ports_by_state):
        for state, some in found:
            ports.setdefault(state, array("H")).extend(some)
    if LITTLE_ENDIAN:
        for some in ports.values():
            some.byteswap()
    return ports


class Group(NamedTuple):
    """Sockets of one table and state that go from one address to one destination.

    table: AF_INET or AF_INET6, the sockets' own; an IPv4-mapped tuple has AF_INET6.
    source, destination: packed addresses, 4 or 16 octets by table.
    interface: the device they are bound to; 0 for none.
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


def tally(netlink: NetlinkSocket, family: int | None, wanted: Filter) -> dict[Group, int]:
    """How many sockets there are of each group.

    family: as for `dump`, which raises the same; None for both, if no address is wanted.

    A third of what `dump` costs, and memory for the groups only: no socket is decoded
    by itself.
    """
    counted: dict[Group, int] = {}
    for found in _dump(netlink, family, wanted, _groups):
        for (table, state, port, source, destination, interface), number in found.items():
            if table not in {AF_INET, AF_INET6}:
                raise MalformedMessage(f"idiag_family {table}")
            size = address_size(table)
            ends = source[:size], destination[:size], ntohs(port), interface
            group = Group(table, state, *ends)
            # Not "=": what an IPv4 address leaves of its 16 octets says nothing.
            counted[group] = counted.get(group, 0) + number
    return counted


def source_ports(netlink: NetlinkSocket, wanted: Filter) -> set[int]:
    """The source ports of all sockets of a filter without addresses; raises as `dump` does.

    Cheaper still than `tally`: one field is decoded, by column.
    """
    return {ntohs(port) for found in _dump(netlink, None, wanted, _ports) for port in found}


def with_v6only(netlink: NetlinkSocket, wanted: Filter) -> list[tuple[SocketRecord, bool]]:
    """The sockets of a filter without addresses, and whether IPV6_V6ONLY is on.

    The kernel tells it of AF_INET6 sockets that listen or are not connected (state
    TCP_CLOSE), and of none that is bound and no more (TCP_BOUND_INACTIVE). Raises as `dump`.
    """
    return list(chain.from_iterable(_dump(netlink, None, wanted, _records_with_v6only)))


def idle(netlink: NetlinkSocket, family: int | None, wanted: Filter, milliseconds: int) -> int:
    """How many TCP sockets have sent and received no data for so long; family as for `tally`.

    Since the connection was made, where there never was any (tcp_finish_connect).
    """
    found = _dump(netlink, family, wanted._replace(information=True), _tcp_informations)
    return sum(
        min(TCP_INFO_IDLE.unpack_from(each)) >= milliseconds for some in found for each in some
    )


class Filter(NamedTuple):
    """Which sockets a dump is to give; None and 0 for any.

    ports: only source ports that are in one of these ranges.
    information: whether tcp_info is to come with each.
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


def filter_between(
    protocol: int,
    states: int,
    source: str,
    destination: Endpoint,
    ports: tuple[PortRange, ...] | None = None,
) -> tuple[int | None, Filter]:
    """The family and the filter that find the sockets between two ends.

    Args:
        protocol: The IPPROTO_* number of the table.
        states: A bit for each wanted state.
        source: An IP address, with its scope if it has one ("fe80::7%eth0"); "" for any.
            A scope counts only where the address needs it, as for the kernel.
        destination: The other end; host "" and port 0 for any.
        ports: Ranges of source ports; None for any.

    Returns:
        AF_INET, AF_INET6, or None without an address; and the filter.

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
    return families.pop() if families else None, Filter(
        protocol,
        states,
        octets[0],
        0,
        octets[1],
        destination.port,
        scopes.pop() if scopes else 0,
        ports,
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
    """The request for a dump: inet_diag_req_v2 and an INET_DIAG_REQ_BYTECODE attribute.

    table: the family of the sockets to walk.
    family: that of the addresses they must have, another one for IPv4-mapped sockets.
    """
    protocol = diag_protocol(wanted.protocol)
    extensions = 1 << (INET_DIAG_INFO - 1) if wanted.information else 0
    request = INET_DIAG_REQ_V2.pack(table, protocol, extensions, wanted.states, _ports_only(wanted))
    return request + _attribute(encode_filter(family, wanted))


def encode_tcp_dump(wanted: Filter) -> bytes:
    """The same for TCPDIAG_GETSOCK: inet_diag_req."""
    request = INET_DIAG_REQ.pack(_ports_only(wanted), wanted.states)
    # AF_INET6, since AF_INET would bring a condition on addresses.
    return request + _attribute(encode_filter(AF_INET6, wanted))


def _ports_only(wanted: Filter) -> bytes:
    """The inet_diag_sockid of a dump, in which addresses have no meaning."""
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
    """The program for inet_diag_bc_run() that lets the wanted sockets pass.

    Each condition goes on to the next where it holds, and otherwise jumps 4 octets
    past the end, which is how a program says no. Single ports are not in it: the request
    itself has fields for them, which the kernel compares before it runs a program.
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
    """The part of a program that asks whether a source port is in one of the ranges.

    One after the other: below its low end there is no range left to ask about, if they
    are in order, and up to its high end is a yes, a jump to the end.
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
    netlink: NetlinkSocket,
    family: int | None,
    wanted: Filter,
    collect: Callable[[Iterable[Run]], _T],
) -> list[_T]:
    """What is made of the messages of each table that can hold such sockets."""
    if family is None and diag_protocol(wanted.protocol) == IPPROTO_TCP and not wanted.information:
        # TCP's tables hold sockets of both families, and each dump walks all of them:
        # the older request, which knows no family, takes half the time.
        return [_repeated_dump(netlink, TCPDIAG_GETSOCK, encode_tcp_dump(wanted), collect)]
    tables: tuple[int, ...] = (AF_INET, AF_INET6)
    if family is None:
        # Without a condition on addresses, which AF_INET would bring.
        family = AF_INET6
    elif address_size(family) and family == AF_INET6:
        tables = (AF_INET6,)
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
    # The last message in a datagram may lack its padding; one of the kernel's has it.
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
    """As inet_diag_msg has it: idiag_family, _state, _dport, _src, _dst and _if."""
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
    """The struct tcp_info of each socket that has one: a TIME_WAIT has none."""
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


@lru_cache(maxsize=32)
def _group_layout(stride: int) -> Struct:
    """A message with its header, as far as it tells the groups apart."""
    before = NLMSGHDR.size
    return Struct(f"={before}xBBxx2xH16s16sI{stride - before - 44}x")


def _ports_by_state(runs: Iterable[Run]) -> list[tuple[int, array[int]]]:
    """idiag_state, and source ports in network byte order that have it; a state several times."""
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
