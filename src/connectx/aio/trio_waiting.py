"""How a call waits under trio."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import trio

from connectx._connect.own_socket import discard
from connectx._connect.steps import Handshake, Names, NewWaiter, Pause, Race, Work
from connectx.aio.running import run_by

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx._connect.steps import Steps, Wait


async def wait(wait: Wait) -> Any:
    """Wait for one thing; see connectx._connect.steps."""
    if isinstance(wait, Handshake):
        with trio.move_on_after(math.inf if wait.seconds is None else wait.seconds) as scope:
            await trio.lowlevel.wait_writable(wait.sock)
        if scope.cancelled_caught:
            raise TimeoutError("timed out")
        return None
    if isinstance(wait, Work):
        return await _work(wait)
    if isinstance(wait, Names):
        return await trio.socket.getaddrinfo(wait.host, wait.port, wait.family, wait.type)
    if isinstance(wait, Race):
        return await _race(wait)
    if isinstance(wait, NewWaiter):
        return _Waiter()
    return await _pause(wait)


async def _work(work: Work) -> Any:
    if not work.awaited:
        trio.lowlevel.spawn_system_task(_in_background, work.function)
        return None
    try:
        return await trio.to_thread.run_sync(work.function)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # trio's threads were started in another network namespace than ours.
        return work.function()


async def _in_background(function: Callable[[], object]) -> None:
    # There may be no threads any more, which is no reason to end everything.
    with contextlib.suppress(RuntimeError):
        await trio.to_thread.run_sync(function)


class _Waiter:
    """A place in a wait queue, for a task."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._owner = os.getpid()
        self.changed = trio.Event()
        self.woken = False

    def wake(self) -> None:
        """Have the task look again; from any thread, but from no child process."""
        if self._owner != os.getpid():
            return
        self.woken = True
        # Unless the run is over, and with it the task is gone.
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.notice)

    def notice(self) -> None:
        """End the pause at hand."""
        self.changed.set()

    @property
    def gone(self) -> bool:
        """No: trio ends its tasks."""
        return False

    def close(self) -> None:
        """Nothing is to be given back."""


async def _pause(pause: Pause) -> bool:
    if pause.waiter is None:
        await trio.sleep(pause.seconds)
        return False
    waiter = cast("_Waiter", pause.waiter)
    with trio.move_on_after(pause.seconds):
        async with trio.open_nursery() as nursery:
            if pause.descriptor >= 0:
                nursery.start_soon(_notice, waiter, pause.descriptor)
            await waiter.changed.wait()
            nursery.cancel_scope.cancel()
    waiter.changed = trio.Event()
    woken, waiter.woken = waiter.woken, False
    return woken


async def _notice(waiter: _Waiter, descriptor: int) -> None:
    await trio.lowlevel.wait_readable(descriptor)
    waiter.notice()


async def _race(race: Race) -> Any:
    """Return what the first call returns; what the others met with goes into `errors`."""
    winners: list[Any] = []
    broken: list[Exception] = []
    try:
        async with trio.open_nursery() as nursery:
            for number, call in enumerate(race.calls):
                failed = trio.Event()
                runner = _Runner(race.errors, winners, broken, nursery.cancel_scope, failed)
                nursery.start_soon(runner.run, call)
                if number < len(race.calls) - 1:
                    with trio.move_on_after(math.inf if race.delay is None else race.delay):
                        await failed.wait()
        if broken:
            raise broken[0]  # noqa: TRY301 - and nothing is left then, either
    except BaseException:
        # The winner as well, if we are cancelled while the others are called off.
        for winner in winners:
            discard(winner)
        raise
    finally:
        # Errors refer to this frame: break the cycle.
        broken.clear()
    for loser in winners[1:]:
        discard(loser)
    if winners:
        return winners[0]
    raise race.errors[-1]


class _Runner(NamedTuple):
    """One call of a race, and where it leaves what comes of it.

    Attributes:
        errors: What other calls may go on after.
        winners: Sockets; the first one is the race's.
        broken: What ends the race.
        scope: Of all calls. failed: Set when the next one is to begin.
    """

    errors: list[OSError]
    winners: list[Any]
    broken: list[Exception]
    scope: trio.CancelScope
    failed: trio.Event

    async def run(self, call: Steps[Any]) -> None:
        """Go through the call; only a cancellation is raised, or trio would make a group of it."""
        try:
            self.winners.append(await run_by(wait, call))
        except OSError as error:
            self.errors.append(error)
            self.failed.set()
            return
        except Exception as error:  # noqa: BLE001 - the race raises it
            self.broken.append(error)
        self.scope.cancel()
