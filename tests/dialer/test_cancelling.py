"""Calls that are cancelled, or interrupted, while they wait and while they connect."""

import asyncio
import contextlib
import gc
import inspect
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from traceback import walk_stack
from types import FrameType

import pytest

import connectx
from connectx.sandbox.networks import Network
from tests.api.calls import reset_on_close
from tests.dialer.drivers import (
    FOREVER,
    LOW,
    PORTS,
    Driver,
    Waits,
    close,
    nothing_open,
    start,
)
from tests.dialer.waiting import (
    HERE,
    both_kinds,
    full,
    never_look,
    nobody_tells,
    nothing_is_kept,
    silent,
)


class TestCancelled:
    """On the loops; a blocking call is interrupted instead."""

    @both_kinds
    def test_while_it_waits(
        self, loop: Driver, listening: Network, closing: contextlib.ExitStack, kind: int
    ) -> None:
        del listening

        async def scenario() -> None:
            to, waits, held = await full(loop, closing, type=kind)
            line = []
            for number in range(5):
                line.append(await start(to.create_connection(HERE, type=kind)))
                await waits.reach(number + 1)
            # The first, one in the middle, and the last.
            for number in (0, 2, 4):
                line[number].cancel()
                with pytest.raises(asyncio.CancelledError):
                    await line[number]
            assert to.stats().waiting == 2
            for number in (1, 3):
                close(held.pop())
                held.append(closing.enter_context(await line[number]))
            for sock in held:
                close(sock)
            nothing_is_kept(to)

        loop.run(scenario)

    def test_when_it_has_just_been_woken(
        self,
        loop: Driver,
        listening: Network,
        closing: contextlib.ExitStack,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The wake-up goes on to the next in line."""
        del listening
        never_look(monkeypatch)
        nobody_tells(monkeypatch)

        async def scenario() -> None:
            to, waits, held = await full(loop, closing)
            for turns in range(6):
                first = await start(to.create_connection(HERE))
                await waits.reach(2 * turns + 1)
                second = await start(to.create_connection(HERE))
                await waits.reach(2 * turns + 2)
                close(held.pop(0))
                for _ in range(turns):
                    await asyncio.sleep(0)
                first.cancel()
                done = await asyncio.gather(first, return_exceptions=True)
                if isinstance(done[0], socket.socket):
                    # It was too late.
                    close(done[0])
                async with asyncio.timeout(FOREVER / 2):
                    held.append(closing.enter_context(await second))
            for sock in held:
                close(sock)
            nothing_is_kept(to)

        loop.run(scenario)

    def test_while_it_connects(
        self, loop: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening
        address = (silent(closing), 9998)

        async def scenario() -> None:
            to = loop.dialer()
            calls = [await start(to.create_connection(address)) for _ in range(3)]
            await asyncio.sleep(0)
            assert (await to.capacity(address)).in_use >= 3
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert nothing_open(to.policy)
            # What is left is the connection that the queue is full of.
            assert (await to.capacity(address)).in_use == 0

        loop.run(scenario)

    def test_of_a_limit_with_a_silent_server(
        self, loop: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        """Its place under the limit goes to the next in line."""
        del listening
        address = (silent(closing), 9998)

        async def scenario() -> None:
            waits = Waits()
            to = loop.dialer(limit=1, wait=FOREVER, on_wait=waits)
            calls = [await start(to.create_connection(address)) for _ in range(4)]
            await waits.reach(3)
            for number, call in enumerate(calls, start=1):
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                assert to.stats().waiting <= 4 - number
            assert nothing_open(to.policy)

        loop.run(scenario)

    def test_a_blocking_call_that_a_signal_interrupts(
        self,
        listening: Network,
        closing: contextlib.ExitStack,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        del listening
        never_look(monkeypatch)
        to = connectx.Dialer(
            wait=FOREVER, on_wait=lambda _: signal.setitimer(signal.ITIMER_REAL, 0.05)
        )
        held = [closing.enter_context(to.create_connection(HERE)) for _ in PORTS]
        with alarm_raises():
            for _ in range(3):
                with pytest.raises(Alarm):
                    to.create_connection(HERE)
        assert to.stats().waiting == 0
        close(held[0])
        closing.enter_context(to.create_connection(HERE))


class Interrupt:
    """A profile function that raises KeyboardInterrupt at one of the moments when a signal could.

    CPython calls signal handlers when a Python function begins, when a C function has
    returned, and at backward jumps; a profile function hears of the first two.

    number: which of the moments. raised: whether it came to that; where: what was called
    then, the innermost function first. swallowed: whether it
    happened in a finalizer, where the interpreter only prints it.
    """

    def __init__(self, number: int) -> None:
        self.raised = self.swallowed = False
        self.where: list[str] = []
        self._left = number

    def __call__(self, frame: FrameType, event: str, function: object) -> None:
        # Between the making of a descriptor and its owner a signal always is too early.
        if event not in ("call", "c_return") or function in (os.open, os.eventfd, sys.setprofile):
            return
        if event == "call" and frame.f_code.co_flags & inspect.CO_GENERATOR:
            # What is raised now ends a generator without its `finally`, as no signal does.
            return
        if not any("/connectx/" in at.f_code.co_filename for at, _ in walk_stack(frame)):
            return
        self._left -= 1
        if not self._left:
            self.raised = True
            self.where = [
                f"{at.f_code.co_qualname}, line {at.f_lineno}" for at, _ in walk_stack(frame)
            ]
            raise KeyboardInterrupt

    def noticed(self, _: object) -> None:
        """As sys.unraisablehook."""
        self.swallowed = True


@contextlib.contextmanager
def interrupted(at: Interrupt) -> Iterator[None]:
    """Have it raise, in what is done within."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", at.noticed)
        sys.setprofile(at)
        try:
            yield
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)


# What is interrupted before it is anybody's to close is closed by its finalizer, which says so.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@both_kinds
class TestInterrupted:
    """At every moment at which a signal may come: no place stays counted, nobody in line."""

    @pytest.fixture(autouse=True)
    def _ports(self, listening: Network) -> None:
        """Some connections are opened before the interrupt, and leave a TIME_WAIT."""
        listening.port_range(LOW, LOW + 999)

    @pytest.mark.parametrize("sources", [None, ["127.0.0.2", "127.0.0.3"]], ids=["any", "two"])
    @pytest.mark.parametrize("known", [False, True])
    def test_while_it_connects(self, kind: int, sources: list[str] | None, *, known: bool) -> None:
        def dialer() -> connectx.Dialer:
            to = connectx.Dialer(sources)
            if known:
                reset(to.create_connection(HERE, type=kind))
            return to

        def connect(to: connectx.Dialer) -> None:
            reset(to.create_connection(HERE, type=kind))

        assert self.at_every_moment(dialer, connect) > 10

    def test_while_it_connects_a_socket_made_elsewhere(
        self, kind: int, closing: contextlib.ExitStack
    ) -> None:
        def connect(to: connectx.Dialer) -> None:
            with socket.socket(type=kind) as sock:
                closing.callback(sock.close)
                to.connectx(sock, HERE)

        assert self.at_every_moment(connectx.Dialer, connect) > 10

    def test_when_its_turn_has_come(self, closing: contextlib.ExitStack, kind: int) -> None:
        """It waits, since a limit is reached; the moment it waits, somebody closes."""
        held: list[socket.socket] = []

        def dialer() -> connectx.Dialer:
            to = connectx.Dialer(limit=1, wait=FOREVER, on_wait=lambda _: close(held[-1]))
            held.append(closing.enter_context(to.create_connection(HERE, type=kind)))
            return to

        def connect(to: connectx.Dialer) -> None:
            reset(to.create_connection(HERE, type=kind))

        assert self.at_every_moment(dialer, connect, held) > 20

    @staticmethod
    def at_every_moment(
        dialer: Callable[[], connectx.Dialer],
        connect: Callable[[connectx.Dialer], None],
        held: Sequence[socket.socket] = (),
    ) -> int:
        """How many moments there were; held: what is to be closed after each."""
        number = 0
        while True:
            number += 1
            to = dialer()
            at = Interrupt(number)
            with interrupted(at):
                connect(to)
            if not at.raised:
                return number
            for sock in held:
                sock.close()
            gc.collect()
            if at.swallowed:
                continue
            to._policy.unreported.sweep(1000)
            assert nothing_open(to._policy), at.where
            assert to.stats().waiting == 0


def reset(sock: socket.socket) -> None:
    """Close a connection, without a TIME_WAIT."""
    with sock:
        if sock.type == socket.SOCK_STREAM:
            reset_on_close(sock)


class Alarm(Exception):  # noqa: N818 -- as KeyboardInterrupt is none
    pass


@contextlib.contextmanager
def alarm_raises() -> Iterator[None]:
    def interrupt(_: int, __: FrameType | None) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
