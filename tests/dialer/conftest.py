import pytest

from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.api.calls import is_stream
from tests.dialer.drivers import DRIVERS, HIGH, LOOPS, LOW, Driver
from tests.kernel.raw import FIRST, SECOND, Transport
from tests.plugins.collections_and_loops import uvloop_has_its_pipe  # noqa: F401 -- a fixture


@pytest.fixture(params=list(DRIVERS))
def driver(request: pytest.FixtureRequest) -> Driver:
    """The blocking dialer, and the awaiting one on both loops."""
    return DRIVERS[request.param]


@pytest.fixture(params=list(LOOPS))
def loop(request: pytest.FixtureRequest) -> Driver:
    """The awaiting dialer on both loops."""
    return LOOPS[request.param]


@pytest.fixture
def listening(network: Network, servers: Servers) -> Network:
    """Eight ports, two listeners on each loopback address."""
    network.port_range(LOW, HIGH)
    network.add_address("::2")
    for port in (FIRST, SECOND):
        servers.listen("0.0.0.0", port)
        servers.listen("::1", port)
    return network


@pytest.fixture
def serving(network: Network, servers: Servers, transport: Transport) -> Transport:
    transport.socket().close()  # Skips the test where the kernel lacks the protocol.
    network.port_range(LOW, HIGH)
    network.add_address("::2")
    if is_stream(transport):
        servers.listen(transport.source, FIRST, protocol=transport.protocol)
    return transport
