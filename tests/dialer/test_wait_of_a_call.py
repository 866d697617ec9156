"""A call may wait for a port less long than its dialer does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from connectx import PortsExhausted
from tests.dialer.drivers import FOREVER, Driver, Waits
from tests.dialer.waiting import HERE, full
from tests.kernel.raw import FIRST

if TYPE_CHECKING:
    import contextlib

    from connectx.sandbox.networks import Network

NAME = ("there", FIRST)

addresses = pytest.mark.parametrize("address", [HERE, NAME], ids=["address", "name"])
limits = pytest.mark.parametrize("limit", [None, 1])


@limits
@addresses
@pytest.mark.parametrize("wait", [0, 0.05])
def test_it_is_shorter(
    driver: Driver,
    listening: Network,
    closing: contextlib.ExitStack,
    address: Any,
    wait: float,
    limit: int | None,
) -> None:
    del listening

    async def scenario() -> None:
        dialer, _, _ = await full(driver, closing, limit=limit)
        with driver.names(there=("127.0.0.1",)), pytest.raises(PortsExhausted):
            await dialer.create_connection(address, wait=wait)
        stats = dialer.stats()
        assert (stats.waits, stats.waiting) == (int(wait != 0), 0)
        assert stats.unserved == (1 if limit else 0)

    driver.run(scenario)


@addresses
def test_it_is_no_longer(
    driver: Driver, listening: Network, closing: contextlib.ExitStack, address: Any
) -> None:
    del listening

    async def scenario() -> None:
        for settings in ({}, {"wait": 0.05}):
            waits = Waits()
            dialer = driver.dialer(limit=1, on_wait=waits, **settings)
            with driver.names(there=("127.0.0.1",)):
                held = closing.enter_context(await dialer.create_connection(HERE))
                with pytest.raises(PortsExhausted):
                    await dialer.create_connection(address, wait=FOREVER)
                held.close()
            assert dialer.stats().waits == len(settings)

    driver.run(scenario)


@pytest.mark.parametrize(
    "wait,error", [(-1, ValueError), (math.nan, ValueError), ("1", TypeError), (True, TypeError)]
)
@addresses
def test_what_is_none(
    driver: Driver, listening: Network, address: Any, wait: Any, error: type[Exception]
) -> None:
    del listening

    async def scenario() -> None:
        dialer = driver.dialer()
        with driver.names(there=("127.0.0.1",)), pytest.raises(error, match="wait is"):
            await dialer.create_connection(address, wait=wait)
        assert dialer.stats().attempts == 0

    driver.run(scenario)
