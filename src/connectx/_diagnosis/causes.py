"""Why connections fail, and what helps: one table for `explain()` and `connectx doctor`.

An errno alone says little. EADDRNOTAVAIL, for example, has the causes in `OF_EADDRNOTAVAIL`,
and only facts about sockets tell these apart. To add a cause, describe it here; then
`connectx._diagnosis.facts.Census.by_cause` (for `explain()`) or a rule in
`connectx._diagnosis.doctor_rules` (for `connectx doctor`) says when it applies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Remedy(NamedTuple):
    """Something that helps.

    Attributes:
        text: What to do, as an instruction without a full stop.
        command: The same as a shell command, with {names} for what the finding knows; ""
            where no single command does it.
        breaks: What the command breaks; "" without a command.
        anywhere: Whether the command does the same in every network namespace.
    """

    text: str
    command: str = ""
    breaks: str = ""
    anywhere: bool = False


class Cause(NamedTuple):
    """A reason why connections fail, or will.

    Attributes:
        name: A short name for programs to compare.
        summary: What it is and why it matters, in one or two sentences.
        remedies: What helps, the most promising first.
    """

    name: str
    summary: str
    remedies: tuple[Remedy, ...]


_NO_PORT: Final = Remedy(
    "in programs that bind a source address before they connect, set IP_BIND_ADDRESS_NO_PORT "
    "(or use connectx): without it, bind() takes a whole port",
)

_RESERVE: Final = Remedy(
    "reserve the ports of services",
    "sysctl -w net.ipv4.ip_local_reserved_ports={reserve}",
    "connect() no longer gives out these ports; open connections stay. The value replaces the "
    "one in force, and includes its ports",
)

_MOVE_SERVICES: Final = Remedy("have services listen on ports outside of the range")

_WIDEN: Final = Remedy(
    "widen net.ipv4.ip_local_port_range, and first keep the ports of services out of it with "
    "net.ipv4.ip_local_reserved_ports",
    "sysctl -w {reserve_first}net.ipv4.ip_local_port_range='{wider}'",
    "a service that does not run now may find its port taken when it starts, if it is one of "
    "those added and not reserved",
)

_CLOSE_SECOND: Final = Remedy(
    "keep connections open longer, or let the peer close first: whichever side closes first "
    "keeps the TIME_WAIT",
)

_OTHER_PORT: Final = Remedy("ask for another source port, or for port 0, which stands for any")

CONNECTED: Final = Cause(
    "connected",
    "Open connections to this destination use the ports.",
    (
        Remedy("use more source addresses: each has a whole range of ports of its own"),
        Remedy("use fewer, longer-lived connections: pool them, or multiplex (HTTP/2, HTTP/3)"),
        Remedy("spread over more destination addresses or ports, if the service has them"),
        _WIDEN,
    ),
)

TIME_WAIT: Final = Cause(
    "time-wait",
    "Connections that this host closed first keep their ports in TIME_WAIT for 60 seconds.",
    (
        _CLOSE_SECOND,
        Remedy(
            "set net.ipv4.tcp_tw_reuse to 1: with TCP timestamps, connect() may then take over "
            "a TIME_WAIT that is older than one second",
            "sysctl -w net.ipv4.tcp_tw_reuse={reuse}",
            "nothing; a TIME_WAIT of a peer without timestamps stays",
        ),
    ),
)

HELD: Final = Cause(
    "held",
    "Listeners, and sockets that were bound before they connected, hold ports against every "
    "destination.",
    (_NO_PORT, _MOVE_SERVICES, _WIDEN),
)

HELD_DATAGRAM: Final = Cause(
    "held",
    "UDP sockets without SO_REUSEADDR hold ports against every destination.",
    (
        Remedy(
            "open them with connectx, which shares ports: a plain UDP connect() or bind() takes "
            "a whole port",
        ),
        _MOVE_SERVICES,
        _WIDEN,
    ),
)

RESERVED: Final = Cause(
    "reserved",
    "net.ipv4.ip_local_reserved_ports excludes ports from the range.",
    (Remedy("reserve only the ports that services listen on"),),
)

FREED: Final = Cause(
    "freed",
    "Ports have become free since the call failed.",
    (Remedy("try again"),),
)

TUPLE_IN_USE: Final = Cause(
    "tuple in use",
    "Another socket has exactly this 4-tuple, or has left it in a TIME_WAIT that cannot be taken "
    "over: that takes TCP timestamps, and SO_REUSEADDR on the socket that left it.",
    (
        _OTHER_PORT,
        Remedy(
            "find the socket with `ss -tan` or `ss -uan` and `'sport = :PORT'`; -p shows it"
            " with its owner"
        ),
    ),
)

PORT_HELD: Final = Cause(
    "port held",
    "A listener, or a socket that was bound to the port without sharing it, holds it.",
    (
        _OTHER_PORT,
        Remedy("find the owner with `ss -tlnp` or `ss -uanp` and `'sport = :PORT'`"),
        Remedy(
            "reserve the ports that you ask for by number in net.ipv4.ip_local_reserved_ports, "
            "so that connect() gives them to nobody else",
            _RESERVE.command,
            _RESERVE.breaks,
        ),
    ),
)

PORT_BY_CHANCE: Final = Cause(
    "port taken by chance",
    "The port lies in the range from which the kernel gives ports to outgoing connections, and "
    "nothing keeps it for the service: whichever comes first has it.",
    (
        Remedy(
            "reserve the port, so that the next connection does not get it",
            _RESERVE.command,
            _RESERVE.breaks,
        ),
        Remedy(
            "close the connection with a reset, which leaves no TIME_WAIT and takes CAP_NET_ADMIN; "
            "then start the service",
            "connectx kill --protocol {protocol} --state {state} --source {holder} "
            "--source-port-range {port}-{port} --yes",
            "its program gets ECONNABORTED, and what was still on its way is lost",
        ),
        Remedy(
            "or make outgoing connections with connectx: a TCP service with SO_REUSEADDR can "
            "listen beside them"
        ),
    ),
)

PORT_LEFT: Final = Cause(
    "port left in TIME_WAIT",
    "Connections that have ended are in TIME_WAIT on the port, for up to 60 seconds. "
    "Until then, bind() refuses the port.",
    (
        Remedy("wait a minute, or ask for another port"),
        Remedy(
            "in the program that binds the port, set SO_REUSEADDR before bind(), as servers do: it "
            "then gets past the TIME_WAITs of its own former runs",
        ),
        Remedy(
            "until then, close them, which takes CAP_NET_ADMIN",
            "connectx kill --state TIME-WAIT --source-port-range {port}-{port} --yes",
            "a late segment of one of these connections may disturb a new one between the same "
            "addresses and ports",
        ),
    ),
)

# The causes below are found only by looking at the whole machine.

BOUND_FIRST: Final = Cause(
    "bound before connecting",
    "A socket that is bound before it connects locks its port: no connect() that chooses a port "
    "takes it, from any address, toward any destination.",
    (_NO_PORT,),
)

POLLUTED: Final = Cause(
    "polluted",
    "Sockets that were bound by port number, or with bind((address, 0)), close ports of the range "
    "to connect(). Their TIME_WAITs do so for up to 60 seconds more.",
    (
        _NO_PORT,
        Remedy(
            "for programs that ask for ports by number, reserve a range in "
            "net.ipv4.ip_local_reserved_ports: connect() then gives out none of it",
        ),
    ),
)

LISTENERS: Final = Cause(
    "listeners in the range",
    "A service's port lies in the range of ephemeral ports. When the service restarts, connect() "
    "may have given its port away, and the service fails with EADDRINUSE.",
    (_RESERVE,),
)

CLOSE_WAIT: Final = Cause(
    "close-wait",
    "The peer has closed these connections and the program has not. It leaks sockets, and each "
    "keeps its port for as long as the program runs.",
    (
        Remedy("have the program close a connection once recv() returns nothing"),
        Remedy(
            "until it does, close them for it, which takes CAP_NET_ADMIN",
            "connectx kill --state CLOSE-WAIT --destination {leaked} --yes",
            "the program gets ECONNABORTED from these connections, and what it was still sending "
            "is lost",
        ),
        Remedy("or restart it, which also ends its other connections"),
    ),
)

IDLE: Final = Cause(
    "idle",
    "Connections that carry no data use most of the ports toward a destination: a leak, or a pool "
    "that is larger than it needs to be.",
    (
        Remedy("have the pool close idle connections, or make it smaller"),
        Remedy("set TCP_USER_TIMEOUT or SO_KEEPALIVE, so that dead peers are noticed"),
    ),
)

DEAF: Final = Cause(
    "deaf",
    "Unconnected UDP sockets with SO_REUSEADDR share an address and port. The newest of them "
    "receives every datagram, and the older ones wait in vain. bind() to port 0 gives out ports "
    "that are in use as soon as all their sockets have SO_REUSEADDR.",
    (
        Remedy("open them without SO_REUSEADDR, which gives each a port of its own"),
        Remedy("or connect() them: connectx shares a port only toward different destinations"),
        Remedy(
            "to spread datagrams over several sockets on purpose, set SO_REUSEPORT on all of them"
        ),
    ),
)

OVERSHADOWED: Final = Cause(
    "overshadowed",
    "Two UDP sockets with SO_REUSEADDR share one 4-tuple. The newer one receives every datagram, "
    "and the older one none.",
    (
        Remedy(
            "open them with connectx, which checks that a 4-tuple is free before it shares a "
            "port, or without SO_REUSEADDR",
        ),
        Remedy("close the older one: it receives nothing any more"),
    ),
)

NOT_LOCAL: Final = Cause(
    "source not local",
    "The source address is not one of this host's, so it has no ports here. This is not "
    "exhaustion.",
    (
        Remedy("use one of the host's own addresses (`ip -brief address` lists them)"),
        Remedy(
            "if a service is to wait on the address before it comes here, as with failover, set "
            "IP_FREEBIND in the service, or",
            "sysctl -w {nonlocal}=1",
            "every program may then bind any address, and a mistyped one is not refused; nothing "
            "arrives there until the address is this host's",
        ),
        Remedy(
            "if the address is meant to be this host's, first make sure that no other host has it, "
            "then add it to a device: a host that has it too cannot be reached from here any more"
        ),
    ),
)

NOT_YET_LOCAL: Final = Cause(
    "source not usable yet",
    "The source address is being checked for duplicates (DAD), or has failed the check. Until it "
    "passes, bind() refuses it. This is not exhaustion.",
    (
        Remedy("wait a second or two, until `ip -6 address` shows it without `tentative`"),
        Remedy(
            "if it shows `dadfailed`, another host on the link has the address: change one of the "
            "two",
        ),
        Remedy("add addresses that no other host can have with `nodad`, or set IP_FREEBIND"),
    ),
)

IPV6_OFF: Final = Cause(
    "IPv6 off",
    "IPv6 is switched off, in this network namespace or on the device that the address belongs "
    "to, so the address cannot be used. This is not exhaustion.",
    (
        Remedy("connect over IPv4"),
        Remedy(
            "switch IPv6 on",
            "sysctl -w {ipv6_switch}=0",
            "the host then has IPv6 addresses, for which its firewall needs rules; those that "
            "were added by hand have to be added again",
        ),
    ),
)

LINK_LOCAL: Final = Cause(
    "link-local without its device",
    "A link-local address belongs to one link, so bind() and connect() have to know the device "
    "(the scope), and fail with EINVAL without it. This is not exhaustion.",
    (
        Remedy(
            "name the device behind the address, as in fe80::7%eth0; `ip -6 neighbour` lists the "
            "neighbours that each device has seen"
        ),
        Remedy("use a source and a destination of the same device"),
    ),
)

NOT_HONOURED: Final = Cause(
    "window outside the range",
    "The kernel clamps a window (IP_LOCAL_PORT_RANGE) to net.ipv4.ip_local_port_range, each end "
    "separately and without an error: a program that asks for other ports gets any port.",
    (
        Remedy(
            "widen the range until it includes the window, and first reserve the ports of services",
            _WIDEN.command,
            _WIDEN.breaks,
        ),
        Remedy("ask for ports within the range"),
        Remedy(
            "have connectx make the socket: create_connection() of a Dialer with these ports "
            "binds each by number"
        ),
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
            "each segment carries 12 octets less",
        ),
    ),
)

TIME_WAIT_OVERFLOW: Final = Cause(
    "too many TIME_WAITs",
    "There are as many TIME_WAITs as net.ipv4.tcp_max_tw_buckets allows. Further connections end "
    "without one, and a late segment of an old connection can disturb a new one.",
    (
        Remedy(
            "allow more",
            "sysctl -w net.ipv4.tcp_max_tw_buckets={more}",
            "each takes some 250 octets of memory",
        ),
        _CLOSE_SECOND,
    ),
)

DESCRIPTORS: Final = Cause(
    "descriptors",
    "A process has nearly as many open files as it may have. At the limit its calls fail with "
    "EMFILE, long before it runs out of ports.",
    (
        Remedy(
            "raise the limit: LimitNOFILE= of its systemd unit, or until it ends",
            "prlimit --pid {pid} --nofile={more}",
            "select(2) in that program, which takes no descriptor above 1,023",
            anywhere=True,
        ),
        Remedy("spread the connections over several processes"),
    ),
)

CONNTRACK: Final = Cause(
    "conntrack full",
    "The table of tracked connections is nearly full. Once it is full, the kernel drops the "
    "packets of new connections, and connect() times out.",
    (
        Remedy(
            "make the table larger",
            "sysctl -w net.netfilter.nf_conntrack_max={more}",
            "each entry takes about 300 octets of memory",
        ),
        Remedy(
            "do not track what needs no translation (notrack, in both directions), unless "
            "firewall rules look at its state",
        ),
    ),
)

TRANSLATED: Final = Cause(
    "translated to fewer ports",
    "A rule on this host translates source addresses to a range of ports that is smaller than the "
    "host's own. The translation runs out first, and drops packets without an errno.",
    (
        Remedy("widen the rule's range of ports, or add addresses to translate to"),
        Remedy("exempt traffic that needs no translation"),
    ),
)

RANDOM_TRANSLATION: Final = Cause(
    "translated to random ports",
    "A rule on this host translates source ports at random, and this kernel begins the TCP "
    "timestamps of each pair of ports at another value. A translated 4-tuple that comes back may "
    "seem older than before: the other side then drops or resets the new connection.",
    (
        Remedy("have the rule keep the port where it can: without `random` and `fully-random`"),
        Remedy("exempt traffic that needs no translation"),
    ),
)

SWALLOWED: Final = Cause(
    "source ports that are translated",
    "Rules on this host translate what arrives at these ports (NodePorts, DNAT), without a socket "
    "that would keep connect() from choosing them. A reply that connection tracking does not know, "
    "or knows no more, goes astray: the call times out, or the connection falls silent.",
    (Remedy(_RESERVE.text.replace("services", "the rules"), _RESERVE.command, _RESERVE.breaks),),
)

RANDOM_STEPS: Final = Cause(
    "search in random steps",
    "net.ipv4.ip_local_port_step_width has connect() go on from a port in use by a random step, "
    "and not to the next one. It still finds every port. Where most are in use, it takes longer, "
    "and a port that was closed comes back sooner.",
    (
        Remedy(
            "open the connections with connectx, which offers the kernel one port at a time that "
            "it holds to be free"
        ),
        Remedy(
            "have connect() search port by port",
            "sysctl -w net.ipv4.ip_local_port_step_width=0",
            "the port behind a block of reserved ones is given out more often than others",
        ),
    ),
)

NARROW_STEPS: Final = Cause(
    "steps too narrow",
    "net.ipv4.ip_local_port_step_width spreads connections that would otherwise get the port "
    "behind a block of reserved ones. Steps that are no wider than the block get them to the "
    "ports just behind it.",
    (
        Remedy(
            "allow wider steps: the kernel's documentation advises three to four times the largest "
            "block",
            "sysctl -w net.ipv4.ip_local_port_step_width={step}",
            "where most ports are in use, connect() takes longer, and a port that was closed comes "
            "back sooner",
        ),
    ),
)

OLD_KERNEL: Final = Cause(
    "old kernel",
    "A newer kernel shares and finds ports better.",
    (Remedy("see docs/kernels.md for what each version brings, and how to do without"),),
)

UNSHARED: Final = Cause(
    "UDP ports",
    "A plain UDP connect(), or a sendto() without a bind(), needs a port that no other UDP socket "
    "has, whatever its address and destination, and otherwise fails with EAGAIN. Sockets that "
    "share ports (SO_REUSEADDR) may still find some.",
    (
        Remedy("open them with connectx, which shares ports between destinations"),
        Remedy("use one unconnected socket for many destinations, or close unneeded ones"),
        _WIDEN,
    ),
)

#: How long what `sysctl -w` sets stays.
LASTING: Final = "sysctl -w holds until the next start; `name = value` in /etc/sysctl.d keeps it"

#: Why a source address cannot be used at all.
OF_A_SOURCE: Final = (NOT_LOCAL, NOT_YET_LOCAL, IPV6_OFF)

#: Why a source port that was asked for by number cannot be had.
OF_A_PORT: Final = (TUPLE_IN_USE, PORT_LEFT, PORT_BY_CHANCE, PORT_HELD)

#: Why no port toward a destination can be had, whatever other sockets do.
OF_A_DESTINATION: Final = (CONNECTED, TIME_WAIT)

#: What EADDRNOTAVAIL (99) can mean. The first six are exhaustion.
OF_EADDRNOTAVAIL: Final = (
    CONNECTED,
    TIME_WAIT,
    HELD,
    BOUND_FIRST,
    POLLUTED,
    RESERVED,
    TUPLE_IN_USE,
    NOT_LOCAL,
    NOT_YET_LOCAL,
    IPV6_OFF,
)


#: The causes that are exhaustion.
OF_EXHAUSTION: Final = frozenset(
    {CONNECTED, TIME_WAIT, HELD, HELD_DATAGRAM, RESERVED, BOUND_FIRST, POLLUTED, UNSHARED}
)


class Folklore(NamedTuple):
    """What is often recommended or said, and does not help.

    Attributes:
        name: What people say.
        truth: The rest of the sentence that begins with the name.
        against: The causes that it is recommended against.
    """

    name: str
    truth: str
    against: frozenset[Cause]


FOLKLORE: Final = (
    Folklore(
        "net.ipv4.tcp_tw_recycle=1",
        "no longer exists: Linux 4.12 removed it, because it broke clients behind a NAT",
        frozenset({TIME_WAIT}),
    ),
    Folklore(
        "net.ipv4.tcp_fin_timeout",
        "does not shorten TIME_WAIT, which lasts 60 seconds; it limits FIN_WAIT_2 of sockets "
        "that have no owner any more",
        frozenset({TIME_WAIT}),
    ),
    Folklore(
        "SO_REUSEADDR on a client",
        "has no effect before bind((address, 0)), neither on exhaustion nor on TIME_WAIT, unless "
        "net.ipv4.ip_autobind_reuse is 1",
        frozenset({TIME_WAIT, HELD, BOUND_FIRST, POLLUTED}),
    ),
    Folklore(
        "65,535 connections",
        "is the size of the port field and not a limit: each source address has the whole "
        "port range toward each destination",
        frozenset({CONNECTED}),
    ),
)


def advise(causes: Iterable[Cause]) -> str:
    """Return causes and their remedies as plain lines."""
    lines = []
    for cause in causes:
        lines.append(cause.summary)
        lines += [f"  - {remedy.text}" for remedy in cause.remedies]
    return "\n".join(lines)
