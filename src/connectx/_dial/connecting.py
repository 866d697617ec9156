"""The calls of a dialer: to an address or a name, on its own socket or on a caller's."""

from __future__ import annotations

import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from connectx._connect.connection import DEFAULT_TIMEOUT
from connectx._connect.here import CallersConnection, Connection, configured
from connectx._connect.names import interleaved, last_or_all, requests_of
from connectx._connect.request import (
    NEW_SOCKET,
    PLAIN,
    as_tuple,
    parse_literal,
    request_from,
    scoped,
)
from connectx._connect.steps import Race, Work
from connectx._dial.call import Call
from connectx._dial.endings import SWEPT_BY_A_CALL, listen
from connectx._dial.settings import number
from connectx._dial.slots import key_of
from connectx.errors import PortsExhausted
from connectx.linux.sockopts import set_ip_freebind

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx._connect.namespace import Namespace
    from connectx._connect.request import Request
    from connectx._connect.steps import Steps
    from connectx._dial.call import LimitReached, Opening, TurnMissed
    from connectx._dial.endings import Endings
    from connectx._dial.policy import Policy
    from connectx.addresses import Address, PortRange


#: How many are kept at a time. To forget them all at once takes less than a millisecond.
_MOST_TARGETS: Final = 1024


def call_to(
    policy: Policy,
    address: tuple[str | None, int | str],
    timeout: float | None,
    kind: int,
    proto: int,
    key: str | None,
    *,
    awaited: bool,
    options: tuple[tuple[Any, ...], ...] = (),
    wait: float | None = None,
) -> OwnCall | None:
    """Return a call to an IP address, for a driver to go through; None for a name.

    Args:
        policy: What decides.
        address, timeout, kind, proto: As create_connection() takes them.
        key: What a "sticky" source belongs to; None for the destination's host.
        awaited: Whether the driver waits for handshakes, and the socket is non-blocking.
        options: What to set on the socket.
        wait: Seconds to wait for a port at most; None for the dialer's own.
    """
    asked = address, kind, proto, key
    try:
        target: Target | None = policy.targets.get(asked)  # type: ignore[assignment] # that it keeps
    except TypeError:
        # Nothing can be kept for a list.
        address = as_tuple(address)
        asked = address, kind, proto, key
        target = None
    if target is None:
        # Kept here, so not where those of all calls are.
        to = parse_literal.__wrapped__(address, None, kind, proto, policy.settings.strategy)
        if to is not None:
            target = Target(policy, to, key)
            if len(policy.targets) >= _MOST_TARGETS:
                policy.targets = {}
            policy.targets[asked] = target
        elif isinstance(address[0], str) and "%" in address[0]:
            # uvloop's resolver drops a scope that is in the text. Not kept: another interface
            # may have the name in a moment.
            to = parse_literal(scoped(address), None, kind, proto, policy.settings.strategy)
            if to is not None:
                target = Target(policy, to, key)
    if target is None:
        return None
    call = OwnCall(policy, target, timeout, awaited, wait)
    if options:
        call.make = partial(configured, options=options)
    return call


class Target:
    """A destination as a dialer's calls have it.

    Attributes:
        to: The destination, from any source.
        key: Names it.
        version: Its version of IP, 4 or 6.
        only: The one source that a call may have; "" for any.
        lane: The wait queue that a call stands in. With a limit all wait for the same slots,
            hence in one queue.
        single: The source address and the range, where there is nothing to choose between.
    """

    __slots__ = ("_first", "_settings", "key", "lane", "only", "single", "to", "version")

    def __init__(self, policy: Policy, to: Request, key: str | None) -> None:
        """Settle it; key: what a "sticky" source belongs to, None for the destination's host.

        Raises ValueError as `Policy.only` does, and OSError as `Policy.serve`.
        """
        settings = self._settings = policy.settings
        origin = to.origin
        version = origin.version
        self.to = to
        self.key = key_of(to)
        self.version = version
        self.only = self.lane = ""
        self.single = settings.single[version]
        self._first: Request | None = None
        if version not in policy.versions:
            policy.serve(to)
        if origin.source.port:
            settings.require(origin.source.port)
        if policy.sticks or origin.source.host:
            self.only = policy.only(to, key)
            if self.only:
                self.lane = "" if settings.limit else self.only
                ranges = settings.ranges
                self.single = (self.only, ranges[0]) if len(ranges) == 1 else None

    def request(self, host: str, ports: PortRange | None) -> Request:
        """Return the request for a socket of our own, from a source and a range of ports."""
        first = self._first
        if first is not None:
            return first
        asked = self.to.origin.source.port
        options = self._settings.asked if asked else self._settings.options[ports]
        if self.single is None:
            return request_from(self.to, host, options)
        # Kept here, so not where those of all dialers are.
        plain = not host and not asked and options is NEW_SOCKET
        first = self._first = self.to if plain else request_from.__wrapped__(self.to, host, options)
        return first


class _PolicyCall(Call):
    """A call as a policy has it."""

    _target: Target
    #: Whether nothing is tried after it. A name's addresses are first tried without waiting.
    ends_here = True

    def __init__(
        self,
        policy: Policy,
        target: Target,
        timeout: float | None,
        awaited: bool,  # noqa: FBT001 - by name it would take longer
        wait: float | None = None,
    ) -> None:
        """Begin a call.

        Args:
            policy: What decides.
            target: What to connect to.
            timeout: The socket's, as create_connection() takes it.
            awaited: Whether the driver waits for handshakes, and the socket is non-blocking.
            wait: Seconds that it may wait for a port, where the dialer waits longer.
        """
        begun = policy.current
        if begun.pid != os.getpid():
            begun = policy.open
        if begun.unreported.sockets:
            begun.unreported.sweep(SWEPT_BY_A_CALL)
        self._terms = begun.terms
        self._target = target
        self._timeout = timeout
        seconds = begun.terms.wait
        self._wait = seconds if wait is None else min(seconds, number("wait", wait, 0))
        self._policy = policy
        self._awaited = awaited

    def _listen(self) -> Endings | None:
        return listen(self._target.to, self._policy.unreported)

    def _unserved(self, error: LimitReached | TurnMissed) -> Exception:
        if self.ends_here:
            self._terms.destinations.unserved()
        return self._policy.failure(error, self._target.to)

    def _find_full(self) -> Work:
        return Work(partial(self._policy.find_full, self._target.to, self._namespace))

    @property
    def _namespace(self) -> Namespace:
        # Of the connection that was made: to look for the thread's takes a descriptor, and
        # there may be none left.
        return cast("Connection | CallersConnection", self._opening).plan.terms.namespace

    def _count_others(self) -> Work | None:
        begun = self._policy.open
        if time.monotonic() < begun.count_again:
            return None
        if not self._awaited and cast("Opening", self._opening).sock.gettimeout() is not None:
            # The time that it has is for connecting.
            return None
        count = partial(self._policy.count_others, self._target.to, self._namespace, begun)
        return Work(count, awaited=False)


class OwnCall(_PolicyCall):
    """A call that makes its socket.

    Attributes:
        sock: The socket, once it is connected.
    """

    sock: socket.socket
    #: What makes it, where options are to be set on it.
    make: Callable[[Request, float | None], Connection] = Connection

    def _connect(self, host: str, ports: PortRange | None) -> Connection:
        timeout = self._timeout
        request = self._target.request(host, ports)
        if not self._awaited and (self._turn is None or self.queue is None):
            connection = self.make(request, timeout)
        else:
            connection = self.make(request, DEFAULT_TIMEOUT)
            seconds = socket.getdefaulttimeout() if timeout is DEFAULT_TIMEOUT else timeout
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

        sock, destination, data: as connectx() takes them. key, awaited: as for `call_to`.
        """
        connection = CallersConnection(sock)
        to = connection.ask(None, destination, policy.settings.strategy)
        super().__init__(policy, Target(policy, to, key), sock.gettimeout(), awaited)
        self._sock = sock
        self._data = data
        self._connection = connection

    def _connect(self, host: str, ports: PortRange | None) -> CallersConnection:
        sock, policy = self._sock, self._policy
        if policy.settings.freebind:
            set_ip_freebind(sock, on=True)
        connection = self._connection = CallersConnection(sock, ports)
        settings = policy.settings
        options = PLAIN
        if settings.exclude or settings.plain:
            options = PLAIN._replace(exclude=settings.exclude, plain=settings.plain)
        connection.prepare(request_from(self._target.to, host, options), self._data)
        timeout = self._timeout
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
    source_address: Address | None,
    kind: int,
    proto: int,
    key: str | None,
    *,
    all_errors: bool,
    awaited: bool,
    options: tuple[tuple[Any, ...], ...] = (),
    delay: float | None = None,
    wait: float | None = None,
) -> Steps[socket.socket]:
    """Connect to the first of a name's addresses that has a port.

    Only where no address has a port does the call wait for one.

    Args:
        policy: What decides.
        address, timeout, source_address, kind, proto, all_errors: As create_connection()
            takes them.
        key: What a "sticky" source belongs to; None for the destination's host.
        awaited: Whether the driver waits for handshakes, and the socket is non-blocking.
        options: What to set on sockets.
        delay: Seconds between the starts of two attempts; None for one after the other.
        wait: Seconds to wait for a port at most; None for the dialer's own.
    """
    errors: list[OSError] = []
    strategy = policy.settings.strategy
    requests = yield from requests_of(address, source_address, kind, proto, strategy, errors)
    served = [to for to in requests if to.origin.version in policy.versions]
    if requests and not served:
        policy.serve(requests[0])
    if awaited:
        served = interleaved(served)
    exhausted: list[Request] = []

    def opening(to: Request, wait: float | None, *, ends_here: bool) -> Steps[socket.socket]:
        call = OwnCall(policy, Target(policy, to, key), timeout, awaited, wait)
        call.ends_here = ends_here
        if options:
            call.make = partial(configured, options=options)
        try:
            steps = call.begin()
            if steps is not None:
                yield from steps
        except PortsExhausted:
            exhausted.append(to)
            raise
        return call.sock

    if wait is not None:
        wait = number("wait", wait, 0)
    waits = policy.settings.wait != 0 and wait != 0
    with last_or_all(errors, all_errors=all_errors):
        try:
            calls = [opening(to, 0.0, ends_here=not waits) for to in served]
            return cast("socket.socket", (yield Race(calls, errors, delay)))
        except OSError:
            if not (exhausted and waits):
                raise
        # One after the other, the first would use up all the time that there is.
        worth = exhausted[:1] if awaited and delay is None else exhausted.copy()
        calls = [opening(to, wait, ends_here=True) for to in worth]
        return cast("socket.socket", (yield Race(calls, errors, delay)))
