import contextlib

import pytest

from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.api.calls import is_stream
from tests.kernel.raw import FIRST, SECOND, Transport
from tests.sandboxed.client import HIGH, LOW, Client, Sandbox


@pytest.fixture
def place(transport: Transport, network: Network, servers: Servers) -> Transport:
    """A network of four source ports, with servers for streams."""
    network.port_range(LOW, HIGH)
    transport.socket().close()
    if is_stream(transport):
        for port in (FIRST, SECOND):
            servers.listen(transport.source, port, protocol=transport.protocol)
    return transport


@pytest.fixture
def client(name: str, place: Transport, sandbox: Sandbox, closing: contextlib.ExitStack) -> Client:
    return Client(name, place, sandbox, closing)
