"""SOCK_DIAG lookups: which socket has a 4-tuple.

A lookup asks the kernel the question that it asks itself when a packet arrives. It needs no
privilege, and sees the sockets of the network namespace that the netlink socket belongs to.
See inet_diag_find_one_icsk() in net/ipv4/inet_diag.c and udp_dump_one() in
net/ipv4/udp_diag.c. `connectx.linux.socket_dump` lists sockets.
"""

from __future__ import annotations

import errno
import sys
from functools import lru_cache
from socket import ntohs
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.addresses import PROTOCOLS, V4_MAPPED
from connectx.linux.netlink import MalformedMessage, NetlinkError
from connectx.linux.structs import (
    INET_DIAG_MSG,
    INET_DIAG_REQ_V2,
    INET_DIAG_SOCKID,
    NLMSGHDR,
)
from connectx.linux.uapi import (
    AF_INET,
    AF_INET6,
    INET_DIAG_NOCOOKIE,
    IPPROTO_TCP,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    SOCK_DIAG_BY_FAMILY,
    STATE_NAMES,
    TCP_ESTABLISHED,
    TCP_FIN_WAIT2,
    TCP_TIME_WAIT,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx.linux.netlink import NetlinkSocket

#: The states filter that lets every socket pass.
ALL_STATES: Final = 0xFFFFFFFF

ANY_COOKIE: Final = INET_DIAG_NOCOOKIE.to_bytes(4, "big") * 2
LITTLE_ENDIAN: Final = sys.byteorder == "little"

#: A request as far as the source port, the source port in network order, the rest.
_REQUEST_TCP: Final = Struct(">24sH46s")
_REQUEST_UDP: Final = Struct(">26sH44s")

#: The device of a packet that reaches no socket which is bound to one.
NO_DEVICE: Final = bytes(4)

#: Where idiag_cookie lies in a reply, of which no more is received. An error is shorter
#: (NETLINK_CAP_ACK) and has nothing there.
_COOKIE: Final = slice(60, 68)

#: As much of a reply as has nlmsghdr and either idiag_state or an errno.
_BEGINNING: Final = 20
_STATE: Final = 17
_DIAG: Final = SOCK_DIAG_BY_FAMILY.to_bytes(2, sys.byteorder)
_ERROR: Final = NLMSG_ERROR.to_bytes(2, sys.byteorder)
_NO_ENTRY: Final = (-errno.ENOENT).to_bytes(4, sys.byteorder, signed=True)

#: The tables by the number of a protocol. MPTCP's subflows are in TCP's.
_TABLES: Final = {each.number or each.table: each.table for each in PROTOCOLS.values()}


class SocketRecord(NamedTuple):
    """A socket as SOCK_DIAG describes it.

    Attributes:
        family: The socket's own family, AF_INET or AF_INET6. IPv4-mapped addresses are on
            AF_INET6 sockets.
        state: TCP_ESTABLISHED and so on, for UDP too. TCP_CLOSE is a socket that is not
            connected. A dump's filter calls a TCP socket that is only bound
            TCP_BOUND_INACTIVE, since Linux 6.8.
        source: The octets of an address, 4 or 16 by family.
        source_port: The port.
        destination: The octets of the peer's address.
        destination_port: The peer's port.
        interface: The index of the device that it is bound to (SO_BINDTOIFINDEX); 0 for none.
        cookie: The 8 octets that getsockopt(SOL_SOCKET, SO_COOKIE) returns for it.
        uid: Its owner; 0 in TIME_WAIT.
        inode: Its inode, as in /proc/PID/fd; 0 in TIME_WAIT, and without a process.
        expires: Milliseconds until its timer expires: for a TIME_WAIT, until it ends.
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
    expires: int = 0

    @property
    def state_name(self) -> str:
        """The state as ss(8) prints it."""
        return STATE_NAMES.get(self.state, str(self.state))

    @property
    def in_time_wait(self) -> bool:
        """Whether only a TIME_WAIT is left of it.

        A TIME_WAIT whose peer has not closed yet is reported in its substate, FIN_WAIT2
        (tw_substate), and has no inode.
        """
        return self.state == TCP_TIME_WAIT or (self.state == TCP_FIN_WAIT2 and not self.inode)


class TupleLookup:
    """Finds the socket on a 4-tuple, for one destination and any source port.

    A lookup finds the socket that a packet would reach. That may be a connected socket, an
    unconnected or wildcard one on the source port, for TCP a listener, or a TIME_WAIT;
    `find_record` tells which.

    Immutable, so threads may share one. Each brings its own netlink socket.

    Args:
        protocol: IPPROTO_TCP, IPPROTO_UDP or IPPROTO_UDPLITE. IPPROTO_MPTCP stands for TCP,
            whose 4-tuples its subflows occupy.
        family: AF_INET or AF_INET6.
        source: The octets of an address of that family.
        destination: The same. Two IPv4-mapped addresses are looked up as AF_INET, which
            finds AF_INET sockets as well as IPv4-mapped ones.
        destination_port: The port.
        interface: The index of the device on which the packet would arrive. A socket that is
            bound to a device is found only with that device. A link-local destination
            needs its scope.

    Raises:
        ValueError: The protocol is unknown, or the family and the addresses do not match.
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
        # No sequence number: `shows` needs none, and `find_record` brings its own.
        head = NLMSGHDR.pack(NLMSGHDR.size + len(payload), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0)
        tcp = diag_protocol(protocol) == IPPROTO_TCP
        offset = 8 if tcp else 10
        self._pack: Callable[[bytes, int, bytes], bytes] = (
            _REQUEST_TCP if tcp else _REQUEST_UDP
        ).pack
        self._before_port = head + payload[:offset]
        self._after_port = payload[offset + 2 :]

    def shows(
        self, netlink: NetlinkSocket, source_port: int, cookie: bytes, device: bytes | None = None
    ) -> bool:
        """Return whether the socket on a source port has this SO_COOKIE, of 8 octets.

        Each UDP connection from a shared port makes one such lookup, so it costs little more than
        its two system calls. False also stands for no answer, which is what a kernel without
        udp_diag gives: see `connectx.linux.features`, or look up a socket that is known to exist.

        Args:
            netlink: The calling thread's.
            source_port: The port.
            cookie: The socket's.
            device: The octets of the index of another device than the lookup's own.

        Raises:
            OSError: The netlink socket is closed (EBADF), for example. NetlinkError has the
                kernel's errno.
            MalformedMessage: The reply cannot be read.
        """
        # Loaded as attributes: called as methods, slots take twice the time.
        pack, send, recv = self._pack, netlink.send, netlink.recv
        after_port = self._after_port if device is None else self._on(device)
        try:
            send(pack(self._before_port, source_port, after_port))
            if recv(_COOKIE.stop)[_COOKIE] == cookie:
                return True
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.ENOBUFS}:
                raise
        except BaseException:
            # A signal handler's exception. The reply must not stay for the next lookup: one
            # about the same socket on another port would believe it.
            netlink.discard()
            raise
        # Another socket, an error, the reply to a lookup that a signal handler made in
        # between, or a machine of the other byte order, which swaps a cookie's halves.
        record = self.find_record(netlink, source_port, device)
        return record is not None and record.cookie == cookie

    def is_service(
        self, netlink: NetlinkSocket, source_port: int, device: bytes | None = None
    ) -> bool:
        """Return whether a socket that is not connected is found on a source port.

        Each UDP connection from a shared port makes one such lookup, too; arguments and errors
        are those of `shows`.
        """
        sequence = netlink.next_sequence().to_bytes(4, sys.byteorder)
        after_port = self._after_port if device is None else self._on(device)
        request = self._pack(self._before_port, source_port, after_port)
        try:
            netlink.send(request[:8] + sequence + request[12:])
            reply = netlink.recv(_BEGINNING)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.ENOBUFS}:
                raise
            reply = b""
        except BaseException:
            netlink.discard()
            raise
        if len(reply) == _BEGINNING and reply[8:12] == sequence:
            if reply[4:6] == _DIAG:
                return reply[_STATE] != TCP_ESTABLISHED
            if reply[4:6] == _ERROR and reply[16:20] == _NO_ENTRY:
                return False
        record = self.find_record(netlink, source_port, device)
        return record is not None and record.state != TCP_ESTABLISHED

    def find_record(
        self, netlink: NetlinkSocket, source_port: int, device: bytes | None = None
    ) -> SocketRecord | None:
        """Return the socket on a source port, None if there is none; as `shows` otherwise."""
        after_port = self._after_port if device is None else self._on(device)
        request = self._pack(self._before_port, source_port, after_port)
        try:
            reply = netlink.request(SOCK_DIAG_BY_FAMILY, request[NLMSGHDR.size :])
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return decode_record(reply)

    def _on(self, device: bytes) -> bytes:
        """What follows the port, for another device: idiag_if lies before the last 8 octets."""
        return self._after_port[:-12] + device + self._after_port[-8:]


def encode_lookup(
    protocol: int,
    family: int,
    source: bytes,
    source_port: int,
    destination: bytes,
    destination_port: int,
    interface: int = 0,
) -> bytes:
    """Return the inet_diag_req_v2 of a lookup; the arguments are those of `TupleLookup`."""
    table = diag_protocol(protocol)
    size = address_size(family)
    if len(source) != size or len(destination) != size:
        raise ValueError("family and addresses do not match")
    if family == AF_INET6 and source[:12] == destination[:12] == V4_MAPPED:
        family, source, destination = AF_INET, source[12:], destination[12:]
    ends = [
        (source_port.to_bytes(2, "big"), source.ljust(16, b"\0")),
        (destination_port.to_bytes(2, "big"), destination.ljust(16, b"\0")),
    ]
    if table != IPPROTO_TCP:
        # "src and dst are swapped for historical reasons" (udp_diag.c).
        ends.reverse()
    (port, address), (peer_port, peer_address) = ends
    identity = INET_DIAG_SOCKID.pack(port, peer_port, address, peer_address, interface, ANY_COOKIE)
    return INET_DIAG_REQ_V2.pack(family, table, 0, ALL_STATES, identity)


def decode_record(payload: bytes | memoryview) -> SocketRecord:
    """Return the record in a SOCK_DIAG reply without its netlink header."""
    if len(payload) < INET_DIAG_MSG.size:
        raise MalformedMessage(f"{len(payload)} octets are too few for inet_diag_msg")
    return record_of(record_layout(0, INET_DIAG_MSG.size).unpack_from(payload))


def address_size(family: int) -> int:
    """Return the number of octets of a family's addresses; ValueError for other families."""
    if family == AF_INET:
        return 4
    if family == AF_INET6:
        return 16
    raise ValueError(f"not a family of IP addresses: {family}")


def diag_protocol(protocol: int) -> int:
    """Return the number of the table that has a protocol's sockets; ValueError for others."""
    if protocol not in _TABLES:
        raise ValueError(f"not a protocol of SOCK_DIAG: {protocol}")
    return _TABLES[protocol]


@lru_cache(maxsize=32)
def record_layout(before: int, size: int) -> Struct:
    """The fields of inet_diag_msg that we use, with as many octets before and after it."""
    fields = "BBxxHH16s16sI8sI8xII"
    return Struct(f"={before}x{fields}{size - before - INET_DIAG_MSG.size}x")


def record_of(
    fields: tuple[int, int, int, int, bytes, bytes, int, bytes, int, int, int],
) -> SocketRecord:
    """Return the record in the fields of `record_layout`; MalformedMessage for no record."""
    family, state, port, peer_port, source, destination, interface, cookie, *rest = fields
    expires, uid, inode = rest
    if family not in {AF_INET, AF_INET6}:
        raise MalformedMessage(f"idiag_family {family}")
    size = address_size(family)
    return SocketRecord(
        family,
        state,
        source[:size],
        ntohs(port),
        destination[:size],
        ntohs(peer_port),
        interface,
        cookie if LITTLE_ENDIAN else cookie[4:] + cookie[:4],
        uid,
        inode,
        expires,
    )
