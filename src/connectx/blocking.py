"""connectx() and create_connection(): they wait in system calls, and decide nothing."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from connectx._connect.configured import checked
from connectx._connect.connection import DEFAULT_TIMEOUT
from connectx._connect.here import CallersConnection, Connection, opening, plain_if
from connectx._connect.names import by_name
from connectx._connect.request import as_tuple, parse_literal
from connectx._connect.steps import Handshake, Names, NewWaiter, Pause, Race, Work

if TYPE_CHECKING:
    from connectx._connect.configured import SocketOptions
    from connectx._connect.steps import Steps, Wait
    from connectx._connect.strategies import StrategyName
    from connectx.addresses import Address

_T = TypeVar("_T")


def connectx(
    sock: socket.socket,
    source: Address | None,
    destination: Address,
    *,
    data: bytes | bytearray | memoryview = b"",
    strategy: StrategyName = "auto",
) -> int:
    """Connect a socket from a source of your choosing.

    The source port is shared with connections to other destinations, safely, and a free
    one is found as long as there is any. Otherwise this is ``sock.connect(destination)``,
    with the socket's timeout; on a non-blocking socket it raises BlockingIOError
    (EINPROGRESS) once the connection is under way.

    After an error the socket is as it was found, with two exceptions; close it then.
    After a timeout or an interrupt TCP goes on connecting, as after connect(). And a port
    that was bound explicitly stays bound, which Linux cannot undo: a TCP port outside
    ip_local_port_range or in TIME_WAIT, and before Linux 6.3 any UDP port whose connect()
    or first data failed.

    Args:
        sock: A stream or datagram socket (TCP, MPTCP, UDP, UDP-Lite; AF_INET, AF_INET6)
            that is neither bound to a port nor connected. What its owner has set on it
            (SO_MARK, SO_BINDTODEVICE, IP_FREEBIND, IP_LOCAL_PORT_RANGE, ...) is honoured
            and stays. SO_REUSEADDR is on afterwards.
        source: ``(host, port)``, for IPv6 also with flowinfo and scope_id. With an empty
            or wildcard host the routing table chooses the address; with port 0 connectx
            chooses the port. None means both.
        destination: The same, with an IP address and a port from 1 to 65535.
        data: The first bytes to send. TCP sends them with the SYN where TCP Fast Open is
            possible (Linux needs a cookie from an earlier connection), otherwise right
            after the handshake. On a non-blocking socket without a cookie none are taken.
        strategy: How source ports are chosen, by name; "auto" is right for nearly all.

    Returns:
        The number of bytes of data that were taken, as send() returns it; 0 without data.

    Raises:
        TypeError: An argument is of the wrong type; nothing was changed.
        ValueError: An argument cannot be right; nothing was changed.
        PortsExhausted: No source port is free (EADDRNOTAVAIL; for UDP EAGAIN).
        TupleInUse: The 4-tuple that was asked for is taken (EADDRNOTAVAIL; for UDP
            EADDRINUSE).
        PortHeld: The port that was asked for is held (EADDRINUSE).
        SourceNotLocal: The source address is not one of this machine's (EADDRNOTAVAIL).
        RangeNotHonoured: The kernel would ignore the socket's port range (EINVAL).
        NotSupported: This kernel lacks what the call needs (EOPNOTSUPP).
        OSError: As connect() raises it.
    """
    connection = CallersConnection(sock)
    steps = connection.prepare(connection.ask(source, destination, strategy), data).begin()
    if steps is not None:
        run(steps)
    return connection.result()


def create_connection(
    address: tuple[str | None, int | str],
    timeout: float | None = DEFAULT_TIMEOUT,
    source_address: Address | None = None,
    *,
    all_errors: bool = False,
    type: int = socket.SOCK_STREAM,  # noqa: A002 - as in socket.socket()
    proto: int = 0,
    strategy: StrategyName = "auto",
    socket_options: SocketOptions | None = None,
    fallback: Literal["plain"] | None = None,
) -> socket.socket:
    """Connect to an address and return the socket.

    This is socket.create_connection() with shared source ports.

    Args:
        address: ``(host, port)``; the host is a name or an IP address. The addresses of a
            name are tried in turn, the families taking turns.
        timeout: Seconds for each address; None to wait for as long as the kernel does; by
            default socket.getdefaulttimeout().
        source_address: ``(host, port)`` to connect from. With an empty host the routing
            table chooses the address; with port 0 connectx chooses the port.
        all_errors: Whether to raise an ExceptionGroup of the errors of all addresses,
            instead of the last one.
        type: SOCK_STREAM or SOCK_DGRAM.
        proto: 0, IPPROTO_MPTCP or IPPROTO_UDPLITE.
        strategy: How source ports are chosen, by name; "auto" is right for nearly all.
        socket_options: What to set on the socket before it connects: arguments of
            setsockopt(), such as ``[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]``.
        fallback: "plain" to connect as the standard library does, where this raises
            NotSupported otherwise, as on other platforms than Linux.

    Returns:
        A connected socket.socket.

    Raises:
        socket.gaierror: The name does not resolve.
        OSError: As `connectx` raises it.
    """
    try:
        request = parse_literal(address, source_address, type, proto, strategy)
    except TypeError:
        # A cache cannot hold a list, and does not say whose it is.
        address, source_address = as_tuple(address), as_tuple(source_address)
        request = parse_literal.__wrapped__(address, source_address, type, proto, strategy)
    if request is None or all_errors or socket_options is not None or fallback is not None:
        options, plain = checked(socket_options), plain_if(fallback)
        return run(
            by_name(
                address,
                source_address,
                type,
                proto,
                strategy,
                lambda each: opening(each, timeout, awaited=False, options=options, plain=plain),
                all_errors=all_errors,
            )
        )
    connection = Connection(request, timeout)
    steps = connection.begin()
    if steps is not None:
        run(steps)
    return connection.sock


def run(steps: Steps[_T]) -> _T:
    """Go through a call, waiting in system calls; returns what it returns."""
    try:
        wait = next(steps)
        while True:
            try:
                answer = _wait(wait)
            except BaseException as error:  # noqa: BLE001 - the call's to handle
                wait = steps.throw(error)
            else:
                wait = steps.send(answer)
    except StopIteration as end:
        return cast("_T", end.value)


def _wait(wait: Wait) -> Any:
    """Wait for one thing; see connectx._connect.steps."""
    if isinstance(wait, Handshake):
        return _shake_hands(wait)
    if isinstance(wait, Work):
        # Under gevent, too: its threads would have to share locks with greenlets, and what takes
        # the milliseconds is not waiting.
        return wait.function()
    if isinstance(wait, Names):
        return socket.getaddrinfo(wait.host, wait.port, wait.family, wait.type)
    if isinstance(wait, Race):
        return _in_turn(wait)
    if isinstance(wait, NewWaiter):
        return _Waiter() if hasattr(os, "eventfd") else _PortableWaiter()
    return _pause(wait)


def _shake_hands(wait: Handshake) -> None:
    if not hasattr(select, "poll"):
        _, *ready = select.select([], [wait.sock], [wait.sock], wait.seconds)
        if not any(ready):
            raise TimeoutError("timed out")
        return
    poll = select.poll()
    poll.register(wait.sock, select.POLLOUT)
    if not poll.poll(None if wait.seconds is None else _milliseconds(wait.seconds)):
        raise TimeoutError("timed out")


def _in_turn(race: Race) -> Any:
    errors = race.errors
    for call in race.calls:
        try:
            return run(call)
        except OSError as error:
            errors.append(error)
    try:
        raise errors[-1]
    finally:
        # Its traceback refers to this frame: break the cycle.
        del errors


def _pause(pause: Pause) -> bool:
    if pause.waiter is None:
        time.sleep(pause.seconds)
        return False
    if isinstance(pause.waiter, _PortableWaiter):
        return pause.waiter.wait(pause.seconds)
    woken = cast("_Waiter", pause.waiter).descriptor
    poll = select.poll()
    poll.register(woken, select.POLLIN)
    if pause.descriptor >= 0:
        poll.register(pause.descriptor, select.POLLIN)
    if (woken, select.POLLIN) not in poll.poll(_milliseconds(pause.seconds)):
        return False
    os.eventfd_read(woken)
    return True


class _Waiter:
    """A place in a wait queue, for a thread that waits in poll(2)."""

    def __init__(self) -> None:
        self.descriptor = -1
        self._owner = os.getpid()
        # Reentrant, since the socket whose end wakes us may be collected as garbage right
        # here. Without it the wake-up might go to whoever has the descriptor next.
        self._open = threading.RLock()
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def wake(self) -> None:
        """Have the thread look again, which no child process has.

        Nor may a child wait for the lock: the thread that held it is not there to give it back.
        """
        if self._owner != os.getpid():
            return
        with self._open:
            if self.descriptor >= 0:
                os.eventfd_write(self.descriptor, 1)

    @property
    def gone(self) -> bool:
        """No: a thread comes back to its call."""
        return False

    def close(self) -> None:
        """Wait no more."""
        with self._open if self._owner == os.getpid() else contextlib.nullcontext():
            descriptor, self.descriptor = self.descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)

    def __del__(self) -> None:
        # After an interrupt in the middle of making it there may be nothing to close.
        if hasattr(self, "_open"):
            self.close()


class _PortableWaiter:
    """The same on other platforms than Linux, where nobody else reports ends."""

    gone = False

    def __init__(self) -> None:
        self._woken = threading.Event()

    def wake(self) -> None:
        """Have the thread look again."""
        self._woken.set()

    def wait(self, seconds: float) -> bool:
        """Wait to be woken, for so long at most; whether that was so."""
        woken = self._woken.wait(seconds)
        self._woken.clear()
        return woken

    def close(self) -> None:
        """Nothing is to be given back."""


def _milliseconds(seconds: float) -> int:
    """Return a time as poll(2) takes it, which is an int: at most 24 days."""
    return min(math.ceil(seconds * 1000), 2**31 - 1)
