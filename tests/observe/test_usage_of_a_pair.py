"""A closer look at a pair, against what was opened."""

import contextlib
import os
import socket
from pathlib import Path

import pytest

from connectx.addresses import Endpoint, PortRange
from connectx.observe.history import Pair
from connectx.observe.usage import look_at
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import reset_on_close

RANGE = PortRange(20000, 20099)
PORT = 9000


@pytest.fixture(autouse=True)
def _listening(network: Network, servers: Servers) -> None:
    network.port_range(*RANGE)
    servers.listen("::", PORT)


def connect(closing: contextlib.ExitStack, host: str, port: int = 0) -> socket.socket:
    sock = closing.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
    sock.bind(("", port))
    sock.connect((host, PORT))
    reset_on_close(sock)
    return sock


@pytest.mark.parametrize(
    "host, source",
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::ffff:127.0.0.1", "127.0.0.1")],
)
def test_states_processes_and_ports(closing: contextlib.ExitStack, host: str, source: str) -> None:
    for port in (20007, 20003):
        connect(closing, host, port)
    connect(closing, host, 30000)
    detail = look_at(Pair("tcp", source, Endpoint(source, PORT)))
    assert detail.ports == (20003, 20007)
    assert detail.states == {"ESTAB": 2}
    ((process, number),) = detail.processes.items()
    assert process is not None
    assert (process.pid, number) == (os.getpid(), 2)
    assert process.command == Path("/proc/self/comm").read_text().strip()
    assert detail.within == RANGE


def test_of_udp_and_another_range(closing: contextlib.ExitStack) -> None:
    sock = closing.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.bind(("127.0.0.1", 30000))
    sock.connect(("127.0.0.1", PORT))
    pair = Pair("udp", "127.0.0.1", Endpoint("127.0.0.1", PORT))
    assert look_at(pair).ports == ()
    assert look_at(pair, port_range=PortRange(30000, 30001)).ports == (30000,)


def test_of_a_pair_that_is_not_there() -> None:
    detail = look_at(Pair("tcp", "127.0.0.9", Endpoint("127.0.0.1", PORT)))
    assert (detail.ports, detail.states, detail.processes) == ((), {}, {})


def test_nobody_has_a_time_wait(closing: contextlib.ExitStack, servers: Servers) -> None:
    listener = servers.listen("127.0.0.2", PORT + 1)
    sock = closing.enter_context(socket.socket())
    sock.connect(("127.0.0.2", PORT + 1))
    peer, (_, port) = limits.accept(listener)
    sock.shutdown(socket.SHUT_RDWR)
    assert limits.receive(peer) == b""
    peer.close()
    assert limits.receive(sock) == b""
    detail = look_at(Pair("tcp", "127.0.0.1", Endpoint("127.0.0.2", PORT + 1)))
    assert detail.ports == (port,)
    assert detail.states == {"TIME-WAIT": 1}
    assert detail.processes == {None: 1}


def test_in_a_namespace_that_there_is_not() -> None:
    with pytest.raises(FileNotFoundError, match="no such network namespace"):
        look_at(Pair("tcp", "127.0.0.1", Endpoint("127.0.0.1", PORT)), netns="no-such-name")
