"""Which of the UDP sockets on one port a datagram reaches, whatever the order they came in.

A connected one before all, then one on the address, then one on every address, of either IP
version. On this rests that a connection of ours receives what its peer sends, and that a lookup
finds it before a service (`connectx._connect.looking`).
"""

import contextlib
import itertools
import select
import socket
from typing import Final, NamedTuple

import pytest

from connectx.linux import uapi
from connectx.sandbox.networks import Network
from tests import limits
from tests.kernel.raw import FIRST, SECOND, UDP, UDP6, Transport, cookie, find, set_option

PORT: Final = 20001


class Socket(NamedTuple):
    """A socket to be bound to the port.

    Attributes:
        name: What it is, for people.
        host: What it is bound to.
        connected: Whether it is connected to the peer.
    """

    name: str
    host: str
    connected: bool = False

    def __str__(self) -> str:
        return self.name


#: By IP version of the packets, the one that is preferred first; the last is of the other version.
RANKS: Final = {
    "IPv4": [
        Socket("connected", "127.0.0.1", connected=True),
        Socket("on the address", "127.0.0.1"),
        Socket("on 0.0.0.0", "0.0.0.0"),
        Socket("on ::", "::"),
    ],
    "IPv4-mapped": [
        Socket("connected", "::ffff:127.0.0.1", connected=True),
        Socket("on the address", "::ffff:127.0.0.1"),
        Socket("on 0.0.0.0", "0.0.0.0"),
        Socket("on ::", "::"),
    ],
    "IPv6": [
        Socket("connected", "::1", connected=True),
        Socket("on the address", "::1"),
        Socket("on ::", "::"),
        Socket("on 0.0.0.0", "0.0.0.0"),
    ],
}


class Scene:
    """The peer, and sockets on one port of the same address."""

    def __init__(self, version: str, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.transport: Transport = UDP6 if version == "IPv6" else UDP
        self.mapped = "::ffff:" if version == "IPv4-mapped" else ""
        self.peers = {port: self.bound(self.transport.source, port) for port in (FIRST, SECOND)}

    def bound(self, host: str, port: int, *options: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = self._stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        for option in options:
            set_option(sock, socket.SOL_SOCKET, option, 1)
        sock.bind((host, port))
        return sock

    def opened(self, kind: Socket) -> socket.socket:
        sock = self.bound(kind.host, PORT, uapi.SO_REUSEADDR)
        if kind.connected:
            sock.connect((self.mapped + self.transport.source, FIRST))
        return sock

    def receiver(self, socks: list[socket.socket], peer: int) -> socket.socket:
        """The one of some sockets that receives what a peer sends to the port."""
        self.peers[peer].sendto(b"x", (self.transport.source, PORT))
        (readable,), _, _ = select.select(socks, [], [], limits.LIMIT)
        assert limits.receive(readable, 16) == b"x"
        found: socket.socket = readable
        return found


@pytest.fixture(params=RANKS)
def version(request: pytest.FixtureRequest) -> str:
    version: str = request.param
    return version


@pytest.fixture
def scene(version: str, network: Network, closing: contextlib.ExitStack) -> Scene:  # noqa: ARG001
    return Scene(version, closing)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_the_most_specific(scene: Scene, version: str, order: tuple[int, ...]) -> None:
    ranks = RANKS[version]
    opened = {ranks[place]: scene.opened(ranks[place]) for place in order}
    connected, on_address, on_wildcard = (opened[rank] for rank in ranks[:3])
    socks = [*opened.values()]
    assert scene.receiver(socks, FIRST) is connected
    assert find(scene.transport, PORT, FIRST) == cookie(connected)
    # Of somebody else's datagrams it gets none.
    assert scene.receiver(socks, SECOND) is on_address
    socks.remove(connected)
    connected.close()
    assert scene.receiver(socks, FIRST) is on_address
    socks.remove(on_address)
    on_address.close()
    assert scene.receiver(socks, FIRST) is on_wildcard


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_with_wildcards_of_both_ip_versions(
    scene: Scene, version: str, order: tuple[int, ...]
) -> None:
    ranks = RANKS[version]
    opened = {ranks[place]: scene.opened(ranks[place]) for place in order}
    socks = [*opened.values()]
    assert scene.receiver(socks, FIRST) is opened[ranks[0]]
    assert scene.receiver(socks, SECOND) is opened[ranks[1]]
