"""What the kernel says of ports and 4-tuples when it is asked, and not tried.

It is asked with netlink. Where a sandbox refuses that, /proc/net has TCP's 4-tuples, and
another socket can try a datagram port.
"""

from __future__ import annotations

import itertools
import socket
from typing import TYPE_CHECKING, Final

from connectx._connect.namespace import NetlinkRefused, identity_of
from connectx._connect.plan import absence, without_netlink
from connectx._connect.strategies import Outcome
from connectx.linux.sockopts import set_ip_freebind, set_so_bindtoifindex, set_so_reuseaddr
from connectx.linux.uapi import (
    TCP_BOUND_INACTIVE,
    TCP_CLOSE,
    TCP_FIN_WAIT2,
    TCP_LISTEN,
    TCP_TIME_WAIT,
)

if TYPE_CHECKING:
    from connectx._connect.plan import Plan
    from connectx.addresses import Address

#: States in which a socket holds a port but no 4-tuple.
_UNCONNECTED_STATES: Final = (TCP_LISTEN, TCP_CLOSE, TCP_BOUND_INACTIVE)


def survey(plan: Plan) -> Outcome:
    """Find out which ports are free toward a plan's destination, and have its ledger know.

    Raises:
        OSError: EXDEV in a thread that is in another namespace.
        NetlinkRefused: The kernel may not be asked.
    """
    netlink, source = plan.terms.namespace.diag, plan.ends().source
    from connectx.linux.socket_dump import ports_toward  # noqa: PLC0415 - as in namespace.py

    request = plan.request
    in_use = ports_toward(
        netlink,
        request.origin.table,
        request.origin.wire_family,
        source,
        request.wire_destination,
        request.destination.port,
        interface=request.scope,
    )
    # A TIME_WAIT may be taken over; the kernel decides. In its first part it is
    # reported as FIN_WAIT2.
    in_use.pop(TCP_TIME_WAIT, None)
    in_use.pop(TCP_FIN_WAIT2, None)
    free = plan.ledger.survey(itertools.chain.from_iterable(in_use.values()))
    return Outcome.SOME_FREE if free else Outcome.NONE_FREE


def look(plan: Plan, port: int) -> Outcome:
    """Find out who is on a stream's 4-tuple.

    Raises:
        NotSupported: Nobody may be asked, and the socket could get stuck on the port.
    """
    try:
        record = plan.ends().lookup.find_record(plan.terms.namespace.diag, port)
    except NetlinkRefused as refusal:
        return _look_in_proc(plan, port, refusal)
    if record is None or record.state in _UNCONNECTED_STATES:
        return Outcome.NOTHING
    return Outcome.TIME_WAIT if record.in_time_wait else Outcome.OCCUPIED


def _look_in_proc(plan: Plan, port: int, refusal: NetlinkRefused) -> Outcome:
    request = plan.request
    from connectx.linux.proc_net import tcp_sockets  # noqa: PLC0415 - in sandboxes only

    try:
        found = tcp_sockets(
            request.origin.wire_source, port, request.wire_destination, request.destination.port
        )
    except OSError as error:
        if request.origin.options.replaceable:
            # It may get stuck on the port, so bind() and connect() can find out.
            return Outcome.NOTHING
        purpose = f"looking up the port {port} without /proc/net ({error.strerror})"
        raise without_netlink(request, refusal, purpose) from error
    if not found:
        return Outcome.NOTHING
    return Outcome.TIME_WAIT if all(each.in_time_wait for each in found) else Outcome.OCCUPIED


def try_bind(plan: Plan, source: Address, *, sharing: bool) -> None:
    """Bind another socket, to find out whether a datagram port is unused, or is shared.

    That costs microseconds, and leaves the socket at hand as it was.

    Raises:
        OSError: EADDRINUSE if it is not.
    """
    origin = plan.terms.origin
    with socket.socket(origin.family, origin.type, origin.proto) as scratch:
        if identity_of(scratch) != plan.terms.namespace.identity:
            raise absence(plan.request)
        if origin.options.interface:
            set_so_bindtoifindex(scratch, origin.options.interface)
        set_so_reuseaddr(scratch, on=sharing)
        # Whether the address is local is the real socket's affair: it may be
        # transparent, or have this option itself.
        set_ip_freebind(scratch, on=True)
        scratch.bind(source)
