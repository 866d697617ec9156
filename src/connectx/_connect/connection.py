"""One connection in the making: its socket, its plan, its attempt, and all but the waiting.

`Connection.begin` makes the first proposal, with which nearly every call ends. What is left
after that is a generator that does what the attempt says and yields what has to be waited
for (connectx._connect.steps). There is one of each, for all that connects: connectx(),
create_connection(), asyncio, trio and the Dialer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from connectx._connect import own_socket
from connectx._connect.attempt import Attempt
from connectx._connect.failures import failure, require_scope
from connectx._connect.looking import look, survey, try_bind
from connectx._connect.namespace import NAMESPACES, NetlinkRefused
from connectx._connect.own_socket import OwnSocket, Reports, reporting, set_timeout
from connectx._connect.plain import plainly
from connectx._connect.plan import make_plan, without_netlink
from connectx._connect.request import NEW_SOCKET
from connectx._connect.steps import Handshake, Pause, Work
from connectx._connect.strategies import Action, Outcome, Verdict
from connectx._connect.udp_connect import Contested, NotVisible, claim, claim_alone, one_port
from connectx._connect.unpatched import Socket
from connectx.addresses import PortRange, packed, unmapped
from connectx.errors import ConnectxError, NotSupported, RangeNotHonoured, SourceNotLocal
from connectx.linux.sockopts import set_ip_freebind, set_ip_local_port_range
from connectx.linux.uapi import (
    IP_BIND_ADDRESS_NO_PORT,
    IP_LOCAL_PORT_RANGE,
    IPPROTO_IP,
    SO_ERROR,
    SO_REUSEADDR,
    SOL_SOCKET,
)

if TYPE_CHECKING:
    from connectx._connect.ledger import Ledger
    from connectx._connect.plan import Plan
    from connectx._connect.request import Request
    from connectx._connect.steps import Steps

#: What socket.create_connection() has for "not given": None is a timeout of its own.
DEFAULT_TIMEOUT: Final[Any] = socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]  # noqa: SLF001 - callers hand it on to us

#: Calls that share a UDP port at once, before one is tried alone again, where all are in use:
#: so few tries cost nothing that one could measure.
_MOST_SHARED: Final = 255

#: How often a UDP port is tried again at once, and then after how many seconds: about what
#: others are given of a processor in turn (EEVDF's base slice). Together with how often a
#: strategy tries (CLAIMS_OF_ONE_PORT) that is how long a port has to be held to be called so.
_QUICK_TRIES: Final = 8
_TIME_SLICE: Final = 0.001

#: Calls that have the kernel search in steps of one, once all ports of one parity were in use.
#: Looking at these first takes up to half a millisecond.
_WINDOWS: Final = 4_096

#: What the errno of a failed step means. EADDRINUSE comes from bind(), the others
#: from connect(): EADDRNOTAVAIL for streams, EAGAIN for datagrams.
_OUTCOMES: Final = {
    errno.EADDRINUSE: Outcome.IN_USE,
    errno.EADDRNOTAVAIL: Outcome.UNAVAILABLE,
    errno.EAGAIN: Outcome.UNAVAILABLE,
}


class Itself(Exception):  # noqa: N818 - an outcome, not a failure
    """The socket was connected to itself, or is about to be."""


#: What a step raises that has not connected the socket.
Refusal: TypeAlias = OSError | Contested | NotVisible | Itself
REFUSALS: Final = (OSError, Contested, NotVisible, Itself)


class Connection:
    """A connection in the making, on a socket of its own.

    Attributes:
        sock: The socket.
        request: What is asked for.
        plan: How the request is carried out; unset before `begin`.
        retries: How many ports were refused.
        leaves_handshake: Whether a non-blocking socket is left to its owner while it is
            connecting.
        under_way: Whether it is.
        reports: Whether the socket reports its end (connectx._connect.own_socket).
    """

    leaves_handshake = False

    __slots__ = (
        "_apart",
        "_forbidden",
        "_surveyed",
        "_unshared",
        "plan",
        "reports",
        "request",
        "retries",
        "sock",
        "under_way",
    )

    # Where netlink is refused, unset before: whether every port was taken for free, once, and
    # the error for a port that could not be shared.
    _surveyed: bool
    _unshared: ConnectxError

    # Unset before: why a port could not be bound that needs a privilege.
    _forbidden: OSError

    plan: Plan
    under_way: bool

    def __init__(self, request: Request, timeout: float | None) -> None:
        """Make a socket; timeout: as socket.create_connection() takes it."""
        self.request = request
        self.retries = 0
        self.under_way = False
        # How long a driver waits for the handshake, and whether the socket is blocking after.
        self._apart: tuple[float | None, bool] | None = None
        # Looked up now, so that gevent's class is used where it has taken the place.
        kind = OwnSocket if socket.socket is Socket else reporting(socket.socket)
        self.reports = kind is OwnSocket or issubclass(kind, Reports)
        origin = request.origin
        # By number where 0 would do, as getaddrinfo() has it for socket.create_connection():
        # asyncio sets TCP_NODELAY on a socket that says that it is TCP's, and on no other.
        number = origin.proto or origin.table
        self.sock: socket.socket = kind(origin.family, origin.type, number)
        try:
            if timeout is not DEFAULT_TIMEOUT:
                set_timeout(self.sock, timeout)
            if origin.options is not NEW_SOCKET and origin.options.freebind:
                set_ip_freebind(self.sock, on=True)
            if kind is not OwnSocket and not issubclass(kind, Socket):
                # gevent's connect() waits for a datagram socket that has found no port (EAGAIN).
                self.apart(self.sock.gettimeout(), blocking=True)
        except BaseException:
            self.sock.close()
            raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.request!r}, {self.retries} ports refused>"

    def apart(self, seconds: float | None, *, blocking: bool) -> None:
        """Have the driver wait for the handshake, and not connect().

        It learns then when there is a port, which is before the handshake is done.

        seconds: how long to wait. blocking: whether the socket is to have these seconds as
        its timeout when it is connected; otherwise it stays non-blocking.
        """
        self._apart = seconds, blocking
        try:
            if seconds is not None:
                # Refuses what is no timeout, as where nobody waits but connect().
                set_timeout(self.sock, seconds)
            self.sock.settimeout(0)
        except BaseException:
            self._failed()
            raise

    def begin(self) -> Steps[None] | None:
        """Make the first try; returns None if the socket is connected, else what is left.

        This is the first step of `_steps`, without an `Attempt`, which would cost as much
        as two system calls (tests/_connect/test_quick_way.py holds one against the other).
        Whatever is raised, here or there, leaves nothing behind.
        """
        request, port = self.request, 0
        try:
            namespace = NAMESPACES.of(self.sock)
            plan: Plan | None = namespace.plans.get(request)  # type: ignore[assignment] # that it keeps
            if plan is None:
                plan = make_plan(namespace, request)
            self.plan = plan
            ledger = plan.opening
            if ledger is None:
                return self._steps(Attempt(plan.terms, plan.ledger))
            if ledger.walks and plan.terms.walks and not ledger.drawn:
                return self._let_walk(ledger)
            try:
                # Without a call, most of the time.
                port = ledger.drawn.pop() if ledger.drawn else ledger.propose()
            except IndexError:
                # Another thread has drawn the last one in between.
                port = ledger.propose()
            if not port:
                return self._steps(Attempt(plan.terms, plan.ledger))
            connect_from = self._offer_one if request.origin.stream else self._claim
            try:
                connect_from(port)
            except REFUSALS as error:
                # Its traceback refers to frames of ours, one of which may come to hold what is
                # returned here when an interrupt comes in between.
                return self._refused(port, error.with_traceback(None))
            made, port = port, 0
            self._made(made)
        except BaseException as error:
            if port:
                self.plan.ledger.released(port)
            if isinstance(error, NotSupported) and request.origin.options.plain:
                return self._plainly()
            self._failed()
            raise
        return None

    def _let_walk(self, ledger: Ledger) -> Steps[None] | None:
        """Let the kernel walk through the range first; returns as `begin`."""
        sock, terms = self.sock, self.plan.terms
        shelf = terms.shelf
        try:
            self._prepare_offer()
            if terms.narrow or shelf.windows:
                sock.setsockopt(IPPROTO_IP, IP_LOCAL_PORT_RANGE, terms.window)
            port = self._connect()
        except REFUSALS as error:
            port = self._found(ledger) if _in_progress(error) else 0
            return self._refused(port, error.with_traceback(None))
        self._made(self._found(ledger, port))
        return None

    def _offer_one(self, port: int) -> None:
        """Connect a stream socket from a port, if the kernel finds that free."""
        self._prepare_offer()
        self.sock.setsockopt(IPPROTO_IP, IP_LOCAL_PORT_RANGE, one_port(port))
        self._connect()

    def _refused(self, port: int, error: Refusal) -> Steps[None]:
        """Return what is left to do after a first try that has failed; port: 0 where it walked."""
        program = self.plan.terms.program
        tried = program.proposal if port else program.start
        attempt = Attempt(self.plan.terms, self.plan.ledger, tried, port)
        if not _in_progress(error):
            try:
                outcome = self._outcome(error)
            except ConnectxError as refusal:
                return self._steps(attempt, refusal.with_traceback(None))
            if outcome is not None and attempt.feed(outcome):
                self.retries = attempt.failures
                return self._steps(attempt)
        return self._steps(attempt, error)

    def _steps(self, attempt: Attempt, error: Refusal | None = None) -> Steps[None]:
        """Do what the attempt says until the socket is connected.

        Where that fails, and what was known of the namespace turns out to be out of date,
        it is done once more.

        error: why the first try has failed, if that was made already.
        """
        again = True
        try:
            while True:
                try:
                    yield from self._walk(attempt, error)
                    break
                except ConnectxError:
                    error = None
                    renewed = self._plan_again() if again else None
                    if renewed is None:
                        raise
                attempt.abandon()
                self._renew()
                self.plan, attempt, again = renewed, Attempt(renewed.terms, renewed.ledger), False
            self._settle(attempt)
        except BaseException as failure:
            if not (self.leaves_handshake and _in_progress(failure)):
                attempt.abandon()
                if isinstance(failure, NotSupported) and self.request.origin.options.plain:
                    self._renew()
                    yield from self._plainly()
                    return
                self._failed()
                raise
            self._settle(attempt)
            self.under_way = True
        finally:
            # Its traceback refers to this frame: break the cycle.
            del error

    def _plainly(self) -> Steps[None]:
        """Connect as the standard library does."""
        apart = self._apart
        try:
            yield from plainly(
                self.sock, self.request, apart and (lambda: self._shake_hands(apart[0]))
            )
            self._made(0)
        except BaseException as failure:
            self.under_way = self.leaves_handshake and _in_progress(failure)
            if not self.under_way:
                self._failed()
                raise

    def _walk(self, attempt: Attempt, error: Refusal | None) -> Steps[None]:
        connected = False
        while not connected:
            try:
                if error is None:
                    connected = yield from self._act(attempt.action, attempt)
                elif self._apart is not None and _in_progress(error):
                    yield from self._shake_hands(self._apart[0])
                    connected = True
                else:
                    raise error
            except REFUSALS as refusal:
                outcome = self._outcome(refusal)
                if outcome is None or not attempt.feed(outcome):
                    raise
                self.retries = attempt.failures
                if self.plan.terms.asked and attempt.action is Action.CLAIM:
                    yield from self._let_others_finish(attempt.failures)
            finally:
                error = None

    def _act(self, action: Action | Verdict, attempt: Attempt) -> Steps[bool]:
        """Do one thing; returns whether the socket is connected."""
        if isinstance(action, Verdict):
            raise (
                getattr(self, "_unshared", None) or failure(action, self.plan, attempt.failures)
            ) from getattr(self, "_forbidden", None)
        if action is Action.CLAIM:
            self._claim(attempt.low)
            return True
        if action in (Action.WINDOW, Action.KERNEL):
            self._offer(attempt.low, attempt.high, again=bool(attempt.failures))
        elif action in (Action.SHARED_BIND, Action.EXCLUSIVE_BIND):
            if self.sock.getsockname()[1]:
                self._renew()
            if action is Action.SHARED_BIND:
                self.sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            self._bind(self.plan.source_at(attempt.low))
        else:
            attempt.feed((yield from self._find_out(action, attempt)))
            return False
        yield from self._connect_and_wait(attempt)
        return True

    def _connect_and_wait(self, attempt: Attempt) -> Steps[None]:
        """Connect from a port that the attempt has chosen, or lets the kernel choose."""
        waits = False
        try:
            self._connect()
        except BlockingIOError as error:
            waits = _in_progress(error)
            if not waits:
                raise
        if self.plan.terms.program.proposes and not attempt.proposed:
            attempt.has(self._found(self.plan.ledger))
        if waits:
            if self._apart is None:
                raise BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))
            yield from self._shake_hands(self._apart[0])

    def _found(self, ledger: Ledger, port: int = 0) -> int:
        """Return the port that the kernel has chosen; the ledger knows of it from now on.

        port: the same, if it was looked at already.
        """
        port = port or self.sock.getsockname()[1]
        terms = self.plan.terms
        shelf = terms.shelf
        if shelf.windows:
            shelf.windows -= 1
        elif (port - shelf.low) & 1 and not terms.narrow:
            # It has looked at every port of an even number first.
            shelf.windows = _WINDOWS
        ledger.found(port)
        return port

    def _offer(self, low: int, high: int, *, again: bool = False) -> None:
        """Have connect() choose a port within low and high; 0 for any."""
        if not again:
            self._prepare_offer()
        if low == high != 0:
            self.sock.setsockopt(IPPROTO_IP, IP_LOCAL_PORT_RANGE, one_port(low))
        elif low:
            set_ip_local_port_range(self.sock, low, high)

    def _prepare_offer(self) -> None:
        """Have connect() choose the port, from the source that was asked for."""
        sock, plan = self.sock, self.plan
        if plan.terms.shares:
            # It does not help us, it helps others: a tool that binds the port explicitly
            # gets in beside us, and can take over our TIME_WAIT. Never for datagrams:
            # the kernel would then not look at the 4-tuple.
            sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        if plan.terms.binds:
            # For TCP the port is then connect()'s to choose and to share. UDP knows the
            # option as well, but chooses an exclusive port all the same.
            sock.setsockopt(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            self._bind(plan.any_port)

    def _bind(self, source: Any) -> None:
        try:
            self.sock.bind(source)
        except OSError as error:
            self._require_local(error, self.plan.terms.host)
            raise

    def _connect(self) -> int:
        """Connect, and return the source port if it had to be looked at; 0 otherwise."""
        plan, port = self.plan, 0
        try:
            self.sock.connect(self.request.address)
        except BlockingIOError as error:
            if plan.checks and _in_progress(error):
                self._check()
            raise
        if plan.checks:
            port = self.sock.getsockname()[1]
            # A call more than here is deeper than most calls go.
            if plan.terms.verifies or port == self.request.address[1]:
                self._check()
        return port

    def _claim(self, port: int) -> None:
        """Connect a datagram socket from a port, if nobody has the 4-tuple."""
        plan, request = self.plan, self.request
        terms = plan.terms
        shelf = terms.shelf
        if shelf.shared_calls:
            shelf.shared_calls -= 1
        else:
            # Not unpacked, which would take twice the time.
            source: Any = (terms.host, port) + request.source_suffix  # noqa: RUF005
            if claim_alone(self.sock, source, request.address, releasable=terms.releasable):
                shelf.in_vain = 0
                if plan.checks:
                    self._check()
                return
            # Others are the likelier to have the next ones, too.
            shelf.shared_calls = shelf.in_vain = min(2 * shelf.in_vain + 1, _MOST_SHARED)
        try:
            # Without a call, most of the time (tests/test_call_paths.py counts them).
            ends = plan.looked or plan.ends()
            namespace = terms.namespace
            try:
                netlink, known = namespace.sockets.diag, namespace.sockets.devices
            except AttributeError:
                netlink, known = namespace.diag, namespace.devices
            devices = known.but_loopback() if ends.anywhere else ends.devices
        except NetlinkRefused:
            shelf.shared_calls = 0
            try_bind(plan, plan.source_at(port), sharing=True)
            raise
        source = (ends.host, port) + ends.suffix  # noqa: RUF005
        try:
            claim(
                self.sock,
                ends.lookup,
                netlink,
                source,
                request.address,
                devices=devices,
                releasable=terms.releasable,
                beside_services=terms.asked != 0,
            )
        except OSError as error:
            self._require_local(error, ends.host)
            raise
        if plan.checks:
            self._check()

    def _shake_hands(self, seconds: float | None) -> Steps[None]:
        """Have the driver wait for the end of the handshake."""
        yield Handshake(self.sock, seconds)
        number = self.sock.getsockopt(SOL_SOCKET, SO_ERROR)
        if number:
            if self.leaves_handshake:
                # Or the next connect() would fail (ECONNABORTED): this one does, and has no
                # other effect (__inet_stream_connect).
                self.sock.connect_ex(self.request.address)
            raise OSError(number, os.strerror(number))

    def _outcome(self, error: Refusal) -> Outcome | None:
        """Return what an error says of the port, and free the socket of it; None if nothing."""
        if isinstance(error, Contested):
            self._renew()
            return Outcome.OCCUPIED if error.connected else Outcome.OVERTAKEN
        if isinstance(error, Itself):
            self._renew()
            return Outcome.ITSELF
        if isinstance(error, NotVisible):
            raise self.request.error(
                NotSupported,
                "the kernel's socket lookup does not show the socket itself, so there is no "
                "telling whether its 4-tuple is free",
            ) from error
        if isinstance(error, ConnectxError):
            return None
        require_scope(error, self.plan)
        refused = isinstance(error, NetlinkRefused)
        if error.errno == errno.EACCES and not refused and self._may_not_bind():
            self._forbidden = error.with_traceback(None)
            return Outcome.IN_USE
        if not self.request.origin.stream:
            return self._outcome_of_claim(error)
        return _OUTCOMES.get(error.errno or 0)

    def _may_not_bind(self) -> bool:
        """Return whether it is bind() that has refused a port, which nobody has asked for.

        It is below net.ipv4.ip_unprivileged_port_start; others may not be.
        """
        origin = self.request.origin
        return (
            not self.plan.terms.asked
            and origin.options.replaceable
            and (not self.sock.getsockname()[1])
        )

    def _outcome_of_claim(self, error: OSError) -> Outcome | None:
        """Do the same for a datagram socket."""
        plan, request = self.plan, self.request
        if isinstance(error, NetlinkRefused):
            # Another port may be nobody's, so this is the error only in the end.
            if not hasattr(self, "_unshared"):
                asked = plan.terms.asked
                ports = f"source port {asked}" if asked else "source ports that are left"
                purpose = f"sharing with other sockets the {ports} to {request.destination}"
                self._unshared = without_netlink(request, error, purpose)
            return Outcome.OCCUPIED
        if plan.terms.host:
            self._require_local(error, plan.terms.host)
        elif error.errno == errno.EADDRNOTAVAIL:
            # Of connect(), which has no source to take: routing may know why.
            with contextlib.suppress(NetlinkRefused):
                plan.terms.route(request, b"")
            return None
        return _OUTCOMES.get(error.errno or 0)

    def _require_local(self, error: OSError, host: str) -> None:
        """Raise SourceNotLocal if that is what an error of bind() means."""
        if error.errno == errno.EADDRNOTAVAIL:
            raise self.request.error(
                SourceNotLocal,
                f"the source address {host} is not local in this network namespace: "
                "add it to an interface, or if it is routed here set IP_FREEBIND on the socket "
                "(a Dialer: freebind=True)",
            ) from error

    def _survey(self) -> Outcome:
        """Find out from the kernel which ports are free.

        May be called in another thread of the same network namespace; raises OSError
        (EXDEV) in one of another.
        """
        try:
            return survey(self.plan)
        except NetlinkRefused:
            # Every port is tried then, once: the kernel refuses those that are not free.
            if hasattr(self, "_surveyed"):
                return Outcome.NONE_FREE
        self._surveyed = True
        return Outcome.SOME_FREE if self.plan.ledger.survey(()) else Outcome.NONE_FREE

    def _find_out(self, action: Action, attempt: Attempt) -> Steps[Outcome]:
        """Find out who is on a 4-tuple, or which ports are free, or may be by now."""
        if action is Action.SURVEY:
            return cast("Outcome", (yield Work(self._survey)))
        if action is Action.RETRY:
            if hasattr(self, "_surveyed") or not self.plan.ledger.retry():
                return Outcome.NONE_FREE
            # At once is too soon: a thread of this process that is at a port needs the GIL.
            yield from self._let_others_finish(_QUICK_TRIES)
            return Outcome.SOME_FREE
        return look(self.plan, attempt.low)

    def _let_others_finish(self, failures: int) -> Steps[None]:
        """Wait for those who may only be trying a UDP port.

        That takes microseconds, unless they lose the processor: then milliseconds.
        """
        waits = self._apart is not None or self.sock.gettimeout() != 0
        if failures < _QUICK_TRIES or not waits:
            os.sched_yield()
        else:
            yield Pause(_TIME_SLICE)

    def _plan_again(self) -> Plan | None:
        """Plan anew with sysctls and routes as they are now; None if nothing has changed."""
        namespace = NAMESPACES.look_again(self.plan.terms.namespace)
        try:
            return make_plan(namespace, self.request, unlike=self.plan)
        except NetlinkRefused:
            return None

    def _check(self) -> None:
        """Make sure that the source is one that was asked for, and not the destination itself."""
        plan, request = self.plan, self.request
        terms, name = plan.terms, self.sock.getsockname()
        if (
            plan.may_meet_itself
            and name[1] == request.destination.port
            and unmapped(packed(name[0]) or b"") == request.wire_destination
        ):
            raise Itself
        if not terms.verifies:
            return
        wanted = PortRange(terms.asked, terms.asked) if terms.asked else terms.ports
        if not wanted.contains(name[1]):
            # Nobody asked for the port, so nobody is to be connected from it.
            self._renew()
            raise request.error(
                RangeNotHonoured,
                f"net.ipv4.ip_local_port_range has changed and leaves out {wanted}: "
                f"the kernel took port {name[1]} instead",
            )

    def _settle(self, attempt: Attempt) -> None:
        """Note which port the connected socket has."""
        self.retries = attempt.failures
        port = attempt.low if attempt.proposed else 0
        # From here on it is the socket's.
        attempt.proposed = False
        self._made(port)

    # What differs for a socket that is the caller's.

    def _made(self, port: int) -> None:
        """Finish the socket, which is connected; port: 0 where nobody keeps account."""
        sock = self.sock
        if port:
            if self.reports:
                sock.ledger = self.plan.ledger  # type: ignore[attr-defined] # an OwnSocket
                sock.ledger_port = port  # type: ignore[attr-defined]
            else:
                self.plan.ledger.held(port)
        if self._apart is not None and self._apart[1]:
            sock.settimeout(self._apart[0])

    def _failed(self) -> None:
        """Leave nothing behind."""
        own_socket.discard(self.sock)

    def _renew(self) -> None:
        """Have a socket without a port."""
        own_socket.replace(self.sock)


def _in_progress(error: BaseException) -> bool:
    return isinstance(error, BlockingIOError) and error.errno == errno.EINPROGRESS
