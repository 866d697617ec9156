"""The two public calls, so that one test can hold for both, on every protocol and family."""

import contextlib
import ctypes
import errno
import os
import resource
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, TypeAlias

import pytest

import connectx
from connectx._connect.namespace import windows_work
from connectx.addresses import Address
from connectx.linux import uapi
from tests import limits
from tests.kernel.raw import (
    MPTCP,
    MPTCP6,
    TCP,
    TCP6,
    UDP,
    UDP6,
    UDPLITE,
    UDPLITE6,
    Transport,
    look_up,
)


def mapped(transport: Transport) -> Transport:
    """The same protocol over IPv4, on AF_INET6 sockets."""
    return replace(
        transport,
        name=f"{transport.name}/mapped",
        source=f"::ffff:{transport.source}",
        wildcard="::",
    )


TCP_MAPPED: Final = mapped(TCP)
MPTCP_MAPPED: Final = mapped(MPTCP)
UDP_MAPPED: Final = mapped(UDP)
UDPLITE_MAPPED: Final = mapped(UDPLITE)

STREAMS: Final = (TCP, TCP6, TCP_MAPPED, MPTCP, MPTCP6, MPTCP_MAPPED)
DATAGRAMS: Final = (UDP, UDP6, UDP_MAPPED, UDPLITE, UDPLITE6, UDPLITE_MAPPED)
ALL: Final = (*STREAMS, *DATAGRAMS)

PROTOCOL_NAMES: Final = {"TCP": "tcp", "MPTCP": "mptcp", "UDP": "udp", "UDP-Lite": "udplite"}

CAP_NET_BIND_SERVICE: Final = 10
CAP_NET_ADMIN: Final = 12
CAP_NET_RAW: Final = 13
CAP_SYS_ADMIN: Final = 21
_TCP_REPAIR: Final = 19  # linux/tcp.h, 3.5

#: Calls one of the two: transport, source, destination and strategy in, a connected socket out.
Call: TypeAlias = Callable[[Transport, Address | None, Address, str], socket.socket]


def by_create_connection(
    transport: Transport, source: Address | None, destination: Address, strategy: str = "auto"
) -> socket.socket:
    host, port, *_ = destination
    # Protocol 0, the family's default, is what callers give unless they need another.
    default = transport.protocol in {socket.IPPROTO_TCP, socket.IPPROTO_UDP}
    return connectx.create_connection(
        (host, port),
        source_address=source,
        type=transport.type,
        proto=0 if default else transport.protocol,
        strategy=strategy,  # type: ignore[arg-type] # any of them
    )


def by_connectx(
    transport: Transport, source: Address | None, destination: Address, strategy: str = "auto"
) -> socket.socket:
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(transport.socket())
        assert connectx.connectx(sock, source, destination, strategy=strategy) == 0  # type: ignore[arg-type] # any of them
        on_error.pop_all()
    return sock


CALLS: Final[dict[str, Call]] = {
    "create_connection": by_create_connection,
    "connectx": by_connectx,
}


def protocol_name(transport: Transport) -> str:
    """The protocol as errors name it."""
    return PROTOCOL_NAMES[transport.name.partition("/")[0]]


def is_stream(transport: Transport) -> bool:
    return transport.type == socket.SOCK_STREAM


def errno_of_exhaustion(transport: Transport) -> int:
    return errno.EADDRNOTAVAIL if is_stream(transport) else errno.EAGAIN


def errno_of_taken_tuple(transport: Transport) -> int:
    return errno.EADDRNOTAVAIL if is_stream(transport) else errno.EADDRINUSE


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


class Client:
    """Connects with one of the two calls over one transport, and closes everything after the test.

    opened: the connected sockets, in order, those closed by `close` not among them.
    """

    def __init__(self, transport: Transport, call: Call, stack: contextlib.ExitStack) -> None:
        self.transport = transport
        self.opened: list[socket.socket] = []
        self._call = call
        self._stack = stack

    @property
    def leaves_ports_to_the_kernel(self) -> bool:
        """Whether the kernel has no windows, and a bind that failed could not be undone."""
        return (
            is_stream(self.transport)
            and self._call is by_connectx
            and not windows_work(protocol_name(self.transport))
        )

    def open(
        self,
        port: int,
        source: Address | None = None,
        *,
        host: str | None = None,
        strategy: str = "auto",
    ) -> socket.socket:
        """Connect to a port of the server, by default on the transport's own address."""
        destination = (host or self.transport.source, port)
        sock = self._stack.enter_context(self._call(self.transport, source, destination, strategy))
        self.opened.append(sock)
        return sock

    def fill(
        self,
        port: int,
        source: Address | None = None,
        *,
        strategy: str = "auto",
        limit: int = 64,
    ) -> connectx.ConnectxError:
        """Connect until that fails, and return the error it fails with.

        Skips the test where that is what this kernel cannot do.
        """
        for _ in range(limit):
            try:
                self.open(port, source, strategy=strategy)
            except connectx.NotSupported as error:
                if not windows_work(protocol_name(self.transport)):
                    pytest.skip(f"kernel: {error.strerror}")
                raise
            except connectx.ConnectxError as error:
                # Its traceback would keep this frame, and all sockets of the failed call.
                return error.with_traceback(None)
        raise AssertionError(f"still not exhausted after {limit} connections")

    def toward(self, port: int) -> list[socket.socket]:
        """The connections to a port of the server, in order."""
        return [sock for sock in self.opened if sock.getpeername()[1] == port]

    def ports(self, port: int) -> list[int]:
        """Their source ports, ascending."""
        return sorted(map(port_of, self.toward(port)))

    def close(self, sock: socket.socket) -> int:
        """Close a connection, leaving no TIME_WAIT; returns its port."""
        port = port_of(sock)
        self.opened.remove(sock)
        if is_stream(self.transport):
            reset_on_close(sock)
        sock.close()
        return port


def reset_on_close(sock: socket.socket) -> None:
    """Make close() send a reset, which leaves no TIME_WAIT."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))


def close_first(client: socket.socket, server: socket.socket, state: int) -> None:
    """Close the client's end, then the server's, and wait for the state that leaves at the client.

    state: TCP_TIME_WAIT, or TCP_FIN_WAIT2, which the kernel keeps in the same kind of bucket.
    """
    host, port, *_ = client.getsockname()
    destination = client.getpeername()[1]
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    client.close()
    assert limits.receive(server) == b""
    if state == uapi.TCP_FIN_WAIT2:
        wait_for(state, host, port, destination)
        # Gone without a word: a reset would end the client's side, and a peer that is still
        # there would hold up a new connection with a challenge ACK.
        server.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    server.close()
    wait_for(state, host, port, destination)


def wait_for(state: int, host: str, port: int, destination: int) -> None:
    """Wait until the TCP socket from host and port to the same host is in a state."""
    transport = replace(TCP6 if host == "::1" else TCP, source=host.removeprefix("::ffff:"))

    def look() -> bool:
        found = look_up(transport, port, destination)
        return found is not None and found.state == state

    limits.until(look, f"a socket in state {state}")


def foreign_host(transport: Transport) -> str:
    """An address of the transport's family that is not this host's, with no route to it."""
    if transport.family == socket.AF_INET:
        return "192.0.2.77"
    return "::ffff:192.0.2.77" if "ffff" in transport.source else "2001:db8::77"


def other_host(transport: Transport) -> str:
    """Another address of this host than the transport's own; ::2 is yet to be added."""
    if transport.source == "::1":
        return "::2"
    return transport.source.replace("127.0.0.1", "127.0.0.2")


def ip(*arguments: str) -> None:
    """Configure the test's network with iproute2."""
    try:
        subprocess.run(
            ["ip", *arguments], check=True, capture_output=True, timeout=limits.COMMAND_LIMIT
        )
    except FileNotFoundError:
        pytest.skip("needs ip, of iproute2")


@contextlib.contextmanager
def without_capability(number: int) -> Iterator[None]:
    """Run a block in which the calling thread has a capability no longer in effect."""
    libc = ctypes.CDLL(None, use_errno=True)
    # struct __user_cap_header_struct, version 3, this thread; then two times
    # effective, permitted, inheritable.
    header = struct.pack("@Ii", 0x20080522, 0)
    held = ctypes.create_string_buffer(24)

    def call(name: str, data: ctypes.Array[ctypes.c_char]) -> None:
        if getattr(libc, name)(header, data) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    call("capget", held)
    effective, *rest = struct.unpack("@6I", held.raw)
    reduced = struct.pack("@6I", effective & ~(1 << number), *rest)
    call("capset", ctypes.create_string_buffer(reduced, 24))
    try:
        yield
    finally:
        call("capset", held)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def limited_descriptors(spare: int) -> Iterator[None]:
    """Let the process open only so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (number for number in range(soft) if not is_open(number))
    limit = next(number for index, number in enumerate(free) if index == spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
