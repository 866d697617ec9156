"""The sockets of connectx.lab.kernel_model, and which of them get along."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

from connectx.addresses import Endpoint

#: The source of a socket that is not bound.
UNBOUND: Final = Endpoint("", 0)


class State(enum.Enum):
    """A socket's state, as far as it matters for ports; FIN_WAIT2 is the one without an owner."""

    CLOSE = "unconnected"
    LISTEN = "listening"
    ESTABLISHED = "connected"
    FIN_WAIT2 = "FIN_WAIT2"
    TIME_WAIT = "TIME_WAIT"


#: It has a name because before Python 3.12 a State.NAME costs half as much as a probe.
OWNERLESS: Final = (State.FIN_WAIT2, State.TIME_WAIT)


class Obstacle(enum.Enum):
    """Why connect()'s search passes over a port that it looks at.

    Attributes:
        BOUND: The bucket is of the bind class.
        IN_USE: The 4-tuple is in use (__inet_check_established).
    """

    BOUND = "bound"
    IN_USE = "in use"


@dataclass(eq=False, slots=True)
class ModelSocket:
    """A socket: its options, which may be set at any time, and what the kernel knows about it.

    Attributes:
        stream: Whether it is a TCP socket, and not a UDP one.
        reuseaddr: SO_REUSEADDR.
        reuseport: SO_REUSEPORT.
        bind_address_no_port: IP_BIND_ADDRESS_NO_PORT.
        local_port_range: IP_LOCAL_PORT_RANGE; 0 for an end that is not set.
        source: Where it is bound; host "" is the wildcard, port 0 is none.
        destination: Where it is connected to.
        state: Its state.
        chosen_by_connect: Whether connect() chose the port (SOCK_CONNECT_BIND).
        host_locked: Whether bind() got the host, which then stays (SOCK_BINDADDR_LOCK).
        port_locked: Whether bind() got the port, which then stays (SOCK_BINDPORT_LOCK).
        order: How many connect() calls there were before its own.
        timestamps: Whether its connection had TCP timestamps.
        entered: When it went into TIME_WAIT.
    """

    stream: bool
    reuseaddr: bool = False
    reuseport: bool = False
    bind_address_no_port: bool = False
    local_port_range: tuple[int, int] = (0, 0)
    source: Endpoint = UNBOUND
    destination: Endpoint | None = None
    state: State = State.CLOSE
    chosen_by_connect: bool = False
    host_locked: bool = False
    port_locked: bool = False
    order: int = 0
    timestamps: bool = True
    entered: int = 0


@dataclass(eq=False, slots=True)
class Bucket:
    """The sockets on one TCP port (struct inet_bind_bucket).

    Attributes:
        connect_class: Whether fastreuse and fastreuseport are both -1.
        owners: The sockets.
    """

    connect_class: bool
    owners: list[ModelSocket] = field(default_factory=list)


def overlap(sock: ModelSocket, other: ModelSocket) -> bool:
    """Return whether two sockets' addresses are the same, or one is the wildcard."""
    hosts = {sock.source.host, other.source.host}
    return len(hosts) == 1 or "" in hosts


def conflict(sock: ModelSocket, other: ModelSocket, *, shared: bool) -> bool:
    """Return whether bind() may not put a socket beside another one (inet_bindconflict).

    Args:
        sock: The socket.
        other: The other one.
        shared: Whether the port was asked for, and may be shared if both agree.
    """
    if sock is other or not overlap(sock, other):
        return False
    if not shared:
        return True
    if sock.reuseaddr and other.reuseaddr and other.state is not State.LISTEN:
        return False
    return not (sock.reuseport and other.reuseport)
