"""What a look at a machine gives, as plain values: connectx._diagnosis.rules draws conclusions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from connectx._diagnosis.census import Census
    from connectx.addresses import Endpoint, PortRange
    from connectx.linux.nat_rules import Translation


class Pair(NamedTuple):
    """The connections from a source address to a destination.

    states, owners: how many of them, by state and by process. rate: ports per second, which
    the pair gains. idle: connections that are open and on which nothing has moved for long.
    reusable: TIME_WAITs that a connect() may take over now.
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
    reusable: int = 0

    @property
    def taken(self) -> int:
        """Ports that the next connection cannot have."""
        return self.in_use - self.reusable


class Holder(NamedTuple):
    """A port that refuses to be shared, and what is on it.

    state: "LISTEN"; "bound", without a connection; "connected", after a bind; "accepted",
    several connections, as a listener leaves them; "TIME-WAIT", left by one that was bound.
    owner: a process, "" for nobody.
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


class Asked(NamedTuple):
    """What somebody wants to know about: a call that has failed.

    number: the errno; 0 for none. source, ports: what was asked for; "" or 0, and None for any.
    source_is_local, is_tentative: whether the source is one of the host's addresses, and one
    that may not be used yet; None where that could not be told, or is not the question.
    needs_ipv6: whether an address of it is.
    census: the ports toward the destination; None where there is none to count.
    census_source: from which address, which routing may have chosen.
    on_port: the sockets on the source port that was asked for; on_tuple: whether one of
    them is connected to the destination as well.
    unreachable: what connect() would meet with for want of a route; "" if there is one.
    """

    protocol: str
    number: int
    source: Endpoint
    destination: Endpoint | None
    ports: PortRange | None
    source_is_local: bool | None = None
    is_tentative: bool = False
    needs_ipv6: bool = False
    census: Census | None = None
    census_source: str = ""
    on_port: tuple[Holder, ...] = ()
    on_tuple: bool = False
    unreachable: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """A network namespace and its sockets.

    ports, reserved: ip_local_port_range and ip_local_reserved_ports.
    ipv6: whether there is IPv6 at all. udp_unused: ports that no UDP socket of IPv4 has.
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
    ipv6: bool
    unprivileged_port_start: int
    udp_unused: int
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
