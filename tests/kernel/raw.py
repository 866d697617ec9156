"""Sockets by system calls alone: the tests here are about the kernel, not about our code.

A Technique says what is done to a socket before connect(); a Transport says on
which protocol and addresses. Where this kernel lacks either, the test is skipped.
"""

import contextlib
import errno
import os
import platform
import random
import re
import socket
import struct
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import pytest

from connectx.linux import uapi
from connectx.sandbox.servers import Servers
from tests import limits

# What comes of an attempt: nothing went wrong, or the errno and the call that gave it.
OK: Final = "ok"
NOTAVAIL: Final = "EADDRNOTAVAIL at connect"
INUSE: Final = "EADDRINUSE at bind"
AGAIN: Final = "EAGAIN at connect"

# Destination ports, outside of every range the clients get.
FIRST, SECOND, THIRD = 9000, 9001, 9002


@dataclass(frozen=True)
class Transport:
    """A protocol, and loopback addresses to use it between."""

    name: str
    protocol: int
    source: str
    wildcard: str

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.source else socket.AF_INET

    @property
    def type(self) -> socket.SocketKind:
        streams = (uapi.IPPROTO_TCP, uapi.IPPROTO_MPTCP)
        return socket.SOCK_STREAM if self.protocol in streams else socket.SOCK_DGRAM

    def socket(self) -> socket.socket:
        try:
            return socket.socket(self.family, self.type, self.protocol)
        except OSError as error:
            if error.errno in {errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENOPROTOOPT}:
                pytest.skip(f"kernel: no {self.name}: {error}")
            raise

    def __str__(self) -> str:
        return self.name


TCP: Final = Transport("TCP", uapi.IPPROTO_TCP, "127.0.0.1", "0.0.0.0")
TCP6: Final = Transport("TCP/IPv6", uapi.IPPROTO_TCP, "::1", "::")
MPTCP: Final = Transport("MPTCP", uapi.IPPROTO_MPTCP, "127.0.0.1", "0.0.0.0")
MPTCP6: Final = Transport("MPTCP/IPv6", uapi.IPPROTO_MPTCP, "::1", "::")
UDP: Final = Transport("UDP", uapi.IPPROTO_UDP, "127.0.0.1", "0.0.0.0")
UDP6: Final = Transport("UDP/IPv6", uapi.IPPROTO_UDP, "::1", "::")
UDPLITE: Final = Transport("UDP-Lite", uapi.IPPROTO_UDPLITE, "127.0.0.1", "0.0.0.0")
UDPLITE6: Final = Transport("UDP-Lite/IPv6", uapi.IPPROTO_UDPLITE, "::1", "::")

STREAMS: Final = (TCP, TCP6, MPTCP, MPTCP6)
DATAGRAMS: Final = (UDP, UDP6, UDPLITE, UDPLITE6)


@dataclass(frozen=True)
class Technique:
    """What is done to a socket before connect(), in this order.

    window: the ends for IP_LOCAL_PORT_RANGE.
    bind: the port given to bind(), with the source address; None for no bind().
    """

    name: str
    reuseaddr: bool = False
    reuseport: bool = False
    no_port: bool = False
    window: tuple[int, int] | None = None
    bind: int | None = None

    def __str__(self) -> str:
        return self.name


def connect_class(
    window: tuple[int, int], *, reuseaddr: bool = False, reuseport: bool = False
) -> list[Technique]:
    """The techniques with which connect() picks the port."""
    prefix = "REUSEADDR + " * reuseaddr + "REUSEPORT + " * reuseport
    return [
        replace(technique, name=prefix + technique.name, reuseaddr=reuseaddr, reuseport=reuseport)
        for technique in (
            Technique("connect"),
            Technique("NO_PORT + bind(ip, 0)", no_port=True, bind=0),
            Technique("window", window=window),
            Technique("window + NO_PORT + bind(ip, 0)", window=window, no_port=True, bind=0),
        )
    ]


def set_option(sock: socket.socket, level: int, option: int, value: int | bytes) -> None:
    """Set an option, or skip the test where this kernel has none of that name."""
    try:
        sock.setsockopt(level, option, value)
    except OSError as error:
        if error.errno in {errno.ENOPROTOOPT, errno.EOPNOTSUPP}:
            pytest.skip(f"kernel: no socket option {option} of level {level}: {error}")
        raise


def set_window(sock: socket.socket, low: int, high: int) -> None:
    # As bytes: Python refuses an int of 2**31 and more, which high >= 32768 would make.
    set_option(sock, uapi.IPPROTO_IP, uapi.IP_LOCAL_PORT_RANGE, struct.pack("@HH", low, high))


def prepare(sock: socket.socket, technique: Technique, source: str) -> None:
    if technique.reuseaddr:
        set_option(sock, socket.SOL_SOCKET, uapi.SO_REUSEADDR, 1)
    if technique.reuseport:
        set_option(sock, socket.SOL_SOCKET, uapi.SO_REUSEPORT, 1)
    if technique.no_port:
        set_option(sock, uapi.IPPROTO_IP, uapi.IP_BIND_ADDRESS_NO_PORT, 1)
    if technique.window is not None:
        set_window(sock, *technique.window)
    if technique.bind is not None:
        sock.bind((source, technique.bind))


def available(transport: Transport, techniques: list[Technique]) -> list[Technique]:
    """Those techniques whose options this kernel has for the protocol."""
    found = []
    for technique in techniques:
        # Only the options: without bind() there is nothing else to go wrong.
        with contextlib.suppress(pytest.skip.Exception), transport.socket() as sock:
            prepare(sock, replace(technique, bind=None), transport.source)
            found.append(technique)
    return found


def kernel_release() -> tuple[int, int, int]:
    """The running kernel's version, for facts that changed; the library must not ask for it."""
    major, minor, patch, *_ = [*map(int, re.findall(r"\d+", platform.release())), 0]
    return major, minor, patch


def recomputes_buckets() -> bool:
    """Whether a port's state follows from the sockets that are left when one leaves it.

    So inet_bind_bucket's does since 6.17.8 and 6.18. Before, it stays as an explicit binder has
    made it for as long as there is any socket on the port.
    """
    return kernel_release() >= (6, 17, 8)


def abort(sock: socket.socket) -> None:
    """Close a connection by a reset: it leaves no TIME_WAIT behind."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
    sock.close()


def cookie(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.SOL_SOCKET, uapi.SO_COOKIE, 8)


def fresh_hosts(count: int) -> list[str]:
    """Loopback addresses at random, toward each of which a search begins somewhere else.

    Toward an address that comes again it begins behind the port that it found (table_perturb in
    net/ipv4/inet_hashtables.c, which is the machine's and outlasts networks).
    """
    return [
        f"127.{octets >> 16}.{octets >> 8 & 255}.{octets & 255}"
        for octets in random.sample(range(1, 1 << 24), count)
    ]


class Found(NamedTuple):
    """What SOCK_DIAG tells of a socket: SO_COOKIE, TCP state, and when its timer ends, in ms."""

    cookie: bytes
    state: int
    expires: int


def look_up(transport: Transport, port: int, destination: int) -> Found | None:
    """The socket that a packet of this 4-tuple would reach, by an exact SOCK_DIAG lookup.

    Both addresses are the transport's source, as everywhere here.
    """
    address = socket.inet_pton(transport.family, transport.source).ljust(16, b"\0")
    # Datagrams: source and destination are swapped, since udp_dump_one() passes
    # them on as those of an arriving packet.
    streams = transport.type == socket.SOCK_STREAM
    ports = (port, destination) if streams else (destination, port)
    return exchange(uapi.SOCK_DIAG_BY_FAMILY, transport, ports, address)


def destroy(transport: Transport, port: int, destination: int) -> None:
    """Close a stream whoever owns it, or nobody: SOCK_DESTROY."""
    address = socket.inet_pton(transport.family, transport.source).ljust(16, b"\0")
    try:
        exchange(uapi.SOCK_DESTROY, transport, (port, destination), address)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            pytest.skip(f"kernel: built without INET_DIAG_DESTROY: {error}")
        raise


def exchange(
    request: int, transport: Transport, ports: tuple[int, int], address: bytes
) -> Found | None:
    # struct inet_diag_req_v2, asking for sockets in any state and with any cookie.
    body = struct.pack("@BBBxI", transport.family, transport.protocol, 0, 0xFFFFFFFF)
    body += struct.pack("!HH", *ports) + address + address
    body += struct.pack("@III", 0, uapi.INET_DIAG_NOCOOKIE, uapi.INET_DIAG_NOCOOKIE)
    flags = uapi.NLM_F_REQUEST | (uapi.NLM_F_ACK if request == uapi.SOCK_DESTROY else 0)
    header = struct.pack("@IHHII", 16 + len(body), request, flags, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, uapi.NETLINK_SOCK_DIAG) as channel:
        channel.send(header + body)
        reply = limits.receive(channel, 8192)
    (kind,) = struct.unpack_from("@H", reply, 4)
    if kind == uapi.NLMSG_ERROR:
        (number,) = struct.unpack_from("@i", reply, 16)
        if number in {0, -errno.ENOENT}:
            return None
        raise OSError(-number, os.strerror(-number))
    # struct inet_diag_msg: state, then behind ports, addresses and interface the
    # cookie and the timer.
    state, cookie, expires = struct.unpack_from("@xBxx2x2x32x4x8sI", reply, 16)
    return Found(cookie, state, expires)


def find(transport: Transport, port: int, destination: int) -> bytes | None:
    """The cookie of the socket that a packet of this 4-tuple would reach."""
    found = look_up(transport, port, destination)
    return found and found.cookie


class Sockets:
    """Makes the sockets of one test over one transport, and closes them after it.

    opened: those whose outcome() was OK, in order.
    listeners: the servers of streams, by destination port.
    """

    def __init__(self, transport: Transport, stack: contextlib.ExitStack) -> None:
        self.transport = transport
        self.opened: list[socket.socket] = []
        self.listeners: dict[int, socket.socket] = {}
        self._stack = stack

    def new(self) -> socket.socket:
        return self._stack.enter_context(self.transport.socket())

    def serve(self, servers: Servers) -> None:
        """Listen on all destination ports; connections stay in the accept queue.

        Datagrams need nobody at the destination: connect() sends nothing.
        """
        if self.transport.type == socket.SOCK_STREAM:
            self.new().close()  # Skips the test where the kernel lacks the protocol.
            for port in (FIRST, SECOND, THIRD):
                self.listeners[port] = servers.listen(
                    self.transport.source, port, protocol=self.transport.protocol
                )

    def bound(self, technique: Technique) -> socket.socket:
        """Prepare a socket and leave it unconnected."""
        sock = self.new()
        prepare(sock, technique, self.transport.source)
        return sock

    def open(self, technique: Technique, port: int = FIRST) -> socket.socket:
        """Prepare a socket and connect it from the transport's source to a port of the server."""
        sock = self.new()
        prepare(sock, technique, self.transport.source)
        sock.connect((self.transport.source, port))
        return sock

    def outcome(self, technique: Technique, port: int = FIRST) -> str:
        """The same, but say what came of it: OK, or the errno and the call that gave it."""
        with contextlib.ExitStack() as on_error:
            sock = on_error.enter_context(self.transport.socket())
            call = "bind"
            try:
                prepare(sock, technique, self.transport.source)
                call = "connect"
                sock.connect((self.transport.source, port))
            except OSError as error:
                return f"{errno.errorcode[error.errno or 0]} at {call}"
            self._stack.push(on_error.pop_all())
        self.opened.append(sock)
        return OK

    def fill(self, technique: Technique, port: int = FIRST, *, limit: int) -> tuple[int, str]:
        """Open connections to one destination until it fails; how many, and what ended it."""
        for count in range(limit):
            if (outcome := self.outcome(technique, port)) != OK:
                return count, outcome
        return limit, OK
