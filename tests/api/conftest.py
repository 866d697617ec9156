import contextlib
import socket

import pytest

from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.api.calls import CALLS, Call, Client, is_stream
from tests.api.owner import HIGH, LOW, Owner
from tests.kernel.raw import FIRST, SECOND, THIRD, Transport


@pytest.fixture(params=list(CALLS))
def call(request: pytest.FixtureRequest) -> Call:
    """create_connection(), and connectx() on a socket of the test's own."""
    return CALLS[request.param]


@pytest.fixture
def client(
    transport: Transport,
    call: Call,
    network: Network,  # noqa: ARG001 -- it lives there
    servers: Servers,
    closing: contextlib.ExitStack,
) -> Client:
    """A client over the test's transport, for each of the calls, with the servers listening."""
    transport.socket().close()  # Skips the test where the kernel lacks the protocol.
    # Datagrams need nobody at the destination: connect() sends nothing.
    if is_stream(transport):
        for port in (FIRST, SECOND, THIRD):
            servers.listen(transport.source, port, protocol=transport.protocol)
    return Client(transport, call, closing)


@pytest.fixture
def owner(
    transport: Transport, network: Network, servers: Servers, closing: contextlib.ExitStack
) -> Owner:
    network.port_range(LOW, HIGH)
    if is_stream(transport):
        for port in (FIRST, SECOND):
            servers.listen(transport.source, port, protocol=transport.protocol)
    return Owner(transport, network, closing)


@pytest.fixture
def devices(network: Network) -> tuple[int, int]:
    """The numbers of two devices, each with addresses and a network of its own."""
    for number, name in enumerate(("one", "two"), start=1):
        network.add_device_pair(name, f"{name}-peer")
        network.add_address(f"10.0.{number}.1", 24, name)
        network.add_address(f"fd00:{number}::1", 64, name)
        network.add_address("fe80::1", 64, name)
    return socket.if_nametoindex("one"), socket.if_nametoindex("two")
