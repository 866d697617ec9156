"""Causes of failure and what helps against each: one table for errors and diagnosis.

An errno alone says little: EADDRNOTAVAIL has at least five causes. What tells
them apart are facts about the sockets there are: connectx._diagnosis.census counts a
range, connectx._diagnosis.rules looks at a machine. What to do follows from the cause.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Remedy(NamedTuple):
    """What helps.

    text: what to do. command: the same, to be pasted into a shell, with {names} of what the
    finding knows; "" where no one command does it. breaks: what the change would break.
    """

    text: str
    command: str = ""
    breaks: str = ""


class Cause(NamedTuple):
    """Why something failed, or will, and what helps.

    name: for programs to compare.
    summary: one sentence for people: what it is, and why it matters.
    remedies: the most promising first.
    """

    name: str
    summary: str
    remedies: tuple[Remedy, ...]


_RESERVE: Final = Remedy(
    "move listeners out of net.ipv4.ip_local_port_range, or reserve their ports",
    "sysctl -w net.ipv4.ip_local_reserved_ports={reserve}",
    "connect() gives these ports to nobody any more; the value replaces the one in force",
)

_NO_PORT: Final = Remedy(
    "in programs that bind a source address before they connect, set IP_BIND_ADDRESS_NO_PORT "
    "(or use connectx): without it bind() takes a whole port",
)

CONNECTED: Final = Cause(
    "connected",
    "Connections that are open toward this destination hold the ports.",
    (
        Remedy("use more source addresses: each has a whole range of ports of its own"),
        Remedy("use fewer, longer-lived connections: pool them, or multiplex (HTTP/2, HTTP/3)"),
        Remedy("spread over more destination addresses or ports, if the service has them"),
        Remedy(
            "widen net.ipv4.ip_local_port_range, keeping listeners' ports out of it with "
            "net.ipv4.ip_local_reserved_ports",
            "sysctl -w net.ipv4.ip_local_port_range='{wider}'",
            "servers that are to listen on one of the added ports may find it taken",
        ),
    ),
)

TIME_WAIT: Final = Cause(
    "time-wait",
    "Connections that this host closed first hold their ports for 60 seconds in TIME_WAIT.",
    (
        Remedy(
            "keep connections open longer, or let the other side close first: who closes "
            "first holds the TIME_WAIT",
        ),
        Remedy(
            "set net.ipv4.tcp_tw_reuse=1: with TCP timestamps, connect() may then take over "
            "a TIME_WAIT that is older than a second",
            "sysctl -w net.ipv4.tcp_tw_reuse={reuse}",
            "nothing where both sides have timestamps; it does not help behind a NAT that counts "
            "TIME_WAITs of its own",
        ),
        Remedy(
            "net.ipv4.tcp_fin_timeout does not shorten TIME_WAIT, and SO_REUSEADDR does not "
            "help a client against it",
        ),
    ),
)

HELD: Final = Cause(
    "held",
    "Listeners, or sockets bound before connecting, hold ports against every destination.",
    (_NO_PORT, _RESERVE),
)

HELD_DATAGRAM: Final = Cause(
    "held",
    "UDP sockets without SO_REUSEADDR hold ports against every destination.",
    (
        Remedy(
            "open them with connectx, which shares ports: a plain UDP connect() or bind() "
            "takes a whole port",
        ),
        _RESERVE,
    ),
)

RESERVED: Final = Cause(
    "reserved",
    "net.ipv4.ip_local_reserved_ports keeps ports out of the range.",
    (Remedy("reserve only ports that servers listen on"),),
)

FREED: Final = Cause(
    "freed",
    "Ports have become free since the failure.",
    (Remedy("try again"),),
)

TUPLE_IN_USE: Final = Cause(
    "tuple in use",
    "Another socket is on exactly this 4-tuple, or left it in a TIME_WAIT that cannot be "
    "taken over (that takes TCP timestamps, and SO_REUSEADDR on the socket that left it).",
    (
        Remedy("ask for another source port, or for port 0"),
        Remedy("`ss -tan` or `ss -uan` with `'sport = :PORT'` shows the socket, -p its owner"),
    ),
)

PORT_HELD: Final = Cause(
    "port held",
    "A listener, or a socket that was bound to the port without sharing it, holds it.",
    (
        Remedy("ask for another source port, or for port 0"),
        Remedy("`ss -tlnp` or `ss -uanp` with `'sport = :PORT'` shows the owner"),
        Remedy(
            "reserve ports that you ask for by number in net.ipv4.ip_local_reserved_ports, so "
            "that nobody is given them by chance",
        ),
    ),
)


PORT_LEFT: Final = Cause(
    "port left in TIME_WAIT",
    "Connections of a program that has gone are in TIME_WAIT on the port, for 60 seconds at most: "
    "bind() refuses it meanwhile.",
    (
        Remedy("in the program that binds it, set SO_REUSEADDR before bind(), as servers do"),
        Remedy("wait a minute, or ask for another port"),
    ),
)

# What only a look at the whole machine finds; connectx._diagnosis.rules says when.

BOUND_FIRST: Final = Cause(
    "bound before connecting",
    "A socket that is bound and then connected locks its port: no connect() that is to choose "
    "a port takes it any more, toward any destination, from any address.",
    (_NO_PORT,),
)

POLLUTED: Final = Cause(
    "polluted",
    "Ports of the range are shut to connect() by sockets that were bound to them by number or "
    "by bind((address, 0)), and for up to 60 seconds after by their TIME_WAITs.",
    (
        _NO_PORT,
        Remedy(
            "for programs that ask for ports by number, reserve a range of their own in "
            "net.ipv4.ip_local_reserved_ports, from which connect() then gives nobody a port",
        ),
    ),
)

LISTENERS: Final = Cause(
    "listeners in the range",
    "A service's port lies in the range of ephemeral ports: connect() may have given it away "
    "when the service starts again, which then fails with EADDRINUSE.",
    (
        Remedy(
            "reserve the ports of services",
            "sysctl -w net.ipv4.ip_local_reserved_ports={reserve}",
            "connect() gives these ports to nobody any more, but nothing that is open is closed; "
            "the value replaces the one in force, whose ports it has too",
        ),
    ),
)

CLOSE_WAIT: Final = Cause(
    "close-wait",
    "The other side has closed these connections and the program has not: it leaks sockets, and "
    "each keeps its port for as long as the program runs.",
    (
        Remedy("have the program close a connection once recv() gives nothing"),
        Remedy(
            "until it does, restart it: nothing else frees them",
            "",
            "its other connections",
        ),
    ),
)

IDLE: Final = Cause(
    "idle",
    "Connections on which nothing goes back and forth hold most of the ports toward a "
    "destination: a leak, or a pool that is larger than its use.",
    (
        Remedy("have the pool close what is idle, or make it smaller"),
        Remedy("set TCP_USER_TIMEOUT or SO_KEEPALIVE, so that dead peers are noticed"),
    ),
)

OVERSHADOWED: Final = Cause(
    "overshadowed",
    "Two UDP sockets are on one 4-tuple, with SO_REUSEADDR: the newer one gets every datagram, "
    "and the older one waits for ever.",
    (
        Remedy(
            "open them with connectx, which looks whether a 4-tuple is free before it shares "
            "a port, or without SO_REUSEADDR",
        ),
        Remedy("close the older one: it hears nothing any more"),
    ),
)

NOT_LOCAL: Final = Cause(
    "source not local",
    "The source address is not one of this host's, so that no port of it can be had: this is "
    "not exhaustion.",
    (
        Remedy(
            "give the address to a device",
            "ip address add {source} dev lo",
            "nothing on this host; its network has to route the address here",
        ),
        Remedy("take one of the host's own addresses (ip -brief address), or set IP_FREEBIND"),
    ),
)

NOT_YET_LOCAL: Final = Cause(
    "source not usable yet",
    "The source address is being checked for duplicates (DAD), or has failed the check: until it "
    "has passed, bind() refuses it. This is not exhaustion.",
    (
        Remedy("wait a second or two, or until `ip -6 address` shows it without `tentative`"),
        Remedy(
            "where it says `dadfailed`, another host on the link has the address: give one of the "
            "two another one",
        ),
        Remedy("add addresses that nobody else can have with `nodad`, or set IP_FREEBIND"),
    ),
)

IPV6_OFF: Final = Cause(
    "IPv6 off",
    "IPv6 is switched off in this network namespace, so that no address of it can be used: this "
    "is not exhaustion.",
    (
        Remedy("connect over IPv4"),
        Remedy(
            "switch IPv6 on",
            "sysctl -w net.ipv6.conf.all.disable_ipv6=0",
            "the host then has IPv6 addresses, which its firewall has to know of",
        ),
    ),
)

NOT_HONOURED: Final = Cause(
    "window outside the range",
    "The kernel clamps a window (IP_LOCAL_PORT_RANGE) to net.ipv4.ip_local_port_range, each end "
    "by itself and without an error: a program that asks for other ports gets any.",
    (
        Remedy(
            "widen the range so that it holds the window",
            "sysctl -w net.ipv4.ip_local_port_range='{wider}'",
            "servers that are to listen on one of the added ports may find it taken",
        ),
        Remedy("ask for ports within the range"),
    ),
)

TIMESTAMPS_OFF: Final = Cause(
    "timestamps off",
    "Without TCP timestamps no connection can take over a TIME_WAIT, whatever tcp_tw_reuse says: "
    "each port rests for 60 seconds.",
    (
        Remedy(
            "switch them on",
            "sysctl -w net.ipv4.tcp_timestamps=1",
            "12 octets more in each segment; a peer may tell the host's uptime from them",
        ),
    ),
)

TIME_WAIT_OVERFLOW: Final = Cause(
    "too many TIME_WAITs",
    "There are as many TIME_WAITs as net.ipv4.tcp_max_tw_buckets allows: connections then end "
    "without one, and a late segment of an old connection can disturb a new one.",
    (
        Remedy(
            "allow more",
            "sysctl -w net.ipv4.tcp_max_tw_buckets={more}",
            "some 250 octets of memory for each",
        ),
        Remedy("keep connections open longer, or let the other side close first"),
    ),
)

DESCRIPTORS: Final = Cause(
    "descriptors",
    "A process has nearly as many open files as it may: it then fails with EMFILE, long before "
    "it runs out of ports.",
    (
        Remedy(
            "raise the limit: LimitNOFILE= of its systemd unit, or",
            "prlimit --pid {pid} --nofile={more}",
            "nothing, but for programs that use select(2)",
        ),
        Remedy("spread the connections over several processes"),
    ),
)

CONNTRACK: Final = Cause(
    "conntrack full",
    "The table of tracked connections is nearly full: the kernel then drops packets of new ones, "
    "and connect() times out.",
    (
        Remedy(
            "make the table larger",
            "sysctl -w net.netfilter.nf_conntrack_max={more}",
            "some 300 octets of memory for each entry",
        ),
        Remedy(
            "do not track what needs no translation (notrack, in both directions), if no rule of "
            "the firewall looks at its state",
        ),
    ),
)

TRANSLATED: Final = Cause(
    "translated to fewer ports",
    "A rule on this host translates source addresses to a range of ports that is smaller than "
    "the host's own: the translation runs out first, and drops packets without an errno.",
    (
        Remedy("widen the rule's range of ports, or add addresses to translate to"),
        Remedy("leave the traffic out of the translation where it needs none"),
    ),
)

OLD_KERNEL: Final = Cause(
    "old kernel",
    "A newer kernel shares and finds ports better.",
    (Remedy("see docs/kernels.md for what each version brings, and what to do without it"),),
)

UNSHARED: Final = Cause(
    "UDP ports",
    "A plain UDP connect(), or a sendto() without a bind(), takes a port for itself that no other "
    "UDP socket has, whatever its address and destination: without one it fails with EAGAIN, "
    "although sockets that share ports (SO_REUSEADDR) still find some toward their destination.",
    (
        Remedy("open them with connectx, which shares ports between destinations"),
        Remedy("use one unconnected socket for many destinations, or close those that are done"),
    ),
)

#: The causes that people try to cure with what FOLKLORE has.
OF_EXHAUSTION: Final = frozenset(
    {CONNECTED, TIME_WAIT, HELD, HELD_DATAGRAM, RESERVED, BOUND_FIRST, POLLUTED, UNSHARED}
)

#: What is often said, and what is so.
FOLKLORE: Final = (
    (
        "net.ipv4.tcp_tw_recycle=1",
        (
            "does not exist any more: it left the kernel with Linux 4.12, since it broke clients "
            "behind a NAT"
        ),
    ),
    (
        "net.ipv4.tcp_fin_timeout",
        (
            "does not shorten TIME_WAIT, which lasts 60 seconds; it is about FIN_WAIT_2 of sockets "
            "that nobody owns any more"
        ),
    ),
    (
        "SO_REUSEADDR on a client",
        "does nothing before bind((address, 0)), neither against exhaustion nor against TIME_WAIT",
    ),
    (
        "65,535 connections",
        (
            "is the size of the port field, not a limit: the range in force is what counts, and "
            "toward each destination, from each source address, anew"
        ),
    ),
)


def advise(causes: list[Cause]) -> str:
    """Causes and remedies as plain lines."""
    lines = []
    for cause in causes:
        lines.append(cause.summary)
        lines += [f"  - {remedy.text}" for remedy in cause.remedies]
    return "\n".join(lines)
