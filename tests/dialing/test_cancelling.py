"""Calls that are cancelled, or interrupted, while they wait and while they connect."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from types import FrameType

import pytest

import connectx
from connectx.testing.namespaces import Network
from tests.dialing.drivers import (
    FOREVER,
    PORTS,
    Driver,
    Waits,
    close,
    nothing_open,
    start,
)
from tests.dialing.waiting import (
    HERE,
    both_kinds,
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
            waits = Waits()
            to = loop.dialer(wait=FOREVER, on_wait=waits)
            held = [
                closing.enter_context(await to.create_connection(HERE, type=kind)) for _ in PORTS
            ]
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
            waits = Waits()
            to = loop.dialer(wait=FOREVER, on_wait=waits)
            held = [closing.enter_context(await to.create_connection(HERE)) for _ in PORTS]
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
            assert nothing_open(to.dialing)
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
            assert nothing_open(to.dialing)

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
