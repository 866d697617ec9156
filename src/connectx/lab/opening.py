"""One connection, with the clock running.

A way to open connections is one of connectx's strategies, by its name, or ``one-window:SIZE``:
the loop of "connect() - why are you so slow?" (2024), which tries one window of random position
for each connection and takes a refusal for an answer. The time is what a caller waits for:
socket(), the options, bind(), connect(), and every retry.
"""

from __future__ import annotations

import errno
import secrets
import socket
import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from connectx._connect import strategies
from connectx._connect.connection import Connection
from connectx._connect.request import parse_literal
from connectx.blocking import run
from connectx.errors import PortsExhausted
from connectx.linux.sockopts import set_ip_bind_address_no_port, set_ip_local_port_range

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx.addresses import Address, PortRange, Protocol

    #: Opens a connection from an address to a destination.
    Opener: TypeAlias = Callable[[Address, Address], "Opened"]

#: What means "no source port was found". Any other error means that the experiment failed.
REFUSALS: Final = frozenset({errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EAGAIN})

#: What one-window:SIZE begins with.
ONE_WINDOW: Final = "one-window"


class Opened(NamedTuple):
    """What came of one connection.

    Attributes:
        socket: The connected socket; None where no port was found.
        nanoseconds: The time from socket() on.
        retries: How many tries were refused before the last one.
        errno: Why no port was found; 0 where one was.
    """

    socket: socket.socket | None
    nanoseconds: int
    retries: int
    errno: int


def check_way(name: str) -> None:
    """Check the name of a way.

    Raises:
        ValueError: There is no way of that name.
    """
    window_of(name) or strategies.named(name)


def window_of(way: str) -> int:
    """Return the size in ``one-window:SIZE``, and 0 for other ways.

    Raises:
        ValueError: The size is not a number of ports.
    """
    kind, colon, size = way.partition(":")
    if kind != ONE_WINDOW:
        return 0
    # isdecimal() alone also takes digits that int() does, but nobody types.
    if not (colon and size.isascii() and size.isdecimal() and 0 < int(size) <= 65535):
        raise ValueError(f"not a window of 1 to 65535 ports such as {ONE_WINDOW}:500: {way!r}")
    return int(size)


def opener(way: str, protocol: Protocol, ports: PortRange) -> Opener:
    """Return a function that opens connections in a way.

    The function raises OSError for what is not about ports, such as a refused connection, and
    NotSupported where this kernel cannot do as the way says.

    Args:
        way: The name of the way.
        protocol: The protocol of the sockets.
        ports: The range in force.
    """
    size = window_of(way)
    if size:
        return _one_window(size, protocol, ports)
    return _by_strategy(way, protocol)


def _one_window(size: int, protocol: Protocol, ports: PortRange) -> Opener:
    positions = ports.size - size + 1

    def open_one(source: Address, destination: Address) -> Opened:
        family = socket.AF_INET6 if ":" in destination[0] else socket.AF_INET
        low = ports.low + secrets.randbelow(positions)
        begun = time.perf_counter_ns()
        sock = socket.socket(family, protocol.type, protocol.number)
        try:
            set_ip_local_port_range(sock, low, low + size - 1)
            set_ip_bind_address_no_port(sock, on=True)
            sock.bind(source)
            sock.connect(destination)
        except OSError as error:
            spent = time.perf_counter_ns() - begun
            sock.close()
            if error.errno not in REFUSALS:
                raise
            return Opened(None, spent, 0, error.errno)
        except BaseException:
            sock.close()
            raise
        return Opened(sock, time.perf_counter_ns() - begun, 0, 0)

    return open_one


def _by_strategy(way: str, protocol: Protocol) -> Opener:
    # This is connectx.create_connection() for an IP address, except that it also reports how
    # often it was refused before it succeeded.
    def open_one(source: Address, destination: Address) -> Opened:
        begun = time.perf_counter_ns()
        request = parse_literal(destination, source, protocol.type, protocol.number, way)
        if request is None:
            raise ValueError(f"not IP addresses: {source} and {destination}")
        try:
            connection = Connection(request, None)
            steps = connection.begin()
            if steps is not None:
                run(steps)
        except PortsExhausted as error:
            spent = time.perf_counter_ns() - begun
            return Opened(None, spent, max(error.attempts - 1, 0), error.errno or 0)
        return Opened(connection.sock, time.perf_counter_ns() - begun, connection.retries, 0)

    return open_one
