"""The steps of an attempt that never wait: what the blocking and the asyncio driver share.

A driver repeats three things: `advance` does what the attempt says until something
is due that may take its time; the driver does that in its own manner; and `refused`
tells the attempt why it failed. A datagram's connect() never waits, and is part of
the lock, so there the first of them is nearly always all of it.
"""

from __future__ import annotations

import enum
import errno
import functools
import itertools
import os
from typing import TYPE_CHECKING, Final

from connectx._connect.own_socket import TrackedSocket
from connectx._connect.strategies import Action, Outcome, Verdict
from connectx._connect.techniques import (
    bind,
    bind_source,
    claim_for_good,
    require_local,
)
from connectx._connect.udp_lock import Contested, NotVisible, claim
from connectx.addresses import FourTuple, PortRange
from connectx.errors import (
    ConnectxError,
    NotSupported,
    PortHeld,
    PortsExhausted,
    RangeNotHonoured,
    TupleInUse,
)
from connectx.linux.sockopts import set_ip_local_port_range
from connectx.linux.uapi import (
    SO_REUSEADDR,
    SOL_SOCKET,
    TCP_BOUND_INACTIVE,
    TCP_CLOSE,
    TCP_FIN_WAIT2,
    TCP_LISTEN,
    TCP_TIME_WAIT,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Protocol

    from connectx._connect.attempt import Attempt
    from connectx._connect.namespace import Prepared

    class Watch(Protocol):
        """Whoever waits for a port with others, and counts."""

        @property
        def in_line(self) -> bool:
            """Whether others wait behind it."""

        def leave(self) -> None:
            """There is a port; the handshake is still to be done."""

        def retried(self, count: int) -> None:
            """So many ports were refused before one was good."""


#: States in which a socket holds a port but no 4-tuple.
_UNCONNECTED_STATES: Final = (TCP_LISTEN, TCP_CLOSE, TCP_BOUND_INACTIVE)

#: What the errno of a failed step means. EADDRINUSE comes from bind(), the others
#: from connect(): EADDRNOTAVAIL for streams, EAGAIN for datagrams.
_OUTCOMES: Final = {
    errno.EADDRINUSE: Outcome.IN_USE,
    errno.EADDRNOTAVAIL: Outcome.UNAVAILABLE,
    errno.EAGAIN: Outcome.UNAVAILABLE,
}

#: Why routing may not be asked: the thread is in another namespace, or there are no
#: descriptors or memory left. That must not take the place of what the errno is about.
_CANNOT_ASK: Final = frozenset(
    {errno.EXDEV, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
)

#: The error of each verdict, with its errno for streams and for datagrams.
_FAILURES: Final[dict[Verdict, tuple[type[ConnectxError], int, int]]] = {
    Verdict.EXHAUSTED: (PortsExhausted, errno.EADDRNOTAVAIL, errno.EAGAIN),
    Verdict.TUPLE_IN_USE: (TupleInUse, errno.EADDRNOTAVAIL, errno.EADDRINUSE),
    Verdict.PORT_HELD: (PortHeld, errno.EADDRINUSE, errno.EADDRINUSE),
}


class Due(enum.Enum):
    """What a driver has to do next, in its own manner."""

    #: Nothing: the socket is connected.
    NOTHING = "nothing"
    #: Connect the socket, which may wait for the network.
    CONNECT = "connect"
    #: `survey`, which may read the list of sockets for some milliseconds.
    SURVEY = "survey"


def advance(
    sock: socket.socket,
    prepared: Prepared,
    attempt: Attempt,
    renew: Callable[[socket.socket], None],
) -> Due:
    """Do what the attempt says until something is due that may take its time.

    renew: makes a socket that is bound to a port give it up.

    Raises ConnectxError when there is nothing left to try, and what `refused` takes.
    """
    while True:
        action = attempt.next_step()
        if action is Action.CLAIM:
            _claim(sock, prepared, attempt.low)
            return Due.NOTHING
        if action in (Action.WINDOW, Action.KERNEL):
            _leave_to_kernel(sock, prepared, attempt)
            return Due.CONNECT
        if action is Action.SURVEY:
            return Due.SURVEY
        if isinstance(action, Verdict):
            raise failure(action, prepared, attempt) from None
        if action in (Action.SHARED_BIND, Action.EXCLUSIVE_BIND):
            if sock.getsockname()[1]:
                renew(sock)
            if _bind_port(sock, prepared, attempt, action):
                return Due.CONNECT
        else:
            attempt.feed(_observe(action, prepared, attempt))


def _leave_to_kernel(sock: socket.socket, prepared: Prepared, attempt: Attempt) -> None:
    """Let connect() choose the port, out of the attempt's window if it has one."""
    request = prepared.request
    if not attempt.failures:
        if request.stream and request.strategy != "kernel":
            # Never for datagrams: the kernel would then not look at the 4-tuple.
            sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        bind_source(sock, prepared)
    if attempt.low:
        set_ip_local_port_range(sock, attempt.low, attempt.high)


def refused(
    sock: socket.socket,
    prepared: Prepared,
    attempt: Attempt,
    error: OSError | Contested | NotVisible,
    renew: Callable[[socket.socket], None],
) -> bool:
    """Tell the attempt that a step or connect() failed; False if that is not about ports.

    The caller then raises the error: doing it here would tie it to this frame.

    renew: as for `advance`.
    """
    if isinstance(error, Contested):
        renew(sock)
        return attempt.feed(Outcome.OCCUPIED if error.connected else Outcome.OVERTAKEN)
    if isinstance(error, NotVisible):
        raise prepared.request.error(
            NotSupported,
            "the kernel's socket lookup does not show the socket itself, so there is no "
            "telling whether its 4-tuple is free",
        ) from error
    if isinstance(error, ConnectxError):
        return False
    if not prepared.request.stream:
        require_local(prepared, error)
        if prepared.plan.asked:
            # Whoever holds the lock on the port may have been preempted.
            os.sched_yield()
    outcome = _OUTCOMES.get(error.errno or 0)
    return outcome is not None and attempt.feed(outcome)


def settle(sock: socket.socket, prepared: Prepared, attempt: Attempt) -> None:
    """Note which port a connected socket has, and make sure that it is the one asked for."""
    plan = prepared.plan
    if plan.asked or prepared.options.ports:
        _require_honoured(sock, prepared)
    if plan.proposes:
        proposed = attempt.low == attempt.high != 0
        port = attempt.low if proposed else sock.getsockname()[1]
        if not proposed:
            plan.ledger.found(port)
        if isinstance(sock, TrackedSocket):
            sock.ledger = plan.ledger
            sock.ledger_port = port
        else:
            plan.ledger.held(port)


def _require_honoured(sock: socket.socket, prepared: Prepared) -> None:
    """Make sure that the kernel has not ignored a window that fitted a second ago."""
    plan = prepared.plan
    wanted = PortRange(plan.asked, plan.asked) if plan.asked else plan.ports
    port = sock.getsockname()[1]
    if not wanted.contains(port):
        raise prepared.request.error(
            RangeNotHonoured,
            f"net.ipv4.ip_local_port_range has changed and leaves out {wanted}: "
            f"the kernel took port {port} instead",
        )


def failure(verdict: Verdict, prepared: Prepared, attempt: Attempt) -> ConnectxError:
    """The error for a verdict."""
    request = prepared.request
    kind, stream_errno, datagram_errno = _FAILURES[verdict]
    source = request.source._replace(host=prepared.host or _routed_host(prepared))
    subject = FourTuple(request.protocol, source, request.destination)
    return kind(
        f"{verdict.value}: {subject}",
        protocol=request.protocol,
        source=source,
        destination=request.destination,
        ports=prepared.options.ports and prepared.plan.ports,
        strategy=request.strategy,
        attempts=attempt.failures,
        errno=stream_errno if request.stream else datagram_errno,
        explanation=functools.partial(_explain, verdict, prepared),
    )


def _explain(verdict: Verdict, prepared: Prepared) -> str:
    try:
        from connectx._diagnosis.explanation import explain  # noqa: PLC0415 - only where somebody asks
    except OSError as error:
        # Without a descriptor nothing can be imported.
        return f"The cause could not be looked for ({error})."
    return explain(verdict, prepared)


def _routed_host(prepared: Prepared) -> str:
    """The source that routing chooses, where nobody else has.

    Raises OSError where there is none, as for ::1 with IPv6 switched off: connect()
    says EADDRNOTAVAIL then, too, but no port would change that.
    """
    network, request = prepared.network, prepared.request
    try:
        source = network.routed_source(request, prepared.options)
    except OSError as error:
        if error.errno not in _CANNOT_ASK:
            raise
        return ""
    return request.source_host(source)


def _claim(sock: socket.socket, prepared: Prepared, port: int) -> None:
    if prepared.options.replaceable:
        source, address = prepared.source_at(port), prepared.request.address
        claim(sock, prepared.lookup, prepared.network.diag, source, address)
    else:
        claim_for_good(sock, prepared, port)


def _bind_port(sock: socket.socket, prepared: Prepared, attempt: Attempt, action: Action) -> bool:
    """Bind the attempt's port; where it is in use, tell the attempt and return False."""
    if action is Action.SHARED_BIND:
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    try:
        bind(sock, prepared, attempt.low)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not attempt.feed(Outcome.IN_USE):
            raise
        return False
    return True


def survey(prepared: Prepared) -> Outcome:
    """Find out from the kernel which ports are free; to be fed to the attempt.

    May be called in another thread of the same network namespace; raises OSError
    (EXDEV) in one of another.
    """
    request = prepared.request
    from connectx.linux.socket_dump import ports_toward  # noqa: PLC0415 - as in network.py

    in_use = ports_toward(
        prepared.network.diag,
        request.diag_protocol,
        request.wire_family,
        prepared.source or None,
        request.wire_destination,
        request.destination.port,
        interface=request.scope,
    )
    # A TIME_WAIT may be taken over; the kernel decides. In its first part it is
    # reported as FIN_WAIT2.
    in_use.pop(TCP_TIME_WAIT, None)
    in_use.pop(TCP_FIN_WAIT2, None)
    free = prepared.plan.ledger.survey(itertools.chain.from_iterable(in_use.values()))
    return Outcome.SOME_FREE if free else Outcome.NONE_FREE


def _observe(action: Action, prepared: Prepared, attempt: Attempt) -> Outcome:
    """Find out who is on a 4-tuple, or have ports again that were contended."""
    if action is Action.RETRY:
        os.sched_yield()
        return Outcome.SOME_FREE if prepared.plan.ledger.retry() else Outcome.NONE_FREE
    record = prepared.lookup.find_record(prepared.network.diag, attempt.low)
    if record is None or record.state in _UNCONNECTED_STATES:
        return Outcome.NOTHING
    return Outcome.TIME_WAIT if record.in_time_wait else Outcome.OCCUPIED
