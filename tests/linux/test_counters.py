"""Counters of a namespace, which begins with none."""

import socket

import pytest

from connectx.linux import counters
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.kernel.raw import FIRST


def test_time_waits_that_there_was_no_room_for(network: Network, servers: Servers) -> None:
    network.sysctl("net.ipv4.tcp_max_tw_buckets", 2)
    listener = servers.listen("127.0.0.1", FIRST)
    for expected in (0, 0, 1):
        with socket.create_connection(("127.0.0.1", FIRST)) as sock:
            accepted, _ = listener.accept()
            sock.shutdown(socket.SHUT_WR)
            assert accepted.recv(1) == b""
            accepted.close()
            assert sock.recv(1) == b""
        assert counters.read_tcp_ext("TCPTimeWaitOverflow") == expected


def test_a_counter_that_there_is_not(network: Network) -> None:
    del network
    with pytest.raises(LookupError, match="TCPNothing"):
        counters.read_tcp_ext("TCPNothing")
