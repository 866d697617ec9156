"""Ways to open a socket that are more than a fixed sequence of calls.

As in `connectx.lab.calls`, each yields the name of the call that it is about to make.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import random
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, NamedTuple

import connectx
from connectx.lab.calls import Bind, CallSequence, missing_options
from connectx.linux import features
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.sock_diag import TupleLookup
from connectx.linux.sockopts import (
    get_so_cookie,
    set_ip_bind_address_no_port,
    set_ip_local_port_range,
    set_so_reuseaddr,
)
from connectx.linux.uapi import NETLINK_SOCK_DIAG

if TYPE_CHECKING:
    import socket

    from connectx.lab.calls import Attempt, Steps
    from connectx.lab.transports import Transport

#: Ports in one of the shifting windows. The 2024 article takes 500 to 10,000 of 56,512; here
#: it only matters that they are few.
WINDOW: Final = 8

#: Tries for each port of the range, for ways that find a free port by chance: they miss the
#: last of 64 ports once in ten million times.
TRIES: Final = 16


def _missing_lookup(transport: Transport) -> str:
    if transport.stream or features.probe(features.SOCK_DIAG_UDP) is features.Probe.YES:
        return ""
    return features.SOCK_DIAG_UDP.name


# Techniques that try again.


class RetriedBind(NamedTuple):
    """The 2014 article's loop: a new socket and a new port as long as connect() refuses.

    It makes TRIES for each port; the article leaves the number open.
    """

    @property
    def calls(self) -> str:
        """The calls that make it up."""
        return "SO_REUSEADDR, bind(ip, 0), connect(); again on EADDRNOTAVAIL"

    def missing(self, transport: Transport) -> str:
        """Return which options the kernel lacks."""
        return missing_options(transport, "SO_REUSEADDR")

    def open(self, attempt: Attempt) -> Steps:
        """Open a socket."""
        once = CallSequence(reuseaddr=True, bind=Bind.ANY_PORT)
        for _ in range(TRIES * attempt.ports.size - 1):
            try:
                return (yield from once.open(attempt))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
        return (yield from once.open(attempt))


class ShiftingWindows(NamedTuple):
    """The 2024 article's windows of random position: another one as long as none has a free port.

    It makes TRIES for each port, and sets IP_BIND_ADDRESS_NO_PORT, which the article's code
    lacks.
    """

    @property
    def calls(self) -> str:
        """The calls that make it up."""
        return (
            f"IP_LOCAL_PORT_RANGE of {WINDOW} ports at random, IP_BIND_ADDRESS_NO_PORT, "
            "bind(ip, 0), connect(); another window on EADDRNOTAVAIL"
        )

    def missing(self, transport: Transport) -> str:
        """Return which options the kernel lacks."""
        return missing_options(transport, "IP_LOCAL_PORT_RANGE", "IP_BIND_ADDRESS_NO_PORT")

    def open(self, attempt: Attempt) -> Steps:
        """Open a socket."""
        transport, ports, _, destination = attempt
        width = min(WINDOW, ports.size)
        with contextlib.ExitStack() as on_error:
            sock = on_error.enter_context(transport.socket())
            set_ip_bind_address_no_port(sock, on=True)
            yield "bind"
            sock.bind(transport.at(0))
            for tries_left in reversed(range(TRIES * ports.size)):
                low = random.randint(ports.low, ports.high - width + 1)  # noqa: S311 - nobody guesses
                set_ip_local_port_range(sock, low, low + width - 1)
                yield "connect"
                try:
                    sock.connect(transport.at(destination))
                    break
                except OSError as error:
                    if error.errno != errno.EADDRNOTAVAIL or not tries_left:
                        raise
            on_error.pop_all()
        return sock


# Techniques that look the 4-tuple up themselves.


class Lock(NamedTuple):
    """SO_REUSEADDR as a lock, whole or in part.

    Attributes:
        locks: Whether it clears SO_REUSEADDR between bind() and connect(), so that no other
            socket can bind.
        looks: Whether it connects only if a lookup of the 4-tuple finds this socket.
    """

    locks: bool
    looks: bool

    @property
    def calls(self) -> str:
        """The calls that make it up."""
        names = (
            "SO_REUSEADDR, bind(ip, port)",
            "SO_REUSEADDR off" * self.locks,
            "SOCK_DIAG lookup and SO_COOKIE" * self.looks,
            "connect()",
            "SO_REUSEADDR on" * self.locks,
        )
        return ", ".join(filter(None, names))

    def missing(self, transport: Transport) -> str:
        """Return which option or lookup the kernel lacks."""
        lookup = _missing_lookup(transport) if self.looks else ""
        return lookup or missing_options(transport, "SO_REUSEADDR")

    def open(self, attempt: Attempt) -> Steps:
        """Open a socket.

        Raises:
            OSError: With EAGAIN, as in the 2022 article, if the lookup finds another socket.
        """
        transport, _, port, destination = attempt
        with contextlib.ExitStack() as on_error:
            sock = on_error.enter_context(transport.socket())
            set_so_reuseaddr(sock, on=True)
            yield "bind"
            sock.bind(transport.at(port))
            if self.locks:
                yield "SO_REUSEADDR off"
                set_so_reuseaddr(sock, on=False)
            if self.looks:
                yield "lookup"
                _require_own(sock, attempt)
            yield "connect"
            sock.connect(transport.at(destination))
            if self.locks:
                yield "SO_REUSEADDR on"
                set_so_reuseaddr(sock, on=True)
            on_error.pop_all()
        return sock


def _require_own(sock: socket.socket, attempt: Attempt) -> None:
    address = ip_address(attempt.transport.source).packed
    lookup = TupleLookup(
        attempt.transport.protocol.table,
        sock.family,
        address,
        address,
        attempt.destination,
    )
    with NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        if not lookup.shows(netlink, attempt.port, get_so_cookie(sock)):
            raise BlockingIOError(errno.EAGAIN, "another socket is on the 4-tuple")


# connectx.


class Source(enum.Enum):
    """Which source the caller of connectx asks for."""

    NONE = "no source"
    ADDRESS = "source address"
    PORT = "address and port"


class Connectx(NamedTuple):
    """connectx.create_connection(), as one call: its system calls cannot be interleaved here."""

    source: Source

    @property
    def calls(self) -> str:
        """The call and its arguments."""
        given = {
            Source.NONE: "",
            Source.ADDRESS: ", source_address=(ip, 0)",
            Source.PORT: ", source_address=(ip, port)",
        }
        return f"connectx.create_connection(){given[self.source]}"

    def missing(self, transport: Transport) -> str:
        """Return the lookup of datagram sockets if the kernel lacks it: UDP needs it."""
        return _missing_lookup(transport)

    def open(self, attempt: Attempt) -> Steps:
        """Open a socket."""
        transport, _, port, destination = attempt
        source = {
            Source.NONE: None,
            Source.ADDRESS: transport.at(0),
            Source.PORT: transport.at(port),
        }
        yield "connectx"
        return connectx.create_connection(
            (transport.source, destination),
            source_address=source[self.source],
            type=transport.protocol.type,
            proto=transport.protocol.number,
        )
