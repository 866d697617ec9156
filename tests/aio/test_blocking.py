"""Nothing of connectx.aio blocks the loop."""

import asyncio
import contextlib
import socket

import pytest

from connectx import PortsExhausted, aio
from connectx.sandbox.networks import Network
from tests import limits
from tests.aio.blocking_calls import blocking_calls, plant
from tests.aio.conftest import Run
from tests.aio.here import PORTS, SILENT, names, silent
from tests.api.calls import reset_on_close
from tests.kernel.raw import FIRST

HERE = ("127.0.0.1", FIRST)


@pytest.mark.parametrize("kind", ["sleep", "poll", "getaddrinfo", "open", "connect"])
def test_a_planted_call_is_noticed(run: Run, network: Network, kind: str) -> None:
    del network

    async def scenario() -> list[str]:
        with blocking_calls() as found:
            await asyncio.sleep(0)
            plant(kind)
        return found

    (call,) = run(scenario)
    assert kind in call


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
@pytest.mark.parametrize("by", ["create_connection", "Dialer"])
def test_no_call_blocks(
    run: Run, serving: Network, closing: contextlib.ExitStack, by: str, kind: int
) -> None:
    """By address and by name, to the last port, beyond it, and waiting for one."""
    del serving

    async def scenario() -> list[str]:
        waiting = asyncio.Event()
        to = aio.Dialer(["127.0.0.2", "::1"], wait=20, on_wait=lambda _: waiting.set())
        eager = aio.Dialer(["127.0.0.2", "::1"])
        call = aio.create_connection if by == "create_connection" else eager.create_connection
        with names(both=("127.0.0.1", "::1"), one=("127.0.0.1",)), blocking_calls() as found:
            opened = [
                closing.enter_context(await call((host, FIRST), type=kind))
                for host in ("127.0.0.1", "::1", "both", "one")
            ]
            with contextlib.suppress(PortsExhausted):
                while len(opened) < 4 * len(PORTS):
                    opened += [closing.enter_context(await call(HERE, type=kind))]
            assert len(opened) < 4 * len(PORTS)
            await to.capacity(HERE, type=kind)
            for _ in PORTS:
                with contextlib.suppress(PortsExhausted):
                    opened.append(
                        closing.enter_context(await eager.create_connection(HERE, type=kind))
                    )
            waits = asyncio.ensure_future(to.create_connection(HERE, type=kind))
            await waiting.wait()
            # Until it has looked by itself.
            while to.stats().attempts < 3:  # noqa: ASYNC110 -- nothing tells
                await asyncio.sleep(0)
            if kind == socket.SOCK_STREAM:
                reset_on_close(opened[-1])
            opened[-1].close()
            async with asyncio.timeout(limits.LIMIT):
                closing.enter_context(await waits)
        return found

    assert run(scenario) == []


def test_other_tasks_go_on_while_a_call_waits_for_a_handshake(
    run: Run, serving: Network, closing: contextlib.ExitStack
) -> None:
    del serving
    host = silent(closing, "127.0.0.9")

    async def scenario() -> None:
        calls = [
            asyncio.ensure_future(aio.create_connection((host, SILENT), 0.5)) for _ in range(3)
        ]
        turns = 0
        while not all(call.done() for call in calls):
            turns += 1
            await asyncio.sleep(0)
        assert turns > 10
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [TimeoutError] * 3

    run(scenario)
