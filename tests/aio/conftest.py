import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import pytest
import uvloop

from connectx.testing.namespaces import Network
from connectx.testing.servers import Servers
from tests.aio.here import FACTORIES, HIGH, LOW
from tests.kernel.raw import FIRST

T = TypeVar("T")


class Run(Protocol):
    """Runs a scenario to its end on one of the loops."""

    def __call__(self, scenario: Callable[[], Coroutine[Any, Any, T]]) -> T: ...


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> None:
    """As in tests/api/conftest.py."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _uvloop_has_its_pipe() -> None:
    """libuv makes one for the process with its first loop, and keeps it."""
    uvloop.new_event_loop().close()


@pytest.fixture(params=list(FACTORIES))
def run(request: pytest.FixtureRequest) -> Run:
    """asyncio's own loop, and uvloop's."""

    def scenario_on_a_loop(scenario: Callable[[], Coroutine[Any, Any, T]]) -> T:
        with asyncio.Runner(loop_factory=FACTORIES[request.param]) as runner:
            return runner.run(scenario())

    return scenario_on_a_loop


@pytest.fixture
def serving(network: Network, servers: Servers) -> Network:
    """Eight ports, and a listener on each loopback address."""
    network.port_range(LOW, HIGH)
    servers.listen("0.0.0.0", FIRST)
    servers.listen("::1", FIRST)
    return network
