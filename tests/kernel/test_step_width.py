"""net.ipv4.ip_local_port_step_width: how far connect() goes on from a port in use.

Each search draws a step of at most that width, coprime to the number of ports, so that it tries
every port all the same (__inet_hash_connect()). It came with Linux 7.1. Without it, the width is 0.
"""

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.kernel.raw import (
    AGAIN,
    DATAGRAMS,
    FIRST,
    NOTAVAIL,
    STREAMS,
    TCP,
    Sockets,
    Technique,
    abort,
    fresh_hosts,
    kernel_release,
)

NAME: Final = "net.ipv4.ip_local_port_step_width"
LOW: Final = 20001
#: A destination port that no other socket of the test has.
NOBODYS: Final = 9999
WIDEST: Final = 4_294_967_295

#: Whatever there may be in common between a width and a number of ports.
WIDTHS: Final = [1, 2, 3, 4, 6, 7, 12, WIDEST]
SIZES: Final = [1, 2, 8, 9, 12, 30]

WINDOW: Final = Technique("window", window=(1, 65535))


def has_widths() -> bool:
    return Path("/proc/sys", *NAME.split(".")).exists()


def every_width(network: Network) -> Iterator[int]:
    """Set each width in turn; where the kernel has none, it is 0."""
    yield 0
    for width in WIDTHS if has_widths() else []:
        network.sysctl(NAME, width)
        yield width


def ports_taken(sockets: Sockets, technique: Technique, size: int) -> list[int]:
    """Open connections until none is left; their ports, counted from the lowest, in order."""
    count, outcome = sockets.fill(technique, FIRST, limit=size + 1)
    streams = sockets.transport.type == socket.SOCK_STREAM
    assert outcome == (NOTAVAIL if streams else AGAIN)
    opened = sockets.opened[-count:]
    taken = [sock.getsockname()[1] - LOW for sock in opened]
    for sock in opened:
        abort(sock) if streams else sock.close()
    return taken


@pytest.mark.parametrize("size", SIZES)
class TestEveryPort:
    @pytest.mark.parametrize("transport", STREAMS, ids=str)
    def test_without_a_window_one_parity_comes_first(
        self, sockets: Sockets, network: Network, size: int
    ) -> None:
        network.port_range(LOW, LOW + size - 1)
        for width in every_width(network):
            taken = ports_taken(sockets, Technique("connect"), size)
            if size % 2 and size > 1:
                # Of an odd number, a search leaves the first or the last out.
                assert set(range(1, size - 1)) < set(taken), width
            else:
                assert sorted(taken) == list(range(size)), width
                assert [port % 2 for port in taken] == sorted(port % 2 for port in taken), width

    @pytest.mark.parametrize("transport", STREAMS, ids=str)
    def test_of_a_window(self, sockets: Sockets, network: Network, size: int) -> None:
        if kernel_release() < (6, 8) and size % 2:
            pytest.skip("kernel: before 6.8 a window is searched in steps of two, too")
        network.port_range(LOW, LOW + size - 1)
        for width in every_width(network):
            assert sorted(ports_taken(sockets, WINDOW, size)) == list(range(size)), width

    @pytest.mark.parametrize("transport", DATAGRAMS, ids=str)
    @pytest.mark.parametrize("technique", [Technique("connect"), WINDOW], ids=str)
    def test_of_datagrams(
        self, sockets: Sockets, network: Network, technique: Technique, size: int
    ) -> None:
        network.port_range(LOW, LOW + size - 1)
        for width in every_width(network):
            assert sorted(ports_taken(sockets, technique, size)) == list(range(size)), width


#: A range of ten ports of each parity, half of them in a block that is reserved.
BLOCK: Final = range(LOW + 2, LOW + 12)
BEHIND: Final = LOW + 12


@pytest.mark.parametrize("transport", [TCP], ids=str)
@pytest.mark.parametrize(
    "width, share",
    [
        pytest.param(0, 0.6, id="port by port"),
        pytest.param(1, 0.6, id="1"),
        pytest.param(2, 0.6, id="none but 1 is coprime"),
        pytest.param(40, 0.22, id="four times the block"),
        pytest.param(WIDEST, 0.22, id="widest"),
    ],
)
def test_how_many_searches_end_right_behind_a_block(
    sockets: Sockets, network: Network, servers: Servers, width: int, share: float
) -> None:
    """Without steps, all that start in the block or behind it: six of ten."""
    network.port_range(LOW, LOW + 19)
    network.reserved_ports(f"{BLOCK[0]}-{BLOCK[-1]}")
    if width and not has_widths():
        pytest.skip(f"kernel: no {NAME} before 7.1")
    if width:
        network.sysctl(NAME, width)
    servers.listen("0.0.0.0", NOBODYS, backlog=1000)
    ports: Counter[int] = Counter()
    for host in fresh_hosts(600):
        sock = sockets.new()
        sock.connect((host, NOBODYS))
        ports[sock.getsockname()[1]] += 1
        abort(sock)
    # Five standard deviations.
    assert abs(ports[BEHIND] / ports.total() - share) < 0.1, ports
