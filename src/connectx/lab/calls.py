"""Ways to open a socket, written as the system calls they consist of.

Each is a generator that names the call it is about to make. Run to its end, it opens a socket.
Stopped in between, it lets another socket's calls go first: that is how
`connectx.lab.interleaving` finds out what a technique takes for granted. Calls that make a
socket and set its options are not named: as long as it has no port, they concern no other
socket.
"""

from __future__ import annotations

import contextlib
import enum
import errno
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from connectx.linux.sockopts import (
    set_ip_bind_address_no_port,
    set_ip_local_port_range,
    set_so_reuseaddr,
)
from connectx.linux.uapi import SO_REUSEPORT, SOL_SOCKET

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Generator

    from connectx.addresses import PortRange
    from connectx.lab.transports import Transport

#: Yields the name of each call before it makes the call, and returns the socket.
Steps: TypeAlias = "Generator[str, None, socket.socket]"


class Attempt(NamedTuple):
    """What a socket is opened for.

    Attributes:
        transport: The protocol and family.
        ports: ip_local_port_range.
        port: The source port for techniques that ask for one.
        destination: A port of the source address.
    """

    transport: Transport
    ports: PortRange
    port: int
    destination: int


class Opener(Protocol):
    """A way to open a socket."""

    @property
    def calls(self) -> str:
        """The calls that make it up."""

    def missing(self, transport: Transport) -> str:
        """Try the kernel, and return what it lacks for this way; "" for nothing."""

    def open(self, attempt: Attempt) -> Steps:
        """Open a socket.

        Raises:
            OSError: As the calls do.
        """


def complete(steps: Steps) -> socket.socket:
    """Make all the calls in a row."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            sock: socket.socket = end.value
            return sock


# Options, and whether the kernel has them.


def set_so_reuseport(sock: socket.socket) -> None:
    """Set SO_REUSEPORT, which connectx itself does not use."""
    sock.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)


_OPTIONS: Final[dict[str, Callable[[socket.socket], None]]] = {
    "SO_REUSEADDR": lambda sock: set_so_reuseaddr(sock, on=True),
    "SO_REUSEPORT": set_so_reuseport,
    "IP_LOCAL_PORT_RANGE": lambda sock: set_ip_local_port_range(sock, 0, 0),
    "IP_BIND_ADDRESS_NO_PORT": lambda sock: set_ip_bind_address_no_port(sock, on=True),
}


def has_option(transport: Transport, name: str) -> bool:
    """Return whether sockets of the transport take an option: MPTCP got some later than TCP."""
    with transport.socket() as scratch:
        try:
            _OPTIONS[name](scratch)
        except OSError as error:
            if error.errno in {errno.ENOPROTOOPT, errno.EOPNOTSUPP}:
                return False
            raise
    return True


def missing_options(transport: Transport, *names: str) -> str:
    """Return which of the options the kernel lacks; "" for none."""
    return ", ".join(name for name in names if not has_option(transport, name))


# One call after the other.


class Bind(enum.Enum):
    """What bind() gets besides the source address."""

    NONE = ""
    ANY_PORT = "bind(ip, 0)"
    PORT = "bind(ip, port)"


class Window(enum.Enum):
    """What IP_LOCAL_PORT_RANGE is set to."""

    NONE = ""
    ONE_PORT = "IP_LOCAL_PORT_RANGE of one port"
    FULL_RANGE = "IP_LOCAL_PORT_RANGE of the full range"


class Then(enum.Enum):
    """The last call, which makes the socket what it is."""

    CONNECT = "connect()"
    LISTEN = "listen()"
    RECEIVE = ""


class CallSequence(NamedTuple):
    """Options, bind() and connect(), in that order, each at most once.

    Attributes:
        reuseaddr: Whether it sets SO_REUSEADDR.
        reuseport: Whether it sets SO_REUSEPORT.
        window: What it sets IP_LOCAL_PORT_RANGE to.
        no_port: Whether it sets IP_BIND_ADDRESS_NO_PORT.
        bind: What it binds to.
        then: Its last call.
        anywhere: Whether it binds to the wildcard address and not to the source address.
    """

    reuseaddr: bool = False
    reuseport: bool = False
    window: Window = Window.NONE
    no_port: bool = False
    bind: Bind = Bind.NONE
    then: Then = Then.CONNECT
    anywhere: bool = False

    @property
    def connect_picks(self) -> bool:
        """Whether connect() chooses the port, when it knows the destination."""
        return self.bind is Bind.NONE or (self.bind is Bind.ANY_PORT and self.no_port)

    @property
    def calls(self) -> str:
        """The calls that make it up."""
        names = (
            "SO_REUSEADDR" * self.reuseaddr,
            "SO_REUSEPORT" * self.reuseport,
            self.window.value,
            "IP_BIND_ADDRESS_NO_PORT" * self.no_port,
            self.bind.value,
            self.then.value,
        )
        return ", ".join(filter(None, names))

    def missing(self, transport: Transport) -> str:
        """Return which options the kernel lacks."""
        used = (
            "SO_REUSEADDR" * self.reuseaddr,
            "SO_REUSEPORT" * self.reuseport,
            "IP_LOCAL_PORT_RANGE" * (self.window is not Window.NONE),
            "IP_BIND_ADDRESS_NO_PORT" * self.no_port,
        )
        return missing_options(transport, *filter(None, used))

    def open(self, attempt: Attempt) -> Steps:
        """Open a socket."""
        transport, ports, port, destination = attempt
        with contextlib.ExitStack() as on_error:
            sock = on_error.enter_context(transport.socket())
            if self.reuseaddr:
                set_so_reuseaddr(sock, on=True)
            if self.reuseport:
                set_so_reuseport(sock)
            if self.window is not Window.NONE:
                whole = self.window is Window.FULL_RANGE
                set_ip_local_port_range(sock, *(ports if whole else (port, port)))
            if self.no_port:
                set_ip_bind_address_no_port(sock, on=True)
            if self.bind is not Bind.NONE:
                yield "bind"
                host = transport.wildcard if self.anywhere else transport.source
                sock.bind((host, port if self.bind is Bind.PORT else 0))
            if self.then is Then.CONNECT:
                yield "connect"
                sock.connect(transport.at(destination))
            elif self.then is Then.LISTEN:
                yield "listen"
                sock.listen()
            on_error.pop_all()
        return sock
