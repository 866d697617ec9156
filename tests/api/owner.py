"""Sockets that are set up by their owner before they are connected."""

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import connectx
from connectx import PortsExhausted
from connectx.addresses import Address
from connectx.sandbox.networks import Network
from tests.api.calls import port_of
from tests.kernel.raw import Transport

#: The port range of the tests that use this.
LOW, HIGH = 20001, 20004
PORTS: Final = list(range(LOW, HIGH + 1))


@dataclass(frozen=True)
class Owner:
    """Makes sockets, sets options on them, and has them connected."""

    transport: Transport
    network: Network
    stack: contextlib.ExitStack

    def new(self) -> socket.socket:
        sock = self.stack.enter_context(self.transport.socket())
        # Devices here have nobody at the far end: a SYN on its way holds its 4-tuple as well.
        sock.settimeout(0)
        return sock

    def connect(
        self,
        destination: Address,
        source: Address | None = None,
        prepare: Callable[[socket.socket], None] = lambda _: None,
    ) -> socket.socket:
        sock = self.new()
        prepare(sock)
        try_to_connect(sock, destination, source)
        return sock

    def fill(
        self,
        destination: Address,
        source: Address | None = None,
        prepare: Callable[[socket.socket], None] = lambda _: None,
    ) -> list[int]:
        """Connect until no port is left; the ports, ascending."""
        ports: list[int] = []
        while len(ports) < 64:
            try:
                ports.append(port_of(self.connect(destination, source, prepare)))
            except PortsExhausted:
                return sorted(ports)
        raise AssertionError("still not exhausted")


def try_to_connect(
    sock: socket.socket, destination: Address, source: Address | None = None
) -> None:
    """Call connectx(); that the connection is only under way will do.

    No port left is another error, EAGAIN among them.
    """
    with contextlib.suppress(BlockingIOError):
        connectx.connectx(sock, source, destination)
