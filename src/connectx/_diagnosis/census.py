"""The ports toward one destination, counted by what keeps them, and which ports are locked.

What SOCK_DIAG reports of a connected socket does not say whether it shares its port. A TCP
socket that was bound before it connected locks its port: no connect() that chooses a port
takes it, toward any destination. So ports are tried, each with a socket of our own that is
bound for some microseconds and sends nothing.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final

from connectx._diagnosis.facts import Census
from connectx.addresses import (
    AF_INET,
    AF_INET6,
    PROTOCOLS,
    V4_MAPPED_TEXT,
    Endpoint,
    FourTuple,
    ports_in,
    with_scope,
)
from connectx.linux import sysctl
from connectx.linux.disconnect import disconnect
from connectx.linux.features import IP_LOCAL_PORT_RANGE, Probe, probe
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.sock_diag import ALL_STATES
from connectx.linux.socket_dump import (
    UNCONNECTED,
    Filter,
    filter_between,
    records,
    source_ports,
)
from connectx.linux.sockopts import (
    get_tcp_timestamp,
    set_ip_bind_address_no_port,
    set_ip_freebind,
    set_ip_local_port_range,
    set_ipv6_v6only,
    set_so_bindtoifindex,
    set_so_reuseaddr,
    set_tcp_fastopen_connect,
)
from connectx.linux.time_wait import Reuse, read_reuse
from connectx.linux.uapi import (
    IPPROTO_TCP,
    NETLINK_SOCK_DIAG,
    TCP_FASTOPEN_NO_COOKIE,
    TCP_FIN_WAIT2,
    TCP_TIME_WAIT,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from connectx.addresses import PortRange

#: Destinations to which hardly anybody is connected, and to both of them nobody: a port that
#: is in use toward the one that is tried would look locked.
_UNUSED_DESTINATIONS: Final = (Endpoint("127.255.255.254", 9), Endpoint("127.255.255.253", 9))

#: Milliseconds between two calls, at most: a random offset is less only once in 400,000.
_A_CALL_TAKES: Final = 10_000

#: An index that no device has: indexes are given out one after the other.
NO_DEVICE: Final = 0x7FFFFFFF

#: The states of a TIME_WAIT: FIN_WAIT2 where its peer has not closed yet.
_MAY_REST: Final = 1 << TCP_TIME_WAIT | 1 << TCP_FIN_WAIT2


def take(
    netlink: NetlinkSocket,
    connection: FourTuple,
    ports: PortRange,
    tried: Mapping[int, bool] | None = None,
) -> Census:
    """Count the ports of a range from a source toward a destination, as they are now.

    Args:
        netlink: A NETLINK_SOCK_DIAG socket of the calling thread's network namespace.
        connection: The two ends. A source port of 0 stands for one that connect() chooses.
        ports: The range.
        tried: TCP ports for which `locked` has been asked already, each with whether it is.

    Raises:
        OSError: The sockets cannot be listed, or a port cannot be tried.
    """
    protocol = PROTOCOLS[connection.protocol]
    source, destination = connection.source, connection.destination
    within = set(range(ports.low, ports.high + 1))
    # From its own port a destination would be connected to itself.
    itself = (
        ports.contains(destination.port)
        and not source.port
        and (
            source.host.removeprefix(V4_MAPPED_TEXT)
            == destination.host.removeprefix(V4_MAPPED_TEXT)
        )
    )
    unseen = ""
    try:
        reserved = ports_in(sysctl.read_reserved_ports()) & within
        reuse = read_reuse()
    except OSError as error:
        reserved, reuse, unseen = set(), Reuse(0, timestamps=False, delay=0), str(error.strerror)
    between = filter_between(
        protocol.table, ALL_STATES, with_scope(source.host, source.scope_id), destination
    )
    # Each socket by itself only where it may be a TIME_WAIT: to list all takes ten times as long.
    resting = [
        each for each in records(netlink, between._replace(states=_MAY_REST)) if each.in_time_wait
    ]
    time_wait = within.intersection(each.source_port for each in resting)
    connected = within & source_ports(netlink, between) - time_wait
    # Sockets on any address, of either IP version: connect() passes over a bound port without
    # a look at the address (__inet_hash_connect).
    anywhere = source_ports(netlink, Filter(protocol.table))
    bound = source_ports(netlink, Filter(protocol.table, UNCONNECTED))
    reusable = (
        within.intersection(each.source_port for each in resting if reuse.takes(each)) - bound
    )
    if reusable and not source.port:
        # A connect() that chooses does not take over what a bound socket has left.
        reusable -= set(locked(reusable) or ())
    others = within - time_wait - connected
    if itself:
        others.discard(destination.port)
        itself = destination.port not in time_wait | connected
    doubtful = (others - reserved) & anywhere
    untold: set[int] = set()
    if protocol.stream and not tells_binds_apart():
        held = doubtful & bound
        untold = doubtful - bound
    else:
        known = (tried or {}) if protocol.stream else {}
        on_devices = set()
        if doubtful and not protocol.stream:
            on_devices = {
                each.source_port
                for each in records(netlink, Filter(protocol.table))
                if each.interface
            }
        held = {
            port
            for port in doubtful
            if (
                known[port]
                if port in known
                else not shares(connection, port, beside_devices=port in on_devices)
            )
        }
    return Census(
        ports,
        connected=len(connected),
        time_wait=len(time_wait),
        held=len(held),
        reserved=len(others & reserved),
        reusable=len(reusable),
        untold=len(untold),
        itself=int(itself),
        unseen=unseen,
    )


def shares(connection: FourTuple, port: int, *, beside_devices: bool = False) -> bool:
    """Try whether a source port takes one more socket toward a destination.

    A datagram socket that tries is bound to a device that does not exist, where it takes
    nobody's datagrams.

    Args:
        connection: The two ends.
        port: The source port.
        beside_devices: Whether the port has sockets that are bound to devices: such a socket
            keeps out only what is bound to its device, or to none.

    Raises:
        OSError: The port cannot be tried.
    """
    protocol = PROTOCOLS[connection.protocol]
    # IPv4-mapped addresses are IPv4's, and so are the ports.
    source, destination = (
        end._replace(host=end.host.removeprefix(V4_MAPPED_TEXT))
        for end in (connection.source, connection.destination)
    )
    family = AF_INET6 if ":" in destination.host else AF_INET
    # MPTCP's ports are TCP's, and before Linux 6.2 it has no TCP_FASTOPEN_CONNECT.
    number = 0 if protocol.stream else protocol.number
    with socket.socket(family, protocol.type, number) as scratch:
        # Whether the address is local is another question.
        set_ip_freebind(scratch, on=True)
        set_so_reuseaddr(scratch, on=True)
        try:
            if protocol.stream and _defers_connect(scratch):
                if source.host:
                    set_ip_bind_address_no_port(scratch, on=True)
                    scratch.bind(source._replace(port=0).sockaddr(family))
                set_ip_local_port_range(scratch, port, port)
                scratch.connect(destination.sockaddr(family))
            elif protocol.stream or beside_devices:
                scratch.bind(source._replace(port=port).sockaddr(family))
            elif family == AF_INET:
                set_so_bindtoifindex(scratch, NO_DEVICE)
                scratch.bind(source._replace(port=port).sockaddr(family))
            else:
                set_so_bindtoifindex(scratch, NO_DEVICE)
                # An address of IPv6 has to be one of the device's, so this is about all of them.
                set_ipv6_v6only(scratch, on=True)
                scratch.bind(("::", port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
            if not protocol.stream and family == AF_INET6 and not beside_devices:
                # Another address may be what refuses.
                return shares(connection, port, beside_devices=True)
            return False
    return True


def locked(ports: Iterable[int]) -> list[int] | None:
    """Find the ports, of some TCP ports in use, that no connect() that chooses a port takes.

    Returns:
        The ports; None where this kernel does not let us find out (see `tells_binds_apart`).

    Raises:
        OSError: A port cannot be tried, for example because the loopback device is down.
    """
    if not tells_binds_apart():
        return None
    # One socket for all ports: a socket each takes twice the time.
    with socket.socket() as scratch:
        set_so_reuseaddr(scratch, on=True)
        _defers_connect(scratch)
        return [
            port
            for port in sorted(ports)
            if not any(_takes(scratch, port, each) for each in _UNUSED_DESTINATIONS)
        ]


def _takes(scratch: socket.socket, port: int, destination: Endpoint) -> bool:
    """Try whether a socket that sends nothing gets a port, and release it."""
    set_ip_local_port_range(scratch, port, port)
    try:
        scratch.connect((destination.host, destination.port))
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        return False
    disconnect(scratch)
    return True


def count_locked() -> int | None:
    """Count the locked ports of the range in force that are neither held nor reserved.

    Returns and raises as `locked` does.
    """
    ports = sysctl.read_port_range()
    with NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        of_connections, held = (
            source_ports(netlink, Filter(IPPROTO_TCP, states, ports=(ports,)))
            for states in (ALL_STATES & ~UNCONNECTED, UNCONNECTED)
        )
    found = locked(of_connections - held - ports_in(sysctl.read_reserved_ports()))
    return None if found is None else len(found)


def tells_binds_apart() -> bool:
    """Return whether trying tells a locked TCP port from one that connect() shares.

    It takes IP_LOCAL_PORT_RANGE, to ask connect() for a port, and TCP Fast Open for clients,
    so that connect() sends nothing. Without them bind() is tried, which refuses both.
    """
    with socket.socket() as scratch:
        return _defers_connect(scratch)


def offset_depends_on_port() -> bool | None:
    """Try whether the offset of a connection's TCP timestamps depends on its ports.

    Returns:
        None where that cannot be tried, because connect() would send something.

    Raises:
        OSError: No socket can be had, or the loopback device is down.
    """
    read = []
    for _ in range(2):
        with socket.socket() as scratch:
            if not _defers_connect(scratch):
                return None
            # Another port each time: toward one destination, connect() goes on from the last.
            scratch.connect(_UNUSED_DESTINATIONS[0].sockaddr(AF_INET))
            read.append(get_tcp_timestamp(scratch))
    # Otherwise they are as far apart as the two calls; wherever one falls, 2**31 is most.
    return (read[1] - read[0]) % (1 << 32) > _A_CALL_TAKES


def _defers_connect(scratch: socket.socket) -> bool:
    """Have connect() choose a stream socket's port and send nothing; False if it cannot.

    With TCP Fast Open, connect() leaves the SYN to the first data (tcp_fastopen_defer_connect),
    which never comes here. A namespace can switch it off (net.ipv4.tcp_fastopen).
    """
    if probe(IP_LOCAL_PORT_RANGE) is not Probe.YES:
        return False
    try:
        set_tcp_fastopen_connect(scratch, on=True)
        scratch.setsockopt(IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOPROTOOPT):
            raise
        return False
    return True
