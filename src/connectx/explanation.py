"""The cause of a failure, from the sockets there are when somebody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from connectx.addresses import Endpoint, FourTuple
from connectx.core import causes
from connectx.core.strategies import Verdict
from connectx.linux.sock_diag import dump
from connectx.linux.uapi import AF_INET, AF_INET6

if TYPE_CHECKING:
    from connectx.network import Prepared


def explain(verdict: Verdict, prepared: Prepared) -> str:
    """Why an attempt failed and what would help, in a few plain lines."""
    if verdict is Verdict.TUPLE_IN_USE:
        return causes.advise([causes.TUPLE_IN_USE])
    if verdict is Verdict.PORT_HELD:
        return causes.advise([causes.PORT_HELD])
    request = prepared.request
    try:
        census = take_census(prepared)
    except OSError as error:
        return f"The sockets could not be counted ({error}).\n" + causes.advise([causes.CONNECTED])
    source = Endpoint(prepared.host or request.source.host, 0)
    subject = FourTuple(request.protocol, source, request.destination)
    reasons = causes.of_exhaustion(census, stream=request.stream)
    return f"{causes.describe(census, subject)}\n{causes.advise(reasons)}"


def take_census(prepared: Prepared) -> causes.Census:
    """Count the ports toward a request's destination, as they are now.

    Raises OSError (EXDEV) where the calling thread is in another network namespace,
    and as netlink does.
    """
    request = prepared.request
    network = prepared.network
    netlink = network.diag
    ports = prepared.plan.ports
    within = set(range(ports.low, ports.high + 1))
    toward = dump(
        netlink,
        request.diag_protocol,
        request.wire_family,
        source=prepared.source or request.wire_source or None,
        destination=request.wire_destination,
        destination_port=request.destination.port,
    )
    time_wait = within.intersection(r.source_port for r in toward if r.in_time_wait)
    connected = within.intersection(r.source_port for r in toward) - time_wait
    # A port that is bound on any address, of either family, is closed to every
    # connect() that is to choose one (__inet_hash_connect looks at no address).
    anywhere = {
        record.source_port
        for family in (AF_INET, AF_INET6)
        for record in dump(netlink, request.diag_protocol, family)
    }
    reserved = {
        port for hole in network.reserved for port in range(hole.low, hole.high + 1)
    } & within
    others = within - time_wait - connected
    return causes.Census(
        ports,
        connected=len(connected),
        time_wait=len(time_wait),
        held=len((others - reserved) & anywhere),
        reserved=len(others & reserved),
    )
