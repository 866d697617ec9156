"""Causes of failure and what helps against each: one table for errors and diagnosis.

An errno alone says little: EADDRNOTAVAIL has at least five causes. What tells
them apart are facts about the sockets there are, which a `Census` counts; what to
do follows from the cause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from connectx.addresses import FourTuple, PortRange


class Cause(NamedTuple):
    """Why something failed, and what helps.

    name: for programs to compare.
    summary: one sentence for people.
    remedies: what to do, the most promising first.
    """

    name: str
    summary: str
    remedies: tuple[str, ...]


CONNECTED: Final = Cause(
    "connected",
    "Connections that are open toward this destination hold the ports.",
    (
        "use more source addresses: each has a whole range of ports of its own",
        "use fewer, longer-lived connections: pool them, or multiplex (HTTP/2, HTTP/3)",
        "spread over more destination addresses or ports, if the service has them",
        (
            "widen net.ipv4.ip_local_port_range, keeping listeners' ports out of it with "
            "net.ipv4.ip_local_reserved_ports"
        ),
    ),
)

TIME_WAIT: Final = Cause(
    "time-wait",
    "Connections that this host closed first hold their ports for 60 seconds in TIME_WAIT.",
    (
        (
            "keep connections open longer, or let the other side close first: who closes "
            "first holds the TIME_WAIT"
        ),
        (
            "set net.ipv4.tcp_tw_reuse=1: with TCP timestamps, connect() may then take over "
            "a TIME_WAIT that is older than a second"
        ),
        (
            "net.ipv4.tcp_fin_timeout does not shorten TIME_WAIT, and SO_REUSEADDR does not "
            "help a client against it"
        ),
    ),
)

HELD: Final = Cause(
    "held",
    "Listeners, or sockets bound before connecting, hold ports against every destination.",
    (
        (
            "in programs that bind a source address before they connect, set "
            "IP_BIND_ADDRESS_NO_PORT (or use connectx): without it bind() takes a whole port"
        ),
        (
            "move listeners out of net.ipv4.ip_local_port_range, or reserve their ports in "
            "net.ipv4.ip_local_reserved_ports"
        ),
    ),
)

HELD_DATAGRAM: Final = Cause(
    "held",
    "UDP sockets without SO_REUSEADDR hold ports against every destination.",
    (
        (
            "open them with connectx, which shares ports: a plain UDP connect() or bind() "
            "takes a whole port"
        ),
        (
            "move servers out of net.ipv4.ip_local_port_range, or reserve their ports in "
            "net.ipv4.ip_local_reserved_ports"
        ),
    ),
)

RESERVED: Final = Cause(
    "reserved",
    "net.ipv4.ip_local_reserved_ports keeps ports out of the range.",
    ("reserve only ports that servers listen on",),
)

FREED: Final = Cause(
    "freed",
    "Ports have become free since the failure.",
    ("try again",),
)

TUPLE_IN_USE: Final = Cause(
    "tuple in use",
    "Another socket is on exactly this 4-tuple, or left it in a TIME_WAIT that cannot be "
    "taken over (that takes TCP timestamps, and SO_REUSEADDR on the socket that left it).",
    (
        "ask for another source port, or for port 0",
        "`ss -tan` or `ss -uan` with `'sport = :PORT'` shows the socket, -p its owner",
    ),
)

PORT_HELD: Final = Cause(
    "port held",
    "A listener, or a socket that was bound to the port without sharing it, holds it.",
    (
        "ask for another source port, or for port 0",
        "`ss -tlnp` or `ss -uanp` with `'sport = :PORT'` shows the owner",
        (
            "reserve ports that you ask for by number in net.ipv4.ip_local_reserved_ports, so "
            "that nobody is given them by chance"
        ),
    ),
)


class Census(NamedTuple):
    """The ports of a range from one source toward one destination, counted.

    connected: held by sockets on the 4-tuple, TIME_WAIT apart.
    held: not on the 4-tuple, but with other sockets on them that refuse to share.
    reserved: in net.ipv4.ip_local_reserved_ports, and used by nobody here.
    """

    ports: PortRange
    connected: int
    time_wait: int
    held: int
    reserved: int

    @property
    def free(self) -> int:
        """Ports with no socket on them."""
        return self.ports.size - self.connected - self.time_wait - self.held - self.reserved


def of_exhaustion(census: Census, *, stream: bool) -> list[Cause]:
    """Why no port was to be had, the greatest share first."""
    held = HELD if stream else HELD_DATAGRAM
    shares = [
        (census.free, FREED),
        (census.connected, CONNECTED),
        (census.time_wait, TIME_WAIT),
        (census.held, held),
        (census.reserved, RESERVED),
    ]
    return [cause for count, cause in sorted(shares, key=lambda share: -share[0]) if count]


def describe(census: Census, subject: FourTuple) -> str:
    """The census in one sentence."""
    parts = [f"{census.connected} connected"]
    if subject.protocol in ("tcp", "mptcp"):
        parts.append(f"{census.time_wait} in TIME_WAIT")
    parts += [
        f"{census.held} held by listeners or exclusive binds",
        f"{census.reserved} reserved",
        f"{census.free} free now",
    ]
    source = subject.source.host or "the address the kernel chooses"
    return (
        f"From {source} to {subject.destination}, the range {census.ports} holds "
        f"{census.ports.size} ports: {', '.join(parts)}."
    )


def advise(causes: list[Cause]) -> str:
    """Causes and remedies as plain lines."""
    lines = []
    for cause in causes:
        lines.append(cause.summary)
        lines += [f"  - {remedy}" for remedy in cause.remedies]
    return "\n".join(lines)
