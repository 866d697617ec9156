"""connectx.aio under trio: it waits there without a thread, and leaves nothing behind."""

import contextlib
import math
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from connectx import PortsExhausted, aio
from connectx._dial import connecting, endings
from connectx.sandbox.servers import Servers
from tests import limits
from tests.aio.here import PORTS, SILENT, SIZE, client_sockets, descriptors, silent
from tests.api.calls import port_of, reset_on_close
from tests.dialer.drivers import nothing_open
from tests.dialer.waiting import both_kinds, never_look, nobody_tells
from tests.kernel.raw import FIRST

HERE = ("127.0.0.1", FIRST)
SOURCE = ("127.0.0.2", 0)

pytestmark = pytest.mark.usefixtures("serving", "trio_threads")


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario to its end, if that comes in time."""

    async def limited() -> None:
        with trio.fail_after(limits.LIMIT):
            await scenario()

    trio.run(limited)


class Resolver(trio.abc.HostnameResolver):
    """Gives a name some addresses."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        family: int = 0,
        type: int = 0,  # noqa: A002 -- as in trio
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        del host, family, proto, flags
        await trio.lowlevel.checkpoint()
        return [
            (version, type, 0, "", (address, port, 0, 0)[:length])
            for address in self._addresses
            for version, length in [
                (socket.AF_INET6, 4) if ":" in address else (socket.AF_INET, 2),
            ]
        ]

    async def getnameinfo(self, *_: Any) -> Any:
        raise NotImplementedError


@both_kinds
def test_opens_every_connection_there_is(kind: socket.SocketKind) -> None:
    async def scenario() -> None:
        with contextlib.ExitStack() as stack:
            ports = set()
            for _ in PORTS:
                sock = await aio.create_connection(HERE, source_address=SOURCE, type=kind)
                stack.enter_context(sock)
                assert not sock.getblocking()
                ports.add(port_of(sock))
            assert ports == set(PORTS)
            with pytest.raises(PortsExhausted):
                await aio.create_connection(HERE, source_address=SOURCE, type=kind)

    run(scenario)


def test_a_sockets_end_is_noticed_though_trio_has_a_plain_one() -> None:
    async def scenario() -> None:
        dialer = aio.Dialer(["127.0.0.2"], limit=1, wait=limits.LIMIT)
        sock = await dialer.create_connection(HERE)
        plain = trio.socket.from_stdlib_socket(socket.socket(fileno=sock.detach()))
        async with trio.SocketStream(plain):
            assert plain.getsockname()[1] in PORTS
        (await dialer.create_connection(HERE)).close()
        assert nothing_open(dialer._policy)

    run(scenario)


def test_connects_a_callers_socket() -> None:
    async def scenario() -> None:
        dialer = aio.Dialer(["127.0.0.2"])
        with socket.socket() as sock:
            sock.settimeout(0)
            await dialer.connectx(sock, HERE)
            assert sock.getsockname()[0] == "127.0.0.2"
            assert sock.getpeername() == HERE

    run(scenario)


@both_kinds
def test_a_waiting_call_is_woken_by_the_dialers_own_end(
    monkeypatch: pytest.MonkeyPatch, kind: socket.SocketKind
) -> None:
    never_look(monkeypatch)
    nobody_tells(monkeypatch)

    async def scenario() -> None:
        waiting = trio.Event()
        dialer = aio.Dialer(
            ["127.0.0.2"], limit=1, wait=limits.LIMIT, on_wait=lambda _: waiting.set()
        )
        first = await dialer.create_connection(HERE, type=kind)
        reset_on_close(first)

        async def second() -> None:
            (await dialer.create_connection(HERE, type=kind)).close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(second)
            await waiting.wait()
            first.close()
        assert dialer.stats().waits == 1
        assert nothing_open(dialer._policy)

    run(scenario)


@both_kinds
def test_a_waiting_call_hears_of_others_ends(
    monkeypatch: pytest.MonkeyPatch, kind: socket.SocketKind
) -> None:
    never_look(monkeypatch)

    async def scenario() -> None:
        listening = trio.Event()

        def listen(*arguments: Any) -> Any:
            noticing = endings.listen(*arguments)
            listening.set()
            return noticing

        monkeypatch.setattr(connecting, "listen", listen)
        dialer = aio.Dialer(["127.0.0.2"], wait=limits.LIMIT)
        with contextlib.ExitStack() as stack:
            others = [
                stack.enter_context(
                    await aio.create_connection(HERE, source_address=SOURCE, type=kind)
                )
                for _ in PORTS
            ]
            reset_on_close(others[0])
            port = port_of(others[0])

            async def call() -> None:
                with await dialer.create_connection(HERE, type=kind) as sock:
                    assert port_of(sock) == port

            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await listening.wait()
                others[0].close()
        assert nothing_open(dialer._policy)

    run(scenario)


@pytest.mark.parametrize("wrong", [-1, math.nan, "soon"])
def test_what_is_no_timeout(wrong: Any) -> None:
    async def scenario() -> None:
        before = descriptors()
        trio.socket.set_custom_hostname_resolver(Resolver("127.0.0.1", "::1"))
        dialer = aio.Dialer()
        for host in ("127.0.0.1", "there"):
            for call in (aio.create_connection, dialer.create_connection):
                with pytest.raises((ValueError, TypeError)):
                    await call((host, FIRST), wrong)
        assert descriptors() == before
        assert client_sockets() == []
        assert nothing_open(dialer._policy)

    run(scenario)


def test_gives_up_when_the_time_to_wait_is_over() -> None:
    async def scenario() -> None:
        dialer = aio.Dialer(["127.0.0.2"], limit=1, wait=0.05)
        with await dialer.create_connection(HERE), pytest.raises(PortsExhausted):
            await dialer.create_connection(HERE)
        assert nothing_open(dialer._policy)

    run(scenario)


@pytest.mark.parametrize("by", ["timeout", "cancel"])
def test_a_handshake_that_nobody_answers(closing: contextlib.ExitStack, by: str) -> None:
    address = (silent(closing, "127.0.0.9"), SILENT)

    async def scenario() -> None:
        before = descriptors()
        dialer = aio.Dialer(["127.0.0.2"])
        if by == "timeout":
            with pytest.raises(TimeoutError):
                await dialer.create_connection(address, 0.01)
        else:
            with trio.move_on_after(0.01) as scope:
                await dialer.create_connection(address)
            assert scope.cancelled_caught
        assert descriptors() == before
        assert client_sockets() == []
        assert nothing_open(dialer._policy)

    run(scenario)


def test_a_cancelled_call_lets_the_next_one_have_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    never_look(monkeypatch)

    async def scenario() -> None:
        waiting = [trio.Event(), trio.Event()]
        begun = iter(waiting)
        dialer = aio.Dialer(
            ["127.0.0.2"], limit=1, wait=limits.LIMIT, on_wait=lambda _: next(begun).set()
        )
        first = await dialer.create_connection(HERE)
        reset_on_close(first)
        scope = trio.CancelScope()
        got = []

        async def cancelled() -> None:
            with scope:
                await dialer.create_connection(HERE)

        async def patient() -> None:
            got.append(await dialer.create_connection(HERE))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancelled)
            await waiting[0].wait()
            nursery.start_soon(patient)
            await waiting[1].wait()
            scope.cancel()
            first.close()
        got.pop().close()
        assert scope.cancelled_caught
        assert nothing_open(dialer._policy)

    run(scenario)


@pytest.mark.parametrize("delay", [None, 0.001, limits.LIMIT])
def test_goes_on_to_the_next_address_of_a_name(delay: float | None) -> None:
    async def scenario() -> None:
        # Nobody listens on the first one.
        trio.socket.set_custom_hostname_resolver(Resolver("127.0.0.1", "::1"))
        for call in (aio.create_connection, aio.Dialer().create_connection):
            with await call(("both", 9300), happy_eyeballs_delay=delay) as sock:
                assert sock.getpeername()[:2] == ("::1", 9300)
                reset_on_close(sock)
        assert client_sockets() == []

    run(scenario)


@pytest.fixture(autouse=True)
def _only_over_ipv6(servers: Servers) -> None:
    servers.listen("::1", 9300)


def test_a_name_whose_first_address_does_not_answer(closing: contextlib.ExitStack) -> None:
    hole = silent(closing, "127.0.0.9")

    async def scenario() -> None:
        before = descriptors()
        trio.socket.set_custom_hostname_resolver(Resolver(hole, "::1"))
        with await aio.create_connection(("halves", SILENT), happy_eyeballs_delay=0.001) as sock:
            assert sock.getpeername()[:2] == ("::1", SILENT)
            reset_on_close(sock)
        assert descriptors() == before
        assert client_sockets() == []

    with socket.create_server(("::1", SILENT), family=socket.AF_INET6):
        run(scenario)


async def cancelled_after(steps: int, call: Callable[[], Awaitable[socket.socket]]) -> None:
    """Make a call and cancel it after so many steps of trio's."""

    async def cancel() -> None:
        for _ in range(steps):
            await trio.lowlevel.cancel_shielded_checkpoint()
        scope.cancel()

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel)
            sock = await call()
            reset_on_close(sock)
            sock.close()


@both_kinds
@pytest.mark.parametrize("delay", [None, 0])
@pytest.mark.parametrize("own_dialer", [False, True])
def test_a_call_to_a_name_that_is_cancelled_leaves_nothing(
    kind: socket.SocketKind, delay: float | None, *, own_dialer: bool
) -> None:
    async def scenario() -> None:
        trio.socket.set_custom_hostname_resolver(Resolver("127.0.0.1", "::1"))
        dialer = aio.Dialer()
        before = descriptors()

        async def call() -> socket.socket:
            function = dialer.create_connection if own_dialer else aio.create_connection
            return await function(("both", FIRST), type=kind, happy_eyeballs_delay=delay)

        for steps in range(12):
            # Which of the tasks goes first, trio draws.
            for _ in range(8):
                await cancelled_after(steps, call)
                assert client_sockets() == []
        assert descriptors() == before
        assert nothing_open(dialer._policy)

    run(scenario)


def test_an_error_of_a_call_to_a_name_is_no_group() -> None:
    class OutOfOrderError(Exception):
        pass

    def complain(_: object) -> None:
        raise OutOfOrderError

    async def scenario() -> None:
        trio.socket.set_custom_hostname_resolver(Resolver("127.0.0.1", "::1"))
        dialer = aio.Dialer(limit=1, wait=limits.LIMIT, on_wait=complain)
        with (
            await dialer.create_connection(HERE) as one,
            await dialer.create_connection(("::1", FIRST)) as other,
        ):
            reset_on_close(one)
            reset_on_close(other)
            with pytest.raises(OutOfOrderError):
                await dialer.create_connection(("both", FIRST))
        assert nothing_open(dialer._policy)

    run(scenario)


def test_without_threads_others_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_thread(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("connectx._dial.slots.WORTH_COUNTING", 4)
    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)

    async def scenario() -> None:
        dialer = aio.Dialer(["127.0.0.2", "127.0.0.3"])
        with contextlib.ExitStack() as stack:
            for _ in PORTS:
                stack.enter_context(await dialer.create_connection(HERE))

    run(scenario)


def test_a_full_range_is_shared_by_many_tasks() -> None:
    """Eight ports and forty who want one, each for a moment."""

    async def scenario() -> None:
        dialer = aio.Dialer(["127.0.0.2"], wait=limits.LIMIT)
        open_now = 0
        most = 0

        async def one() -> None:
            nonlocal open_now, most
            sock = await dialer.create_connection(HERE)
            reset_on_close(sock)
            open_now += 1
            most = max(most, open_now)
            await trio.lowlevel.checkpoint()
            open_now -= 1
            sock.close()

        async with trio.open_nursery() as nursery:
            for _ in range(5 * SIZE):
                nursery.start_soon(one)
        assert 1 <= most <= SIZE
        assert dialer.stats().opened == 5 * SIZE
        assert nothing_open(dialer._policy)

    run(scenario)
