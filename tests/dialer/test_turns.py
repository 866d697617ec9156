"""Whose turn it is when several calls wait for a port, and of a name with several addresses."""

import asyncio
import contextlib
import random
from typing import Any

import pytest

from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.api.calls import port_of
from tests.dialer.drivers import (
    FOREVER,
    LOW,
    PORTS,
    SIZE,
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
    silent,
)
from tests.kernel.raw import FIRST


class TestTurns:
    @pytest.mark.parametrize("limit", [None, SIZE])
    def test_first_come_first_served(
        self,
        driver: Driver,
        listening: Network,
        closing: contextlib.ExitStack,
        limit: int | None,
    ) -> None:
        del listening

        async def scenario() -> None:
            to, waits, held = await full(driver, closing, limit=limit)
            served: list[int] = []
            line = []

            async def call(number: int) -> None:
                sock = closing.enter_context(await to.create_connection(HERE))
                served.append(number)
                held.append(sock)

            for number in range(12):
                line.append(await start(call(number)))
                await waits.reach(number + 1)
            for number in range(12):
                close(held.pop(0))
                async with asyncio.timeout(FOREVER):
                    await line[number]
                # Whoever comes now goes behind those who wait, though he tries at this moment.
                assert served == list(range(number + 1))
            assert to.stats().waits == 12

        driver.run(scenario)

    def test_an_early_end_wakes_all_who_can_go(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        """Several ports at once, of which the kernel tells in one go."""
        del listening

        async def scenario() -> None:
            to, waits, held = await full(driver, closing)
            line = [await start(to.create_connection(HERE)) for _ in PORTS]
            await waits.reach(SIZE)
            for sock in held:
                close(sock)
            async with asyncio.timeout(FOREVER):
                again = [closing.enter_context(await call) for call in line]
            assert sorted(map(port_of, again)) == PORTS

        driver.run(scenario)

    @both_kinds
    def test_everyone_is_served_in_order_while_ports_come_and_go(
        self,
        driver: Driver,
        network: Network,
        servers: Servers,
        closing: contextlib.ExitStack,
        kind: int,
    ) -> None:
        """1,000 ports, of which 999 are in use nearly all the time: 99.9 %."""
        size = 1000
        network.port_range(LOW, LOW + size - 1)
        servers.listen("127.0.0.1", FIRST)

        async def scenario() -> None:
            waits = Waits()
            to = driver.dialer(wait=FOREVER, on_wait=waits)
            held = [
                closing.enter_context(await to.create_connection(HERE, type=kind))
                for _ in range(size)
            ]
            randomly = random.Random(4)  # noqa: S311 -- which one is closed
            served: list[int] = []

            async def call(number: int) -> None:
                sock = closing.enter_context(await to.create_connection(HERE, type=kind))
                served.append(number)
                held.append(sock)
                # One at a time is free, and not for long.
                close(held.pop(randomly.randrange(len(held) - 1)))

            line = []
            for number in range(60):
                line.append(await start(call(number)))
                await waits.reach(number + 1)
            close(held.pop())
            async with asyncio.timeout(FOREVER):
                await asyncio.gather(*line)
            assert served == list(range(60))
            stats = to.stats()
            assert (stats.waits, stats.waiting, stats.opened) == (60, 0, size + 60)

        driver.run(scenario)

    def test_a_slow_handshake_holds_up_nobody(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        """The port is taken with the SYN: from then on the next in line may try."""
        del listening
        address = (silent(closing), 9998)

        async def scenario() -> None:
            waits = Waits()
            to = driver.dialer(wait=FOREVER, on_wait=waits, limit=2)
            ended: list[str] = []

            async def call(name: str, timeout: float) -> None:  # noqa: ASYNC109 -- the call's own
                with pytest.raises(TimeoutError):
                    await to.create_connection(address, timeout)
                ended.append(name)

            # Long enough for the two others to get into line meanwhile, on a busy machine too.
            calls = [await start(call("first", 1.5)), await start(call("second", 1.5))]
            while (await to.capacity(address)).in_use < 2:
                pass
            calls.append(await start(call("patient", 1.0)))
            await waits.reach(1)
            calls.append(await start(call("hasty", 0.1)))
            await waits.reach(2)
            await asyncio.gather(*calls)
            assert ended[2:] == ["hasty", "patient"]
            assert nothing_open(to.policy)

        driver.run(scenario)


class TestNames:
    """Of several addresses."""

    @pytest.mark.parametrize("delay", [None, 0.0, FOREVER])
    def test_one_that_is_free_is_taken_before_another_is_waited_for(
        self,
        driver: Driver,
        listening: Network,
        closing: contextlib.ExitStack,
        delay: float | None,
    ) -> None:
        del listening
        how: dict[str, Any] = {"happy_eyeballs_delay": delay} if driver.cancels else {}

        async def scenario() -> None:
            waits = Waits()
            to = driver.dialer(limit=1, wait=FOREVER, on_wait=waits)
            with driver.names(two=("127.0.0.1", "::1")):
                first = closing.enter_context(await to.create_connection(HERE))
                async with asyncio.timeout(FOREVER / 2):
                    sock = await to.create_connection(("two", FIRST), **how)
                assert closing.enter_context(sock).getpeername()[0] == "::1"
                assert waits.keys == []
                # And when neither is, it waits.
                call = await start(to.create_connection(("two", FIRST), **how))
                await waits.reach(1)
                close(first)
                closing.enter_context(await call)

        driver.run(scenario)

    def test_without_waiting_each_is_tried_once(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening

        async def scenario() -> None:
            to = driver.dialer(limit=1)
            with driver.names(one=("127.0.0.1",)):
                closing.enter_context(await to.create_connection(HERE))
                with pytest.raises(ExceptionGroup) as caught:
                    await to.create_connection(("one", FIRST), all_errors=True)
                assert len(caught.value.exceptions) == 1

        driver.run(scenario)
