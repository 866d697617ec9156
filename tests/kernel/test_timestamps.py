"""The offset of TCP timestamps, which connect() sets before anything is sent."""

import contextlib
import socket

import pytest

from connectx._diagnosis.census import offset_depends_on_port, tells_binds_apart
from connectx.linux.sockopts import get_tcp_timestamp, set_tcp_fastopen_connect
from connectx.linux.uapi import IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE
from connectx.sandbox.networks import Network

#: Milliseconds, in which two calls are made; offsets differ by more.
TOGETHER = 10_000


def timestamps(stack: contextlib.ExitStack, *destinations: tuple[str, int]) -> list[int]:
    read = []
    for to in destinations:
        sock = stack.enter_context(socket.socket())
        set_tcp_fastopen_connect(sock, on=True)
        sock.setsockopt(IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
        sock.connect(to)
        read.append(get_tcp_timestamp(sock))
    return read


def test_it_is_set_though_nothing_was_sent(network: Network, closing: contextlib.ExitStack) -> None:
    """It differs between destinations, so equal ones between ports do say something."""
    del network
    if not tells_binds_apart():
        pytest.skip("kernel: no TCP Fast Open for clients, or no windows")
    first, second = timestamps(closing, ("127.0.0.8", 9), ("127.0.0.9", 9))
    assert min((first - second) % (1 << 32), (second - first) % (1 << 32)) > TOGETHER


def test_whether_it_depends_on_the_port_is_found_out(
    network: Network, closing: contextlib.ExitStack
) -> None:
    del network
    if not tells_binds_apart():
        pytest.skip("kernel: no TCP Fast Open for clients, or no windows")
    first, second = timestamps(closing, ("127.0.0.8", 9), ("127.0.0.8", 9))
    assert offset_depends_on_port() == ((second - first) % (1 << 32) > TOGETHER)


def test_where_connect_would_send_it_is_not_tried(network: Network) -> None:
    network.sysctl("net.ipv4.tcp_fastopen", 0)
    assert offset_depends_on_port() is None
