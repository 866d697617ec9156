"""connect(AF_UNSPEC) on datagram sockets: what it gives back, and what it keeps."""

import errno
import os
import select
import socket
from typing import Final

import pytest

from connectx.linux import uapi
from connectx.linux.disconnect import disconnect
from connectx.sandbox.networks import Network
from tests import limits
from tests.kernel.raw import (
    AGAIN,
    DATAGRAMS,
    FIRST,
    INUSE,
    OK,
    SECOND,
    Sockets,
    Technique,
    connect_class,
    cookie,
    find,
    set_option,
    set_window,
)

LOW, HIGH = 20001, 20008
PORT: Final = 20004
WINDOW: Final = (PORT, PORT)

PICKED_BY_THE_KERNEL: Final = [
    *connect_class(WINDOW),
    *connect_class(WINDOW, reuseaddr=True),
    Technique("bind(ip, 0)", bind=0),
    Technique("window + bind(ip, 0)", window=WINDOW, bind=0),
    Technique("REUSEADDR + window + bind(ip, 0)", reuseaddr=True, window=WINDOW, bind=0),
]

EXPLICIT: Final = [
    Technique("bind(ip, port)", bind=PORT),
    Technique("REUSEADDR + bind(ip, port)", reuseaddr=True, bind=PORT),
    Technique("window + bind(ip, port)", window=WINDOW, bind=PORT),
]

CLAIM: Final = Technique("", reuseaddr=True, window=WINDOW, bind=0)
PLAIN_BIND: Final = Technique("", bind=PORT)
SHARED_BIND: Final = Technique("", reuseaddr=True, bind=PORT)

pytestmark = pytest.mark.parametrize("transport", DATAGRAMS, ids=str)


@pytest.fixture(autouse=True)
def _eight_ports(network: Network) -> None:
    network.port_range(LOW, HIGH)


@pytest.mark.parametrize("technique", PICKED_BY_THE_KERNEL, ids=str)
def test_a_port_the_kernel_picked_is_released(sockets: Sockets, technique: Technique) -> None:
    sock = sockets.open(technique)
    port = sock.getsockname()[1]
    exclusive = Technique("", bind=port)
    assert LOW <= port <= HIGH
    assert sockets.outcome(exclusive) == INUSE
    disconnect(sock)
    assert sock.getsockname()[1] == 0
    assert sockets.outcome(exclusive) == OK


@pytest.mark.parametrize("technique", EXPLICIT, ids=str)
@pytest.mark.parametrize("state", ["bound", "connected"])
def test_a_port_given_to_bind_is_kept(sockets: Sockets, technique: Technique, state: str) -> None:
    sock = {"bound": sockets.bound, "connected": sockets.open}[state](technique)
    disconnect(sock)
    assert sock.getsockname()[1] == PORT
    assert sockets.outcome(PLAIN_BIND) == INUSE
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        sock.bind((sockets.transport.source, 0))


def test_the_peer_is_gone(sockets: Sockets) -> None:
    sock = sockets.open(Technique("connect"))
    disconnect(sock)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        sock.getpeername()
    assert find(sockets.transport, PORT, FIRST) is None


def test_an_unconnected_unbound_socket_stays_what_it_is(sockets: Sockets) -> None:
    sock = sockets.new()
    disconnect(sock)
    assert sock.getsockname()[:2] == (sockets.transport.wildcard, 0)
    sock.connect((sockets.transport.source, FIRST))


@pytest.mark.parametrize(
    "technique",
    [
        Technique("bind(ip, 0)", bind=0),
        Technique("NO_PORT + bind(ip, 0)", no_port=True, bind=0),
        Technique("window + bind(ip, 0)", window=WINDOW, bind=0),
    ],
    ids=str,
)
def test_a_source_address_that_bind_set_is_kept(sockets: Sockets, technique: Technique) -> None:
    sock = sockets.open(technique)
    disconnect(sock)
    assert sock.getsockname()[:2] == (sockets.transport.source, 0)


def test_a_source_address_that_routing_chose_is_not(sockets: Sockets) -> None:
    sock = sockets.open(Technique("connect"))
    assert sock.getsockname()[0] == sockets.transport.source
    disconnect(sock)
    assert sock.getsockname()[:2] == (sockets.transport.wildcard, 0)


def test_a_wildcard_that_bind_set_is_restored(sockets: Sockets) -> None:
    sock = sockets.new()
    sock.bind((sockets.transport.wildcard, PORT))
    sock.connect((sockets.transport.source, FIRST))
    assert sock.getsockname()[0] == sockets.transport.source
    disconnect(sock)
    assert sock.getsockname()[:2] == (sockets.transport.wildcard, PORT)


def test_so_bindtodevice_is_cleared(sockets: Sockets) -> None:
    sock = sockets.new()
    sock.setsockopt(socket.SOL_SOCKET, uapi.SO_BINDTODEVICE, b"lo\0")
    sock.connect((sockets.transport.source, FIRST))
    assert sock.getsockopt(socket.SOL_SOCKET, uapi.SO_BINDTODEVICE, 16) == b"lo\0"
    disconnect(sock)
    assert sock.getsockopt(socket.SOL_SOCKET, uapi.SO_BINDTODEVICE, 16) == b""


def test_other_options_are_kept(sockets: Sockets) -> None:
    sock = sockets.new()
    options = {
        (socket.SOL_SOCKET, uapi.SO_REUSEADDR): 1,
        (socket.SOL_SOCKET, uapi.SO_MARK): 7,
        (uapi.IPPROTO_IP, uapi.IP_FREEBIND): 1,
        (uapi.IPPROTO_IP, uapi.IP_TRANSPARENT): 1,
        (uapi.IPPROTO_IP, uapi.IP_BIND_ADDRESS_NO_PORT): 1,
        (uapi.IPPROTO_IP, uapi.IP_LOCAL_PORT_RANGE): PORT << 16 | PORT,
    }
    for (level, option), value in options.items():
        set_option(sock, level, option, value)
    sock.connect((sockets.transport.source, FIRST))
    disconnect(sock)
    assert {name: sock.getsockopt(*name) for name in options} == options


def test_an_icmp_error_releases_nothing(sockets: Sockets) -> None:
    sock = sockets.open(Technique("connect"))
    name = sock.getsockname()
    sock.send(b"nobody is there")
    readable, _, _ = select.select([sock], [], [], limits.LIMIT)
    assert readable
    with pytest.raises(ConnectionRefusedError):
        limits.receive(sock)
    assert sock.getsockname() == name
    assert sock.getpeername()[1] == FIRST


class TestClaimThatCanBeUndone:
    """SO_REUSEADDR, a window of one port and bind(ip, 0): an explicit port, but for the lock.

    With it the library connects a caller's socket, and can leave it as it was found.
    """

    def test_it_gets_the_port(self, sockets: Sockets) -> None:
        sock = sockets.bound(CLAIM)
        assert sock.getsockname()[:2] == (sockets.transport.source, PORT)

    def test_it_shares_the_port_with_those_that_have_reuseaddr(self, sockets: Sockets) -> None:
        sockets.open(SHARED_BIND, SECOND)
        sockets.open(CLAIM, SECOND)
        assert sockets.bound(CLAIM).getsockname()[1] == PORT

    def test_it_is_refused_by_one_that_has_not(self, sockets: Sockets) -> None:
        sockets.open(PLAIN_BIND, SECOND)
        assert sockets.outcome(CLAIM) == INUSE

    def test_clearing_reuseaddr_locks_the_port(self, sockets: Sockets) -> None:
        sock = sockets.bound(CLAIM)
        sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, 0)
        assert sockets.outcome(SHARED_BIND, SECOND) == INUSE
        assert sockets.outcome(CLAIM, SECOND) == INUSE
        shared_connect = Technique("", reuseaddr=True, window=WINDOW)
        assert sockets.outcome(shared_connect, SECOND) == AGAIN
        sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, 1)
        for technique in (SHARED_BIND, CLAIM, shared_connect):
            assert sockets.outcome(technique, SECOND) == OK

    @pytest.mark.parametrize("rival", [SHARED_BIND, CLAIM], ids=["explicit", "claim"])
    def test_the_lookup_finds_the_newest_unconnected(
        self, sockets: Sockets, rival: Technique
    ) -> None:
        older = sockets.bound(rival)
        newer = sockets.bound(CLAIM)
        for sock in (older, newer):
            sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, 0)
        assert find(sockets.transport, PORT, FIRST) == cookie(newer)

    def test_the_lookup_finds_a_connected_one_first(self, sockets: Sockets) -> None:
        connected = sockets.open(CLAIM, FIRST)
        newer = sockets.bound(CLAIM)
        assert find(sockets.transport, PORT, FIRST) == cookie(connected)
        assert find(sockets.transport, PORT, SECOND) == cookie(newer)

    @pytest.mark.parametrize("reuseaddr", [0, 1])
    @pytest.mark.parametrize("state", ["bound", "connected"])
    def test_it_is_undone_and_another_port_can_be_claimed(
        self, sockets: Sockets, reuseaddr: int, state: str
    ) -> None:
        sock = {"bound": sockets.bound, "connected": sockets.open}[state](CLAIM)
        sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, reuseaddr)
        disconnect(sock)
        assert sock.getsockname()[:2] == (sockets.transport.source, 0)
        assert find(sockets.transport, PORT, FIRST) is None
        assert sockets.outcome(PLAIN_BIND) == OK
        sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, 1)
        set_window(sock, PORT + 1, PORT + 1)
        sock.bind((sockets.transport.source, 0))
        assert find(sockets.transport, PORT + 1, FIRST) == cookie(sock)
        sock.connect((sockets.transport.source, FIRST))
        assert sock.getsockname()[1] == PORT + 1

    def test_undone_it_can_be_bound_explicitly_outside_of_the_range(self, sockets: Sockets) -> None:
        sock = sockets.open(CLAIM)
        disconnect(sock)
        sock.bind((sockets.transport.source, 40000))
        sock.connect((sockets.transport.source, FIRST))
        assert sock.getsockname()[1] == 40000

    def test_undone_with_no_window_left_it_is_an_ordinary_socket(self, sockets: Sockets) -> None:
        sock = sockets.open(CLAIM)
        disconnect(sock)
        set_window(sock, 0, 0)
        sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, 0)
        for port in range(LOW, HIGH):
            assert sockets.outcome(Technique("", bind=port)) == OK
        sock.connect((sockets.transport.source, FIRST))
        assert sock.getsockname()[1] == HIGH


def test_a_closed_socket_is_an_error(sockets: Sockets) -> None:
    sock = sockets.new()
    sock.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        disconnect(sock)
