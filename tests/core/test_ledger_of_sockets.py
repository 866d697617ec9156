"""What a ledger knows of real sockets: those that report to it, and the others' in its way."""

import contextlib
import socket
from typing import Final

import pytest

import connectx
from connectx.core.ledger import Ledger
from connectx.testing.namespaces import Network
from connectx.testing.servers import SERVER_PORT, Servers
from connectx.tracked import TrackedSocket

HOST: Final = "127.0.0.1"
SERVER: Final = (HOST, SERVER_PORT)
LOW, SIZE = 20000, 16


@pytest.fixture(autouse=True)
def _sixteen_ports(network: Network, servers: Servers) -> None:
    network.port_range(LOW, LOW + SIZE - 1)
    servers.listen()


def connect(closing: contextlib.ExitStack) -> TrackedSocket:
    sock = closing.enter_context(connectx.create_connection(SERVER, source_address=(HOST, 0)))
    assert isinstance(sock, TrackedSocket)
    return sock


def ledger_of(sock: TrackedSocket) -> Ledger:
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
        assert ledger_of(kept)._in_use == 2
        sock.close()
        assert ledger_of(kept)._in_use == 1


def test_a_port_that_a_search_found_is_not_proposed_while_it_is_in_use(
    closing: contextlib.ExitStack,
) -> None:
    occupy(closing, SIZE - 1)
    for _ in range(20):
        sock = connect(closing)
        ledger = ledger_of(sock)
        if isinstance(ledger._states, bytearray):
            assert ledger._states[sock.ledger_port - LOW] != 0
        sock.close()


@pytest.mark.parametrize("strategy", ["auto", "one-port", "explicit-bind"])
def test_ports_in_time_wait_that_may_be_taken_over_are(
    network: Network, closing: contextlib.ExitStack, strategy: str
) -> None:
    """TIME_WAIT on every port of a range that is too large for the first proposals alone."""
    size = 200
    network.port_range(LOW, LOW + size - 1)
    network.sysctl("net.ipv4.tcp_tw_reuse", 1)
    network.sysctl("net.ipv4.tcp_tw_reuse_delay", 1)
    with socket.create_server((HOST, 9001), backlog=size) as listener:
        for port in range(LOW, LOW + size):
            # As the library leaves it: SO_REUSEADDR on, the port chosen by connect().
            sock = connectx.create_connection(
                (HOST, 9001), source_address=(HOST, port), strategy="auto"
            )
            accepted, _ = listener.accept()
            sock.close()
            assert accepted.recv(1) == b""
            accepted.close()
        for _ in range(5):
            sock = connectx.create_connection(
                (HOST, 9001), source_address=(HOST, 0), strategy=strategy
            )
            closing.enter_context(sock)
