import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import pytest

from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.aio.here import FACTORIES, HIGH, LOW
from tests.kernel.raw import FIRST
from tests.plugins.collections_and_loops import uvloop_has_its_pipe  # noqa: F401 -- a fixture

T = TypeVar("T")


class Run(Protocol):
    """Runs a scenario to its end on one of the loops."""

    def __call__(self, scenario: Callable[[], Coroutine[Any, Any, T]]) -> T: ...


@pytest.fixture(params=list(FACTORIES))
def run(request: pytest.FixtureRequest) -> Run:
    """asyncio's own loop, and uvloop's."""

    def scenario_on_a_loop(scenario: Callable[[], Coroutine[Any, Any, T]]) -> T:
        with asyncio.Runner(loop_factory=FACTORIES[request.param]) as runner:
            return runner.run(limits.ended(scenario))

    return scenario_on_a_loop


@pytest.fixture
def serving(network: Network, servers: Servers) -> Network:
    """Eight ports, and a listener on each loopback address."""
    network.port_range(LOW, HIGH)
    servers.listen("0.0.0.0", FIRST)
    servers.listen("::1", FIRST)
    return network
