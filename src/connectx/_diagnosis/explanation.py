"""The cause of a failure, from the sockets there are when somebody asks."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final

from connectx._connect.namespace import NAMESPACES, windows_work
from connectx._connect.plan import NEW_SOCKET, make_plan, routed_source
from connectx._connect.request import parse
from connectx._connect.strategies import Verdict
from connectx._connect.udp_lock import one_port
from connectx._diagnosis import causes
from connectx._diagnosis.census import Census, describe, of_exhaustion
from connectx.addresses import AF_INET, SOCK_STREAM, Endpoint, FourTuple
from connectx.linux.netlink import MalformedMessage
from connectx.linux.reuse import read_reuse
from connectx.linux.socket_dump import UNCONNECTED, Filter, dump, records
from connectx.linux.uapi import (
    IP_BIND_ADDRESS_NO_PORT,
    IP_FREEBIND,
    IP_LOCAL_PORT_RANGE,
    IPPROTO_IP,
    IPPROTO_TCP,
    SO_REUSEADDR,
    SOL_SOCKET,
    TCP_FASTOPEN_CONNECT,
    TCP_FASTOPEN_NO_COOKIE,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from connectx._connect.plan import Plan

#: Destinations that hardly anybody is connected to, and both of them nobody: toward one that
#: is a port's, the port would be taken whether it is locked or not.
_NOBODYS: Final = (("127.255.255.254", 9), ("127.255.255.253", 9))


def explain(verdict: Verdict, prepared: Plan) -> str:
    """Why an attempt failed and what would help, in a few plain lines."""
    if verdict is Verdict.TUPLE_IN_USE:
        return causes.advise([causes.TUPLE_IN_USE])
    if verdict is Verdict.PORT_HELD:
        return causes.advise([causes.PORT_HELD])
    request = prepared.request
    try:
        census = take_census(prepared)
    except (OSError, MalformedMessage) as error:
        return f"The sockets could not be counted ({error}).\n" + causes.advise([causes.CONNECTED])
    subject = FourTuple(request.protocol, Endpoint(source_of(prepared), 0), request.destination)
    reasons = of_exhaustion(census, stream=request.stream)
    return f"{describe(census, subject)}\n{causes.advise(reasons)}"


def take_census(prepared: Plan) -> Census:
    """Count the ports toward a request's destination, as they are now.

    Raises OSError (EXDEV) where the calling thread is in another network namespace,
    and as netlink does.
    """
    request = prepared.request
    network = prepared.namespace
    netlink = network.diag
    ports = prepared.ports
    within = set(range(ports.low, ports.high + 1))
    toward = dump(
        netlink,
        request.table,
        request.wire_family,
        source=_wire_source(prepared),
        destination=request.wire_destination,
        destination_port=request.destination.port,
        interface=request.scope,
    )
    time_wait = within.intersection(r.source_port for r in toward if r.in_time_wait)
    connected = within.intersection(r.source_port for r in toward) - time_wait
    # On any address, of either family: a port that is bound is closed to every connect()
    # that is to choose one (__inet_hash_connect looks at no address).
    everybody = records(netlink, None, Filter(request.table))
    anywhere = {record.source_port for record in everybody}
    reserved = {
        port for hole in network.reserved for port in range(hole.low, hole.high + 1)
    } & within
    bound = {r.source_port for r in everybody if 1 << r.state & UNCONNECTED}
    reuse = read_reuse()
    reusable = within.intersection(r.source_port for r in toward if reuse.takes(r)) - bound
    if reusable and not request.source.port:
        # Nobody takes over what was left by a socket that was bound.
        reusable -= set(locked(reusable) or ())
    others = within - time_wait - connected
    doubtful = (others - reserved) & anywhere
    untold: set[int] = set()
    if request.stream and not tells_binds_apart():
        held = doubtful & bound
        untold = doubtful - bound
    else:
        # Nothing that SOCK_DIAG tells of a connected socket says whether it shares its port.
        held = {port for port in doubtful if not shared(prepared, port)}
    return Census(
        ports,
        connected=len(connected),
        time_wait=len(time_wait),
        held=len(held),
        reserved=len(others & reserved),
        reusable=len(reusable),
        untold=len(untold),
        unused=len(within - anywhere - reserved),
    )


def source_of(prepared: Plan) -> str:
    """The source address in text form: what was asked for, or what routing chooses.

    Raises OSError where there is no route.
    """
    return prepared.host or prepared.request.source_host(_wire_source(prepared))


def _wire_source(prepared: Plan) -> bytes:
    request = prepared.request
    known = prepared.source or request.wire_source
    return known or routed_source(prepared.namespace, request, prepared.options)


def shared(prepared: Plan, port: int) -> bool:
    """Whether one more socket toward the destination would be let onto a port, by trying.

    Nothing is sent. Raises OSError for anything but a port that is taken.
    """
    request = prepared.request
    # MPTCP's ports are TCP's, and it knows no TCP_FASTOPEN_CONNECT before 6.2.
    proto = 0 if request.stream else request.proto
    with socket.socket(request.family, request.type, proto) as scratch:
        # Whether the address is local is not the question.
        scratch.setsockopt(IPPROTO_IP, IP_FREEBIND, 1)
        try:
            if not request.stream or not _deferred(scratch):
                scratch.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
                scratch.bind(prepared.source_at(port))
            else:
                _offer(scratch, prepared, port)
                scratch.connect(request.address)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
            return False
    return True


def locked(ports: Iterable[int]) -> list[int] | None:
    """Those of some TCP ports in use that connect() would not give out; None if nobody can tell.

    In the calling thread's network namespace. Each is tried with a socket that is bound for
    some microseconds and sends nothing.

    Raises OSError where that cannot be, as without a route to the loopback.
    """
    if not tells_binds_apart():
        return None
    network = NAMESPACES.here()
    toward = [
        make_plan(network, parse(AF_INET, SOCK_STREAM, 0, "auto", None, destination), NEW_SOCKET)
        for destination in _NOBODYS
    ]
    return [port for port in sorted(ports) if not any(shared(each, port) for each in toward)]


def _offer(scratch: socket.socket, plan: Plan, port: int) -> None:
    """Have connect() take a port, as a connection of ours would."""
    scratch.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    if plan.binds:
        scratch.setsockopt(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        scratch.bind(plan.any_port)
    scratch.setsockopt(IPPROTO_IP, IP_LOCAL_PORT_RANGE, one_port(port))


def tells_binds_apart() -> bool:
    """Whether `shared` knows a TCP port that is shut to connect() from one that is not.

    It takes windows, and TCP Fast Open for clients; otherwise it knows what bind() refuses.
    """
    with socket.socket() as scratch:
        return _deferred(scratch)


def _deferred(scratch: socket.socket) -> bool:
    """Have a stream socket choose its port in connect() and send nothing; False if it cannot.

    As when data is to go with the SYN (tcp_fastopen_defer_connect), which never comes.
    Where clients may use no TCP Fast Open (net.ipv4.tcp_fastopen), and without windows,
    bind() has to answer for connect(); it also refuses ports that only connect() shares.
    """
    if not windows_work("tcp"):
        return False
    try:
        scratch.setsockopt(IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        scratch.setsockopt(IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOPROTOOPT):
            raise
        return False
    return True
