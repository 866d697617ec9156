"""Options that bear on no route: they stay on the socket, whatever becomes of its first port."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any, Final

import pytest

from connectx.linux.uapi import SO_MARK
from tests.kernel.raw import FIRST

if TYPE_CHECKING:
    import contextlib

    from connectx.sandbox.networks import Network
    from tests.dialer.drivers import AnyDialer, Driver

HERE: Final = ("127.0.0.1", FIRST)
SOURCE: Final = "127.0.0.7"

NEUTRAL: Final = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
]
#: With one that bears on the route, which is connected as a caller's socket is.
ROUTED: Final = [*NEUTRAL, (socket.SOL_SOCKET, SO_MARK, 7)]

addresses = pytest.mark.parametrize("address", [HERE, ("there", FIRST)], ids=["address", "name"])
options = pytest.mark.parametrize("options", [NEUTRAL, ROUTED], ids=["neutral", "routed"])


def are_set(sock: socket.socket, options: Any) -> bool:
    return all(sock.getsockopt(level, name) == value for level, name, value in options)


async def connected(driver: Driver, dialer: AnyDialer, address: Any, options: Any) -> socket.socket:
    with driver.names(there=("127.0.0.1",)):
        return await dialer.create_connection(address, socket_options=options)


@addresses
@options
def test_they_are_set(driver: Driver, listening: Network, address: Any, options: Any) -> None:
    del listening

    async def scenario() -> None:
        dialer = driver.dialer([SOURCE], limit=1)
        for _ in range(2):
            with await connected(driver, dialer, address, options) as sock:
                assert are_set(sock, options)
                assert sock.getsockname()[0] == SOURCE

    driver.run(scenario)


@addresses
def test_a_port_that_is_taken_costs_none(
    driver: Driver,
    listening: Network,
    closing: contextlib.ExitStack,
    address: Any,
) -> None:
    """A port outside the range is bound explicitly: one that is taken costs the socket."""
    del listening
    ports = (30001, 30004)
    for port in range(30001, 30004):
        holder = closing.enter_context(socket.socket())
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((SOURCE, port))
        holder.connect(HERE)

    async def scenario() -> None:
        for _ in range(5):
            dialer = driver.dialer([SOURCE], ports)
            sock = await connected(driver, dialer, address, NEUTRAL)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            with sock:
                assert sock.getsockname()[1] == 30004
                assert are_set(sock, NEUTRAL)

    driver.run(scenario)


@addresses
def test_one_that_the_kernel_refuses_leaves_nothing(
    driver: Driver, listening: Network, address: Any
) -> None:
    del listening

    async def scenario() -> None:
        dialer = driver.dialer(limit=1)
        with pytest.raises(OSError, match="Invalid argument") as caught:
            await connected(driver, dialer, address, [(6, socket.TCP_KEEPIDLE, -1)])
        assert caught.value.errno == errno.EINVAL
        (await dialer.create_connection(HERE)).close()

    driver.run(scenario)
