"""What a look at a machine gives, as plain values: connectx.core.findings draws conclusions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from connectx.addresses import Endpoint, PortRange
    from connectx.core.census import Census


class Pair(NamedTuple):
    """The connections from a source address to a destination.

    states, owners: how many of them, by state and by process. rate: ports per second, which
    the pair gains. idle: connections that are open and on which nothing has moved for long.
    """

    protocol: str
    source: str
    destination: Endpoint
    in_use: int
    capacity: int
    states: Mapping[str, int]
    owners: Mapping[str, int]
    rate: float
    idle: int


class Holder(NamedTuple):
    """A port that refuses to be shared, and what is on it.

    state: "LISTEN"; "bound", without a connection; "connected", after a bind; "TIME-WAIT",
    left by one that was bound. owner: a process, "" for nobody.
    """

    protocol: str
    address: str
    port: int
    state: str
    owner: str


class Overshadowing(NamedTuple):
    """A 4-tuple that more than one UDP socket is on; owners: of the sockets."""

    source: Endpoint
    destination: Endpoint
    owners: tuple[str, ...]


class Limit(NamedTuple):
    """How many descriptors a process has, of how many it may have."""

    owner: str
    pid: int
    used: int
    limit: int


class Translation(NamedTuple):
    """A rule that translates source addresses to ports of a range; text: the rule."""

    text: str
    ports: PortRange


class Asked(NamedTuple):
    """What somebody wants to know about: a call that has failed.

    number: the errno; 0 for none. source, ports: what was asked for; "" and None for any.
    source_is_local, ipv6: whether the source is one of the host's addresses, and whether
    there is IPv6 at all; None where that could not be told, or is not the question.
    census: the ports toward the destination; None where there is none to count.
    unreachable: what connect() would meet with for want of a route; "" if there is one.
    """

    protocol: str
    number: int
    source: str
    destination: Endpoint | None
    ports: PortRange | None
    source_is_local: bool | None
    ipv6: bool | None
    census: Census | None
    unreachable: str


@dataclass(frozen=True, slots=True)
class Facts:
    """A network namespace and its sockets.

    ports, reserved: ip_local_port_range and ip_local_reserved_ports.
    pairs: the fullest first. holders: ports in the range that refuse to be shared;
    tells_binds_apart: whether that has those which were bound before they connected.
    close_wait: by owner, CLOSE-WAIT now; close_wait_gain: how many more than a moment ago.
    time_wait, conntrack: entries of the table, and as many as there may be; None where that
    is not known, or there is none. time_wait_overflows, overflows_gain: how many connections
    ended without a TIME_WAIT, in all and during the look.
    descriptors: of processes with connections. lacking: what this kernel cannot do.
    unseen: what could not be looked at, and why.
    """

    ports: PortRange
    reserved: tuple[PortRange, ...]
    pairs: tuple[Pair, ...]
    holders: tuple[Holder, ...]
    tells_binds_apart: bool
    overshadowed: tuple[Overshadowing, ...]
    close_wait: Mapping[str, int]
    close_wait_gain: int
    time_wait: tuple[int, int] | None
    time_wait_overflows: int
    overflows_gain: int
    tcp_tw_reuse: int
    tcp_timestamps: int
    descriptors: tuple[Limit, ...]
    conntrack: tuple[int, int] | None
    translations: tuple[Translation, ...]
    kernel: str
    lacking: tuple[str, ...]
    seconds: float
    unseen: tuple[str, ...]
    asked: Asked | None
