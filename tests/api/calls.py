"""The two public calls, so that one test can hold for both, on every protocol and family."""

import contextlib
import errno
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeAlias

import connectx
from connectx.addresses import Address
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
        strategy=strategy,
    )


def by_connectx(
    transport: Transport, source: Address | None, destination: Address, strategy: str = "auto"
) -> socket.socket:
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(transport.socket())
        assert connectx.connectx(sock, source, destination, strategy=strategy) == 0
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
        sock = self._stack.enter_context(
            self._call(self.transport, source, destination, strategy)
        )
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
        """Connect until that fails, and return the error it fails with."""
        for _ in range(limit):
            try:
                self.open(port, source, strategy=strategy)
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
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
