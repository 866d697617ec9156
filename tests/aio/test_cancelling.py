"""Whatever is cancelled, at whichever await, leaves no descriptor and no port behind."""

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable
from typing import Any, Final

import pytest

from connectx import aio
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.aio.conftest import Run
from tests.aio.here import (
    HIGH,
    LOW,
    SILENT,
    SIZE,
    client_sockets,
    descriptors,
    names,
    silent,
)
from tests.api.calls import reset_on_close
from tests.dialer.drivers import nothing_open
from tests.kernel.raw import FIRST

#: Of each kind, on each loop: 10,000 together.
ROUNDS: Final = 625

HOSTS: Final = {
    "both": ("::1", "127.0.0.1"),
    "halves": ("::9", "127.0.0.1"),
    "refused": ("::1", "::1", "127.0.0.1"),
}


async def simply(_: aio.Dialer, port: int) -> socket.socket:
    return await aio.create_connection(("127.0.0.1", port))


async def from_a_source(_: aio.Dialer, port: int) -> socket.socket:
    return await aio.create_connection(("127.0.0.1", port), 20, ("127.0.0.2", 0))


async def to_a_black_hole(_: aio.Dialer, __: int) -> socket.socket:
    return await aio.create_connection(("127.0.0.9", SILENT))


async def by_name(_: aio.Dialer, port: int) -> socket.socket:
    return await aio.create_connection(("both", port), happy_eyeballs_delay=0)


async def past_a_black_hole(_: aio.Dialer, __: int) -> socket.socket:
    return await aio.create_connection(("halves", SILENT), happy_eyeballs_delay=0.0005)


async def past_refusals(_: aio.Dialer, __: int) -> socket.socket:
    return await aio.create_connection(("refused", 9300), happy_eyeballs_delay=0.0002)


async def by_a_dialer(dialer: aio.Dialer, port: int) -> socket.socket:
    return await dialer.create_connection(("both", port), 20, happy_eyeballs_delay=0)


async def in_line(dialer: aio.Dialer, port: int) -> socket.socket:
    """There are four places, and eight who want one."""
    return await dialer.create_connection(("127.0.0.1", port))


CALLS: Final[dict[str, Callable[[aio.Dialer, int], Any]]] = {
    call.__name__: call
    for call in (
        simply,
        from_a_source,
        to_a_black_hole,
        by_name,
        past_a_black_hole,
        past_refusals,
        by_a_dialer,
        in_line,
    )
}


@pytest.fixture
def world(network: Network, servers: Servers, closing: contextlib.ExitStack) -> None:
    network.port_range(LOW, HIGH)
    network.add_address("::9")
    for host in ("127.0.0.1", "::1"):
        servers.listen(host, FIRST)
    silent(closing, "127.0.0.9")
    silent(closing, "::9")
    servers.listen("127.0.0.1", SILENT)
    servers.listen("127.0.0.1", 9300)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_at_random_points(run: Run, world: None, call: Callable[[aio.Dialer, int], Any]) -> None:
    del world
    randomly = random.Random(7)  # noqa: S311 -- when to cancel

    async def scenario() -> None:
        dialer = aio.Dialer(limit=4, wait=60)
        before = descriptors()
        cancelled = 0
        with names(**HOSTS):
            while cancelled < ROUNDS:
                # Fewer than there are ports, since each of them may have one.
                tasks = [asyncio.ensure_future(call(dialer, FIRST)) for _ in range(SIZE)]
                for task in randomly.sample(tasks, SIZE):
                    for _ in range(randomly.randrange(6)):
                        await asyncio.sleep(0)
                    task.cancel()
                cancelled += SIZE
                for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(outcome, socket.socket):
                        # It was too late.
                        reset_on_close(outcome)
                        outcome.close()
                    else:
                        assert isinstance(outcome, asyncio.CancelledError), outcome
                # At once: nothing is left to be done in the loop's next turns.
                assert descriptors() == before
        assert client_sockets() == []
        assert dialer._policy.destinations.open_to(None) == {}
        assert nothing_open(dialer._policy)
        assert dialer.stats().waiting == 0

    run(scenario)


def test_a_second_time(run: Run, world: None) -> None:
    """While the first is still being cleared away."""
    del world

    async def scenario() -> None:
        before = descriptors()
        with names(**HOSTS):
            for turns in range(1, 40):
                task = asyncio.ensure_future(
                    aio.create_connection(("both", FIRST), happy_eyeballs_delay=0)
                )
                for _ in range(turns % 8):
                    await asyncio.sleep(0)
                task.cancel()
                for _ in range(turns % 3):
                    await asyncio.sleep(0)
                task.cancel()
                (outcome,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(outcome, socket.socket):
                    reset_on_close(outcome)
                    outcome.close()
                # The attempts may need a turn more.
                for _ in range(4):
                    await asyncio.sleep(0)
                assert descriptors() == before
        assert client_sockets() == []

    run(scenario)


def test_the_loop_ends_with_calls_under_way(run: Run, world: None) -> None:
    """The runner cancels them, and closes the loop."""
    del world
    dialers = []
    begun = []

    async def scenario() -> None:
        dialer = aio.Dialer(limit=1, wait=60)
        dialers.append(dialer)
        begun.append(asyncio.ensure_future(to_a_black_hole(dialer, 0)))
        begun.append(asyncio.ensure_future(dialer.create_connection(("127.0.0.9", SILENT))))
        begun.append(asyncio.ensure_future(dialer.create_connection(("127.0.0.9", SILENT))))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(scenario)
    assert all(task.cancelled() for task in begun)
    assert dialers[0].stats().waiting == 0
    assert client_sockets() == []
