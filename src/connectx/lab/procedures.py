"""Ways to open a socket that take more than one call after the other.

As in `connectx.lab.calls`, each names the call that it is about to make.
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
from connectx.lab.transports import PROTOCOLS
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

#: Ports in one of the shifting windows. The 2024 article takes 500 to 10,000 of
#: 56,512; what matters here is that they are few.
WINDOW: Final = 8

#: Tries for each port of the range, where it is chance that finds the free one: in 64
#: ports the last one is overlooked once in ten million times.
TRIES: Final = 16


def _missing_lookup(transport: Transport) -> str:
    if transport.stream or features.probe(features.SOCK_DIAG_UDP) is features.Probe.YES:
        return ""
    return features.SOCK_DIAG_UDP.name


# Techniques that try again.


class RetriedBind(NamedTuple):
    """The 2014 article's loop: a new socket and a new port while connect() refuses the old.

    TRIES for each port, where the article has a number of its own choosing.
    """

    @property
    def calls(self) -> str:
        """The calls that make it up."""
        return "SO_REUSEADDR, bind(ip, 0), connect(); all again on EADDRNOTAVAIL"

    def missing(self, transport: Transport) -> str:
        """Which options there are not."""
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
    """The 2024 article's windows of random position, another one while there is no free port.

    TRIES for each port, and with IP_BIND_ADDRESS_NO_PORT, which the article's code lacks.
    """

    @property
    def calls(self) -> str:
        """The calls that make it up."""
        return (
            f"IP_LOCAL_PORT_RANGE of {WINDOW} ports at random, IP_BIND_ADDRESS_NO_PORT, "
            "bind(ip, 0), connect(); another window on EADDRNOTAVAIL"
        )

    def missing(self, transport: Transport) -> str:
        """Which options there are not."""
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
                # Not a matter of security here: the ports are the experiment's own.
                low = random.randint(ports.low, ports.high - width + 1)  # noqa: S311 - as above
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


# Techniques that look at the 4-tuple themselves.


class Lock(NamedTuple):
    """SO_REUSEADDR as a lock, whole or in part.

    locks: clear SO_REUSEADDR between bind() and connect(), so that nobody else can bind.
    looks: connect only if a lookup of the 4-tuple finds this very socket.
    """

    locks: bool
    looks: bool

    @property
    def calls(self) -> str:
        """The calls that make it up."""
        named = (
            "SO_REUSEADDR, bind(ip, port)",
            "SO_REUSEADDR off" * self.locks,
            "SOCK_DIAG lookup and SO_COOKIE" * self.looks,
            "connect()",
            "SO_REUSEADDR on" * self.locks,
        )
        return ", ".join(name for name in named if name)

    def missing(self, transport: Transport) -> str:
        """Which option or lookup there is not."""
        lookup = _missing_lookup(transport) if self.looks else ""
        return lookup or missing_options(transport, "SO_REUSEADDR")

    def open(self, attempt: Attempt) -> Steps:
        """Open a socket; EAGAIN, as in the 2022 article, if the lookup finds another."""
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
        PROTOCOLS[attempt.transport.protocol].number,
        sock.family,
        address,
        address,
        attempt.destination,
    )
    with NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        if not lookup.shows(netlink, attempt.port, get_so_cookie(sock)):
            raise BlockingIOError(errno.EAGAIN, "another socket is on the 4-tuple, or ahead of us")


# And ours.


class Source(enum.Enum):
    """What the caller of connectx says about the source."""

    NONE = "no source"
    ADDRESS = "source address"
    PORT = "address and port"


class Connectx(NamedTuple):
    """connectx.create_connection(), whose calls cannot be told apart from out here."""

    source: Source

    @property
    def calls(self) -> str:
        """The call with what it is given."""
        given = {
            Source.NONE: "",
            Source.ADDRESS: ", source_address=(ip, 0)",
            Source.PORT: ", source_address=(ip, port)",
        }
        return f"connectx.create_connection(){given[self.source]}"

    def missing(self, transport: Transport) -> str:
        """Whether there is no lookup of datagram sockets, which it cannot do without."""
        return _missing_lookup(transport)

    def open(self, attempt: Attempt) -> Steps:
        """Open a socket."""
        transport, _, port, destination = attempt
        protocol = PROTOCOLS[transport.protocol]
        source = {
            Source.NONE: None,
            Source.ADDRESS: transport.at(0),
            Source.PORT: transport.at(port),
        }
        yield "connectx"
        return connectx.create_connection(
            (transport.source, destination),
            source_address=source[self.source],
            type=protocol.kind,
            proto=protocol.number,
        )
