"""A listener, and connections to it, out of a small range."""

import contextlib
import socket
from collections.abc import Callable

import pytest

from connectx._diagnosis.census import tells_binds_apart
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.api.calls import reset_on_close
from tests.observe.helpers import HERE, HIGH, LOW, PORT


@pytest.fixture
def listener(network: Network, servers: Servers) -> socket.socket:
    network.port_range(LOW, HIGH)
    return servers.listen("::", PORT)


@pytest.fixture
def connect(listener: socket.socket, closing: contextlib.ExitStack) -> Callable[..., socket.socket]:
    """A connection to the listener, from what the socket was bound to before."""
    del listener

    def connected(
        source: tuple[str, int] | None = None, destination: tuple[str, int] = HERE
    ) -> socket.socket:
        sock = closing.enter_context(socket.socket())
        if source is not None:
            sock.bind(source)
        sock.connect(destination)
        reset_on_close(sock)
        return sock

    return connected


@pytest.fixture
def binds_are_seen(network: Network) -> None:
    del network
    if not tells_binds_apart():
        pytest.skip("kernel: without windows nobody knows which ports bind() has locked")
