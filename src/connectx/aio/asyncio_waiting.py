"""How a call waits under asyncio and uvloop.

Nothing here blocks the loop, and whatever is cancelled leaves no descriptor and no port
behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from connectx._connect.own_socket import discard
from connectx._connect.steps import Handshake, Names, NewWaiter, Pause, Race, Work
from connectx.aio.running import run_by

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from connectx._connect.steps import Wait


async def wait(wait: Wait) -> Any:
    """Wait for one thing; see connectx._connect.steps."""
    if isinstance(wait, Handshake):
        return await _shake_hands(wait.sock, wait.seconds)
    if isinstance(wait, Work):
        return await _work(wait)
    if isinstance(wait, Names):
        loop = asyncio.get_running_loop()
        # The family only where it matters: uvloop's resolver takes longer with one.
        family = {"family": wait.family} if wait.family else {}
        return await loop.getaddrinfo(wait.host, wait.port, type=wait.type, **family)
    if isinstance(wait, Race):
        return await _race(wait)
    if isinstance(wait, NewWaiter):
        return _Waiter()
    return await _pause(wait)


async def _shake_hands(sock: socket.socket, seconds: float | None) -> None:
    """Wait until a socket is writable.

    Not loop.sock_connect(): uvloop's drops the scope of an IPv6 address (EINVAL), and
    one that is cancelled may leave its callback to a descriptor that is closed.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    descriptor = sock.fileno()
    loop.add_writer(descriptor, _resolve, done)
    try:
        if seconds is None:
            await done
        else:
            async with asyncio.timeout(seconds):
                await done
    except TimeoutError:
        # asyncio's own says nothing.
        raise TimeoutError("timed out") from None
    finally:
        loop.remove_writer(descriptor)


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


async def _work(work: Work) -> Any:
    """Call a function in another thread."""
    loop = asyncio.get_running_loop()
    if not work.awaited:
        # There may be no threads any more, which is no reason to lose a connection.
        with contextlib.suppress(RuntimeError):
            loop.run_in_executor(None, work.function)
        return None
    try:
        return await loop.run_in_executor(None, work.function)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # The loop's threads were started in another network namespace than ours.
        return work.function()


class _Waiter:
    """A place in a wait queue, for a task."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._owner = os.getpid()
        self.changed = asyncio.Event()
        self.woken = False

    def wake(self) -> None:
        """Have the task look again; from any thread, but from no child process."""
        if self._owner != os.getpid():
            return
        self.woken = True
        # Unless the loop is closed, and with it the task is gone.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.changed.set)

    @property
    def gone(self) -> bool:
        """Whether the loop was closed before the task was done."""
        return self._loop.is_closed()

    def close(self) -> None:
        """Nothing is to be given back."""


async def _pause(pause: Pause) -> bool:
    if pause.waiter is None:
        await asyncio.sleep(pause.seconds)
        return False
    waiter = cast("_Waiter", pause.waiter)
    loop = asyncio.get_running_loop()
    if pause.descriptor >= 0:
        loop.add_reader(pause.descriptor, waiter.changed.set)
    try:
        async with asyncio.timeout(pause.seconds):
            await waiter.changed.wait()
    except TimeoutError:
        pass
    finally:
        if pause.descriptor >= 0:
            loop.remove_reader(pause.descriptor)
    waiter.changed.clear()
    woken, waiter.woken = waiter.woken, False
    return woken


async def _race(race: Race) -> Any:
    """Return what the first call returns; what the others met with goes into `errors`."""
    waiting = deque(race.calls)
    running: set[asyncio.Future[Any]] = set()
    ended: set[asyncio.Future[Any]] = set()
    try:
        while waiting or running:
            if waiting:
                running.add(asyncio.ensure_future(run_by(wait, waiting.popleft())))
            ended, running = await asyncio.wait(
                running,
                timeout=race.delay if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            winner = _winner(ended, race.errors)
            if winner is not None:
                await _call_off(running | (ended - {winner}))
                return winner.result()
    except BaseException:
        # The winner as well, if we are cancelled while the others are called off.
        await _call_off(running | ended)
        raise
    finally:
        # Errors refer to this frame: break the cycle.
        running = ended = set()
    raise race.errors[-1]


def _winner(
    ended: Iterable[asyncio.Future[Any]], errors: list[OSError]
) -> asyncio.Future[Any] | None:
    """Return a call that has a socket, if one has; other errors than OSError are raised."""
    winner: asyncio.Future[Any] | None = None
    for attempt in ended:
        error = attempt.exception()
        if error is None:
            winner = winner or attempt
        elif isinstance(error, OSError):
            errors.append(error)
        else:
            raise error
    return winner


async def _call_off(attempts: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel calls, and wait until nothing is left of them.

    Not asyncio.staggered.staggered_race(): before Python 3.13 a cancelled one does not
    wait, and may even begin another attempt, whose socket nobody gets.
    """
    under_way = []
    for attempt in attempts:
        if attempt.done():
            _discard_result(attempt)
            continue
        under_way.append(attempt)
        # Even if we are cancelled again, or it is about to have a socket.
        attempt.add_done_callback(_discard_result)
        attempt.cancel()
    if under_way:
        await asyncio.wait(under_way)


def _discard_result(attempt: asyncio.Future[Any]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        discard(attempt.result())
