"""The steps of an attempt that never wait: what the blocking and the asyncio driver share.

A driver repeats three things: `propose` (the first time) or `advance` does what
the attempt says until a connect() is due; the driver connects, waiting in its own
manner; and `refused` tells the attempt why that failed. A datagram's connect()
never waits, and is part of the lock, so there the first of them is all of it.
"""

from __future__ import annotations

import errno
import functools
import itertools
import socket
from typing import TYPE_CHECKING, Final

from connectx.addresses import FourTuple
from connectx.core.strategies import Action, Outcome, Verdict
from connectx.errors import (
    ConnectxError,
    NotSupported,
    PortHeld,
    PortsExhausted,
    RangeNotHonoured,
    SourceNotLocal,
    TupleInUse,
)
from connectx.explanation import explain
from connectx.linux.sock_diag import ports_toward
from connectx.linux.uapi import (
    IP_BIND_ADDRESS_NO_PORT,
    IP_FREEBIND,
    IP_LOCAL_PORT_RANGE,
    IPPROTO_IP,
    SO_REUSEADDR,
    SOL_SOCKET,
    TCP_BOUND_INACTIVE,
    TCP_CLOSE,
    TCP_ESTABLISHED,
    TCP_LISTEN,
    TCP_TIME_WAIT,
)
from connectx.linux.udp_claim import Contested, NotVisible, claim, claim_releasable
from connectx.network import error as request_error
from connectx.tracked import TrackedSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx.addresses import Address
    from connectx.core.attempt import Attempt
    from connectx.linux.netlink import NetlinkSocket
    from connectx.network import Prepared
    from connectx.requests import Request

#: States in which a socket holds a port but no 4-tuple.
_UNCONNECTED_STATES: Final = (TCP_LISTEN, TCP_CLOSE, TCP_BOUND_INACTIVE)

#: What the errno of a failed step means. EADDRINUSE comes from bind(), the others
#: from connect(): EADDRNOTAVAIL for streams, EAGAIN for datagrams.
_OUTCOMES: Final = {
    errno.EADDRINUSE: Outcome.IN_USE,
    errno.EADDRNOTAVAIL: Outcome.UNAVAILABLE,
    errno.EAGAIN: Outcome.UNAVAILABLE,
}

#: The error of each verdict, with its errno for streams and for datagrams.
_FAILURES: Final[dict[Verdict, tuple[type[ConnectxError], int, int]]] = {
    Verdict.EXHAUSTED: (PortsExhausted, errno.EADDRNOTAVAIL, errno.EAGAIN),
    Verdict.TUPLE_IN_USE: (TupleInUse, errno.EADDRNOTAVAIL, errno.EADDRINUSE),
    Verdict.PORT_HELD: (PortHeld, errno.EADDRINUSE, errno.EADDRINUSE),
}


def put(sock: socket.socket, prepared: Prepared, port: int) -> bool:
    """Put a proposed port to the kernel; whether that has connected the socket.

    Raises SourceNotLocal, and what `refused` takes.
    """
    if prepared.request.stream:
        # SO_REUSEADDR does not help us, it helps others: a tool that binds the port
        # explicitly gets in beside us, and can take over our TIME_WAIT.
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        if prepared.binds:
            _bind_source(sock, prepared)
        sock.setsockopt(IPPROTO_IP, IP_LOCAL_PORT_RANGE, window(port, port))
        return False
    source = (prepared.host, port) + prepared.suffix
    if prepared.options.replaceable:
        network = prepared.network
        netlink = network.sockets.diag or network.diag
        claim(sock, prepared.lookup, netlink, source, prepared.request.address)
    else:
        _claim_for_good(sock, prepared, source)
    return True


def advance(
    sock: socket.socket,
    prepared: Prepared,
    attempt: Attempt,
    renew: Callable[[socket.socket], None],
) -> bool:
    """Do what the attempt says until a connect() is due; whether the socket is connected by then.

    renew: makes a socket that is bound to a port give it up.

    Raises ConnectxError when there is nothing left to try, and as `put` does.
    """
    while True:
        action = attempt.next_step()
        if action is Action.CLAIM:
            return put(sock, prepared, attempt.low)
        if action is Action.WINDOW:
            if not attempt.failures:
                sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
                _bind_source(sock, prepared)
            sock.setsockopt(
                IPPROTO_IP, IP_LOCAL_PORT_RANGE, window(attempt.low, attempt.high)
            )
            return False
        if isinstance(action, Verdict):
            raise failure(action, prepared, attempt)
        if action is Action.KERNEL:
            _bind_source(sock, prepared)
            return False
        if action in (Action.SHARED_BIND, Action.EXCLUSIVE_BIND):
            if sock.getsockname()[1]:
                renew(sock)
            if _bind_port(sock, prepared, attempt, action):
                return False
        else:
            attempt.feed(_observe(action, prepared, attempt))


def refused(
    sock: socket.socket,
    prepared: Prepared,
    attempt: Attempt,
    error: OSError | Contested | NotVisible,
    renew: Callable[[socket.socket], None],
) -> None:
    """Tell the attempt that a step or connect() failed; raises what is not about ports.

    renew: as for `advance`.
    """
    if isinstance(error, Contested):
        renew(sock)
        outcome = Outcome.OCCUPIED if error.connected else Outcome.OVERTAKEN
    elif isinstance(error, NotVisible):
        raise request_error(
            NotSupported,
            "the kernel's socket lookup does not show the socket itself, so there is no "
            "telling whether its 4-tuple is free",
            prepared.request,
        ) from error
    elif isinstance(error, ConnectxError):
        raise error
    elif error.errno == errno.EADDRNOTAVAIL and not prepared.request.stream:
        raise source_not_local(prepared) from error
    elif error.errno in _OUTCOMES:
        outcome = _OUTCOMES[error.errno]
    else:
        raise error
    if not attempt.feed(outcome):
        raise error


def abandon(prepared: Prepared, attempt: Attempt | None, proposed: int) -> None:
    """Give back a proposed port that has come to nothing; arguments as for `settle`."""
    if attempt is not None:
        attempt.abandon()
    elif proposed:
        prepared.plan.ledger.released(proposed)


def settle(
    sock: socket.socket, prepared: Prepared, attempt: Attempt | None, proposed: int
) -> None:
    """Note which port a connected socket has, and make sure that it is the one asked for.

    attempt: None where the first proposal, `proposed`, has done it.
    """
    plan = prepared.plan
    if plan.proposes:
        port = proposed
        if attempt is not None:
            port = attempt.low if attempt.low == attempt.high else sock.getsockname()[1]
        if sock.__class__ is TrackedSocket:
            sock.ledger = plan.ledger
            sock.ledger_port = port
        else:
            plan.ledger.held(port)
    elif plan.asked and sock.getsockname()[1] != plan.asked:
        raise request_error(
            RangeNotHonoured,
            f"net.ipv4.ip_local_port_range has changed and leaves out port {plan.asked}: "
            f"the kernel took port {sock.getsockname()[1]} instead",
            prepared.request,
        )


def failure(verdict: Verdict, prepared: Prepared, attempt: Attempt) -> ConnectxError:
    """The error for a verdict."""
    request = prepared.request
    kind, stream_errno, datagram_errno = _FAILURES[verdict]
    source = request.source
    if prepared.host:
        source = source._replace(host=prepared.host)
    subject = FourTuple(request.protocol, source, request.destination)
    return kind(
        f"{verdict.value}: {subject}",
        protocol=request.protocol,
        source=source,
        destination=request.destination,
        strategy=request.strategy,
        attempts=attempt.failures,
        errno=stream_errno if request.stream else datagram_errno,
        explanation=functools.partial(explain, verdict, prepared),
    )


def _claim_for_good(sock: socket.socket, prepared: Prepared, source: Address) -> None:
    """The same for a socket that cannot be replaced: do not get it stuck on a port."""
    lookup, netlink, request = prepared.lookup, prepared.network.diag, prepared.request
    if prepared.network.honours(request.protocol, source[1]):
        if not prepared.options.interface:
            _require_sharable(request, source)
        claim_releasable(sock, lookup, netlink, source, request.address)
        return
    rival = lookup.find_record(netlink, source[1])
    if rival is not None and rival.state == TCP_ESTABLISHED:
        raise Contested(connected=True)
    try:
        claim(sock, lookup, netlink, source, request.address)
    except Contested as contest:
        # Another process was quicker by microseconds, and there is no way back.
        raise request_error(
            TupleInUse,
            "another socket took the 4-tuple at the same moment; this one stays bound "
            "to the port and has to be closed (create_connection() replaces it by itself)",
            request,
            number=errno.EADDRINUSE,
        ) from contest


def window(low: int, high: int) -> int:
    """A value for IP_LOCAL_PORT_RANGE: as an int, which setsockopt() takes quickest.

    It is unsigned for the kernel and signed for setsockopt(), hence the wrap.
    """
    value = high << 16 | low
    return value if high < 0x8000 else value - (1 << 32)


def _require_sharable(request: Request, source: Address) -> None:
    """Raise OSError (EADDRINUSE) if the port's holder does not share it.

    A window that is refused costs milliseconds, for the search it ends in ignores
    its size; a refused bind of another socket, which need not be kept, microseconds.
    """
    with socket.socket(request.family, request.type, request.proto) as scratch:
        scratch.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        # Whether the address is local is the real socket's affair: it may be
        # transparent, or have this option itself.
        scratch.setsockopt(IPPROTO_IP, IP_FREEBIND, 1)
        scratch.bind(source)


def _bind_source(sock: socket.socket, prepared: Prepared) -> None:
    """Bind the source's host, if one was asked for, without taking a port yet."""
    if not prepared.binds:
        return
    # For TCP the port is then connect()'s to choose and to share. UDP knows the
    # option as well, but chooses an exclusive port all the same.
    sock.setsockopt(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    _bind(sock, prepared, 0)


def _bind_port(
    sock: socket.socket, prepared: Prepared, attempt: Attempt, action: Action
) -> bool:
    """Bind the attempt's port; where it is in use, tell the attempt and return False."""
    if action is Action.SHARED_BIND:
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    try:
        _bind(sock, prepared, attempt.low)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not attempt.feed(Outcome.IN_USE):
            raise
        return False
    return True


def _bind(sock: socket.socket, prepared: Prepared, port: int) -> None:
    try:
        sock.bind((prepared.host, port, *prepared.suffix))
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise source_not_local(prepared) from error
        raise


def source_not_local(prepared: Prepared) -> ConnectxError:
    """The error for EADDRNOTAVAIL from bind()."""
    return request_error(
        SourceNotLocal,
        f"the source address {prepared.host} is not local in this network namespace: "
        "add it to an interface, or set IP_FREEBIND on the socket if it is routed here",
        prepared.request,
    )


def _observe(action: Action, prepared: Prepared, attempt: Attempt) -> Outcome:
    """Ask the kernel about its sockets."""
    request = prepared.request
    netlink = prepared.network.diag
    if action is Action.SURVEY:
        in_use = ports_toward(
            netlink,
            request.diag_protocol,
            request.wire_family,
            prepared.source or None,
            request.wire_destination,
            request.destination.port,
        )
        free = prepared.plan.ledger.survey(itertools.chain.from_iterable(in_use.values()))
        return Outcome.SOME_FREE if free else Outcome.NONE_FREE
    record = prepared.lookup.find_record(netlink, attempt.low)
    if record is None or record.state in _UNCONNECTED_STATES:
        return Outcome.NOTHING
    return Outcome.TIME_WAIT if record.state == TCP_TIME_WAIT else Outcome.OCCUPIED
