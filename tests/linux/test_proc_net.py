"""Tables, counters and addresses of a namespace: what is read, and where it is read."""

import contextlib
import socket
import sys

import pytest

from connectx.addresses import packed, unmapped
from connectx.linux import proc_net, uapi
from connectx.linux.proc_net import Table
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import TCP_MAPPED, close_first
from tests.kernel.raw import FIRST, TCP, TCP6, Transport
from tests.observe.helpers import leave_time_wait

SOCKSTAT = """\
sockets: used 13
TCP: inuse 1 orphan 0 tw 7 alloc 1 mem 310
UDP: inuse 0 mem 255
"""


def test_time_wait_is_read() -> None:
    assert proc_net.parse_time_wait(SOCKSTAT) == 7


@pytest.mark.parametrize("text", ["", "UDP: tw 7", "TCP: inuse 1", "TCP: tw", "TCP: tw many"])
def test_a_file_that_says_nothing_of_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"no number of TIME_WAIT|invalid literal"):
        proc_net.parse_time_wait(text)


def test_the_limit_is_the_namespaces(network: Network) -> None:
    network.sysctl("net.ipv4.tcp_max_tw_buckets", 4321)
    assert proc_net.time_wait() == Table(0, 4321)


def test_conntrack(network: Network) -> None:
    found = proc_net.conntrack()
    if found is None:
        pytest.skip("kernel: has no conntrack")
    assert found.limit == int(network.namespace.get_sysctl("net.netfilter.nf_conntrack_max"))


def test_without_conntrack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc_net, "_CONNTRACK", "/proc/sys/net/no_such_")
    assert proc_net.conntrack() is None


def test_time_waits_that_there_was_no_room_for(network: Network, servers: Servers) -> None:
    network.sysctl("net.ipv4.tcp_max_tw_buckets", 2)
    listener = servers.listen("127.0.0.1", FIRST)
    for expected in (0, 0, 1):
        leave_time_wait(listener, ("127.0.0.1", FIRST))
        assert proc_net.read_tcp_ext("TCPTimeWaitOverflow") == expected


def test_a_counter_that_there_is_not(network: Network) -> None:
    del network
    with pytest.raises(LookupError, match="TCPNothing"):
        proc_net.read_tcp_ext("TCPNothing")


FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     |-- 192.0.2.0
        /24 link UNICAST
Local:
  +-- 0.0.0.0/0 3 0 5
     |-- 127.0.0.0
        /8 host LOCAL
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 192.0.2.7
        /32 host LOCAL
     |-- 192.0.2.255
        /32 link BROADCAST
"""


def test_own_ipv4_addresses(network: Network) -> None:
    assert proc_net.parse_ipv4_addresses(FIB_TRIE) == ("127.0.0.1", "192.0.2.7")
    assert proc_net.ipv4_addresses() == ("127.0.0.1",)
    network.add_address("192.0.2.7")
    assert proc_net.ipv4_addresses() == ("127.0.0.1", "192.0.2.7")


def test_devices_with_link_local_addresses_and_without_ipv6(network: Network) -> None:
    network.add_device_pair("va", "vb")
    # The kernel adds them in a work item.
    both = {"va", "vb"}
    limits.until(lambda: set(proc_net.link_local_devices()) == both, "link-local addresses")
    assert proc_net.devices_without_ipv6() == ()
    network.sysctl("net.ipv6.conf.va.disable_ipv6", 1)
    assert proc_net.link_local_devices() == ("vb",)
    assert proc_net.devices_without_ipv6() == ("va",)
    network.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    assert set(proc_net.devices_without_ipv6() or ()) >= {"all", "va", "vb", "lo"}


def test_multicast_groups_that_programs_have_joined(network: Network) -> None:
    """Not those that come with a device or an address."""
    network.add_device_pair("va", "vb")
    network.add_address("2001:db8::7", 64, "va")
    assert proc_net.multicast_groups() == set()
    with (
        socket.socket(type=socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock6,
    ):
        member = socket.inet_aton("239.1.2.3") + socket.inet_aton("127.0.0.1")
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        index = socket.if_nametoindex("va").to_bytes(4, sys.byteorder)
        member = socket.inet_pton(socket.AF_INET6, "ff0e::1234") + index
        sock6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
        assert proc_net.multicast_groups() == {"239.1.2.3", "ff0e::1234"}
    assert proc_net.multicast_groups() == set()


def ends(sock: socket.socket) -> tuple[bytes, int, bytes, int]:
    (host, port, *_), (to, to_port, *_) = sock.getsockname(), sock.getpeername()
    wire = [unmapped(packed(each) or b"") for each in (host, to)]
    return wire[0], port, wire[1], to_port


@pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED], ids=str)
def test_tcp_sockets_on_a_4_tuple(
    transport: Transport, servers: Servers, closing: contextlib.ExitStack
) -> None:
    servers.listen(transport.source, FIRST)
    first, second = (closing.enter_context(transport.socket()) for _ in range(2))
    for sock in (first, second):
        sock.connect((transport.source, FIRST))
    source, port, destination, to_port = ends(first)
    found = proc_net.tcp_sockets(source, port, destination, to_port)
    assert found == [proc_net.TcpSocket(uapi.TCP_ESTABLISHED, in_time_wait=False)]
    assert proc_net.tcp_sockets(b"", port, destination, to_port) == found
    assert proc_net.tcp_sockets(source, port, destination, to_port + 1) == []
    assert proc_net.tcp_sockets(source, 1, destination, to_port) == []


@pytest.mark.parametrize("state", [uapi.TCP_TIME_WAIT, uapi.TCP_FIN_WAIT2])
@pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED], ids=str)
def test_tcp_sockets_of_which_only_a_time_wait_is_left(
    transport: Transport, servers: Servers, state: int
) -> None:
    listener = servers.listen(transport.source, FIRST)
    with transport.socket() as sock:
        sock.connect((transport.source, FIRST))
        server, _ = limits.accept(listener)
        found = ends(sock)
        close_first(sock, server, state)
    assert proc_net.tcp_sockets(*found) == [proc_net.TcpSocket(state, in_time_wait=True)]
