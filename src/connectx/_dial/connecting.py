"""The calls of a dialer: to an address or a name, on its own socket or on a caller's."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, cast

from connectx._connect.callers_socket import CallersConnection
from connectx._connect.connection import DEFAULT_TIMEOUT, Connection
from connectx._connect.names import interleaved, last_or_all, resolve
from connectx._connect.request import PLAIN, parse, parse_literal, request_from, scoped
from connectx._connect.steps import Race, Work
from connectx._dial.call import Call
from connectx._dial.endings import SWEPT_BY_A_CALL, listen
from connectx.errors import PortsExhausted
from connectx.linux.sockopts import set_ip_freebind

if TYPE_CHECKING:
    import socket

    from connectx._connect.request import Request
    from connectx._connect.steps import Steps
    from connectx._dial.call import LimitReached, TurnMissed
    from connectx._dial.endings import Endings
    from connectx._dial.policy import Policy
    from connectx.addresses import Address, PortRange


def call_to(
    policy: Policy,
    address: tuple[str | None, int | str],
    timeout: float | None,
    kind: int,
    proto: int,
    key: str | None,
    *,
    awaited: bool,
) -> OwnCall | None:
    """Return a call to an IP address, for a driver to go through; None for a name.

    Args:
        policy: What decides.
        address, timeout, kind, proto: As create_connection() takes them.
        key, awaited: As for `OwnCall`.
    """
    strategy = policy.settings.strategy
    try:
        to = parse_literal(address, None, kind, proto, strategy)
    except TypeError:
        # A cache cannot hold a list, and does not say whose it is.
        address = cast("tuple[str | None, int | str]", tuple(address))
        to = parse_literal.__wrapped__(address, None, kind, proto, strategy)
    if to is None:
        if not isinstance(address[0], str) or "%" not in address[0]:
            return None
        # uvloop's resolver drops a scope that is in the text.
        to = parse_literal(scoped(tuple(address)), None, kind, proto, strategy)
        if to is None:
            return None
    if to.origin.version not in policy.versions:
        policy.serve(to)
    return OwnCall(policy, to, timeout, key, awaited=awaited)


class _PolicyCall(Call):
    """A call as a policy has it."""

    def __init__(
        self, policy: Policy, to: Request, only: str, *, awaited: bool, wait: bool
    ) -> None:
        begun = policy.current
        if begun.pid != os.getpid():
            begun = policy.open
        if begun.unreported.sockets:
            begun.unreported.sweep(SWEPT_BY_A_CALL)
        self._rules = begun.rules
        self._key = to.key
        self._version = to.origin.version
        self._only = only
        self._wait = begun.rules.wait if wait else 0.0
        self._policy = policy
        self._to = to
        self._unreported = begun.unreported
        self._awaited = awaited

    def _listen(self) -> Endings | None:
        return listen(self._to, self._unreported)

    def _unserved(self, error: LimitReached | TurnMissed) -> Exception:
        # A name's addresses are tried without waiting first, which ends no call.
        if self._wait == self._rules.wait:
            self._rules.destinations.unserved()
        return self._policy.failure(error, self._to)

    def _count_others(self) -> Work:
        # Of the connection that is made: to look for the thread's takes a descriptor, and
        # there may be none left.
        connection = cast("Connection | CallersConnection", self._opening)
        namespace = connection.plan.terms.namespace
        count = partial(self._policy.count_others, self._to, namespace)
        return Work(count, awaited=False)


class OwnCall(_PolicyCall):
    """A call that makes its socket.

    Attributes:
        sock: The socket, once it is connected.
    """

    sock: socket.socket

    def __init__(
        self,
        policy: Policy,
        to: Request,
        timeout: float | None,
        key: str | None,
        *,
        awaited: bool,
        wait: bool = True,
    ) -> None:
        """Begin a call.

        to: what to connect to. timeout: as create_connection() takes it. key: what a
        "sticky" source belongs to; None for the destination's host. awaited: whether the
        driver waits for handshakes, and the socket is non-blocking. wait: whether it may
        wait for a port, where the dialer does.
        """
        only = policy.only(to, key) if policy.sticks else ""
        _PolicyCall.__init__(self, policy, to, only, awaited=awaited, wait=wait)
        self._timeout = timeout

    def _connect(self, host: str, ports: PortRange | None) -> Connection:
        timeout = self._timeout
        request = request_from(self._to, host, self._policy.settings.options[ports])
        if not self._awaited and self.queue is None:
            connection = Connection(request, timeout)
        else:
            connection = Connection(request, DEFAULT_TIMEOUT)
            seconds = connection.sock.gettimeout() if timeout is DEFAULT_TIMEOUT else timeout
            connection.apart(seconds, blocking=not self._awaited)
        self.sock = connection.sock
        return connection


class CallersCall(_PolicyCall):
    """A call that connects a socket made elsewhere."""

    def __init__(
        self,
        policy: Policy,
        sock: socket.socket,
        destination: Address,
        data: bytes | bytearray | memoryview,
        key: str | None,
        *,
        awaited: bool,
    ) -> None:
        """Begin a call.

        sock, destination, data: as connectx() takes them. key, awaited: as for `OwnCall`.
        """
        connection = CallersConnection(sock)
        to = policy.serve(connection.ask(None, destination, policy.settings.strategy))
        super().__init__(policy, to, policy.only(to, key), awaited=awaited, wait=True)
        self._sock = sock
        self._data = data
        self._connection = connection

    def _connect(self, host: str, ports: PortRange | None) -> CallersConnection:
        sock, policy = self._sock, self._policy
        if policy.settings.freebind:
            set_ip_freebind(sock, on=True)
        connection = self._connection = CallersConnection(sock, ports)
        connection.prepare(request_from(self._to, host, PLAIN), self._data)
        timeout = sock.gettimeout()
        if self._awaited:
            connection.apart(None, blocking=False)
        elif self.queue is not None and not len(self._data) and timeout != 0:
            connection.apart(timeout, blocking=True)
        return connection

    def result(self) -> int:
        """Return how many bytes of data were taken; BlockingIOError while it is connecting."""
        return self._connection.result()


def by_name(
    policy: Policy,
    address: tuple[str | None, int | str],
    timeout: float | None,
    kind: int,
    proto: int,
    key: str | None,
    *,
    all_errors: bool,
    awaited: bool,
    delay: float | None = None,
) -> Steps[socket.socket]:
    """Connect to the first of a name's addresses that has a port.

    Only where no address has a port does the call wait for one.

    Args:
        policy: What decides.
        address, timeout, kind, proto, all_errors: As create_connection() takes them.
        key, awaited: As for `OwnCall`.
        delay: Seconds between the starts of two attempts; None for one after the other.
    """
    requests = [
        parse(0, kind, proto, policy.settings.strategy, None, found)
        for _, found in (yield from resolve(address, kind))
    ]
    served = [to for to in requests if to.origin.version in policy.versions]
    if not served:
        policy.serve(requests[0])
    if awaited:
        served = interleaved(served)
    exhausted: list[Request] = []

    def opening(to: Request, *, wait: bool) -> Steps[socket.socket]:
        call = OwnCall(policy, to, timeout, key, awaited=awaited, wait=wait)
        try:
            steps = call.begin()
            if steps is not None:
                yield from steps
        except PortsExhausted:
            exhausted.append(to)
            raise
        return call.sock

    errors: list[OSError] = []
    with last_or_all(errors, all_errors=all_errors):
        try:
            calls = [opening(to, wait=False) for to in served]
            return cast("socket.socket", (yield Race(calls, errors, delay)))
        except OSError:
            if not (exhausted and policy.settings.wait):
                raise
        # One after the other, the first would use up all the time that there is.
        worth = exhausted[:1] if awaited and delay is None else exhausted.copy()
        calls = [opening(to, wait=True) for to in worth]
        return cast("socket.socket", (yield Race(calls, errors, delay)))
