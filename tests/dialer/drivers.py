"""One suite for the blocking Dialer and the awaiting one: the tests await either.

A scenario is a coroutine function, run by `Driver.run`. Where the dialer blocks, each
call runs in a thread of its own, started in the test's thread, hence in its namespace.
"""

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Final, Protocol, TypeVar, cast

import pytest
import uvloop

import connectx
from connectx import aio
from connectx._dial.capacity import Capacity
from connectx._dial.policy import Policy, Stats
from connectx.addresses import Address
from tests import limits
from tests.api.calls import port_of, reset_on_close
from tests.kernel.raw import MPTCP, MPTCP6, TCP, TCP6, UDP, UDP6, UDPLITE, UDPLITE6, Transport

T = TypeVar("T")

#: The range of most tests here.
LOW, HIGH = 20001, 20008
SIZE: Final = HIGH - LOW + 1
PORTS: Final = list(range(LOW, HIGH + 1))

#: For what must not take long, if it does: a wait that nobody ends.
FOREVER: Final = limits.LIMIT


def nothing_open(policy: Policy) -> bool:
    """Whether a dialer has nothing open, nobody waits, and its counts say so."""
    return not any(
        known.slots or known.queues or known.open for known in policy.destinations.everything()
    )


class AnyDialer(Protocol):
    """connectx.Dialer or connectx.aio.Dialer, to be awaited."""

    async def create_connection(self, address: Any, *args: Any, **keywords: Any) -> socket.socket:
        """As theirs."""

    async def capacity(self, address: Address, **keywords: Any) -> Capacity:
        """As theirs."""

    def stats(self) -> Stats:
        """As theirs."""

    @property
    def policy(self) -> Policy:
        """What is inside."""


class BlockingDialer:
    """connectx.Dialer."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self.plain = connectx.Dialer(*args, **keywords)
        self.policy = self.plain._policy

    async def create_connection(self, address: Any, *args: Any, **keywords: Any) -> socket.socket:
        return await in_thread(partial(self.plain.create_connection, address, *args, **keywords))

    async def capacity(self, address: Address, **keywords: Any) -> Capacity:
        return await in_thread(partial(self.plain.capacity, address, **keywords))

    def stats(self) -> Stats:
        return self.plain.stats()


class AwaitingDialer(aio.Dialer):
    """connectx.aio.Dialer."""

    @property
    def policy(self) -> Policy:
        return self._policy


class Driver:
    """The blocking dialer, or the awaiting one on one of the loops.

    cancels: whether a call can be cancelled.
    """

    def __init__(
        self,
        name: str,
        kind: type[BlockingDialer | AwaitingDialer],
        loop: Callable[[], asyncio.AbstractEventLoop],
    ) -> None:
        self.name = name
        self.cancels = kind is AwaitingDialer
        self._kind = kind
        self._loop = loop

    def dialer(self, *args: Any, **keywords: Any) -> AnyDialer:
        return cast("AnyDialer", self._kind(*args, **keywords))

    def run(self, scenario: Callable[[], Coroutine[Any, Any, T]]) -> T:
        with asyncio.Runner(loop_factory=self._loop) as runner:
            return runner.run(limits.ended(scenario))

    @contextlib.contextmanager
    def names(self, **hosts: tuple[str, ...]) -> Iterator[None]:
        """Have names with these addresses, inside of a scenario."""
        loop = asyncio.get_running_loop()

        def known(host: Any, port: Any, *_: Any, **keywords: Any) -> list[Any]:
            return [
                (
                    socket.AF_INET6 if ":" in address else socket.AF_INET,
                    keywords.get("type", 0),
                    0,
                    "",
                    (address, port, 0, 0) if ":" in address else (address, port),
                )
                for address in hosts[host]
            ]

        async def awaited(*args: Any, **keywords: Any) -> list[Any]:
            await asyncio.sleep(0)
            return known(*args, **keywords)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket, "getaddrinfo", known)
            # uvloop has a resolver of its own.
            patch.setattr(loop, "getaddrinfo", awaited, raising=False)
            yield


DRIVERS: Final = {
    driver.name: driver
    for driver in (
        Driver("blocking", BlockingDialer, asyncio.new_event_loop),
        Driver("asyncio", AwaitingDialer, asyncio.new_event_loop),
        Driver("uvloop", AwaitingDialer, uvloop.new_event_loop),
    )
}

LOOPS: Final = {name: driver for name, driver in DRIVERS.items() if driver.cancels}


async def in_thread(work: Callable[[], T]) -> T:
    """What a function returns or raises in a new thread."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 -- handed on
            tell(partial(outcome.set_exception, error))
        else:
            tell(partial(outcome.set_result, result))

    def tell(what: Callable[[], None]) -> None:
        loop.call_soon_threadsafe(lambda: None if outcome.done() else what())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        return await outcome
    finally:
        # Its netlink sockets end with it.
        limits.join(thread)


class Waits:
    """Counts calls that wait: to be a dialer's `on_wait`."""

    def __init__(self) -> None:
        self.keys: list[Any] = []
        self._loop = asyncio.get_running_loop()
        self._more = asyncio.Event()

    def __call__(self, key: Any) -> None:
        self.keys.append(key)
        self._loop.call_soon_threadsafe(self._more.set)

    async def reach(self, count: int) -> None:
        """Return when so many calls have begun to wait."""
        while len(self.keys) < count:
            self._more.clear()
            async with asyncio.timeout(FOREVER):
                await self._more.wait()


async def start(call: Awaitable[T]) -> "asyncio.Task[T]":
    """Begin a call."""

    async def run() -> T:
        return await call

    task = asyncio.get_running_loop().create_task(run())
    await asyncio.sleep(0)
    return task


async def fill(
    dialer: AnyDialer, address: Address, stack: contextlib.ExitStack, **keywords: Any
) -> list[socket.socket]:
    """Connect until there is no port left."""
    opened: list[socket.socket] = []
    while len(opened) < 200:
        try:
            sock = await dialer.create_connection(address, **keywords)
        except connectx.PortsExhausted:
            return opened
        opened.append(stack.enter_context(sock))
    raise AssertionError("still not exhausted")


def by_source(socks: list[socket.socket]) -> dict[str, int]:
    """How many connections there are from each source address."""
    return dict(Counter(sock.getsockname()[0] for sock in socks))


def four_tuples(socks: list[socket.socket]) -> set[Any]:
    return {(sock.getsockname(), sock.getpeername()) for sock in socks}


def close(sock: socket.socket) -> int:
    """Close a connection so that its port is free at once; returns the port."""
    port = port_of(sock)
    if sock.type == socket.SOCK_STREAM:
        reset_on_close(sock)
    sock.close()
    return port


every_transport = pytest.mark.parametrize(
    "transport", [TCP, TCP6, MPTCP, MPTCP6, UDP, UDP6, UDPLITE, UDPLITE6], ids=str
)


def kind_of(transport: Transport) -> dict[str, Any]:
    default = transport.protocol in {socket.IPPROTO_TCP, socket.IPPROTO_UDP}
    return {"type": transport.type, "proto": 0 if default else transport.protocol}
