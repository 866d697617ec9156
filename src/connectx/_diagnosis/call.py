"""What can be found out about a call that failed: its source, its port, its destination."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Final

from connectx._diagnosis import census
from connectx._diagnosis.facts import Holder
from connectx.addresses import (
    AF_INET,
    AF_INET6,
    PROTOCOLS,
    Endpoint,
    FourTuple,
    family_of,
    needs_scope,
    packed,
    ports_in,
    resolve_scope,
    text,
    unmapped,
    with_scope,
)
from connectx.linux import proc_net, sysctl
from connectx.linux.netlink import NetlinkError, NetlinkSocket
from connectx.linux.route import RouteLookup
from connectx.linux.socket_dump import UNCONNECTED, Filter, with_v6only
from connectx.linux.sockopts import set_ip_bind_address_no_port
from connectx.linux.uapi import NETLINK_ROUTE, STATE_NAMES, TCP_LISTEN, TCP_TIME_WAIT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from connectx._diagnosis.facts import Call
    from connectx._diagnosis.ownership import Ownership
    from connectx.linux.sock_diag import SocketRecord

#: Flags of an IPv6 address that cannot be used: IFA_F_TENTATIVE, IFA_F_DADFAILED (if_addr.h).
_UNUSABLE: Final = 0x40 | 0x08


def investigate(
    call: Call, netlink: NetlinkSocket, ownership: Ownership, tried: Mapping[int, bool]
) -> Call:
    """Return the call with all that can be found out about it.

    Args:
        call: What was asked for.
        netlink: A NETLINK_SOCK_DIAG socket of the calling thread's network namespace.
        ownership: Whose the sockets are.
        tried: As `census.take` has it.

    Raises:
        OSError: The sockets cannot be listed.
    """
    source, destination = call.source, call.destination
    hosts = [source.host, destination.host if destination else ""]
    devices = tuple(
        _device(each) for each in (source, destination) if each and _is_link_local(each)
    )
    call = call._replace(needs_ipv6=any(":" in host for host in hosts), devices=devices)
    addresses = proc_net.ipv6_addresses()
    off = proc_net.devices_without_ipv6()
    belong = [device for _, device in devices] + ["lo"] * ("::1" in hosts)
    if call.needs_ipv6 and not addresses and (off is None or off):
        return call._replace(without_ipv6="all")
    if without := [each for each in belong if each in (off or ())]:
        return call._replace(without_ipv6=without[0])
    names = {device for _, device in devices}
    if "" in names or len(names) > 1:
        # bind() and connect() refuse it (EINVAL), whatever else there is.
        return call
    if source.host:
        flags = addresses.get(packed(source.host) or b"", 0)
        call = call._replace(
            source_is_local=_is_local(source), is_tentative=bool(flags & _UNUSABLE)
        )
    if call.source_is_local is False:
        return call
    if destination is not None:
        range_in_force = sysctl.read_port_range()
        ports = call.ports or range_in_force
        try:
            chosen = source.host or _routed_source(call, destination)
            # A link-local source is on the destination's device.
            scope = source.scope_id or destination.scope_id
            connection = FourTuple(call.protocol, Endpoint(chosen, 0, 0, scope), destination)
            link_local = needs_scope(packed(chosen) or b"")
            call = call._replace(census_source=with_scope(chosen, scope if link_local else 0))
            # Otherwise there is nothing to count, and a finding about just this.
            if range_in_force.covers(ports):
                call = call._replace(census=census.take(netlink, connection, ports, tried))
        except OSError as error:
            call = call._replace(unreachable=f"connect() would meet with {error}")
    return _with_port(call, netlink, ownership) if source.port else call


def _is_link_local(endpoint: Endpoint) -> bool:
    return needs_scope(packed(endpoint.host) or b"")


def _device(endpoint: Endpoint) -> tuple[str, str]:
    """A link-local address, and its device's name; "" for one that is not said."""
    if not endpoint.scope_id:
        return endpoint.host, ""
    try:
        return endpoint.host, socket.if_indextoname(endpoint.scope_id)
    except OSError:
        return endpoint.host, str(endpoint.scope_id)


def holder(record: SocketRecord, state: str, ownership: Ownership, protocol: str = "tcp") -> Holder:
    """Describe a socket that is on a port."""
    named, described = ownership.name(record), ownership.describe(record)
    return Holder(
        protocol,
        text(unmapped(record.source)),
        record.source_port,
        state,
        "" if record.in_time_wait else named,
        described="" if described == named else described,
    )


def _is_local(source: Endpoint) -> bool | None:
    """Whether bind() takes an address; None where it fails for another reason."""
    family = AF_INET6 if ":" in source.host else AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as scratch:
        # Without a port, which somebody may hold.
        set_ip_bind_address_no_port(scratch, on=True)
        try:
            scratch.bind(source._replace(port=0).sockaddr(family))
        except OSError as error:
            return False if error.errno == errno.EADDRNOTAVAIL else None
    return True


def _routed_source(call: Call, destination: Endpoint) -> str:
    """The source that connect() chooses; OSError with its errno where there is none."""
    octets = packed(destination.host) or b""
    with NetlinkSocket(NETLINK_ROUTE) as netlink:
        try:
            route = RouteLookup(
                family_of(octets),
                interface=destination.scope_id if needs_scope(octets) else 0,
                uid=os.geteuid(),
                protocol=PROTOCOLS[call.protocol].table,
            ).find(netlink, octets, destination.port)
        except NetlinkError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0)) from error
    return text(route.source)


def _with_port(call: Call, netlink: NetlinkSocket, ownership: Ownership) -> Call:
    """Add the sockets that keep the call from the source port it asked for."""
    port = call.source.port
    chosen = call.source.host or resolve_scope(call.census_source)[0]
    sockets = with_v6only(netlink, Filter(PROTOCOLS[call.protocol].table, source_port=port))
    to = call.destination
    wanted = to and (packed(chosen), packed(to.host), to.port)

    def is_on_tuple(record: SocketRecord) -> bool:
        ends = unmapped(record.source), unmapped(record.destination), record.destination_port
        return ends == wanted

    on_tuple = any(is_on_tuple(record) for record, _ in sockets)
    if call.stream and (call.number == errno.EADDRNOTAVAIL or (to and not call.number)):
        # This is connect()'s, which looks at no address, and shares what is not locked.
        if not on_tuple and not census.locked([port]):
            return call
        found = [record for record, _ in sockets]
    else:
        found = [
            record
            for record, v6only in sockets
            if _have_an_address_in_common(record, call.source, v6only=v6only)
        ]
    # The one to name comes first: on the very 4-tuple, a listener, one with an owner.
    found.sort(
        key=lambda record: (
            not is_on_tuple(record),
            record.state != TCP_LISTEN,
            not record.inode,
        )
    )
    return call._replace(
        on_port=tuple(
            holder(record, _state(record), ownership, call.protocol)._replace(
                descriptor=ownership.descriptor(record), destination=_destination(record)
            )
            for record in found
        ),
        on_tuple=on_tuple,
        by_chance=_may_be_by_chance(call, found),
    )


def _state(record: SocketRecord) -> str:
    return STATE_NAMES[TCP_TIME_WAIT] if record.in_time_wait else record.state_name


def _destination(record: SocketRecord) -> Endpoint | None:
    if 1 << record.state & UNCONNECTED:
        return None
    octets = unmapped(record.destination)
    scope = record.interface if needs_scope(octets) else 0
    return Endpoint(text(octets), record.destination_port, 0, scope)


def _may_be_by_chance(call: Call, found: list[SocketRecord]) -> bool:
    """Whether connect() may have given the port to one of these, as it might any other port."""
    port = call.source.port
    if any(1 << each.state & UNCONNECTED for each in found) or all(
        each.in_time_wait for each in found
    ):
        return False
    if not sysctl.read_port_range().contains(port) or port in ports_in(
        sysctl.read_reserved_ports()
    ):
        return False
    try:
        # A port that connect() has chosen is one that it shares.
        return not (call.stream and census.locked([port]))
    except OSError:
        return False


def _have_an_address_in_common(record: SocketRecord, source: Endpoint, *, v6only: bool) -> bool:
    """Whether a socket and one that is bound to the source compete for the source's port."""
    wanted = packed(source.host)
    own = unmapped(record.source)
    if wanted is not None and any(wanted):
        if source.scope_id and record.interface not in (0, source.scope_id):
            return False
        return own == wanted or (not any(own) and not (v6only and len(wanted) == 4))
    # A wildcard: of IPv4, or of both IP versions.
    return wanted is None or len(wanted) == 16 or len(own) == 4 or not (any(own) or v6only)
