"""Each way to connect, from within a sandbox."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import pytest

from connectx import Dialer, aio
from connectx.addresses import Address
from tests.api.calls import TCP_MAPPED, UDP_MAPPED, by_connectx, by_create_connection
from tests.kernel.raw import TCP, TCP6, UDP, UDP6, UDPLITE, Transport

#: Calls a function in a thread that is in the sandbox.
Sandbox: TypeAlias = Callable[[Callable[[], Any]], Any]

LOW, HIGH = 20001, 20004
PORTS: Final = list(range(LOW, HIGH + 1))

STREAMS: Final = (TCP, TCP6, TCP_MAPPED)
DATAGRAMS: Final = (UDP, UDP6, UDP_MAPPED, UDPLITE)


def by_dialer(
    transport: Transport, source: Address | None, destination: Address, strategy: str = "auto"
) -> socket.socket:
    assert source is None
    dialer = Dialer(strategy=strategy)  # type: ignore[arg-type] # any of them
    return dialer.create_connection(destination[:2], type=transport.type, proto=transport.protocol)


def by_asyncio(
    transport: Transport, source: Address | None, destination: Address, strategy: str = "auto"
) -> socket.socket:
    host, port, *_ = destination
    call = aio.create_connection(
        (host, port),
        source_address=source,
        type=transport.type,
        proto=transport.protocol,
        strategy=strategy,  # type: ignore[arg-type] # any of them
    )
    return asyncio.run(call)


CALLS: Final[dict[str, Callable[..., socket.socket]]] = {
    "create_connection": by_create_connection,
    "connectx": by_connectx,
    "Dialer": by_dialer,
    "asyncio": by_asyncio,
}
TAKE_A_SOURCE: Final = ("create_connection", "connectx", "asyncio")


streams = pytest.mark.parametrize("transport", STREAMS, ids=str)
datagrams = pytest.mark.parametrize("transport", DATAGRAMS, ids=str)
calls = pytest.mark.parametrize("name", CALLS)
calls_with_a_source = pytest.mark.parametrize("name", TAKE_A_SOURCE)
#: A port in the range, and one outside.
asked_ports = pytest.mark.parametrize("port", [LOW, 30001], ids=["in the range", "outside"])


class Client:
    """Connects with one of the calls in a sandbox; everything is closed after the test."""

    def __init__(
        self, name: str, place: Transport, sandbox: Sandbox, stack: contextlib.ExitStack
    ) -> None:
        self.call = CALLS[name]
        self.place = place
        self.sandbox = sandbox
        self.stack = stack

    def open(self, port: int, source_port: int | None = None, **keywords: Any) -> socket.socket:
        source = None if source_port is None else (self.place.source, source_port)
        to = (self.place.source, port)
        sock: socket.socket = self.sandbox(
            lambda: self.stack.enter_context(self.call(self.place, source, to, **keywords))
        )
        return sock

    def plain(self, port: int, *, share: bool = False) -> socket.socket:
        """Bind a socket of another program's."""
        sock = self.stack.enter_context(self.place.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, share)
        sock.bind((self.place.source, port))
        return sock
