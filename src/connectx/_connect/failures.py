"""The error for a verdict: which class, which errno, and how it explains itself."""

from __future__ import annotations

import errno
import functools
import socket
from typing import TYPE_CHECKING, Final

from connectx._connect.namespace import NetlinkRefused
from connectx._connect.plan import require_ipv6
from connectx._connect.strategies import Verdict
from connectx.addresses import AF_INET6, FourTuple, needs_scope
from connectx.errors import ConnectxError, PortHeld, PortsExhausted, TupleInUse

if TYPE_CHECKING:
    from connectx._connect.plan import Plan

#: The error of each verdict, with its errno for streams and for datagrams.
_FAILURES: Final[dict[Verdict, tuple[type[ConnectxError], int, int]]] = {
    Verdict.EXHAUSTED: (PortsExhausted, errno.EADDRNOTAVAIL, errno.EAGAIN),
    Verdict.TUPLE_IN_USE: (TupleInUse, errno.EADDRNOTAVAIL, errno.EADDRINUSE),
    Verdict.PORT_HELD: (PortHeld, errno.EADDRINUSE, errno.EADDRINUSE),
}

#: Why routing may not be asked: the thread is in another namespace, there are no descriptors or
#: memory left, or the kernel's netlink has no such request (gVisor). That must not take the
#: place of what the errno is about.
_CANNOT_ASK: Final = frozenset(
    {errno.EXDEV, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EOPNOTSUPP}
)


def failure(verdict: Verdict, plan: Plan, attempts: int) -> ConnectxError:
    """Return the error for a verdict; attempts: how many ports were refused.

    Raises:
        OSError: There is no route, as for ::1 with IPv6 switched off. connect() says
            EADDRNOTAVAIL then, too, but no port would change that.
    """
    request = plan.request
    kind, stream_errno, datagram_errno = _FAILURES[verdict]
    source = request.origin.source._replace(host=plan.terms.host or _routed_host(plan))
    subject = FourTuple(request.origin.protocol, source, request.destination)
    return kind(
        f"{verdict.value}: {subject}",
        protocol=request.origin.protocol,
        source=source,
        destination=request.destination,
        ports=request.origin.options.ports and plan.terms.ports,
        strategy=request.origin.strategy,
        attempts=attempts,
        errno=stream_errno if request.origin.stream else datagram_errno,
        explanation=functools.partial(_explain, verdict, plan),
    )


def _routed_host(plan: Plan) -> str:
    """Return the source that routing chooses, where nobody else has."""
    try:
        source = plan.terms.route(plan.request, b"").source
    except NetlinkRefused as error:
        if plan.request.origin.wire_family == AF_INET6:
            require_ipv6(error)
        return ""
    except OSError as error:
        if error.errno not in _CANNOT_ASK:
            raise
        return ""
    return plan.request.source_host(source)


def _explain(verdict: Verdict, plan: Plan) -> str:
    try:
        from connectx._diagnosis.explanation import explain  # noqa: PLC0415 - only where somebody asks
    except OSError as error:
        # Without a descriptor nothing can be imported.
        return f"The cause could not be looked for ({error})."
    return explain(verdict, plan)


def require_scope(error: OSError, plan: Plan) -> None:
    """Raise an error that says it, if a missing or another scope is what EINVAL means."""
    if error.errno != errno.EINVAL or plan.terms.origin.wire_family != AF_INET6:
        return
    reason = _wrong_scope(plan)
    if reason:
        raise OSError(errno.EINVAL, reason) from error


def _wrong_scope(plan: Plan) -> str:
    request, device = plan.request, plan.terms.interface
    source, to = request.origin.source, request.destination
    scopes = {device} if device else set()
    for role, end, octets in (
        ("source", source, request.origin.wire_source),
        ("destination", to, request.wire_destination),
    ):
        if not octets or not needs_scope(octets):
            continue
        scope = end.scope_id or request.scope or device
        if not scope:
            return (
                f"the {role} {end.host} is link-local, and its device (the scope) is missing: "
                f"name it, as in {end.host}%eth0, or give its index as the scope_id"
            )
        scopes.add(scope)
    if len(scopes) < 2:
        return ""
    return (
        f"the source {source.host or '*'} and the destination {to.host} have different devices "
        f"(scopes): {' and '.join(sorted(map(_name_of, scopes)))}: use a source of the "
        "destination's device"
    )


def _name_of(interface: int) -> str:
    try:
        return socket.if_indextoname(interface)
    except OSError:
        return str(interface)
