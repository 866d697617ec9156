"""Remedies against full tables, limits that are met, and connections that nobody closes."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from connectx._diagnosis import causes
from connectx.linux import features
from tests import limits
from tests.observe.helpers import HERE, PORT, SIZE, leave_time_wait
from tests.remedies import conntrack
from tests.remedies.world import TO, World, follows

if TYPE_CHECKING:
    from collections.abc import Iterator

NOT_AVAILABLE = errno.EADDRNOTAVAIL
UDP = socket.SOCK_DGRAM

#: As many connections as make a leak.
LEAKED: Final = 12


def leaking(world: World) -> list[socket.socket]:
    """Every port of the range in use, most of them by what the peer has closed."""
    listener = world.servers.listen("0.0.0.0", PORT)
    socks = [world.connect() for _ in range(SIZE)]
    for sock in socks[:LEAKED]:
        accepted, _ = limits.accept(listener)
        accepted.close()
        assert limits.receive(sock) == b""
    world.fails(NOT_AVAILABLE, world.connect)
    return socks[:LEAKED]


@follows(causes.CLOSE_WAIT, "have the program close")
def closed_by_the_program(world: World) -> None:
    leaked = leaking(world)
    world.read()
    for sock in leaked:
        sock.close()
        world.connect()


@follows(causes.CLOSE_WAIT, "until it does")
def closed_for_the_program(world: World) -> None:
    """The ports are free at once. The program learns of it, and of other connections nothing."""
    leaked = leaking(world)
    world.follow()
    for sock in leaked:
        world.connect()
        world.fails(errno.ECONNABORTED, sock.send, b"x")


@follows(causes.CLOSE_WAIT, "or restart it")
def restarted(world: World) -> None:
    """Its sockets are closed by the kernel, those in use as well."""
    listener = world.servers.listen("0.0.0.0", PORT)
    child = os.fork()
    if not child:
        socks = [socket.create_connection(HERE) for _ in range(SIZE)]
        signal.pause()
        os._exit(len(socks))
    try:
        accepted = [limits.accept(listener)[0] for _ in range(SIZE)]
        for sock in accepted[:LEAKED]:
            sock.close()
        world.fails(NOT_AVAILABLE, world.connect)
        world.read()
    finally:
        os.kill(child, 9)
        limits.status_of(child)
    for sock in accepted[LEAKED:]:
        assert limits.receive(sock) == b""
        sock.close()
    world.connect()


@follows(causes.IDLE, "have the pool")
def a_smaller_pool(world: World) -> None:
    world.servers.listen("0.0.0.0", PORT)
    pool = [world.connect() for _ in range(SIZE)]
    world.fails(NOT_AVAILABLE, world.connect)
    world.read("--idle", "0")
    pool.pop().close()
    world.connect()


@follows(causes.IDLE, "set TCP_USER_TIMEOUT")
def dead_peers_are_noticed(world: World) -> None:
    """The peer goes without a word. A connection that asks after it ends, and frees its port."""
    with world.another_host("192.0.2.7/24", "192.0.2.9/24") as other:
        with other.entered():
            world.servers.listen("192.0.2.9", PORT)
        to = ("192.0.2.9", PORT)
        pool = [world.connect(to) for _ in range(SIZE)]
        world.fails(NOT_AVAILABLE, world.connect, to)
        world.read("--idle", "0")
        with other.entered():
            world.run("ip address flush dev w0")
        for option, value in (
            (socket.TCP_KEEPIDLE, 1),
            (socket.TCP_KEEPINTVL, 1),
            (socket.TCP_USER_TIMEOUT, 1000),
        ):
            pool[0].setsockopt(socket.IPPROTO_TCP, option, value)
        pool[0].setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        limits.readable(pool[0])
        assert pool[0].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (
            errno.ETIMEDOUT,
            errno.EHOSTUNREACH,
        )
        pool[0].close()
        assert not select.select([pool[1]], [], [], 0)[0]
        # The port is free: the call gets as far as nobody answering.
        with socket.socket() as sock:
            sock.settimeout(0)
            assert sock.connect_ex(to) == errno.EINPROGRESS


def overflowing(world: World) -> socket.socket:
    world.network.sysctl("net.ipv4.tcp_max_tw_buckets", 4)
    world.network.sysctl("net.ipv4.tcp_tw_reuse", 0)
    listener = world.servers.listen("0.0.0.0", PORT)
    for _ in range(6):
        leave_time_wait(listener)
    assert resting(world) == 4
    return listener


def resting(world: World) -> int:
    return len(world.run("ss -tanH state time-wait").splitlines())


@follows(causes.TIME_WAIT_OVERFLOW, "allow more")
def more_time_waits(world: World) -> None:
    """Each takes some 250 octets, as the kernel's own list of its memory says."""
    listener = overflowing(world)
    world.follow()
    for _ in range(6):
        leave_time_wait(listener)
    assert resting(world) == 10
    slabs = Path("/proc/slabinfo")
    if slabs.exists():
        sizes = [
            int(line.split()[3])
            for line in slabs.read_text().splitlines()
            if line.startswith("tw_sock_TCP ")
        ]
        assert all(200 <= size <= 320 for size in sizes), sizes


@follows(causes.TIME_WAIT_OVERFLOW, "keep connections open longer")
def fewer_time_waits(world: World) -> None:
    listener = overflowing(world)
    world.read()
    for _ in range(6):
        with socket.create_connection(HERE) as sock:
            accepted, _ = limits.accept(listener)
            accepted.close()
            assert limits.receive(sock) == b""
    assert resting(world) == 4


#: A program that has a connection, and more descriptors of it than it may have but two. For each
#: line it opens one more, and says what came of that; then it waits with select(2) for one that is
#: as high as it can have.
_FULL: Final = """
import errno, os, resource, select, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
sock = socket.create_connection(("127.0.0.1", 9000))
while True:
    try:
        last = os.dup(sock.fileno())
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
        break
for line in sys.stdin:
    try:
        socket.create_connection(("127.0.0.1", 9000)).close()
        print("connected", flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
        continue
    high = os.dup2(sock.fileno(), 2000)
    try:
        select.select([], [high], [])
    except ValueError as error:
        print(error, flush=True)
"""


@contextlib.contextmanager
def full_of_descriptors(world: World) -> Iterator[subprocess.Popen[str]]:
    world.servers.listen("0.0.0.0", PORT)
    with subprocess.Popen(
        [sys.executable, "-c", _FULL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert limits.line_from(program) == "EMFILE\n"
        try:
            assert again(program) == "EMFILE\n"
            yield program
        finally:
            program.kill()


def again(program: subprocess.Popen[str]) -> str:
    print("again", file=program.stdin, flush=True)
    return str(limits.line_from(program))


@follows(causes.DESCRIPTORS, "raise the limit")
def more_descriptors(world: World) -> None:
    """select(2) takes no descriptor that only the higher limit allows."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2048:
        pytest.skip("kernel: RLIMIT_NOFILE is too low for descriptors that select(2) refuses")
    with full_of_descriptors(world) as program:
        world.follow("--errno", "EMFILE")
        assert again(program) == "connected\n"
        assert limits.line_from(program) == "filedescriptor out of range in select()\n"


@follows(causes.DESCRIPTORS, "spread the connections")
def more_processes(world: World) -> None:
    with full_of_descriptors(world) as program:
        world.read("--errno", "EMFILE")
        world.connect()
        assert again(program) == "EMFILE\n"


def tracking(world: World) -> None:
    """Connections are tracked, and replies let in because they are known, as a firewall does."""
    world.servers.listen("127.0.0.1", PORT)
    nft(
        world,
        """
        table ip filter {
            chain in { type filter hook input priority 0; policy drop;
                       ct state established,untracked accept; ip daddr 127.0.0.1 accept; }
            chain out { type filter hook output priority 0; ct state new counter; }
        }
        """,
    )
    if conntrack.limit() > 1_000_000:
        pytest.skip(f"kernel: filling a table of {conntrack.limit()} takes too long")
    conntrack.fill()
    world.fails(errno.EPERM, world.connect(kind=UDP).send, b"x")
    with socket.socket() as sock:
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.connect(HERE)


def nft(world: World, rules: str) -> None:
    world.run(f"nft '{rules}'")


@follows(causes.CONNTRACK, "make the table larger")
def a_larger_table(world: World) -> None:
    """Not done: the limit is the machine's. The doctor says so, and prints no command here."""
    tracking(world)
    assert not world.read("--errno", "ETIMEDOUT", *TO)
    assert not os.stat("/proc/sys/net/netfilter/nf_conntrack_max").st_mode & 0o222  # noqa: PTH116


@follows(causes.CONNTRACK, "do not track")
def not_tracked(world: World) -> None:
    tracking(world)
    for question in (("--errno", "EPERM", "--protocol", "udp"), ("--errno", "ETIMEDOUT")):
        world.read(*question, *TO)
        printed = " ".join(world.ask(*question, *TO).split())
        assert "may well come from this: conntrack has 262,144 entries" in printed
        assert "net.netfilter.nf_conntrack_max is" in printed
    nft(
        world,
        """
        table ip raw {
            chain out { type filter hook output priority raw; ip daddr 127.0.0.1 notrack; }
            chain in { type filter hook prerouting priority raw; ip saddr 127.0.0.1 notrack; }
        }
        """,
    )
    world.connect(kind=UDP).send(b"x")
    world.connect()
    # As it says: rules that look at the state of connections do not see it any more.
    nft(world, "flush chain ip filter in; add rule ip filter in ct state established accept")
    with socket.socket() as sock:
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.connect(HERE)


@follows(causes.OLD_KERNEL, "see")
def what_newer_kernels_bring(world: World) -> None:
    """The page that is named has the features whose lack is reported."""
    del world
    page = Path(__file__).parents[2] / "docs/kernels.md"
    for feature in (features.IP_LOCAL_PORT_RANGE, features.STEP_OF_ONE):
        assert f"{feature.since[0]}.{feature.since[1]}" in page.read_text()
