"""What is said to be taken over is taken over, and nothing else is."""

import itertools
import select
import socket
from pathlib import Path

import pytest

from connectx.linux import uapi
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.sock_diag import SocketRecord
from connectx.linux.socket_dump import Filter, records
from connectx.linux.time_wait import Reuse, read_reuse
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.kernel.raw import FIRST
from tests.observe.helpers import leave_time_wait

HERE = ("127.0.0.1", FIRST)


def time_wait() -> SocketRecord:
    with NetlinkSocket(uapi.NETLINK_SOCK_DIAG) as netlink:
        wanted = Filter(uapi.IPPROTO_TCP, 1 << uapi.TCP_TIME_WAIT, destination_port=FIRST)
        (record,) = records(netlink, wanted)
    return record


def wait_for_age(milliseconds: int) -> SocketRecord:
    """The TIME_WAIT, once it is so old: polled, since nobody tells."""
    while True:
        record = time_wait()
        if 60_000 - record.expires >= milliseconds:
            return record
        select.select((), (), (), 0.02)


@pytest.mark.parametrize("mode, timestamps", list(itertools.product((0, 1, 2), (0, 1))))
@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.7", "::1"])
def test_of_the_only_port(
    network: Network, servers: Servers, host: str, mode: int, timestamps: int
) -> None:
    network.port_range(20001, 20001)
    if host == "192.0.2.7":
        network.add_address(host)
    network.sysctl("net.ipv4.tcp_tw_reuse", mode)
    network.sysctl("net.ipv4.tcp_timestamps", timestamps)
    # Before 6.14 it is a second, always.
    if Path("/proc/sys/net/ipv4/tcp_tw_reuse_delay").exists():
        network.sysctl("net.ipv4.tcp_tw_reuse_delay", 50)
    leave_time_wait(servers.listen("::", FIRST), (host, FIRST))
    reuse = read_reuse()
    assert (reuse.mode, reuse.timestamps) == (mode, bool(timestamps))
    record = wait_for_age(reuse.delay + 20)
    expected = bool(timestamps) and (mode == 1 or (mode == 2 and host != "192.0.2.7"))
    assert reuse.takes(record) == expected
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        assert (sock.connect_ex((host, FIRST)) == 0) == expected


def test_not_before_the_delay() -> None:
    reuse = Reuse(1, timestamps=True, delay=1000)
    loopback = socket.inet_aton("127.0.0.1")
    record = SocketRecord(
        2, uapi.TCP_TIME_WAIT, loopback, 20001, loopback, FIRST, 0, bytes(8), 0, 0, 59_001
    )
    assert not reuse.takes(record)
    assert reuse.takes(record._replace(expires=59_000))
    assert not reuse.takes(record._replace(expires=0, state=uapi.TCP_FIN_WAIT2))
