"""What can be known about a network namespace and a call that failed in it, as plain values.

Nothing here looks at anything; the package's docstring says which modules do.
"""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from connectx._diagnosis import causes
from connectx.addresses import PROTOCOLS, Endpoint, PortRange

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping

    from connectx._diagnosis.causes import Cause
    from connectx.addresses import FourTuple
    from connectx.linux.nat_rules import Rules
    from connectx.linux.proc_net import Table
    from connectx.linux.processes import Descriptors, Process


class Row(NamedTuple):
    """The source ports in use from one source address toward one destination.

    Attributes:
        protocol: "tcp" (MPTCP's subflows too), "udp" or "udplite".
        source: An IP address; a link-local one with its scope, as in "fe80::7%2".
        destination: The other end.
        in_use: The number of sockets.
        capacity: The ports that this source has toward this destination. `in_use` exceeds
            it where sockets are bound to several devices, or share a 4-tuple.
        states: The number of sockets by state, as ss(8) names it.
        processes: The number of sockets by owner, if owners were asked for. None stands for
            sockets without an owner, as in TIME_WAIT, and for owners that we may not see.
        reusable: How many of the sockets are TIME_WAITs that a connect() may take over now,
            provided that they were left by one, and that the peer has TCP timestamps too.
        hidden: How many of the sockets have an owner that we may not see, if owners were asked
            for.
    """

    protocol: str
    source: str
    destination: Endpoint
    in_use: int
    capacity: int
    states: Mapping[str, int]
    processes: Mapping[Process | None, int]
    reusable: int = 0
    hidden: int = 0

    @property
    def taken(self) -> int:
        """The ports that the next connection cannot have."""
        return self.in_use - self.reusable

    @property
    def utilisation(self) -> float:
        """The share of the capacity that the next connection cannot have, 0 to 1."""
        return self.taken / self.capacity if self.capacity else 1.0

    @property
    def free(self) -> int:
        """The number of connections that can still be opened."""
        return max(0, self.capacity - self.taken)


class Snapshot(NamedTuple):
    """The source ports in use in a network namespace.

    Attributes:
        taken_at: When they were counted, in UTC.
        netns: The name that the namespace's file links to, such as "net:[4026531833]".
        ports: The range in which ports were counted.
        reserved: How many of the range net.ipv4.ip_local_reserved_ports excludes.
        held: By protocol, how many ports of the range listeners and sockets without a
            destination hold against every connection of an IP version.
        rows: The pairs of a source and a destination, the fullest first.
        unshared: For UDP and UDP-Lite, how many ports no socket has at all. A socket without
            SO_REUSEADDR needs one of these toward any destination, because connect() first
            binds it to every address (inet_autobind). An IPv4 socket may also take a port
            that is bound to an IPv6 address alone.
    """

    taken_at: dt.datetime
    netns: str
    ports: PortRange
    reserved: int
    held: Mapping[str, int]
    rows: tuple[Row, ...]
    unshared: Mapping[str, int] = MappingProxyType({})


class Census(NamedTuple):
    """The ports of a range from one source toward one destination, by what keeps them.

    Attributes:
        ports: The range.
        connected: Ports with a socket on the 4-tuple that is not in TIME_WAIT.
        time_wait: Ports with a TIME_WAIT on the 4-tuple.
        held: Other ports, with sockets that refuse to share them.
        reserved: Unused ports that net.ipv4.ip_local_reserved_ports excludes.
        reusable: How many of the TIME_WAITs a connect() may take over now.
        untold: Other ports with sockets, where this kernel does not report whether these
            share them.
        itself: 1 if the destination's own port would connect a socket to itself; else 0.
        unseen: Why it is not known which ports are reserved, and which TIME_WAITs are reusable;
            "" where it is.
    """

    ports: PortRange
    connected: int
    time_wait: int
    held: int
    reserved: int
    reusable: int = 0
    untold: int = 0
    itself: int = 0
    unseen: str = ""

    @property
    def free(self) -> int:
        """The ports that the next connection to the destination may have."""
        return (
            self.ports.size
            - self.untold
            - self.itself
            - sum((self.connected, self.time_wait - self.reusable, self.held, self.reserved))
        )

    def by_cause(self, *, stream: bool) -> list[tuple[Cause, int]]:
        """Return what keeps the ports, with how many each keeps, the largest share first."""
        counted = [
            (causes.FREED, self.free),
            (causes.CONNECTED, self.connected),
            (causes.TIME_WAIT, self.time_wait - self.reusable),
            (causes.HELD if stream else causes.HELD_DATAGRAM, self.held),
            (causes.RESERVED, self.reserved),
        ]
        return sorted((each for each in counted if each[1]), key=lambda each: -each[1])

    def describe(self, connection: FourTuple) -> str:
        """Return the census in one sentence; the connection's source port does not matter."""
        parts = [f"{self.connected:,} connected"]
        if PROTOCOLS[connection.protocol].stream:
            reusable = f" ({self.reusable:,} of them reusable)" if self.reusable else ""
            parts.append(f"{self.time_wait:,} in TIME_WAIT{reusable}")
        parts.append(f"{self.held:,} held by listeners or exclusive binds")
        parts.append(f"{self.reserved:,} reserved")
        if self.untold:
            parts.append(f"{self.untold:,} used by other sockets that may share them")
        parts.append(f"{self.free:,} free now")
        return (
            f"From {connection.source.host} to {connection.destination}, the range {self.ports} "
            f"holds {self.ports.size:,} ports: {', '.join(parts)}."
            f"{self._caveat()}"
        )

    def _caveat(self) -> str:
        if not self.unseen:
            return ""
        return f" Reserved ports count as free, and no TIME_WAIT as reusable, because {self.unseen}"


class WatchedPair(NamedTuple):
    """The connections from a source to a destination, watched for some seconds.

    Attributes:
        row: What a snapshot counts, with owners.
        rate: The ports that the pair gains, per second.
        idle: How many connections are open and have carried no data for long.
        shared: For UDP, whether its ports are shared with other destinations.
    """

    row: Row
    rate: float = 0.0
    idle: int = 0
    shared: bool = True


class Holder(NamedTuple):
    """A socket on a port that refuses to be shared.

    Attributes:
        protocol: "tcp", "udp" or "udplite".
        address: The address that the socket is bound to.
        port: The port.
        state: "LISTEN"; "bound", without a connection; "connected", after a bind;
            "accepted", one of several connections that a listener has left on its port;
            "TIME-WAIT", left by a socket that was bound.
        owner: The process, or why there is none.
        destination: The other end; None without one.
        descriptor: The number under which the process has the socket; None if not known.
        described: The process with its command line; "" if that says no more.
    """

    protocol: str
    address: str
    port: int
    state: str
    owner: str
    destination: Endpoint | None = None
    descriptor: int | None = None
    described: str = ""

    def __str__(self) -> str:
        return self._with(self.owner)

    def in_full(self) -> str:
        """The socket with the command line of its process."""
        return self._with(self.described or self.owner)

    def _with(self, owner: str) -> str:
        words = [f"{Endpoint(self.address, self.port)} {self.state} {owner}".rstrip()]
        if self.descriptor is not None:
            words.append(f"descriptor {self.descriptor}")
        if self.destination is not None:
            words.append(f"to {self.destination}")
        return ", ".join(words)


class Overshadowing(NamedTuple):
    """A 4-tuple with more than one UDP socket, and the owners of the sockets."""

    source: Endpoint
    destination: Endpoint
    owners: tuple[str, ...]
    protocol: str = "udp"


class SharedPort(NamedTuple):
    """An address and port with several unconnected UDP sockets, of which one receives.

    Attributes:
        protocol: "udp" or "udplite".
        address: What they are bound to.
        sockets: How many there are.
        owners: Their owners, with descriptors.
        certain: Whether it is known that only one receives: each has SO_REUSEADDR, some lack
            SO_REUSEPORT, and they may not be there for multicast, which reaches all of them.
    """

    protocol: str
    address: Endpoint
    sockets: int
    owners: tuple[str, ...]
    certain: bool = True


class Call(NamedTuple):
    """A call that failed, or one that somebody wants to make.

    Attributes:
        protocol: "tcp", "mptcp", "udp" or "udplite".
        number: The errno; 0 for none.
        source: The source that was asked for; host "" and port 0 for any.
        destination: Where the connection was to go; None where that is not known.
        ports: The source ports that were asked for; None for any.
        source_is_local: Whether the source is an address of this host; None where bind()
            does not tell.
        is_tentative: Whether the source is such an address and may not be used yet.
        needs_ipv6: Whether one of the two addresses is IPv6.
        census: The ports toward the destination; None where there is nothing to count.
        census_source: The source of the census, which routing may have chosen.
        on_port: The sockets that keep the call from the source port it asked for.
        on_tuple: Whether one of them is connected to the destination.
        by_chance: Whether what keeps the call from its source port is an outgoing connection
            that may have been given the port, as any of the range, by connect().
        unreachable: The error of connect() where there is no route; "" where there is one.
        without_ipv6: The device with IPv6 off that one of the two addresses belongs on; "all"
            where no device has IPv6, "" for none.
        devices: For each of the two addresses that is link-local, its text and the name of
            its device; the name is "" where the call has not said it.
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
    by_chance: bool = False
    unreachable: str = ""
    without_ipv6: str = ""
    devices: tuple[tuple[str, str], ...] = ()

    @property
    def stream(self) -> bool:
        """Whether the call is about a stream protocol."""
        return PROTOCOLS[self.protocol].stream


class Facts(NamedTuple):
    """A network namespace and its sockets.

    Attributes:
        ports: net.ipv4.ip_local_port_range.
        reserved: net.ipv4.ip_local_reserved_ports.
        step_width: net.ipv4.ip_local_port_step_width; 0 where the kernel has none.
        ipv6: Whether any device has an IPv6 address.
        addresses: The namespace's own addresses, without those of the loopback device and
            link-local ones.
        has_ipv6_switch: Whether there are sysctls that switch IPv6 on and off.
        link_local: The devices that have a link-local address.
        unprivileged_port_start: net.ipv4.ip_unprivileged_port_start.
        udp_unused: The ports of the range on which IPv4 has no UDP socket.
        udp_unused_by_ipv6: Those on which neither IP version has one. A plain IPv6 socket
            needs one of these, since it is bound to both
            (tests/observe/test_doctor_sockets.py).
        udp_owners: The number of UDP sockets on ports of the range, by owner.
        pairs: The pairs of a source and a destination, the fullest first.
        holders: The sockets on TCP ports of the range that refuse to be shared.
        services: The ports of services, in the range and out of it.
        tells_binds_apart: Whether `holders` includes sockets that were bound before they
            connected, which not every kernel lets us find out.
        overshadowed: UDP 4-tuples with more than one socket.
        deaf: UDP ports that unconnected sockets share, so that only one of them receives.
        unseen_owner: What sockets are counted under whose process is not seen.
        close_wait: The number of sockets in CLOSE-WAIT by owner and destination.
        close_wait_gain: How many more there are than at the first count.
        time_wait: The table of TIME_WAITs; None if it cannot be read.
        time_wait_overflows: How many connections ended without a TIME_WAIT since boot.
        overflows_gain: How many of them did so between the two counts.
        tcp_tw_reuse: net.ipv4.tcp_tw_reuse.
        tcp_timestamps: net.ipv4.tcp_timestamps.
        descriptors: The open files of the processes with the most connections.
        conntrack: The table of tracked connections; None if there is none.
        rules: Firewall rules that translate.
        offset_by_port: Whether the offset of TCP timestamps depends on the ports; None if
            that could not be found out.
        conntrack_is_ours: Whether nf_conntrack_max can be set in this namespace.
        kernel: The kernel's version.
        lacking: Features that this kernel lacks.
        seconds: The time between the two counts.
        unseen: What could not be looked at, and why.
        call: The call that was asked about; None for none.
        within: What a command has to begin with to run in the namespace; "" where it is the
            asker's own.
    """

    ports: PortRange
    reserved: tuple[PortRange, ...]
    step_width: int
    ipv6: bool
    addresses: tuple[str, ...]
    has_ipv6_switch: bool
    link_local: tuple[str, ...]
    unprivileged_port_start: int
    udp_unused: int
    udp_unused_by_ipv6: int
    udp_owners: Mapping[str, int]
    pairs: tuple[WatchedPair, ...]
    holders: tuple[Holder, ...]
    services: frozenset[int]
    tells_binds_apart: bool
    overshadowed: tuple[Overshadowing, ...]
    deaf: tuple[SharedPort, ...]
    unseen_owner: str
    close_wait: Mapping[str, int]
    close_wait_gain: int
    time_wait: Table | None
    time_wait_overflows: int
    overflows_gain: int
    tcp_tw_reuse: int
    tcp_timestamps: int
    descriptors: Mapping[Process, Descriptors]
    conntrack: Table | None
    rules: Rules
    offset_by_port: bool | None
    conntrack_is_ours: bool
    kernel: str
    lacking: tuple[str, ...]
    seconds: float
    unseen: tuple[str, ...]
    call: Call | None
    within: str = ""

    @property
    def of_holders(self) -> Cause:
        """Why most of the TCP ports are held that are kept from every destination."""
        states = Counter(each.state for each in self.holders)
        bound = states.total() - states["LISTEN"] - states["connected"]
        most = max(states["LISTEN"], states["connected"], bound)
        if not self.tells_binds_apart or most == states["LISTEN"]:
            return causes.HELD
        return causes.BOUND_FIRST if most == states["connected"] else causes.POLLUTED

    @property
    def unused(self) -> int:
        """The ports for UDP sockets that do not share, of the IP version that was asked about."""
        if self.call is not None and self.call.needs_ipv6:
            return self.udp_unused_by_ipv6
        return self.udp_unused
