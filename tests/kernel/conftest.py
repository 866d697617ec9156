import contextlib

import pytest

from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.kernel.raw import Sockets, Transport


@pytest.fixture
def sockets(
    transport: Transport,
    network: Network,  # noqa: ARG001 -- they live in it
    servers: Servers,
    closing: contextlib.ExitStack,
) -> Sockets:
    """The test's sockets over its transport, with the destinations listening."""
    made = Sockets(transport, closing)
    made.serve(servers)
    return made
