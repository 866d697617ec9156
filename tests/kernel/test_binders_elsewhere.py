"""An explicit bind on another address shuts a port to connect(): while it lasts, and afterwards.

Three source addresses have the same port: one is connected from it, one is bound to it, and one
wants to connect from it.
"""

import contextlib
import errno
import os
import socket
from dataclasses import replace
from typing import Final

import pytest

from connectx.linux.disconnect import disconnect
from connectx.sandbox.networks import Network
from tests.kernel.mixing import CONNECT, CONNECT_REUSEADDR, REUSEADDR_BIND, P
from tests.kernel.raw import (
    FIRST,
    MPTCP,
    MPTCP6,
    SECOND,
    STREAMS,
    TCP,
    TCP6,
    Sockets,
    Technique,
    Transport,
    abort,
    prepare,
    recomputes_buckets,
)

HOSTS: Final = {
    socket.AF_INET: ("127.0.0.2", "127.0.0.3", "127.0.0.4"),
    socket.AF_INET6: ("2001:db8::2", "2001:db8::3", "2001:db8::4"),
}
OTHER_FAMILY: Final = {TCP: TCP6, TCP6: TCP, MPTCP: MPTCP6, MPTCP6: MPTCP}

(EXPLICIT,) = REUSEADDR_BIND

#: Those that bind an address, and leave the port to connect().
BOUND_LATE: Final = [each for each in CONNECT + CONNECT_REUSEADDR if each.bind == 0]


class Scene:
    """The sockets of each of the three addresses, and one destination for all."""

    def __init__(self, sockets: Sockets, stack: contextlib.ExitStack) -> None:
        transport = self.transport = sockets.transport
        self.stack = stack
        self.first, self.binders, self.last = (
            Sockets(replace(transport, source=host), stack) for host in HOSTS[transport.family]
        )

    def connected(self, technique: Technique) -> socket.socket:
        sock = self.first.bound(technique)
        sock.connect((self.transport.source, FIRST))
        assert sock.getsockname()[1] == P
        return sock

    def assert_refused(self, sock: socket.socket) -> None:
        with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
            sock.connect((self.transport.source, FIRST))


@pytest.fixture
def scene(sockets: Sockets, network: Network, closing: contextlib.ExitStack) -> Scene:
    network.port_range(P, P)
    for host in HOSTS[socket.AF_INET6]:
        network.add_address(host)
    return Scene(sockets, closing)


@pytest.mark.parametrize("transport", STREAMS, ids=str)
@pytest.mark.parametrize("family", ["own", "other"])
@pytest.mark.parametrize("technique", BOUND_LATE, ids=str)
def test_a_refused_socket_connects_once_the_binder_has_gone(
    scene: Scene, technique: Technique, family: str
) -> None:
    """The same socket, although older connections are still on the port."""
    scene.connected(technique)
    transport = scene.transport
    if family == "other":
        transport = OTHER_FAMILY[transport]
        binder = Sockets(transport, scene.stack).bound(EXPLICIT)
    else:
        binder = scene.binders.bound(EXPLICIT)
    sock = scene.last.bound(technique)
    scene.assert_refused(sock)
    binder.close()
    if not recomputes_buckets():
        scene.assert_refused(sock)
        return
    sock.connect((scene.transport.source, FIRST))
    assert sock.getsockname()[1] == P


@pytest.mark.parametrize("transport", STREAMS, ids=str)
@pytest.mark.parametrize("technique", BOUND_LATE, ids=str)
def test_of_two_binders_the_last_to_go_opens_the_port(scene: Scene, technique: Technique) -> None:
    scene.connected(technique)
    binders = [each.bound(EXPLICIT) for each in (scene.binders, scene.binders)]
    sock = scene.last.bound(technique)
    for binder in binders:
        scene.assert_refused(sock)
        binder.close()
    if recomputes_buckets():
        sock.connect((scene.transport.source, FIRST))
    else:
        scene.assert_refused(sock)


@pytest.mark.parametrize("transport", [TCP, TCP6], ids=str)
@pytest.mark.parametrize("technique", BOUND_LATE, ids=str)
def test_one_that_connect_chose_the_port_for_is_a_binder_once_it_has_bound_it(
    scene: Scene, transport: Transport, technique: Technique
) -> None:
    """Whatever it was before, and although another binder comes and goes."""
    sock = scene.connected(technique)
    disconnect(sock)
    prepare(sock, EXPLICIT, scene.binders.transport.source)
    scene.binders.bound(EXPLICIT).close()
    refused = scene.last.bound(technique)
    scene.assert_refused(refused)
    # Connected again, from the port that it is bound to.
    sock.connect((transport.source, SECOND))
    scene.assert_refused(refused)
    abort(sock)
    refused.connect((transport.source, FIRST))
