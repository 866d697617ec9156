"""What a ledger knows of real sockets: those that report to it, and the others' in its way."""

import contextlib
import socket
from pathlib import Path
from typing import Final, cast

import pytest

import connectx
from connectx._connect.ledger import Ledger
from connectx._connect.own_socket import Reports
from connectx.linux import uapi
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import SERVER_PORT, Servers
from tests import limits
from tests.kernel.raw import TCP, abort, look_up

HOST: Final = "127.0.0.1"
SERVER: Final = (HOST, SERVER_PORT)
LOW, SIZE = 20000, 16


@pytest.fixture(autouse=True)
def _sixteen_ports(network: Network, servers: Servers) -> None:
    network.port_range(LOW, LOW + SIZE - 1)
    servers.listen()


class Reporting(Reports, socket.socket):
    """What create_connection() returns, for the type checker: gevent's class may be in between."""


def connect(closing: contextlib.ExitStack) -> Reporting:
    sock = closing.enter_context(connectx.create_connection(SERVER, source_address=(HOST, 0)))
    assert isinstance(sock, Reports)
    return cast("Reporting", sock)


def ledger_of(sock: Reporting) -> Ledger:
    assert sock.ledger
    return sock.ledger


def occupy(closing: contextlib.ExitStack, count: int) -> None:
    for _ in range(count):
        closing.enter_context(socket.create_connection(SERVER))


def test_it_counts_the_open_sockets_whichever_way_their_port_was_found(
    closing: contextlib.ExitStack,
) -> None:
    # With most ports taken by others, two proposals seldom meet a free one, and the
    # kernel's search finds it.
    occupy(closing, SIZE - 2)
    kept = connect(closing)
    for _ in range(20):
        sock = connect(closing)
        assert ledger_of(sock) is ledger_of(kept)
        assert ledger_of(kept).in_use == 2
        abort(sock)
        assert ledger_of(kept).in_use == 1


def test_a_port_that_a_search_found_is_not_proposed_while_it_is_in_use(
    closing: contextlib.ExitStack,
) -> None:
    occupy(closing, SIZE - 1)
    for _ in range(20):
        sock = connect(closing)
        ledger = ledger_of(sock)
        if isinstance(ledger._states, bytearray):
            assert ledger._states[sock.ledger_port - LOW] != 0
        abort(sock)


@pytest.mark.parametrize("strategy", ["auto", "one-port", "explicit-bind"])
def test_the_last_port_is_taken_over_from_a_time_wait(
    network: Network, closing: contextlib.ExitStack, strategy: str
) -> None:
    """Among so many ports that the first proposals do not meet it by chance."""
    size = 1000
    network.port_range(LOW, LOW + size - 1)
    network.sysctl("net.ipv4.tcp_tw_reuse", 1)
    set_reuse_delay(network)
    destination = (HOST, SERVER_PORT + 1)
    with socket.create_server(destination, backlog=size) as listener:
        for port in range(LOW, LOW + size):
            sock = closing.enter_context(
                connectx.create_connection(destination, source_address=(HOST, port))
            )
            accepted, _ = limits.accept(listener)
            closing.enter_context(accepted)
        sock.close()
        assert limits.receive(accepted) == b""
        accepted.close()
        wait_for_time_wait(port, destination)
        again = closing.enter_context(
            connectx.create_connection(destination, source_address=(HOST, 0), strategy=strategy)  # type: ignore[arg-type] # any of them
        )
        assert again.getsockname() == (HOST, port)


def set_reuse_delay(network: Network) -> None:
    if not Path("/proc/sys/net/ipv4/tcp_tw_reuse_delay").exists():
        pytest.skip("kernel: a TIME_WAIT is taken over after a second, which takes too long")
    network.sysctl("net.ipv4.tcp_tw_reuse_delay", 1)


def wait_for_time_wait(port: int, destination: tuple[str, int]) -> None:
    """Until there is one that is older than the delay."""

    def look() -> bool:
        found = look_up(TCP, port, destination[1])
        return bool(found and found.state == uapi.TCP_TIME_WAIT and found.expires < 59_970)

    limits.until(look, "a TIME_WAIT older than the delay")
