"""Counters of a namespace, which begins with none."""

import socket

import pytest

from connectx.linux import counters
from connectx.testing.namespaces import Network
from connectx.testing.servers import Servers
from tests.kernel.raw import FIRST


def test_time_waits_and_their_overflow(network: Network, servers: Servers) -> None:
    network.sysctl("net.ipv4.tcp_max_tw_buckets", 2)
    listener = servers.listen("127.0.0.1", FIRST)
    assert counters.read_time_waits() == 0
    assert counters.read_tcp_ext("TCPTimeWaitOverflow") == 0
    for expected in (1, 2, 2):
        with socket.create_connection(("127.0.0.1", FIRST)) as sock:
            accepted, _ = listener.accept()
            sock.shutdown(socket.SHUT_WR)
            assert accepted.recv(1) == b""
            accepted.close()
            assert sock.recv(1) == b""
        assert counters.read_time_waits() == expected
    assert counters.read_tcp_ext("TCPTimeWaitOverflow") == 1


def test_a_counter_that_there_is_not(network: Network) -> None:
    del network
    with pytest.raises(LookupError, match="TCPNothing"):
        counters.read_tcp_ext("TCPNothing")


def test_conntrack(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    del network
    found = counters.read_conntrack()
    if found is not None:
        count, most = found
        assert count == 0
        assert most > 0
    monkeypatch.setattr(counters, "_CONNTRACK", counters._NET / "nothing")
    assert counters.read_conntrack() is None
