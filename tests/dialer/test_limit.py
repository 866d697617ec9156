"""How many connections a dialer has to a destination: a closed one gives its place back."""

import asyncio
import contextlib
import errno
import socket
import warnings

import pytest

from connectx import PortsExhausted
from connectx.sandbox.networks import Network
from tests.dialer.drivers import (
    Driver,
    close,
    fill,
)
from tests.dialer.waiting import (
    HERE,
    both_kinds,
    nothing_is_kept,
)
from tests.kernel.raw import SECOND


class TestLimit:
    @both_kinds
    def test_so_many_and_no_more(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack, kind: int
    ) -> None:
        del listening

        async def scenario() -> None:
            to = driver.dialer(limit=3)
            opened = await fill(to, HERE, closing, type=kind)
            assert len(opened) == 3
            with pytest.raises(PortsExhausted, match="limit of 3 connections") as caught:
                await to.create_connection(HERE, type=kind)
            stream = kind == socket.SOCK_STREAM
            assert caught.value.errno == (errno.EADDRNOTAVAIL if stream else errno.EAGAIN)
            assert not isinstance(caught.value, BlockingIOError)
            assert "3 connections of this dialer" in caught.value.explain()
            # For each destination, and each protocol, its own.
            assert len(await fill(to, ("127.0.0.1", SECOND), closing, type=kind)) == 3
            other = socket.SOCK_DGRAM if stream else socket.SOCK_STREAM
            assert len(await fill(to, HERE, closing, type=other)) == 3
            close(opened[1])
            closing.enter_context(await to.create_connection(HERE, type=kind))

        driver.run(scenario)

    def test_is_all_sources_together(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening

        async def scenario() -> None:
            to = driver.dialer(["127.0.0.2", "127.0.0.3"], limit=5)
            assert len(await fill(to, HERE, closing)) == 5

        driver.run(scenario)

    def test_a_socket_thrown_away_gives_its_place_back(
        self, driver: Driver, listening: Network
    ) -> None:
        del listening

        async def scenario() -> None:
            to = driver.dialer(limit=1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                for _ in range(3):
                    await to.create_connection(HERE)
                    # The loop lets go of what it has just delivered.
                    await asyncio.sleep(0)
            nothing_is_kept(to)

        driver.run(scenario)

    def test_a_call_that_fails_takes_no_place(self, driver: Driver, listening: Network) -> None:
        del listening

        async def scenario() -> None:
            to = driver.dialer(limit=1)
            for _ in range(3):
                with pytest.raises(ConnectionRefusedError):
                    await to.create_connection(("127.0.0.1", 9999))
            nothing_is_kept(to)

        driver.run(scenario)
