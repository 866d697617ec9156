"""Dialer: which sources, which ports, how many connections, and what to do when there is no port.

The blocking driver of connectx._dial.call.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from time import monotonic, sleep
from typing import TYPE_CHECKING, cast

from connectx._connect.callers_socket import Borrowed
from connectx._connect.namespace import NETWORKS
from connectx._connect.own_socket import TrackedSocket
from connectx._dial.call import LimitReached, TurnMissed, Wait
from connectx._dial.policy import SWEPT_BY_A_CALL, SWEPT_IN_LINE, AnyDialer, Ear, hear, pass_on
from connectx.blocking import DEFAULT_TIMEOUT, connect_borrowed, milliseconds, open_connection
from connectx.errors import PortsExhausted
from connectx.linux.sockopts import set_ip_freebind

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from connectx._connect.request import Request
    from connectx._dial.call import Dial
    from connectx._dial.capacity import Capacity
    from connectx._dial.policy import Dialing
    from connectx.addresses import Address, PortRange
    from connectx.linux.destroy_events import DestroyEvents


class Dialer(AnyDialer):
    """Opens connections from many sources, within limits, and waits for a port if need be.

    sources: IP addresses and prefixes such as "2001:db8::/64", both families mixed; by
        default the routing table chooses.
    ports: a range (low, high) of source ports, or several, to be used in this order;
        by default net.ipv4.ip_local_port_range. They must lie within that.
    strategy: how source ports are chosen, by name; see `connectx._connect.strategies`.
    rotate: "most-free" takes the source with the fewest connections to the destination,
        "round-robin" one after the other, for each destination by itself, "sticky" always
        the same for a key.
    limit: connections of this dialer to one destination at most.
    wait: seconds to wait for a port, or for a place under the limit, instead of failing:
        first come, first served.
    freebind: sources need not be local (IP_FREEBIND), as for a prefix that is routed here.
    on_wait: is called with (protocol, destination) when a call begins to wait.

    Safe under threads; in a forked child it begins with nothing open. It holds nothing
    that would have to be closed.

    Raises TypeError and ValueError for arguments that cannot be right.
    """

    def create_connection(
        self,
        address: tuple[str | None, int | str],
        timeout: float | None = DEFAULT_TIMEOUT,
        *,
        all_errors: bool = False,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - as in socket.socket()
        proto: int = 0,
        key: str | None = None,
    ) -> socket.socket:
        """Connect to an address and return the socket: `connectx.create_connection` by policy.

        timeout: seconds for each address and source; waiting for a port is not part of it.
        key: what a "sticky" source belongs to; the destination's host by default.

        Raises as `connectx.create_connection` does. PortsExhausted is raised only when
        no source has a port, and where `wait` is set, after so many seconds.
        """
        dialing = self._dialing
        if address.__class__ is not tuple:
            address = cast("tuple[str | None, int | str]", tuple(address))
        name = (address, type, proto)
        if not all_errors and (sock := self._create_at_once(name, timeout)) is not None:
            return sock
        literal = dialing.literal(address, type, proto)
        if literal is not None and not all_errors:
            sock = self._create(literal, timeout, key)
            dialing.learn(literal, name)
            return sock
        errors: list[OSError] = []
        host, port = address[:2]
        found = socket.getaddrinfo(host, port, 0, type)
        requests = dialing.requests(found, address, type, proto)
        exhausted = []
        for request in requests:
            try:
                return self._create(request, timeout, key, wait=False)
            except OSError as error:
                errors.append(error)
                exhausted += [request] * isinstance(error, PortsExhausted)
        # Only where no address has a port is it worth waiting for one.
        for request in exhausted[: dialing.waits]:
            try:
                return self._create(request, timeout, key)
            except OSError as error:
                errors.append(error)
        try:
            if all_errors:
                raise ExceptionGroup("create_connection failed", errors)
            raise errors[-1]
        finally:
            # The errors' tracebacks refer to this frame: break the cycle.
            errors.clear()

    def connectx(
        self,
        sock: socket.socket,
        destination: Address,
        *,
        data: bytes | bytearray | memoryview = b"",
        key: str | None = None,
    ) -> int:
        """Connect a socket made elsewhere, from one of the sources: `connectx.connectx` by policy.

        Its end is found out from the kernel, since the socket does not tell: at once while
        somebody waits for a place, and before a call is refused for the limit's sake. With
        `freebind`, IP_FREEBIND is set on it. One that is bound to an address keeps it.

        Returns and raises as `connectx.connectx` does; ValueError for a socket that is bound
        to an address that is not the dialer's, or not its key's.
        """
        dialing = self._dialing
        to = dialing.served(Borrowed(sock).request(None, destination, dialing.strategy))
        outcome: int | BlockingIOError = 0

        def connect(request: Request, ports: PortRange | None, dial: Dial) -> socket.socket:
            nonlocal outcome
            if dialing.freebind:
                set_ip_freebind(sock, on=True)
            try:
                outcome = connect_borrowed(Borrowed(sock, ports), request, data, dial)
            except BlockingIOError as error:
                # Under way, if it is a stream's; a datagram's is PortsExhausted.
                if error.errno != errno.EINPROGRESS:
                    raise
                outcome = error
            return sock

        self._go(to, key, connect)
        if isinstance(outcome, BlockingIOError):
            try:
                raise outcome
            finally:
                # Its traceback refers to frames that refer to it: break the cycle.
                outcome = 0
        return outcome

    def capacity(
        self,
        address: Address,
        *,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - as in socket.socket()
        proto: int = 0,
    ) -> Capacity:
        """How many connections there can be to an IP address and port, and how many there are.

        Reads the kernel's list of sockets: some milliseconds where there are many.
        """
        return self._dialing.capacity(address, type, proto, NETWORKS.here())

    def _create_at_once(self, name: Hashable, timeout: float | None) -> socket.socket | None:
        """The first try, where it needs no thought; None where it does, or finds no port."""
        dialing = self._dialing
        known = dialing.open
        budget = known.budget
        if known.detached:
            dialing.sweep(SWEPT_BY_A_CALL)
        try:
            place = budget.reserve_at_once(name)
        except TypeError:
            # What no dictionary takes is no address, as will be said.
            return None
        if place is None:
            return None
        request, lease = place
        begun = monotonic()
        try:
            sock = open_connection(request, timeout, dialing.first_options)
        except PortsExhausted as error:
            lease.release()
            budget.failed_at_once(error)
            budget.searched(monotonic() - begun)
            budget.retried(error.attempts)
            return None
        except BaseException as error:
            lease.release()
            budget.failed_at_once(error)
            raise
        if type(sock) is TrackedSocket:
            sock.lease = lease
        else:
            lease.detached(sock)
        return sock

    def _create(
        self, to: Request, timeout: float | None, key: str | None, *, wait: bool = True
    ) -> socket.socket:
        options = self._dialing.options

        def connect(request: Request, ports: PortRange | None, dial: Dial) -> socket.socket:
            return open_connection(request, timeout, options(ports), dial)

        return self._go(to, key, connect, wait=wait)

    def _go(
        self,
        to: Request,
        key: str | None,
        connect: Callable[[Request, PortRange | None, Dial], socket.socket],
        *,
        wait: bool = True,
    ) -> socket.socket:
        """Take the steps of one call; connect: does one try."""
        dialing = self._dialing
        line: _Line | None = None
        dial, steps = dialing.dial(to, key, _Place, wait=wait)
        try:
            step = next(steps)
            while True:
                if isinstance(step, Wait):
                    line = line or _Line(to, dial, dialing)
                    line.wait(step)
                    dialing.sweep(SWEPT_IN_LINE)
                    step = next(steps)
                    continue
                request = dialing.request(to.address, step.host, to.type, to.proto)
                begun = monotonic()
                try:
                    sock = connect(request, step.ports, dial)
                except PortsExhausted as error:
                    dialing.budget.searched(monotonic() - begun)
                    step = steps.send(error)
                    continue
                except OSError as error:
                    dialing.budget.failed(error)
                    raise
                dialing.lease(dial, sock, to)
                return sock
        except (LimitReached, TurnMissed) as error:
            raise dialing.failure(error, to) from None
        finally:
            steps.close()
            if line is not None:
                line.close()


class _Place:
    """A place in the line of a thread that waits in poll(2)."""

    def __init__(self) -> None:
        self.descriptor = -1
        self._owner = os.getpid()
        # Reentrant, since the socket whose end wakes us may be collected as garbage right
        # here. Without it the wake-up might go to whoever has the descriptor next.
        self._open = threading.RLock()
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def wake(self) -> None:
        """Have the thread look again, which no child process has."""
        with self._open:
            if self.descriptor >= 0 and self._owner == os.getpid():
                os.eventfd_write(self.descriptor, 1)

    def close(self) -> None:
        """Wait no more."""
        with self._open:
            descriptor, self.descriptor = self.descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)

    def __del__(self) -> None:
        # After an interrupt in the middle of making it there may be nothing to close.
        if hasattr(self, "_open"):
            self.close()


class _Line:
    """How a thread waits, and hears of others' connections while it is the first in line."""

    def __init__(self, to: Request, dial: Dial, dialing: Dialing) -> None:
        self._to = to
        self._dial = dial
        self._ear = Ear(to, dial.heard, dialing.ended)
        self._events: DestroyEvents | None = None

    def wait(self, step: Wait) -> None:
        """Wait until the place is woken, a connection to the destination ends, or time is up."""
        place = cast("_Place", step.turn)
        if step.rest:
            sleep(step.seconds)
            return
        poll = select.poll()
        poll.register(place.descriptor, select.POLLIN)
        if step.first and self._events is None:
            self._events = self._dial.take_over() or hear(self._to)
        if self._events is not None:
            poll.register(self._events.fileno(), select.POLLIN)
        deadline = monotonic() + step.seconds
        self._ear.hinted = False
        while (left := deadline - monotonic()) > 0:
            for descriptor, _ in poll.poll(milliseconds(left)):
                if descriptor == place.descriptor:
                    os.eventfd_read(descriptor)
                    return
                if self._events is not None and self._events.take(self._ear.concerns):
                    return
                if self._ear.hinted:
                    deadline = min(deadline, monotonic() + step.hint)

    def close(self) -> None:
        """Hear no more, but for what has been told already."""
        for events in (self._events, self._dial.take_over()):
            if events is not None:
                pass_on(events, self._ear, self._dial)
        self._events = None
