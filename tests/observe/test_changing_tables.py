"""Snapshots of a table that changes all the time, against the connections that stay.

A dump can miss one that stays, or have it twice: tests/kernel/test_dumps.py shows when. With
ports that are spread, as here, that is rare, and rarer for TCP, whose table has more buckets.
What these tests hold is that it stays the exception, and that we add nothing to it.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from connectx.linux import uapi
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.socket_dump import Filter, records
from connectx.linux.sockopts import get_so_cookie
from connectx.observe import snapshot
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits

PORT = 9000
STAYING = 1200
SNAPSHOTS = 25

#: Opens and closes connections toward the port until standard input ends; says so after each 50.
CHURN = """
import select, socket, struct, sys
port, kind = int(sys.argv[1]), int(sys.argv[2])
opened = []
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(50):
        sock = socket.socket(type=kind)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
        sock.connect(("127.0.0.1", port))
        opened.append(sock)
        if len(opened) > 300:
            opened.pop(0).close()
    sys.stdout.write(".")
    sys.stdout.flush()
"""


@pytest.fixture
def staying(
    network: Network, servers: Servers, closing: contextlib.ExitStack
) -> dict[int, list[socket.socket]]:
    """Connections that nobody touches, by the type of the socket."""
    network.port_range(20000, 40000)
    servers.listen("::", PORT)
    found = {}
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        found[kind] = [
            closing.enter_context(socket.socket(family, kind))
            for family in (socket.AF_INET, socket.AF_INET6)
            for _ in range(STAYING)
        ]
        for sock in found[kind]:
            sock.connect(("127.0.0.1" if sock.family == socket.AF_INET else "::1", PORT))
    return found  # type: ignore[return-value]  # an enum of ints


@contextlib.contextmanager
def churning(servers: Servers) -> Iterator[None]:
    """Run a block while two processes open and close connections, and see that they did."""
    servers.listen("127.0.0.1", PORT + 1)
    with contextlib.ExitStack() as stack:
        outputs = []
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", CHURN, str(PORT + 1), str(int(kind))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            assert process.stdin
            assert process.stdout
            # In reverse order; Popen's own end would close its output first.
            stack.callback(process.wait, limits.LIMIT)
            stack.callback(process.stdin.close)
            outputs.append(process.stdout.fileno())
        for output in outputs:
            limits.readable(output)
            assert os.read(output, 1) == b"."
            # What it says from here on, it does within the block.
            os.set_blocking(output, False)
            with contextlib.suppress(BlockingIOError):
                while os.read(output, 4096):
                    pass
            os.set_blocking(output, True)
        yield
        for output in outputs:
            limits.readable(output)
            assert os.read(output, 1) == b"."


#: Of all that stay in all snapshots, how many may be missing or double.
TOLERATED = {socket.SOCK_STREAM: 1e-4, socket.SOCK_DGRAM: 2e-3}


@pytest.mark.usefixtures("staying")
def test_what_stays_is_counted_in_every_snapshot(servers: Servers) -> None:
    wrong = Counter(dict.fromkeys(("tcp", "udp"), 0))
    with churning(servers):
        for _ in range(SNAPSHOTS):
            rows = [row for row in snapshot().rows if row.destination.port == PORT]
            assert {(row.protocol, row.source, *row.states) for row in rows} == {
                (protocol, source, "ESTAB")
                for protocol in ("tcp", "udp")
                for source in ("127.0.0.1", "::1")
            }
            for row in rows:
                wrong[row.protocol] += abs(row.in_use - STAYING)
    for protocol, kind in (("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)):
        assert wrong[protocol] <= 2 * STAYING * SNAPSHOTS * TOLERATED[kind]


@pytest.mark.parametrize("kind", TOLERATED)
def test_what_stays_is_in_every_dump_once(
    servers: Servers, staying: dict[int, list[socket.socket]], kind: socket.SocketKind
) -> None:
    protocol = uapi.IPPROTO_TCP if kind == socket.SOCK_STREAM else uapi.IPPROTO_UDP
    cookies = set(map(get_so_cookie, staying[kind]))
    wrong = 0
    with churning(servers), NetlinkSocket(uapi.NETLINK_SOCK_DIAG) as netlink:
        for _ in range(SNAPSHOTS):
            found = Counter(each.cookie for each in records(netlink, Filter(protocol)))
            wrong += sum(abs(found[cookie] - 1) for cookie in cookies)
            assert len(found) > len(cookies)
    assert wrong <= len(cookies) * SNAPSHOTS * TOLERATED[kind]
