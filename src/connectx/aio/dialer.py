"""Dialer for asyncio: the awaiting driver of connectx._dial.call."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from connectx._connect.callers_socket import Borrowed
from connectx._connect.namespace import NETWORKS
from connectx._dial.call import LimitReached, TurnMissed, Wait
from connectx._dial.policy import SWEPT_IN_LINE, AnyDialer, Dialing, Ear, hear, pass_on
from connectx.aio.connecting import (
    HAPPY_EYEBALLS_DELAY,
    connect_borrowed,
    endpoint_over,
    open_request,
    race,
    stream_over,
    tls_keywords,
    within,
)
from connectx.errors import PortsExhausted
from connectx.linux.sockopts import set_ip_freebind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from connectx._connect.namespace import Network
    from connectx._connect.request import Request
    from connectx._dial.call import Dial
    from connectx._dial.capacity import Capacity
    from connectx.addresses import Address, PortRange
    from connectx.linux.destroy_events import DestroyEvents

    Protocol = TypeVar("Protocol", bound=asyncio.BaseProtocol)


class _Dialing(Dialing):
    """Reads long lists of sockets in another thread."""

    def count_others(self, to: Request) -> None:
        """The same, without waiting for it."""
        loop = asyncio.get_running_loop()

        def look(network: Network) -> None:
            with contextlib.suppress(OSError):
                self.capacity(to.address, to.type, to.proto, network)

        # It may have no threads any more, which is no reason to lose the connection.
        with contextlib.suppress(OSError, RuntimeError):
            loop.run_in_executor(None, look, NETWORKS.here())


class Dialer(AnyDialer):
    """connectx.Dialer for asyncio and uvloop: the same arguments, and methods to be awaited.

    For one event loop at a time; calls that wait for a port wait in its order.
    """

    _kind = _Dialing

    async def create_connection(
        self,
        address: tuple[str | None, int | str],
        timeout: float | None = None,  # noqa: ASYNC109 - as in socket.create_connection()
        *,
        all_errors: bool = False,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - as in socket.socket()
        proto: int = 0,
        key: str | None = None,
        happy_eyeballs_delay: float | None = HAPPY_EYEBALLS_DELAY,
    ) -> socket.socket:
        """connectx.Dialer.create_connection(), with the addresses of a name in a race.

        happy_eyeballs_delay: as for `connectx.aio.create_connection`.
        """
        dialing = self._dialing
        literal = dialing.literal(address, type, proto)
        if literal is not None and not all_errors:
            return await self._open(literal, timeout, key)
        errors: list[OSError] = []
        host, port = address[:2]
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=type)
        requests = dialing.requests(found, address, type, proto)
        exhausted: list[Request] = []

        async def at_once(to: Request) -> socket.socket:
            try:
                return await self._open(to, timeout, key, wait=False)
            except PortsExhausted:
                exhausted.append(to)
                raise

        try:
            try:
                return await race(requests, at_once, happy_eyeballs_delay, errors)
            except OSError:
                # Only where no address has a port is it worth waiting for one.
                if not exhausted or not dialing.waits:
                    raise
            # One after the other, the first would use up all the time that there is.
            worth = exhausted[:1] if happy_eyeballs_delay is None else exhausted
            return await race(
                worth, lambda to: self._open(to, timeout, key), happy_eyeballs_delay, errors
            )
        except OSError:
            if all_errors:
                raise ExceptionGroup("create_connection failed", errors) from None
            raise
        finally:
            # The errors' tracebacks refer to this frame: break the cycle.
            errors.clear()

    async def open_connection(
        self,
        host: str | None,
        port: int | str,
        *,
        limit: int = 2**16,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
        proto: int = 0,
        key: str | None = None,
        happy_eyeballs_delay: float | None = HAPPY_EYEBALLS_DELAY,
        ssl: Any = None,
        server_hostname: str | None = None,
        **keywords: Any,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """connectx.aio.open_connection() by policy; `limit` is the reader's, as there."""
        tls = tls_keywords(host, ssl, server_hostname, keywords)
        sock = await self.create_connection(
            (host, port), timeout, proto=proto, key=key, happy_eyeballs_delay=happy_eyeballs_delay
        )
        return await stream_over(sock, limit, tls)

    async def create_datagram_endpoint(
        self,
        protocol_factory: Callable[[], Protocol],
        remote_addr: tuple[str | None, int | str],
        *,
        proto: int = 0,
        key: str | None = None,
    ) -> tuple[asyncio.DatagramTransport, Protocol]:
        """connectx.aio.create_datagram_endpoint() by policy."""
        sock = await self.create_connection(
            remote_addr, type=socket.SOCK_DGRAM, proto=proto, key=key
        )
        return await endpoint_over(sock, protocol_factory)

    async def connectx(
        self, sock: socket.socket, destination: Address, *, key: str | None = None
    ) -> None:
        """Connect a non-blocking socket made elsewhere: connectx.Dialer.connectx(), awaited.

        A stream that is cancelled or fails in the middle of the handshake goes on
        connecting, as after loop.sock_connect(): close it then.

        Raises ValueError for a blocking socket; otherwise as there.
        """
        if sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking: call sock.setblocking(False) first")
        dialing = self._dialing

        async def connect(request: Request, ports: PortRange | None, dial: Dial) -> socket.socket:
            if dialing.freebind:
                set_ip_freebind(sock, on=True)
            await connect_borrowed(Borrowed(sock, ports), request, dial)
            return sock

        to = dialing.served(Borrowed(sock).request(None, destination, dialing.strategy))
        await self._go(to, key, connect)

    async def capacity(
        self,
        address: Address,
        *,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - as in socket.socket()
        proto: int = 0,
    ) -> Capacity:
        """connectx.Dialer.capacity(); the list of sockets is read in another thread."""
        loop = asyncio.get_running_loop()
        network = NETWORKS.here()
        count = partial(self._dialing.capacity, address, type, proto, network)
        try:
            return await loop.run_in_executor(None, count)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # The loop's threads were started in another network namespace than ours.
            return count()

    async def _open(
        self,
        to: Request,
        timeout: float | None,  # noqa: ASYNC109 - as above
        key: str | None,
        *,
        wait: bool = True,
    ) -> socket.socket:
        options = self._dialing.options

        async def connect(request: Request, ports: PortRange | None, dial: Dial) -> socket.socket:
            return await within(timeout, open_request(request, options(ports), dial))

        return await self._go(to, key, connect, wait=wait)

    async def _go(
        self,
        to: Request,
        key: str | None,
        connect: Callable[[Request, PortRange | None, Dial], Awaitable[socket.socket]],
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
                    await line.wait(step)
                    dialing.sweep(SWEPT_IN_LINE)
                    step = next(steps)
                    continue
                request = dialing.request(to.address, step.host, to.type, to.proto)
                begun = time.monotonic()
                try:
                    sock = await connect(request, step.ports, dial)
                except PortsExhausted as error:
                    dialing.budget.searched(time.monotonic() - begun)
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
    """A place in the line of a task."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._owner = os.getpid()
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Have the task look again; from any thread, but from no child process."""
        if self._owner != os.getpid():
            return
        try:
            self._loop.call_soon_threadsafe(self._woken.set)
        except RuntimeError:
            # The loop is closed, and with it the task is gone.
            return

    def close(self) -> None:
        """Nothing is to be given back."""

    async def wait(self, seconds: float) -> None:
        """Wait to be woken, so long at most."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return
        self._woken.clear()


class _Line:
    """How a task waits, and hears of others' connections while it is the first in line."""

    def __init__(self, to: Request, dial: Dial, dialing: Dialing) -> None:
        self._to = to
        self._dial = dial
        self._ear = Ear(to, dial.heard, dialing.ended)
        self._hint = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._events: DestroyEvents | None = None
        self._loop = asyncio.get_running_loop()

    async def wait(self, step: Wait) -> None:
        """Wait until the place is woken, a connection to the destination ends, or time is up."""
        self._ear.hinted = False
        self._hint = step.hint
        if step.rest:
            await asyncio.sleep(step.seconds)
            return
        place = cast("_Place", step.turn)
        if step.first and self._events is None:
            self._events = self._dial.take_over() or hear(self._to)
            if self._events is not None:
                self._loop.add_reader(self._events.fileno(), self._heard, self._events, place)
        await place.wait(step.seconds)

    def _heard(self, events: DestroyEvents, place: _Place) -> None:
        before = self._ear.hinted
        if events.take(self._ear.concerns):
            place.wake()
        elif self._ear.hinted and not before:
            self._alarm = self._loop.call_later(self._hint, place.wake)

    def close(self) -> None:
        """Hear no more, but for what has been told already."""
        if self._alarm is not None:
            self._alarm.cancel()
        events, self._events = self._events, None
        if events is not None:
            self._loop.remove_reader(events.fileno())
        for each in (events, self._dial.take_over()):
            if each is not None:
                pass_on(each, self._ear, self._dial)
