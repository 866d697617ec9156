"""The articles' tables: technique, errno on exhaustion, sharing, overshadowing.

Where a row differs from what the articles say, a comment says so.
"""

import select
import socket
from dataclasses import replace
from typing import Final

import pytest

from connectx.linux import uapi
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.kernel.raw import (
    AGAIN,
    DATAGRAMS,
    FIRST,
    INUSE,
    NOTAVAIL,
    OK,
    SECOND,
    STREAMS,
    Sockets,
    Technique,
    connect_class,
    cookie,
    find,
)

LOW, HIGH = 20001, 20008
PORTS: Final = range(LOW, HIGH + 1)
SIZE: Final = len(PORTS)

RANGE_IN_FORCE: Final = (LOW, HIGH)
SYSCTL_ENDS: Final = (1, 65535)


@pytest.fixture(autouse=True)
def _eight_ports(network: Network) -> None:
    network.port_range(LOW, HIGH)


KERNEL_PICKS_IN_CONNECT: Final = [
    *connect_class(RANGE_IN_FORCE),
    *connect_class(RANGE_IN_FORCE, reuseaddr=True),
    *connect_class(RANGE_IN_FORCE, reuseport=True),
    Technique("window of the sysctl's ends", window=SYSCTL_ENDS),
]

KERNEL_PICKS_IN_BIND: Final = [
    Technique("bind(ip, 0)", bind=0),
    Technique("window + bind(ip, 0)", window=RANGE_IN_FORCE, bind=0),
    # The 2014 article shares ports like this; no kernel we know does.
    Technique("REUSEADDR + bind(ip, 0)", reuseaddr=True, bind=0),
    Technique("REUSEPORT + bind(ip, 0)", reuseport=True, bind=0),
]


@pytest.mark.parametrize("transport", STREAMS, ids=str)
@pytest.mark.parametrize("technique", KERNEL_PICKS_IN_CONNECT, ids=str)
def test_streams_whose_port_connect_picks_share_it(sockets: Sockets, technique: Technique) -> None:
    assert sockets.fill(technique, FIRST, limit=2 * SIZE) == (SIZE, NOTAVAIL)
    assert sockets.fill(technique, SECOND, limit=2 * SIZE) == (SIZE, NOTAVAIL)


@pytest.mark.parametrize("transport", STREAMS, ids=str)
@pytest.mark.parametrize("technique", KERNEL_PICKS_IN_BIND, ids=str)
def test_streams_whose_port_bind_picks_keep_it_to_themselves(
    sockets: Sockets, technique: Technique
) -> None:
    assert sockets.fill(technique, FIRST, limit=2 * SIZE) == (SIZE, INUSE)
    assert sockets.fill(technique, SECOND, limit=2 * SIZE) == (0, INUSE)


def _on_each_port(technique: Technique) -> list[Technique]:
    # A window of one port where the technique has a window, else an explicit port.
    if technique.window:
        return [replace(technique, window=(port, port)) for port in PORTS]
    return [replace(technique, bind=port) for port in PORTS]


PORT_OF_YOUR_CHOICE: Final = [
    Technique("REUSEADDR + bind(ip, port)", reuseaddr=True, bind=LOW),
    Technique("REUSEPORT + bind(ip, port)", reuseport=True, bind=LOW),
    Technique("window of one port", window=(LOW, LOW)),
    Technique("NO_PORT + window of one port", no_port=True, window=(LOW, LOW), bind=0),
]


@pytest.mark.parametrize("transport", STREAMS, ids=str)
@pytest.mark.parametrize("technique", PORT_OF_YOUR_CHOICE, ids=str)
def test_streams_share_a_port_of_your_choice(sockets: Sockets, technique: Technique) -> None:
    for destination in (FIRST, SECOND):
        for expected in (OK, NOTAVAIL):
            outcomes = [sockets.outcome(each, destination) for each in _on_each_port(technique)]
            assert outcomes == [expected] * SIZE


@pytest.mark.parametrize("transport", STREAMS, ids=str)
def test_streams_do_not_share_a_plainly_bound_port(sockets: Sockets) -> None:
    for destination, expected in ((FIRST, OK), (FIRST, INUSE), (SECOND, INUSE)):
        outcomes = [sockets.outcome(Technique("", bind=port), destination) for port in PORTS]
        assert outcomes == [expected] * SIZE


@pytest.mark.parametrize("transport", DATAGRAMS, ids=str)
@pytest.mark.parametrize("technique", connect_class(RANGE_IN_FORCE), ids=str)
def test_datagrams_whose_port_connect_picks_keep_it_to_themselves(
    sockets: Sockets, technique: Technique
) -> None:
    # NO_PORT too: udp_lib_get_port() knows no destination, whenever it is called.
    assert sockets.fill(technique, FIRST, limit=2 * SIZE) == (SIZE, AGAIN)
    assert sockets.fill(technique, SECOND, limit=2 * SIZE) == (0, AGAIN)


@pytest.mark.parametrize("transport", DATAGRAMS, ids=str)
@pytest.mark.parametrize(
    "technique",
    [
        Technique("bind(ip, 0)", bind=0),
        Technique("window + bind(ip, 0)", window=RANGE_IN_FORCE, bind=0),
    ],
    ids=str,
)
def test_datagrams_whose_port_bind_picks_keep_it_to_themselves(
    sockets: Sockets, technique: Technique
) -> None:
    assert sockets.fill(technique, FIRST, limit=2 * SIZE) == (SIZE, INUSE)
    assert sockets.fill(technique, SECOND, limit=2 * SIZE) == (0, INUSE)


SHARING: Final = [
    *connect_class(RANGE_IN_FORCE, reuseaddr=True),
    *connect_class(RANGE_IN_FORCE, reuseport=True),
    Technique("REUSEADDR + bind(ip, 0)", reuseaddr=True, bind=0),
    Technique("REUSEPORT + bind(ip, 0)", reuseport=True, bind=0),
    Technique("REUSEADDR + bind(ip, port)", reuseaddr=True, bind=LOW),
    Technique("REUSEPORT + bind(ip, port)", reuseport=True, bind=LOW),
]


@pytest.mark.parametrize("transport", DATAGRAMS, ids=str)
@pytest.mark.parametrize("technique", SHARING, ids=str)
def test_datagrams_that_share_ports_are_never_refused(
    sockets: Sockets, technique: Technique
) -> None:
    # The articles give EAGAIN for REUSEADDR + connect(). It does not come: with
    # REUSEADDR on both sides nothing is checked, so nothing runs out.
    assert sockets.fill(technique, FIRST, limit=3 * SIZE) == (3 * SIZE, OK)
    assert sockets.fill(technique, SECOND, limit=3 * SIZE) == (3 * SIZE, OK)


@pytest.mark.parametrize("transport", DATAGRAMS, ids=str)
@pytest.mark.parametrize("technique", SHARING, ids=str)
def test_datagrams_that_share_ports_overshadow_each_other(
    sockets: Sockets, servers: Servers, network: Network, technique: Technique
) -> None:
    network.port_range(LOW, LOW)
    transport = sockets.transport
    transport.socket().close()  # Skips the test where the kernel lacks the protocol.
    server = servers.receive(transport.source, FIRST, protocol=transport.protocol)
    older, newer = sockets.open(technique, FIRST), sockets.open(technique, FIRST)
    assert older.getsockname() == newer.getsockname()
    for _ in range(3):
        server.sendto(b"hello", older.getsockname())
    received: list[socket.socket] = []
    while len(received) < 3:
        readable, _, _ = select.select([older, newer], [], [], limits.LIMIT)
        assert readable
        received += [sock for sock in readable if limits.receive(sock, 100)]
    # One of them gets everything. With SO_REUSEADDR it is the newer; with
    # SO_REUSEPORT it depends on the order of a hash chain.
    assert len(set(received)) == 1
    assert technique.reuseport or received[0] is newer


LOCKED: Final = Technique("REUSEADDR + bind(ip, port)", reuseaddr=True, bind=LOW)


def set_reuseaddr(sock: socket.socket, value: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, value)


def finish(sock: socket.socket, sockets: Sockets, destination: int = FIRST) -> None:
    sock.connect((sockets.transport.source, destination))
    set_reuseaddr(sock, 1)


@pytest.mark.parametrize("transport", DATAGRAMS, ids=str)
class TestReuseaddrAsALock:
    """Bind with REUSEADDR, clear it, look the 4-tuple up, connect, set it again."""

    def test_without_lock_two_sockets_pass_the_lookup(self, sockets: Sockets) -> None:
        first = sockets.bound(LOCKED)
        assert find(sockets.transport, LOW, FIRST) == cookie(first)
        second = sockets.bound(LOCKED)
        assert find(sockets.transport, LOW, FIRST) == cookie(second)
        for sock in (first, second):
            sock.connect((sockets.transport.source, FIRST))
        assert first.getsockname() == second.getsockname()

    def test_the_lock_keeps_others_from_binding(self, sockets: Sockets) -> None:
        holder = sockets.bound(LOCKED)
        set_reuseaddr(holder, 0)
        assert find(sockets.transport, LOW, FIRST) == cookie(holder)
        for technique in SHARING[-2:]:
            assert sockets.outcome(technique, SECOND) == INUSE
        finish(holder, sockets)
        assert sockets.outcome(LOCKED, SECOND) == OK

    def test_of_two_that_hold_the_lock_the_newest_passes_the_lookup(self, sockets: Sockets) -> None:
        first, second = sockets.bound(LOCKED), sockets.bound(LOCKED)
        for sock in (first, second):
            set_reuseaddr(sock, 0)
        assert find(sockets.transport, LOW, FIRST) == cookie(second)
        finish(second, sockets)
        assert find(sockets.transport, LOW, FIRST) == cookie(second)

    def test_a_connected_socket_is_found_before_a_newer_bound_one(self, sockets: Sockets) -> None:
        connected = sockets.open(LOCKED, FIRST)
        newer = sockets.bound(LOCKED)
        set_reuseaddr(newer, 0)
        assert find(sockets.transport, LOW, FIRST) == cookie(connected)

    def test_the_2_tuple_is_shared_toward_other_destinations(self, sockets: Sockets) -> None:
        for destination in (FIRST, SECOND):
            sock = sockets.bound(LOCKED)
            set_reuseaddr(sock, 0)
            assert find(sockets.transport, LOW, destination) == cookie(sock)
            finish(sock, sockets, destination)

    def test_the_lock_goes_with_its_socket(self, sockets: Sockets) -> None:
        holder = sockets.bound(LOCKED)
        set_reuseaddr(holder, 0)
        assert sockets.outcome(LOCKED) == INUSE
        holder.close()
        assert sockets.outcome(LOCKED) == OK
