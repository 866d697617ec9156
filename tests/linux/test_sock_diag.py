import errno
import os
import socket
import struct
import threading
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectx.linux import uapi
from connectx.linux.netlink import MalformedMessage, NetlinkError, NetlinkSocket
from connectx.linux.sock_diag import (
    SocketRecord,
    TupleLookup,
    decode_record,
    encode_lookup,
)
from connectx.linux.socket_dump import ports_toward
from connectx.linux.sockopts import get_so_cookie, set_so_bindtoifindex
from connectx.linux.structs import NETLINK_STATUS, NLMSGHDR
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.linux.captures.replay import SEQUENCE, datagrams, replaying
from tests.linux.sockets import DATAGRAM, IPV4, IPV6, Open, pack


def lookup(protocol: int, source: str, destination: str, port: int, device: int = 0) -> TupleLookup:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    return TupleLookup(protocol, family, pack(source), pack(destination), port, device)


# Datagram lookups.


@pytest.mark.parametrize("protocol", DATAGRAM)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_a_connected_socket_is_found_by_its_4_tuple(
    netlink: NetlinkSocket, open_socket: Open, protocol: int, host: str
) -> None:
    sock = open_socket(protocol, (host, 20000), (host, 53))
    found = lookup(protocol, host, host, 53)
    assert found.shows(netlink, 20000, get_so_cookie(sock))
    assert found.find_record(netlink, 20001) is None
    assert lookup(protocol, host, host, 54).find_record(netlink, 20000) is None
    record = found.find_record(netlink, 20000)
    assert record == SocketRecord(
        family=sock.family,
        state=uapi.TCP_ESTABLISHED,
        source=pack(host),
        source_port=20000,
        destination=pack(host),
        destination_port=53,
        interface=0,
        cookie=get_so_cookie(sock),
        uid=os.geteuid(),
        inode=os.fstat(sock.fileno()).st_ino,
    )
    assert found.find_record(netlink, 20001) is None


@pytest.mark.parametrize("protocol", DATAGRAM)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_of_two_sockets_toward_each_other_the_source_is_found(
    netlink: NetlinkSocket, open_socket: Open, protocol: int, host: str
) -> None:
    """Source and destination are swapped in the request: this tells them apart."""
    one = open_socket(protocol, (host, 20001), (host, 20002))
    other = open_socket(protocol, (host, 20002), (host, 20001))
    assert lookup(protocol, host, host, 20002).shows(netlink, 20001, get_so_cookie(one))
    assert lookup(protocol, host, host, 20001).shows(netlink, 20002, get_so_cookie(other))


def test_an_ipv4_lookup_finds_mapped_sockets_and_a_mapped_lookup_ipv4_ones(
    netlink: NetlinkSocket, open_socket: Open
) -> None:
    mapped = open_socket(uapi.IPPROTO_UDP, ("::ffff:127.0.0.1", 20000), ("::ffff:127.0.0.1", 53))
    plain = open_socket(uapi.IPPROTO_UDP, ("127.0.0.1", 20001), ("127.0.0.1", 53))
    for host in ("127.0.0.1", "::ffff:127.0.0.1"):
        found = lookup(uapi.IPPROTO_UDP, host, host, 53)
        assert found.shows(netlink, 20000, get_so_cookie(mapped))
        assert found.shows(netlink, 20001, get_so_cookie(plain))


@pytest.mark.parametrize("holder", ["127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1", "::"])
def test_without_a_connected_socket_a_bound_one_is_found(
    netlink: NetlinkSocket, open_socket: Open, holder: str
) -> None:
    bound = open_socket(uapi.IPPROTO_UDP, (holder, 20000))
    record = lookup(uapi.IPPROTO_UDP, "127.0.0.1", "127.0.0.1", 53).find_record(netlink, 20000)
    assert record is not None
    assert record.cookie == get_so_cookie(bound)
    assert record.state == uapi.TCP_CLOSE


@pytest.mark.parametrize("holder", ["127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1", "::"])
def test_a_bound_socket_is_a_service_and_a_connected_one_is_not(
    netlink: NetlinkSocket, open_socket: Open, holder: str
) -> None:
    open_socket(uapi.IPPROTO_UDP, (holder, 20000))
    host = holder if holder.endswith("127.0.0.1") else "127.0.0.1"
    open_socket(uapi.IPPROTO_UDP, (host, 20001), (host, 53))
    open_socket(uapi.IPPROTO_UDP, (host, 20002), (host, 54))
    found = lookup(uapi.IPPROTO_UDP, "127.0.0.1", "127.0.0.1", 53)
    services = [found.is_service(netlink, port) for port in (20000, 20001, 20002, 20003)]
    assert services == [True, False, False, False]
    # A reply that was left behind is no answer.
    left = encode_lookup(uapi.IPPROTO_UDP, uapi.AF_INET, IPV4, 20000, IPV4, 53)
    netlink._send(uapi.SOCK_DIAG_BY_FAMILY, 0, left)
    assert not found.is_service(netlink, 20003)


def test_of_bound_sockets_the_newest_is_found_and_a_connected_one_before_all(
    netlink: NetlinkSocket, open_socket: Open
) -> None:
    """What makes comparing cookies a fair judge between processes that race for a port."""
    found = lookup(uapi.IPPROTO_UDP, "127.0.0.1", "127.0.0.1", 53)
    older = open_socket(uapi.IPPROTO_UDP, ("127.0.0.1", 20000))
    newer = open_socket(uapi.IPPROTO_UDP, ("127.0.0.1", 20000))
    assert found.shows(netlink, 20000, get_so_cookie(newer))
    older.connect(("127.0.0.1", 53))
    assert found.shows(netlink, 20000, get_so_cookie(older))


def test_a_device_bound_socket_is_found_only_with_its_device(
    netlink: NetlinkSocket, open_socket: Open
) -> None:
    loopback = socket.if_nametoindex("lo")
    sock = open_socket(uapi.IPPROTO_UDP)
    set_so_bindtoifindex(sock, loopback)
    sock.bind(("127.0.0.1", 20000))
    sock.connect(("127.0.0.1", 53))
    free = open_socket(uapi.IPPROTO_UDP, ("127.0.0.1", 20001), ("127.0.0.1", 53))

    without = lookup(uapi.IPPROTO_UDP, "127.0.0.1", "127.0.0.1", 53)
    within = lookup(uapi.IPPROTO_UDP, "127.0.0.1", "127.0.0.1", 53, loopback)
    assert without.find_record(netlink, 20000) is None
    assert within.shows(netlink, 20000, get_so_cookie(sock))
    assert within.shows(netlink, 20001, get_so_cookie(free))
    record = within.find_record(netlink, 20000)
    assert record is not None
    assert record.interface == loopback


def test_a_link_local_socket_is_found_only_with_its_scope(
    network: Network, netlink: NetlinkSocket, open_socket: Open
) -> None:
    network.add_device_pair("one", "two")
    network.add_address("fe80::1", 64, "one")
    scope = socket.if_nametoindex("one")
    sock = open_socket(uapi.IPPROTO_UDP, family=socket.AF_INET6)
    sock.bind(("fe80::1", 20000, 0, scope))
    sock.connect(("fe80::2", 53, 0, scope))
    assert lookup(uapi.IPPROTO_UDP, "fe80::1", "fe80::2", 53).find_record(netlink, 20000) is None
    found = lookup(uapi.IPPROTO_UDP, "fe80::1", "fe80::2", 53, scope)
    assert found.shows(netlink, 20000, get_so_cookie(sock))


# TCP lookups.


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_tcp_of_two_ends_on_one_machine_the_source_is_found(
    netlink: NetlinkSocket, servers: Servers, open_socket: Open, host: str
) -> None:
    """Unlike for UDP, nothing is swapped in the request."""
    listener = servers.listen("::" if ":" in host else "0.0.0.0", 8000)
    client = open_socket(uapi.IPPROTO_TCP, (host, 20000), (host, 8000))
    server, _ = limits.accept(listener)
    with server:
        here = lookup(uapi.IPPROTO_TCP, host, host, 8000)
        assert here.shows(netlink, 20000, get_so_cookie(client))
        assert here.find_record(netlink, 20001) is None
        there = lookup(uapi.IPPROTO_TCP, host, host, 20000)
        assert there.shows(netlink, 8000, get_so_cookie(server))


def test_tcp_without_a_connection_a_listener_is_found(
    netlink: NetlinkSocket, servers: Servers
) -> None:
    listener = servers.listen("127.0.0.1", 8000)
    record = lookup(uapi.IPPROTO_TCP, "127.0.0.1", "127.0.0.9", 443).find_record(netlink, 8000)
    assert record is not None
    assert record.state == uapi.TCP_LISTEN
    assert record.cookie == get_so_cookie(listener)


def test_tcp_a_bound_socket_is_not_found(netlink: NetlinkSocket, open_socket: Open) -> None:
    open_socket(uapi.IPPROTO_TCP, ("127.0.0.1", 20000))
    found = lookup(uapi.IPPROTO_TCP, "127.0.0.1", "127.0.0.1", 443)
    assert found.find_record(netlink, 20000) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_tcp_time_wait_is_found(
    netlink: NetlinkSocket, servers: Servers, open_socket: Open, host: str
) -> None:
    listener = servers.listen(host, 8000)
    client = open_socket(uapi.IPPROTO_TCP, (host, 20000), (host, 8000))
    server, _ = limits.accept(listener)
    client.shutdown(socket.SHUT_WR)
    assert limits.receive(server) == b""
    server.close()
    assert limits.receive(client) == b""
    client.close()
    record = lookup(uapi.IPPROTO_TCP, host, host, 8000).find_record(netlink, 20000)
    assert record is not None
    assert record.state == uapi.TCP_TIME_WAIT
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bit = 1 << uapi.TCP_TIME_WAIT
    ports = ports_toward(netlink, uapi.IPPROTO_TCP, family, None, pack(host), 8000, bit)
    assert ports == {uapi.TCP_TIME_WAIT: array("H", [20000])}


def test_mptcp_is_found_by_its_subflow(netlink: NetlinkSocket, open_socket: Open) -> None:
    listener = open_socket(uapi.IPPROTO_MPTCP, ("127.0.0.1", 8000))
    listener.listen()
    open_socket(uapi.IPPROTO_MPTCP, ("127.0.0.1", 20000), ("127.0.0.1", 8000))
    found = lookup(uapi.IPPROTO_MPTCP, "127.0.0.1", "127.0.0.1", 8000)
    record = found.find_record(netlink, 20000)
    assert record is not None
    assert record.state == uapi.TCP_ESTABLISHED
    assert found.find_record(netlink, 20001) is None


# Whatever goes wrong with a lookup, it never says "free".


def refusal(number: int) -> bytes:
    header = NLMSGHDR.pack(92, uapi.NLMSG_ERROR, 0, SEQUENCE, 0)
    return header + NETLINK_STATUS.pack(-number) + bytes(72)


FIND = TupleLookup(uapi.IPPROTO_UDP, uapi.AF_INET, IPV4, IPV4, 53)

#: No socket's: the kernel counts upward.
COOKIE = b"\xfe" * 8


def test_replayed_lookups() -> None:
    record = decode_record(datagrams("lookup-udp-found")[0][NLMSGHDR.size :])
    assert record.cookie != bytes(8)
    with replaying(datagrams("lookup-udp-found")) as netlink:
        assert FIND.shows(netlink, 20000, record.cookie)
    with replaying(datagrams("lookup-udp-found") * 2) as netlink:
        assert not FIND.shows(netlink, 20000, bytes(8))
    assert record[:6] == (uapi.AF_INET, uapi.TCP_ESTABLISHED, IPV4, 20000, IPV4, 53)
    for name in ("lookup-udp-none", "lookup-tcp-none"):
        with replaying(datagrams(name)) as netlink:
            assert FIND.find_record(netlink, 20000) is None
        with replaying(datagrams(name) * 2) as netlink:
            assert not FIND.shows(netlink, 20000, record.cookie)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EAGAIN, errno.ENOBUFS, errno.EINVAL])
def test_a_refusal_is_not_taken_for_a_free_port(number: int) -> None:
    with replaying([refusal(number)] * 2) as netlink, pytest.raises(NetlinkError) as caught:
        FIND.shows(netlink, 20000, COOKIE)
    assert caught.value.errno == number


@pytest.mark.parametrize("reply", [b"", bytes(10), bytes(68), refusal(0), refusal(5000)])
def test_nonsense_is_not_taken_for_a_free_port(reply: bytes) -> None:
    with replaying([reply] * 3) as netlink, pytest.raises((MalformedMessage, NetlinkError)):
        FIND.shows(netlink, 20000, COOKIE)


def test_no_reply_is_not_taken_for_a_free_port() -> None:
    with replaying([]) as netlink, pytest.raises(NetlinkError) as caught:
        FIND.shows(netlink, 20000, COOKIE)
    assert caught.value.errno == errno.EPROTO


@given(st.integers(0, 130), st.integers(0, 255), st.integers(1, 130))
def test_a_changed_reply_is_a_cookie_an_error_or_still_none(at: int, value: int, size: int) -> None:
    for name in ("lookup-udp-found", "lookup-udp-none"):
        (reply,) = datagrams(name)
        octets = bytearray(reply)
        octets[at : at + 1] = bytes([value])
        with replaying([bytes(octets[:size])] * 4) as netlink:
            try:
                shown = FIND.shows(netlink, 20000, COOKIE)
            except (MalformedMessage, OSError):
                continue
        # Nobody's cookie: neither the found socket's nor what an error has in its place.
        assert not shown


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_an_error(netlink: NetlinkSocket, port: int) -> None:
    with pytest.raises(struct.error):
        FIND.shows(netlink, port, COOKIE)


def test_a_closed_netlink_socket_is_an_error(netlink: NetlinkSocket) -> None:
    netlink.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        FIND.shows(netlink, 20000, COOKIE)


def test_a_reply_left_behind_is_not_taken_for_ones_own(
    netlink: NetlinkSocket, open_socket: Open
) -> None:
    """As after an exception between send and recv: a KeyboardInterrupt, say."""
    sock = open_socket(uapi.IPPROTO_UDP, ("127.0.0.1", 20000), ("127.0.0.1", 53))
    free = encode_lookup(uapi.IPPROTO_UDP, uapi.AF_INET, IPV4, 20001, IPV4, 53)
    netlink._send(uapi.SOCK_DIAG_BY_FAMILY, 0, free)
    assert FIND.shows(netlink, 20000, get_so_cookie(sock))
    assert FIND.find_record(netlink, 20001) is None


def test_a_reply_that_an_exception_leaves_behind_is_thrown_away(
    netlink: NetlinkSocket, open_socket: Open
) -> None:
    """Or a later lookup for the same socket would take it for the answer."""
    sock = open_socket(uapi.IPPROTO_UDP, ("127.0.0.1", 20000), ("127.0.0.1", 53))
    recv = netlink.recv

    def interrupted(_: int) -> bytes:
        netlink.recv = recv
        raise KeyboardInterrupt

    netlink.recv = interrupted
    with pytest.raises(KeyboardInterrupt):
        FIND.shows(netlink, 20000, get_so_cookie(sock))
    assert not FIND.shows(netlink, 20001, get_so_cookie(sock))


def test_a_lookup_within_a_lookup(netlink: NetlinkSocket, open_socket: Open) -> None:
    """As a signal handler does that comes between send and recv."""
    sock = open_socket(uapi.IPPROTO_UDP, ("127.0.0.1", 20000), ("127.0.0.1", 53))
    recv, inner = netlink.recv, []

    def interrupted(size: int) -> bytes:
        netlink.recv = recv
        inner.append(FIND.find_record(netlink, 20001))
        return recv(size)

    netlink.recv = interrupted
    assert FIND.shows(netlink, 20000, get_so_cookie(sock))
    assert inner == [None]


def test_lost_replies_are_asked_for_again(netlink: NetlinkSocket, open_socket: Open) -> None:
    sock = open_socket(uapi.IPPROTO_UDP, ("127.0.0.1", 20000), ("127.0.0.1", 53))
    free = encode_lookup(uapi.IPPROTO_UDP, uapi.AF_INET, IPV4, 20001, IPV4, 53)
    netlink._socket.setsockopt(uapi.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for _ in range(100):
        netlink._send(uapi.SOCK_DIAG_BY_FAMILY, 0, free)
    assert FIND.shows(netlink, 20000, get_so_cookie(sock))


def test_threads_share_a_lookup(netlink: NetlinkSocket, open_socket: Open) -> None:
    ports = {
        port: get_so_cookie(open_socket(uapi.IPPROTO_UDP, ("127.0.0.1", port), ("127.0.0.1", 53)))
        for port in range(20000, 20004)
    }
    found: set[tuple[int, object]] = set()

    def work(port: int) -> None:
        with NetlinkSocket(uapi.NETLINK_SOCK_DIAG) as own:
            for _ in range(2000):
                found.add((port, FIND.shows(own, port, ports[port])))
                found.add((port + 10, FIND.find_record(own, port + 10)))

    threads = [threading.Thread(target=work, args=(port,)) for port in ports]
    for thread in threads:
        thread.start()
    for thread in threads:
        limits.join(thread)
    assert found == {(port, True) for port in ports} | {(port + 10, None) for port in ports}
    assert FIND.shows(netlink, 20000, ports[20000])


@pytest.mark.parametrize(
    "protocol, family, source, destination",
    [
        (1, uapi.AF_INET, IPV4, IPV4),
        (uapi.IPPROTO_UDP, socket.AF_UNIX, IPV4, IPV4),
        (uapi.IPPROTO_UDP, uapi.AF_INET, IPV6, IPV6),
        (uapi.IPPROTO_UDP, uapi.AF_INET6, IPV6, IPV4),
        (uapi.IPPROTO_UDP, uapi.AF_INET, b"", IPV4),
    ],
)
def test_wrong_use(protocol: int, family: int, source: bytes, destination: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a|do not match"):
        TupleLookup(protocol, family, source, destination, 53)
