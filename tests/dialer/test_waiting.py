"""What a call does when there is no port, or no place under the limit: it waits its turn."""

import asyncio
import contextlib
import errno
import gc
import os
import socket
import time
import weakref
from typing import Any

import pytest

import connectx
from connectx import PortsExhausted, aio
from connectx.addresses import Endpoint
from connectx.sandbox.networks import Network
from tests.api.calls import port_of
from tests.dialer.drivers import (
    FOREVER,
    PORTS,
    SIZE,
    Driver,
    Waits,
    close,
    fill,
    start,
)
from tests.dialer.waiting import (
    HERE,
    both_kinds,
    full,
    listeners,
    never_look,
    nobody_tells,
    silent,
)
from tests.kernel.raw import FIRST


class TestWoken:
    @pytest.mark.parametrize("limit", [None, 2])
    @both_kinds
    def test_by_a_close_of_its_own_at_once(
        self,
        driver: Driver,
        listening: Network,
        closing: contextlib.ExitStack,
        monkeypatch: pytest.MonkeyPatch,
        kind: int,
        limit: int | None,
    ) -> None:
        del listening
        nobody_tells(monkeypatch)
        never_look(monkeypatch)

        async def scenario() -> None:
            to, waits, opened = await full(driver, closing, limit=limit, type=kind)
            for number, sock in enumerate(opened[:2], start=1):
                call = await start(to.create_connection(HERE, type=kind))
                await waits.reach(number)
                port = close(sock)
                async with asyncio.timeout(FOREVER / 2):
                    renewed = closing.enter_context(await call)
                if limit is None:
                    assert port_of(renewed) == port
            protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
            assert [key[0] for key in waits.keys] == [protocol] * 2
            stats = to.stats()
            assert (stats.waits, stats.waiting) == (2, 0)

        driver.run(scenario)

    @both_kinds
    def test_by_the_end_of_anothers_connection(
        self,
        driver: Driver,
        listening: Network,
        closing: contextlib.ExitStack,
        monkeypatch: pytest.MonkeyPatch,
        kind: int,
    ) -> None:
        """The kernel tells (SKNLGRP_INET_TCP_DESTROY), whoever had it."""
        del listening
        never_look(monkeypatch)
        others = [closing.enter_context(connectx.create_connection(HERE, type=kind)) for _ in PORTS]

        async def scenario() -> None:
            hearing = listeners(monkeypatch)
            to = driver.dialer(wait=FOREVER)
            for number, other in enumerate(others[:3], start=1):
                call = await start(to.create_connection(HERE, type=kind))
                await hearing.reach(number)
                port = close(other)
                async with asyncio.timeout(FOREVER / 2):
                    sock = closing.enter_context(await call)
                assert port_of(sock) == port

        driver.run(scenario)

    def test_by_ends_at_every_source(
        self,
        driver: Driver,
        listening: Network,
        closing: contextlib.ExitStack,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """All at once: the first in line hears of all of them, and goes with one."""
        del listening
        never_look(monkeypatch)
        sources = [f"127.0.0.{number}" for number in range(2, 7)]
        udp = socket.SOCK_DGRAM
        others = [
            [
                closing.enter_context(
                    connectx.create_connection(HERE, source_address=(source, 0), type=udp)
                )
                for _ in PORTS
            ]
            for source in sources
        ]

        async def scenario() -> None:
            hearing = listeners(monkeypatch)
            waits = Waits()
            to = driver.dialer(sources, wait=FOREVER, on_wait=waits)
            # Something is open, by which the destination is remembered.
            others[0].pop().close()
            closing.enter_context(await to.create_connection(HERE, type=udp))
            line = []
            for number, _ in enumerate(sources, start=1):
                line.append(await start(to.create_connection(HERE, type=udp)))
                await waits.reach(number)
            await hearing.reach(1)
            # A search that has been heard all the time, and so counts.
            key = ("udp", Endpoint(*HERE))
            to.policy.destinations.find(key).wake(None)
            while len(to.policy.destinations.find(key).full) < len(sources):  # noqa: ASYNC110 -- nothing tells
                await asyncio.sleep(0)
            for some in others:
                some.pop().close()
            async with asyncio.timeout(FOREVER / 2):
                served = [closing.enter_context(await call) for call in line]
            assert {sock.getsockname()[0] for sock in served} == set(sources)

        driver.run(scenario)

    def test_by_looking_where_nobody_tells(
        self,
        driver: Driver,
        listening: Network,
        closing: contextlib.ExitStack,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        del listening
        nobody_tells(monkeypatch)
        others = [closing.enter_context(connectx.create_connection(HERE)) for _ in PORTS]

        async def scenario() -> None:
            waits = Waits()
            to = driver.dialer(wait=FOREVER, on_wait=waits)
            call = await start(to.create_connection(HERE))
            await waits.reach(1)
            port = close(others[3])
            async with asyncio.timeout(FOREVER / 2):
                sock = closing.enter_context(await call)
            assert port_of(sock) == port
            # A look now and then, not a busy loop.
            assert to.stats().attempts <= 20

        driver.run(scenario)

    def test_ends_of_other_connections_wake_nobody(
        self,
        driver: Driver,
        listening: Network,
        closing: contextlib.ExitStack,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        del listening
        never_look(monkeypatch)
        others = [closing.enter_context(connectx.create_connection(HERE)) for _ in PORTS]
        elsewhere = [
            closing.enter_context(connectx.create_connection(("127.0.0.5", FIRST))) for _ in PORTS
        ]

        async def scenario() -> None:
            hearing = listeners(monkeypatch)
            to = driver.dialer(wait=FOREVER)
            call = await start(to.create_connection(HERE))
            await hearing.reach(1)
            before = to.stats().attempts
            for sock in elsewhere:
                close(sock)
            close(others[0])
            closing.enter_context(await call)
            assert to.stats().attempts == before + 1

        driver.run(scenario)


class TestDeadline:
    @pytest.mark.parametrize("limit", [None, 2])
    @both_kinds
    def test_ends_the_wait(
        self,
        driver: Driver,
        listening: Network,
        closing: contextlib.ExitStack,
        kind: int,
        limit: int | None,
    ) -> None:
        del listening

        async def scenario() -> None:
            waits = Waits()
            to = driver.dialer(limit=limit, wait=0.2, on_wait=waits)
            for _ in range(limit or SIZE):
                closing.enter_context(await to.create_connection(HERE, type=kind))
            begun = time.monotonic()
            with pytest.raises(PortsExhausted) as caught:
                await to.create_connection(HERE, type=kind)
            assert time.monotonic() - begun >= 0.2
            stream = kind == socket.SOCK_STREAM
            assert caught.value.errno == (errno.EADDRNOTAVAIL if stream else errno.EAGAIN)
            assert caught.value.destination.host == "127.0.0.1"
            stats = to.stats()
            assert (stats.waits, stats.waiting) == (1, 0)
            # What is open is remembered, and nothing else.
            key = ("tcp" if stream else "udp", caught.value.destination)
            assert sum(to.policy.destinations.open_to(key).values()) == (limit or SIZE)

        driver.run(scenario)

    def test_may_be_years_away(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        """poll(2) takes 24 days at most, which is longer than anybody looks away."""
        del listening

        async def scenario() -> None:
            waits = Waits()
            to = driver.dialer(limit=1, wait=1e8, on_wait=waits)
            held = closing.enter_context(await to.create_connection(HERE))
            line = []
            for number in range(2):
                line.append(await start(to.create_connection(HERE, 3e6)))
                await waits.reach(number + 1)
            for call in line:
                close(held)
                held = closing.enter_context(await call)

        driver.run(scenario)

    def test_of_those_who_never_had_their_turn(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening

        async def scenario() -> None:
            waits = Waits()
            to = driver.dialer(wait=0.3, on_wait=waits)
            for _ in PORTS:
                closing.enter_context(await to.create_connection(HERE))
            calls = [await start(to.create_connection(HERE)) for _ in range(5)]
            errors = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(error) for error in errors] == [PortsExhausted] * 5
            assert all(
                error.explain() for error in errors if isinstance(error, connectx.ConnectxError)
            )

        driver.run(scenario)

    def test_timeout_is_for_the_handshake_alone(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening

        async def scenario() -> None:
            to, waits, held = await full(driver, closing)
            call = await start(to.create_connection(HERE, 0.5))
            await waits.reach(1)
            asyncio.get_running_loop().call_later(0.7, close, held[0])
            sock = closing.enter_context(await call)
            assert sock.gettimeout() == (0 if driver.cancels else 0.5)

        driver.run(scenario)


class TestOnWait:
    def test_is_told_the_protocol_and_the_destination(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening

        async def scenario() -> None:
            waits = Waits()
            to = driver.dialer(limit=1, wait=0.01, on_wait=waits)
            for host in ("127.0.0.1", "::1"):
                closing.enter_context(await to.create_connection((host, FIRST)))
                with pytest.raises(PortsExhausted):
                    await to.create_connection((host, FIRST))
            assert [(key[0], key[1].host, key[1].port) for key in waits.keys] == [
                ("tcp", "127.0.0.1", FIRST),
                ("tcp", "::1", FIRST),
            ]

        driver.run(scenario)

    def test_that_raises_ends_the_call_and_leaves_no_place(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening

        class Full(Exception):  # noqa: N818 -- as an application might call it
            pass

        def refuse(_: Any) -> None:
            raise Full

        async def scenario() -> None:
            to = driver.dialer(limit=1, wait=FOREVER, on_wait=refuse)
            sock = closing.enter_context(await to.create_connection(HERE))
            before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- how many there are
            for _ in range(3):
                with pytest.raises(Full):
                    await to.create_connection(HERE)
            assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208 -- as above
            assert to.stats().waiting == 0
            close(sock)
            closing.enter_context(await to.create_connection(HERE))

        driver.run(scenario)


class TestStats:
    def test_count_what_was_done(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening

        async def scenario() -> None:
            waits = Waits()
            to = driver.dialer(["127.0.0.2", "127.0.0.3"], wait=0.01, on_wait=waits)
            assert to.stats() == (0, 0, 0, 0, 0, {}, 0.0, 0)
            for _ in range(2 * SIZE):
                closing.enter_context(await to.create_connection(HERE))
            stats = to.stats()
            assert (stats.attempts, stats.opened, stats.failures) == (2 * SIZE, 2 * SIZE, {})
            assert stats.search_seconds == 0
            with pytest.raises(PortsExhausted):
                await to.create_connection(HERE)
            assert len(await fill(to, HERE, closing, type=socket.SOCK_DGRAM)) == 2 * SIZE
            stats = to.stats()
            assert stats.opened == 4 * SIZE
            assert set(stats.failures) == {"EADDRNOTAVAIL", "EAGAIN"}
            assert min(stats.failures.values()) >= 2
            assert stats.attempts == stats.opened + sum(stats.failures.values())
            assert (stats.waits, stats.waiting) == (2, 0)
            assert stats.search_seconds > 0

        driver.run(scenario)

    def test_count_what_was_not_done(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        """Refused, timed out, over the limit, and never served."""
        del listening
        host = silent(closing)

        async def scenario() -> None:
            to = driver.dialer(limit=1, wait=0.01)
            with pytest.raises(ConnectionRefusedError):
                await to.create_connection(("127.0.0.1", 9999))
            with pytest.raises(TimeoutError):
                await to.create_connection((host, 9998), 0.01)
            assert to.stats().failures == {"ECONNREFUSED": 1, "ETIMEDOUT": 1}
            assert to.stats().unserved == 0
            closing.enter_context(await to.create_connection(HERE))
            for number in (1, 2):
                with pytest.raises(PortsExhausted):
                    await to.create_connection(HERE)
                assert to.stats().unserved == number
            stats = to.stats()
            assert stats.attempts == stats.opened + sum(stats.failures.values())

        driver.run(scenario)

    def test_count_a_call_to_a_name_once(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        """It is tried without waiting before it waits."""
        del listening

        async def scenario() -> None:
            waits = Waits()
            for wait, unserved in ((0.01, 1), (FOREVER, 0)):
                to = driver.dialer(limit=1, wait=wait, on_wait=waits)
                with driver.names(there=("127.0.0.1",)):
                    held = closing.enter_context(await to.create_connection(HERE))
                    call = await start(to.create_connection(("there", FIRST)))
                    await waits.reach(1)
                    if unserved:
                        with pytest.raises(PortsExhausted):
                            await call
                    else:
                        await waits.reach(2)
                        close(held)
                        close(await call)
                assert to.stats().unserved == unserved

        driver.run(scenario)

    def test_count_the_searches_of_every_try(
        self, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening
        to = connectx.Dialer()
        held = closing.enter_context(to.create_connection(HERE))
        for _ in PORTS[1:]:
            closing.enter_context(socket.create_connection(HERE))
        with pytest.raises(PortsExhausted):
            to.create_connection(HERE)
        stats = to.stats()
        assert stats.failures == {"EADDRNOTAVAIL": 1}
        assert stats.search_seconds > 0
        assert stats.retries >= 2
        close(held)

    def test_retries_are_ports_that_others_had(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening
        # The kernel's own, of which nothing here knows.
        others = [closing.enter_context(socket.create_connection(HERE)) for _ in PORTS]
        close(others[0])

        async def scenario() -> None:
            to = driver.dialer()
            closing.enter_context(await to.create_connection(HERE))
            with pytest.raises(PortsExhausted):
                await to.create_connection(HERE)
            assert to.stats().opened == 1
            assert to.stats().retries > 0

        driver.run(scenario)


def test_errors_go_with_their_last_reference(
    listening: Network, closing: contextlib.ExitStack
) -> None:
    """And not with the next garbage collection, for which a busy program may not have the time."""
    del listening
    to = connectx.Dialer(["127.0.0.2"], limit=SIZE + 1, wait=0.01)
    held = [closing.enter_context(to.create_connection(HERE)) for _ in PORTS]
    gc.disable()
    try:
        for _ in range(2):
            try:
                to.create_connection(HERE)
            except PortsExhausted as error:
                alive = weakref.ref(error)
            assert alive() is None
            # The second time for the limit's sake.
            to._policy.destinations.limit = len(held)
    finally:
        gc.enable()


def test_aio_dialer_has_the_blocking_ones_arguments() -> None:
    import inspect

    ours, theirs = inspect.signature(aio.Dialer), inspect.signature(connectx.Dialer)
    assert str(ours) == str(theirs)
