"""A 4-tuple that another process has closed comes back no sooner than with plain connect().

The server closes first, so that no TIME_WAIT of the client's keeps the port from being taken. Which
ports were in use lately is then known only to the process that had them, and to the kernel's walk
through the range, which all of them share.
"""

import itertools
import socket
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Final, NamedTuple, TypeAlias

import pytest

import connectx
from connectx._connect.strategies import StrategyName
from connectx.linux.features import STEP_OF_ONE, Probe, probe
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from connectx.sandbox.workers import Crew
from tests import limits
from tests.api.calls import TCP_MAPPED
from tests.kernel.raw import TCP, TCP6, Transport

#: The default range: 1,500 calls of plain connect(), each of which goes on by 16 ports at most,
#: do not come round.
LOW, HIGH = 32768, 60999
PROCESSES: Final = 15
CALLS: Final = 100

#: No other test connects to it: the kernel's walk toward a destination is one for all namespaces.
SERVER: Final = 9217

#: Seconds after which the walk goes on elsewhere (secure_ipv4_port_ephemeral), and more ports than
#: it leaves out otherwise.
SHUFFLE: Final = 10
FAR: Final = 200

#: How to connect to a host, from any source or from the same address.
Way: TypeAlias = Callable[[str, str | None], socket.socket]

pytestmark = pytest.mark.skipif(
    probe(STEP_OF_ONE) is not Probe.YES, reason="kernel: searches windows slowly before 6.8"
)


def plainly(host: str, source: str | None) -> socket.socket:
    given = (source, 0) if source else None
    return socket.create_connection((host, SERVER), limits.LIMIT, given)


def by_create_connection(
    host: str, source: str | None, strategy: StrategyName = "auto"
) -> socket.socket:
    given = (source, 0) if source else None
    return connectx.create_connection((host, SERVER), limits.LIMIT, given, strategy=strategy)


def by_dialer(host: str, source: str | None) -> socket.socket:
    return connectx.Dialer([source] if source else None).create_connection((host, SERVER))


def by_connectx(host: str, source: str | None) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.settimeout(limits.LIMIT)
    try:
        connectx.connectx(sock, (source, 0) if source else None, (host, SERVER))
    except BaseException:
        sock.close()
        raise
    return sock


class Clients(NamedTuple):
    """Processes that connect to one server, one after the other."""

    way: Way
    host: str
    source: str | None
    listener: socket.socket

    def ports(self) -> list[int]:
        """The ports of all calls, in order."""
        ports = []
        for _ in range(PROCESSES):
            with Crew() as crew:
                ports += crew.fork(self).start(call).result()
        return ports


def walks_of(ports: list[int]) -> list[list[int]]:
    """Ports that follow each other in the range within a few steps."""
    walks = [ports[:1]]
    for last, port in itertools.pairwise(ports):
        if (port - last) % (HIGH - LOW + 1) > FAR:
            walks.append([])
        walks[-1].append(port)
    return walks


def call(clients: Clients, report: object) -> list[int]:
    """Open some connections one after the other, and have the server close each; their ports."""
    del report
    ports = []
    for _ in range(CALLS):
        with clients.way(clients.host, clients.source) as sock:
            ports.append(sock.getsockname()[1])
            limits.accept(clients.listener)[0].close()
            assert limits.receive(sock) == b""
    return ports


@pytest.fixture
def listener(transport: Transport, network: Network, servers: Servers) -> socket.socket:
    network.port_range(LOW, HIGH)
    return servers.listen(transport.source, SERVER)


def assert_none_comes_again(clients: Clients) -> None:
    began = monotonic()
    walks = walks_of(clients.ports())
    assert all(len(set(walk)) == len(walk) for walk in walks)
    assert len(walks) <= 2 + (monotonic() - began) / SHUFFLE


@pytest.mark.parametrize(
    "way, has_source",
    [
        # With a source, bind() draws the port by chance.
        (plainly, False),
        *itertools.product([by_create_connection, by_connectx, by_dialer], [False, True]),
    ],
)
@pytest.mark.parametrize("transport", [TCP], ids=str)
def test_none_comes_again(
    transport: Transport, listener: socket.socket, way: Way, *, has_source: bool
) -> None:
    source = transport.source if has_source else None
    assert_none_comes_again(Clients(way, transport.source, source, listener))


@pytest.mark.parametrize("transport", [TCP6, TCP_MAPPED], ids=str)
def test_nor_with_ipv6(transport: Transport, listener: socket.socket) -> None:
    assert_none_comes_again(Clients(by_create_connection, transport.source, None, listener))


@pytest.mark.parametrize("transport", [TCP], ids=str)
def test_by_chance_some_would(transport: Transport, listener: socket.socket) -> None:
    """Of 1,500 ports that are drawn, some 37; none in one of 10^16 such tests."""
    way = partial(by_create_connection, strategy="one-port")
    ports = Clients(way, transport.source, None, listener).ports()
    assert len(set(ports)) < len(ports)
    assert len(walks_of(ports)) > len(ports) / 2
