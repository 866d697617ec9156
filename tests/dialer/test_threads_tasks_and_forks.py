"""One dialer for many threads, many tasks, and a forked child."""

import asyncio
import contextlib
import os
import random
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import uvloop

from connectx import Dialer, PortsExhausted, aio
from connectx._dial.slots import WORTH_COUNTING
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import limited_descriptors, port_of, reset_on_close
from tests.api.test_concurrency import in_child, quick_switches
from tests.dialer.drivers import (
    DRIVERS,
    FOREVER,
    LOW,
    SIZE,
    Driver,
    Waits,
    close,
    four_tuples,
    nothing_open,
    start,
)
from tests.dialer.waiting import both_kinds, never_look, nobody_tells
from tests.kernel.raw import FIRST

HERE = ("127.0.0.1", FIRST)
SOURCES = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_task_of_a_closed_loop_is_in_nobodys_way(
    network: Network,
    servers: Servers,
    monkeypatch: pytest.MonkeyPatch,
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    nobody_tells(monkeypatch)
    never_look(monkeypatch)
    network.port_range(LOW, LOW + 7)
    servers.listen("127.0.0.1", FIRST)
    left = loop()

    async def begin() -> tuple[Dialer, socket.socket, asyncio.Task[socket.socket]]:
        waits = Waits()
        to = Dialer(limit=1, wait=FOREVER, on_wait=waits)
        held = to.create_connection(HERE)
        task = asyncio.create_task(aio.Dialer(to).create_connection(HERE))
        await waits.reach(1)
        return to, held, task

    to, held, task = left.run_until_complete(begin())
    left.close()
    reset_on_close(held)
    held.close()
    to.create_connection(HERE).close()
    assert to.stats().waiting == 0
    # Its coroutine ends with it, and there is no loop to say so to.
    cast("Any", task)._log_destroy_pending = False
    del task


@both_kinds
@pytest.mark.parametrize("own", [True, False], ids=["own socket", "caller's socket"])
def test_the_last_descriptor_is_a_connections(
    network: Network, servers: Servers, closing: contextlib.ExitStack, kind: int, *, own: bool
) -> None:
    """Also when it is time to count others' connections: with the 32nd one."""
    # So many that no port is drawn that has a connection: to try another one takes a descriptor.
    network.port_range(LOW, LOW + 29_999)
    servers.listen("127.0.0.1", FIRST)
    to = Dialer(SOURCES)
    # Modules are files as well, which the first calls load.
    to.connectx(closing.enter_context(socket.socket(type=kind)), HERE)
    for _ in range(WORTH_COUNTING - 2):
        closing.enter_context(to.create_connection(HERE, type=kind))
    if own:
        with limited_descriptors(1):
            closing.enter_context(to.create_connection(HERE, type=kind))
    else:
        sock = closing.enter_context(socket.socket(type=kind))
        with limited_descriptors(0):
            to.connectx(sock, HERE)
    counted = to._policy.destinations.everything()
    assert [len(each.slots) for each in counted] == [WORTH_COUNTING]


@both_kinds
def test_threads_fill_all_sources_together(
    network: Network, servers: Servers, closing: contextlib.ExitStack, kind: int
) -> None:
    network.port_range(LOW, LOW + 63)
    servers.listen("127.0.0.1", FIRST)
    to = Dialer(SOURCES)
    begin = threading.Barrier(8)

    def fill(_: int) -> list[socket.socket]:
        begin.wait(limits.LIMIT)
        opened = []
        while True:
            try:
                opened.append(closing.enter_context(to.create_connection(HERE, type=kind)))
            except PortsExhausted:
                return opened

    with quick_switches(), ThreadPoolExecutor(8) as pool:
        found = [sock for some in pool.map(fill, range(8)) for sock in some]
    assert len(found) == len(four_tuples(found)) == 3 * 64
    counted = to._policy.destinations.open_to(
        ("tcp" if kind == socket.SOCK_STREAM else "udp", _key())
    )
    assert counted == dict.fromkeys(SOURCES, 64)
    assert to.stats().opened == 3 * 64


@both_kinds
def test_threads_come_and_go_under_a_limit(network: Network, servers: Servers, kind: int) -> None:
    """Never more than so many, nobody goes without, and nothing is left in the books."""
    network.port_range(LOW, LOW + 63)
    servers.listen("127.0.0.1", FIRST)
    to = Dialer(SOURCES, limit=5, wait=FOREVER * 10)
    inside = threading.Semaphore(5)

    def churn(_: int) -> int:
        for _ in range(25):
            with to.create_connection(HERE, type=kind) as sock:
                assert inside.acquire(blocking=False)
                if kind == socket.SOCK_STREAM:
                    reset_on_close(sock)
                inside.release()
        return 25

    with quick_switches(), ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(churn, range(12))) == 300
    assert to.stats()[:2] == (300, 300)
    assert to.stats().waiting == 0
    assert to._policy.destinations.open_to(None) == {}
    assert nothing_open(to._policy)


def test_tasks_come_and_go_while_some_are_cancelled(loop: Driver, listening: Network) -> None:
    del listening
    randomly = random.Random(3)  # noqa: S311 -- who is cancelled

    async def scenario() -> None:
        to = loop.dialer(limit=3, wait=FOREVER * 10)
        inside = 0

        async def visit() -> None:
            nonlocal inside
            with await to.create_connection(HERE) as sock:
                inside += 1
                assert inside <= 3
                for _ in range(randomly.randrange(4)):
                    await asyncio.sleep(0)
                inside -= 1
                reset_on_close(sock)

        async def guarded() -> None:
            nonlocal inside
            before = inside
            try:
                await visit()
            except asyncio.CancelledError:
                del before
                raise

        tasks = [asyncio.ensure_future(guarded()) for _ in range(300)]
        for task in randomly.sample(tasks, 100):
            await asyncio.sleep(0)
            if to.stats().waiting > 150:
                # Of those who wait, so that nobody is inside.
                tasks[-1 - randomly.randrange(100)].cancel()
            del task
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(
            outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes
        )
        assert to.stats().waiting == 0
        assert to.policy.destinations.open_to(None) == {}
        assert nothing_open(to.policy)

    loop.run(scenario)


def test_a_child_starts_clean(driver: Driver, listening: Network) -> None:
    """It owns none of the connections, so they count for its parent alone."""
    del listening

    async def scenario() -> None:
        waits = Waits()
        to = driver.dialer(limit=2, wait=FOREVER, on_wait=waits)
        held = [await to.create_connection(HERE) for _ in range(2)]
        call = await start(to.create_connection(HERE))
        await waits.reach(1)

        def look() -> list[int]:
            plain = Dialer()
            plain._policy = to.policy
            before = to.stats()
            assert before.waiting == 0
            with plain.create_connection(HERE) as sock:
                reset_on_close(sock)
            # What it has inherited is none of its own; it can be closed all the same.
            for sock in held:
                sock.close()
            assert to.policy.destinations.open_to(None) == {}
            assert nothing_open(to.policy)
            return [before.attempts, before.waits, to.stats().opened]

        assert in_child(look) == [0, 0, 1]
        # And nothing has changed for the parent.
        assert not call.done()
        stats = to.stats()
        assert (stats.opened, stats.waiting) == (2, 1)
        freed = close(held[0])
        async with asyncio.timeout(FOREVER / 2):
            again = await call
        assert port_of(again) in range(LOW, LOW + SIZE)
        assert freed in range(LOW, LOW + SIZE)
        for sock in (held[1], again):
            close(sock)

    driver.run(scenario)


def test_threads_of_a_child_begin_at_once() -> None:
    """The same counts for all of them, though each finds none."""
    to = Dialer(limit=2)._policy

    def look() -> list[int]:
        meet = threading.Barrier(2)
        begin = to._begin

        def together() -> Any:
            meet.wait(FOREVER)
            return begin()

        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
            patch.setattr(to, "_begin", together)
            first, second = pool.map(lambda _: to.destinations, range(2))
        return [first is second, first is to.destinations]

    assert in_child(look) == [True, True]


def test_a_child_that_closes_what_it_has_inherited_wakes_nobody(
    listening: Network, closing: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptors that a thread is woken by are its parent's as well."""
    del listening
    never_look(monkeypatch)
    nobody_tells(monkeypatch)
    read = os.eventfd_read
    woken: list[int] = []

    def counted(descriptor: int) -> int:
        woken.append(descriptor)
        return read(descriptor)

    monkeypatch.setattr(os, "eventfd_read", counted)
    driver = DRIVERS["blocking"]

    async def scenario() -> None:
        waits = Waits()
        to = driver.dialer(limit=2, wait=FOREVER, on_wait=waits)
        held = [closing.enter_context(await to.create_connection(HERE)) for _ in range(2)]
        call = await start(to.create_connection(HERE))
        await waits.reach(1)

        def close_them() -> int:
            for sock in held:
                sock.close()
            return 0

        for _ in range(3):
            assert in_child(close_them) == 0
        close(held[0])
        closing.enter_context(await call)
        assert len(woken) == 1

    driver.run(scenario)


def _key() -> tuple[str, int, int, int]:
    return ("127.0.0.1", FIRST, 0, 0)
