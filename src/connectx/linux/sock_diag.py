"""SOCK_DIAG: which socket has a 4-tuple, and which sockets there are.

A lookup asks the kernel what it would ask itself on a packet's arrival; a dump
walks a protocol's whole table. Neither needs a privilege, and both see the
sockets of the network namespace that the netlink socket belongs to. Encoding and
decoding are pure; see inet_diag_find_one_icsk() and inet_diag_bc_run() in
net/ipv4/inet_diag.c, udp_dump_one() in net/ipv4/udp_diag.c.
"""

from __future__ import annotations

import errno
import sys
from array import array
from functools import lru_cache
from socket import ntohs
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from connectx.linux.netlink import DumpInterrupted, MalformedMessage, NetlinkError
from connectx.linux.structs import (
    INET_DIAG_BC_OP,
    INET_DIAG_HOSTCOND,
    INET_DIAG_MSG,
    INET_DIAG_REQ_V2,
    INET_DIAG_SOCKID,
    NLMSGHDR,
    RTATTR,
)
from connectx.linux.uapi import (
    AF_INET,
    AF_INET6,
    INET_DIAG_BC_D_COND,
    INET_DIAG_BC_DEV_COND,
    INET_DIAG_BC_S_COND,
    INET_DIAG_NOCOOKIE,
    INET_DIAG_REQ_BYTECODE,
    IPPROTO_MPTCP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPPROTO_UDPLITE,
    NLM_F_REQUEST,
    SOCK_DIAG_BY_FAMILY,
    TCP_FIN_WAIT2,
    TCP_TIME_WAIT,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx.linux.netlink import NetlinkSocket, Run

_T = TypeVar("_T")

#: The states filter that lets every socket pass.
ALL_STATES: Final = 0xFFFFFFFF

_V4_MAPPED: Final = bytes(10) + b"\xff\xff"
_ANY_COOKIE: Final = INET_DIAG_NOCOOKIE.to_bytes(4, "big") * 2
_LITTLE_ENDIAN: Final = sys.byteorder == "little"

#: A request as far as the source port, the source port in network order, the rest.
_REQUEST_TCP: Final = Struct(">24sH46s")
_REQUEST_UDP: Final = Struct(">26sH44s")

#: Where idiag_cookie lies in a reply, which is cut off behind it. An error is shorter
#: (NETLINK_CAP_ACK) and has nothing there.
_COOKIE: Final = slice(60, 68)

#: How often an inconsistent dump is repeated.
_DUMP_ATTEMPTS: Final = 8


class SocketRecord(NamedTuple):
    """A socket as SOCK_DIAG describes it.

    family: AF_INET or AF_INET6, the socket's own; an IPv4-mapped tuple has AF_INET6.
    state: TCP_ESTABLISHED …, also for UDP. TCP_CLOSE is a socket that is not connected;
    for TCP, a dump's filter calls those that are bound TCP_BOUND_INACTIVE (since 6.8).
    source, destination: packed addresses, 4 or 16 octets by family.
    interface: the device it is bound to (SO_BINDTOIFINDEX); 0 for none.
    cookie: the 8 octets that getsockopt(SOL_SOCKET, SO_COOKIE) gives for it.
    uid, inode: its owner, and what /proc/*/fd shows; 0 in TIME_WAIT.
    """

    family: int
    state: int
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    interface: int
    cookie: bytes
    uid: int
    inode: int

    @property
    def in_time_wait(self) -> bool:
        """Whether only a TIME_WAIT is left of it.

        One whose peer has not closed yet is reported in its substate, FIN_WAIT2
        (tw_substate), and has no inode, like any socket that nobody owns any more.
        """
        return self.state == TCP_TIME_WAIT or (self.state == TCP_FIN_WAIT2 and not self.inode)


class TupleLookup:
    """Finds the socket on a 4-tuple, for one destination and any source port.

    protocol: IPPROTO_TCP, IPPROTO_UDP or IPPROTO_UDPLITE; IPPROTO_MPTCP stands for
    TCP, whose 4-tuples its subflows occupy.
    family, source, destination: AF_INET with 4 octets or AF_INET6 with 16 each. Two
    IPv4-mapped addresses are looked up as AF_INET, since only that finds AF_INET
    sockets as well as IPv4-mapped ones.
    interface: the device the packet would come in on. A socket bound to a device
    is found only with that device here, any other socket always; and a link-local
    destination needs its scope.

    What is found is whoever would receive the packet, so beside the connected
    socket it can be an unconnected or wildcard one on the source port, for TCP a
    listener, and a TIME_WAIT; `find_record` tells them apart. Immutable, hence
    shared by threads at will; each brings its own netlink socket.
    """

    __slots__ = ("_after_port", "_before_port", "_pack")

    def __init__(
        self,
        protocol: int,
        family: int,
        source: bytes,
        destination: bytes,
        destination_port: int,
        interface: int = 0,
    ) -> None:
        payload = encode_lookup(
            protocol, family, source, 0, destination, destination_port, interface
        )
        # No sequence number: `shows` has no use for one, and `find_record` brings its own.
        head = NLMSGHDR.pack(NLMSGHDR.size + len(payload), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0)
        tcp = _diag_protocol(protocol) == IPPROTO_TCP
        offset = 8 if tcp else 10
        self._pack: Callable[[bytes, int, bytes], bytes] = (
            _REQUEST_TCP if tcp else _REQUEST_UDP
        ).pack
        self._before_port = head + payload[:offset]
        self._after_port = payload[offset + 2 :]

    def shows(self, netlink: NetlinkSocket, source_port: int, cookie: bytes) -> bool:
        """Whether the socket on this source port is the one that has this SO_COOKIE (8 octets).

        Costs little more than its two system calls, since each UDP connection
        makes one. No answer is False, and that is also what a kernel without udp_diag
        gives: see `features`, or look up a socket that is known to exist.

        Raises NetlinkError with the kernel's errno; OSError for a closed netlink
        socket (EBADF) and the like; MalformedMessage.
        """
        # Loaded as attributes: called as methods, slots take twice the time.
        pack, send, recv = self._pack, netlink.send, netlink.recv
        try:
            send(pack(self._before_port, source_port, self._after_port))
            if recv(_COOKIE.stop)[_COOKIE] == cookie:
                return True
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.ENOBUFS}:
                raise
        except BaseException:
            # A signal handler's. The reply must not be there for the next lookup: asked
            # about the same socket on another port, that would believe it.
            netlink.discard()
            raise
        # Another socket, an error, the reply to another lookup that a signal handler made
        # in between, or a machine of the other byte order, which swaps a cookie's halves.
        record = self.find_record(netlink, source_port)
        return record is not None and record.cookie == cookie

    def find_record(self, netlink: NetlinkSocket, source_port: int) -> SocketRecord | None:
        """The socket on this source port, None if there is none; raises as `shows` does."""
        request = self._pack(self._before_port, source_port, self._after_port)
        try:
            reply = netlink.request(SOCK_DIAG_BY_FAMILY, request[NLMSGHDR.size :])
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return decode_record(reply)


def encode_lookup(
    protocol: int,
    family: int,
    source: bytes,
    source_port: int,
    destination: bytes,
    destination_port: int,
    interface: int = 0,
) -> bytes:
    """The inet_diag_req_v2 of a lookup; arguments as for `TupleLookup`."""
    diag_protocol = _diag_protocol(protocol)
    size = _address_size(family)
    if len(source) != size or len(destination) != size:
        raise ValueError("family and addresses do not match")
    if family == AF_INET6 and source[:12] == destination[:12] == _V4_MAPPED:
        family, source, destination = AF_INET, source[12:], destination[12:]
    ends = [
        (source_port.to_bytes(2, "big"), source.ljust(16, b"\0")),
        (destination_port.to_bytes(2, "big"), destination.ljust(16, b"\0")),
    ]
    if diag_protocol != IPPROTO_TCP:
        # "src and dst are swapped for historical reasons" (udp_diag.c).
        ends.reverse()
    (port, address), (peer_port, peer_address) = ends
    identity = INET_DIAG_SOCKID.pack(port, peer_port, address, peer_address, interface, _ANY_COOKIE)
    return INET_DIAG_REQ_V2.pack(family, diag_protocol, 0, ALL_STATES, identity)


def decode_record(payload: bytes | memoryview) -> SocketRecord:
    """The record in one SOCK_DIAG reply, without its netlink header."""
    if len(payload) < INET_DIAG_MSG.size:
        raise MalformedMessage(f"{len(payload)} octets are too few for inet_diag_msg")
    return _record(_record_layout(0, INET_DIAG_MSG.size).unpack_from(payload))


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

    A dump is no snapshot: what changes meanwhile may be missing, or there twice.

    Raises NetlinkError; DumpInterrupted if the dump was inconsistent 8 times in a
    row; MalformedMessage.
    """
    wanted = Filter(protocol, states, source, source_port, destination, destination_port, interface)
    found = _dump(netlink, family, wanted, _records)
    return [record for records in found for record in records]


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
        for state, some in found.items():
            ports.setdefault(state, array("H")).extend(some)
    if _LITTLE_ENDIAN:
        for some in ports.values():
            some.byteswap()
    return ports


class Filter(NamedTuple):
    """Which sockets a dump is to give; None and 0 for any."""

    protocol: int
    states: int = ALL_STATES
    source: bytes | None = None
    source_port: int = 0
    destination: bytes | None = None
    destination_port: int = 0
    interface: int = 0


def encode_dump(table: int, family: int, wanted: Filter) -> bytes:
    """The request for a dump: inet_diag_req_v2 and an INET_DIAG_REQ_BYTECODE attribute.

    table: the family of the sockets to walk.
    family: that of the addresses they must have, another one for IPv4-mapped sockets.
    """
    identity = INET_DIAG_SOCKID.pack(
        wanted.source_port.to_bytes(2, "big"),
        wanted.destination_port.to_bytes(2, "big"),
        bytes(16),
        bytes(16),
        0,
        _ANY_COOKIE,
    )
    request = INET_DIAG_REQ_V2.pack(
        table, _diag_protocol(wanted.protocol), 0, wanted.states, identity
    )
    program = encode_filter(family, wanted)
    if not program:
        return request
    return request + RTATTR.pack(RTATTR.size + len(program), INET_DIAG_REQ_BYTECODE) + program


def encode_filter(family: int, wanted: Filter) -> bytes:
    """The program for inet_diag_bc_run() that lets the wanted sockets pass.

    Each condition goes on to the next where it holds, and otherwise jumps 4 octets
    past the end, which is how a program says no. Ports are not in it: the request
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
    program = b""
    for code, operand in reversed(conditions):
        size = INET_DIAG_BC_OP.size + len(operand)
        program = INET_DIAG_BC_OP.pack(code, size, size + len(program) + 4) + operand + program
    return program


def _host(family: int, address: bytes | None) -> bytes:
    size = _address_size(family)
    if address is None:
        return INET_DIAG_HOSTCOND.pack(family, 0, -1) + bytes(size)
    if len(address) != size:
        raise ValueError("family and address do not match")
    return INET_DIAG_HOSTCOND.pack(family, 8 * size, -1) + address


def _address_size(family: int) -> int:
    if family == AF_INET:
        return 4
    if family == AF_INET6:
        return 16
    raise ValueError(f"not a family of IP addresses: {family}")


def _diag_protocol(protocol: int) -> int:
    if protocol == IPPROTO_MPTCP:
        return IPPROTO_TCP
    if protocol in {IPPROTO_TCP, IPPROTO_UDP, IPPROTO_UDPLITE}:
        return protocol
    raise ValueError(f"not a protocol of SOCK_DIAG: {protocol}")


def _dump(
    netlink: NetlinkSocket, family: int, wanted: Filter, decode: Callable[[Run], _T]
) -> list[_T]:
    """What decode makes of each run of messages, from all tables that can hold such sockets."""
    _address_size(family)
    found: list[_T] = []
    for table in (AF_INET, AF_INET6) if family == AF_INET else (family,):
        found += _repeated_dump(netlink, encode_dump(table, family, wanted), decode)
    return found


def _repeated_dump(netlink: NetlinkSocket, request: bytes, decode: Callable[[Run], _T]) -> list[_T]:
    for _ in range(_DUMP_ATTEMPTS - 1):
        try:
            return [decode(run) for run in netlink.dump(SOCK_DIAG_BY_FAMILY, request)]
        except DumpInterrupted:
            continue
    return [decode(run) for run in netlink.dump(SOCK_DIAG_BY_FAMILY, request)]


def _checked(run: Run) -> Run:
    if run.type != SOCK_DIAG_BY_FAMILY:
        raise MalformedMessage(f"nlmsg_type {run.type} in a dump of sockets")
    if run.stride < NLMSGHDR.size + INET_DIAG_MSG.size:
        raise MalformedMessage(f"{run.stride} octets are too few for inet_diag_msg")
    return run


def _records(run: Run) -> list[SocketRecord]:
    layout = _record_layout(NLMSGHDR.size, _checked(run).stride)
    return [_record(fields) for fields in layout.iter_unpack(run.messages)]


@lru_cache(maxsize=32)
def _record_layout(before: int, size: int) -> Struct:
    """inet_diag_msg without the fields we do not use, between what comes before and after."""
    fields = "BBxxHH16s16sI8s12xII"
    return Struct(f"={before}x{fields}{size - before - INET_DIAG_MSG.size}x")


def _record(
    fields: tuple[int, int, int, int, bytes, bytes, int, bytes, int, int],
) -> SocketRecord:
    family, state, port, peer_port, source, destination, interface, cookie, uid, inode = fields
    if family not in {AF_INET, AF_INET6}:
        raise MalformedMessage(f"idiag_family {family}")
    size = _address_size(family)
    return SocketRecord(
        family,
        state,
        source[:size],
        ntohs(port),
        destination[:size],
        ntohs(peer_port),
        interface,
        cookie if _LITTLE_ENDIAN else cookie[4:] + cookie[:4],
        uid,
        inode,
    )


def _ports_by_state(run: Run) -> dict[int, array[int]]:
    """The source ports, in network byte order, by idiag_state."""
    octets, stride = _checked(run).messages, run.stride
    states = octets[NLMSGHDR.size + 1 :: stride].tolist()
    ports = octets.cast("H")[(NLMSGHDR.size + 4) // 2 :: stride // 2].tolist()
    if states.count(states[0]) == len(states):
        return {states[0]: array("H", ports)}
    found: dict[int, array[int]] = {}
    for state, port in zip(states, ports, strict=True):
        found.setdefault(state, array("H")).append(port)
    return found
