"""SOCK_DESTROY closes the socket that was named, and no other."""

import contextlib
import errno
import socket

import pytest

from connectx.linux import uapi
from connectx.linux.netlink import NetlinkError, NetlinkSocket
from connectx.linux.sock_destroy import destroy, encode_destroy, may_administer, require_destroy
from connectx.linux.sock_diag import SocketRecord, TupleLookup
from connectx.linux.socket_dump import Filter, records
from connectx.linux.sockopts import get_so_cookie
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import CAP_NET_ADMIN, without_capability
from tests.linux.captures.replay import RECORD, done, refusal, replaying
from tests.linux.sockets import IPV4, IPV6, MAPPED, Open

HOSTS = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@pytest.fixture
def netlink(netlink: NetlinkSocket) -> NetlinkSocket:
    try:
        require_destroy(netlink, uapi.IPPROTO_TCP)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip(f"kernel: {error}")
    return netlink


def listed(netlink: NetlinkSocket, protocol: int, sock: socket.socket) -> SocketRecord:
    """A socket, as a dump describes it."""
    family = socket.AF_INET6 if sock.family == socket.AF_INET6 else socket.AF_INET
    (record,) = [
        each
        for each in records(netlink, Filter(protocol, family=family))
        if each.cookie == get_so_cookie(sock)
    ]
    return record


def refused(netlink: NetlinkSocket, protocol: int, record: SocketRecord) -> int | None:
    try:
        destroy(netlink, protocol, record)
    except NetlinkError as error:
        return error.errno
    return None


@pytest.mark.parametrize("host", HOSTS)
def test_a_connection_is_reset(
    netlink: NetlinkSocket,
    servers: Servers,
    open_socket: Open,
    closing: contextlib.ExitStack,
    host: str,
) -> None:
    listener = servers.listen("::", 8000)
    client = open_socket(uapi.IPPROTO_TCP, (host, 20000), (host, 8000))
    server = closing.enter_context(limits.accept(listener)[0])
    record = listed(netlink, uapi.IPPROTO_TCP, client)
    assert refused(netlink, uapi.IPPROTO_TCP, record) is None
    with pytest.raises(ConnectionAbortedError):
        limits.receive(client)
    with pytest.raises(ConnectionResetError):
        limits.receive(server)
    assert refused(netlink, uapi.IPPROTO_TCP, record) == errno.ENOENT


@pytest.mark.parametrize("host", HOSTS)
def test_a_datagram_socket_is_disconnected(
    netlink: NetlinkSocket, open_socket: Open, host: str
) -> None:
    protocol = uapi.IPPROTO_UDP
    sock = open_socket(protocol, None, (host, 53))
    (port,) = sock.getsockname()[1:2]
    destroy(netlink, protocol, listed(netlink, protocol, sock))
    with pytest.raises(ConnectionAbortedError):
        limits.receive(sock)
    with pytest.raises(OSError, match="not connected"):
        sock.getpeername()
    # Its port is free again, without SO_REUSEADDR.
    with socket.socket(sock.family, socket.SOCK_DGRAM, protocol) as other:
        other.bind((host, port))


def test_a_datagram_socket_keeps_the_port_it_was_bound_to(
    netlink: NetlinkSocket, open_socket: Open
) -> None:
    sock = open_socket(uapi.IPPROTO_UDP, ("127.0.0.1", 20000), ("127.0.0.1", 53))
    destroy(netlink, uapi.IPPROTO_UDP, listed(netlink, uapi.IPPROTO_UDP, sock))
    assert sock.getsockname()[1] == 20000
    with socket.socket(type=socket.SOCK_DGRAM) as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", 20000))


def test_udp_lite_cannot_do_it(netlink: NetlinkSocket, open_socket: Open) -> None:
    sock = open_socket(uapi.IPPROTO_UDPLITE, None, ("127.0.0.1", 53))
    record = listed(netlink, uapi.IPPROTO_UDPLITE, sock)
    assert refused(netlink, uapi.IPPROTO_UDPLITE, record) == errno.EOPNOTSUPP
    sock.getpeername()


def test_the_cookie_protects_what_took_its_place(
    netlink: NetlinkSocket, servers: Servers, open_socket: Open
) -> None:
    servers.listen("127.0.0.1", 8000)
    ends = ("127.0.0.1", 20000), ("127.0.0.1", 8000)
    with open_socket(uapi.IPPROTO_UDP, *ends) as former:
        record = listed(netlink, uapi.IPPROTO_UDP, former)
    latter = open_socket(uapi.IPPROTO_UDP, *ends)
    assert refused(netlink, uapi.IPPROTO_UDP, record) == errno.ENOENT
    latter.getpeername()

    client = open_socket(uapi.IPPROTO_TCP, *ends)
    record = listed(netlink, uapi.IPPROTO_TCP, client)
    stale = record._replace(cookie=bytes([record.cookie[0] ^ 1, *record.cookie[1:]]))
    assert refused(netlink, uapi.IPPROTO_TCP, stale) == errno.ENOENT
    high = record._replace(cookie=bytes([*record.cookie[:7], record.cookie[7] ^ 1]))
    assert refused(netlink, uapi.IPPROTO_TCP, high) == errno.ENOENT
    client.getpeername()


def test_a_listener_survives_its_connections(
    netlink: NetlinkSocket, servers: Servers, open_socket: Open
) -> None:
    """Once a connection is gone, the kernel's lookup finds the listener on its port."""
    listener = servers.listen("127.0.0.1", 8000)
    client = open_socket(uapi.IPPROTO_TCP, ("127.0.0.1", 20000), ("127.0.0.1", 8000))
    server, _ = limits.accept(listener)
    record = listed(netlink, uapi.IPPROTO_TCP, server)
    server.close()
    client.close()
    lookup = TupleLookup(uapi.IPPROTO_TCP, uapi.AF_INET, IPV4, IPV4, 20000)
    while (found := lookup.find_record(netlink, 8000)) and found.state != uapi.TCP_LISTEN:
        if found.in_time_wait and refused(netlink, uapi.IPPROTO_TCP, found) == errno.EOPNOTSUPP:
            pytest.skip("kernel: it closes no sockets in TIME-WAIT")
        if not found.in_time_wait:
            destroy(netlink, uapi.IPPROTO_TCP, found)
    assert found
    assert refused(netlink, uapi.IPPROTO_TCP, record) == errno.ENOENT
    open_socket(uapi.IPPROTO_TCP, ("127.0.0.1", 20001), ("127.0.0.1", 8000))


def test_a_listener_can_be_closed(netlink: NetlinkSocket, servers: Servers) -> None:
    for host in ("127.0.0.1", "::", "::ffff:127.0.0.2"):
        listener = servers.listen(host, 8000)
        destroy(netlink, uapi.IPPROTO_TCP, listed(netlink, uapi.IPPROTO_TCP, listener))
        with pytest.raises(OSError, match="Invalid argument"):
            limits.accept(listener)


class TestPrivilege:
    def test_is_asked_of_the_kernel(self, netlink: NetlinkSocket) -> None:
        assert may_administer()
        with without_capability(CAP_NET_ADMIN):
            assert not may_administer()
            with pytest.raises(PermissionError, match="needs CAP_NET_ADMIN"):
                require_destroy(netlink, uapi.IPPROTO_TCP)

    def test_is_needed(self, netlink: NetlinkSocket, open_socket: Open) -> None:
        sock = open_socket(uapi.IPPROTO_UDP, None, ("127.0.0.1", 53))
        record = listed(netlink, uapi.IPPROTO_UDP, sock)
        with without_capability(CAP_NET_ADMIN):
            assert refused(netlink, uapi.IPPROTO_UDP, record) == errno.EPERM
        sock.getpeername()

    @pytest.mark.parametrize("protocol", [uapi.IPPROTO_TCP, uapi.IPPROTO_UDP])
    def test_the_probe_closes_nothing(
        self, netlink: NetlinkSocket, servers: Servers, protocol: int
    ) -> None:
        wildcards = servers.listen("0.0.0.0", 8000), servers.receive("0.0.0.0", 8001)
        require_destroy(netlink, protocol)
        assert [sock.getsockname()[1] for sock in wildcards] == [8000, 8001]
        with socket.create_connection(("127.0.0.1", 8000)):
            limits.accept(wildcards[0])[0].close()

    @pytest.mark.usefixtures("network")
    def test_a_kernel_without_it(self) -> None:
        with (
            replaying([refusal(errno.EOPNOTSUPP)]) as netlink,
            pytest.raises(OSError, match="INET_DIAG_DESTROY") as caught,
        ):
            require_destroy(netlink, uapi.IPPROTO_TCP)
        assert caught.value.errno == errno.EOPNOTSUPP
        with (
            replaying([refusal(errno.ENOMEM)]) as netlink,
            pytest.raises(NetlinkError, match="memory"),
        ):
            require_destroy(netlink, uapi.IPPROTO_TCP)


def test_mapped_addresses_are_asked_for_as_ipv4() -> None:
    record = SocketRecord(uapi.AF_INET6, 1, MAPPED, 1, MAPPED, 2, 3, bytes(range(8)), 0, 0)
    for protocol in (uapi.IPPROTO_TCP, uapi.IPPROTO_UDP):
        encoded = encode_destroy(protocol, record)
        assert encoded[:2] == bytes([uapi.AF_INET, protocol])
        assert encoded[8:16] == b"\0\1\0\2" + IPV4
    native = record._replace(source=IPV6, destination=IPV6)
    assert encode_destroy(uapi.IPPROTO_MPTCP, native)[:2] == bytes(
        [uapi.AF_INET6, uapi.IPPROTO_TCP]
    )


class TestReplies:
    """What NetlinkSocket.change() makes of each reply."""

    MEANT = SocketRecord(uapi.AF_INET, 1, IPV4, 1, IPV4, 2, 0, bytes(8), 0, 0)

    def test_an_acknowledgement(self) -> None:
        with replaying([RECORD[:8] + b"\x09\x09\x09\x09" + RECORD[12:], refusal(0)]) as netlink:
            assert refused(netlink, uapi.IPPROTO_TCP, self.MEANT) is None

    @pytest.mark.parametrize("number", [errno.EPERM, errno.ENOENT, errno.EAGAIN])
    def test_a_refusal(self, number: int) -> None:
        with replaying([refusal(number)]) as netlink:
            assert refused(netlink, uapi.IPPROTO_TCP, self.MEANT) == number

    def test_none_is_no_success_and_no_second_attempt(self) -> None:
        with replaying([]) as netlink:
            sent = []

            def send(request: bytes) -> int:
                sent.append(request)
                return len(request)

            netlink.send = send
            assert refused(netlink, uapi.IPPROTO_TCP, self.MEANT) == errno.EPROTO
        assert len(sent) == 1

    @pytest.mark.parametrize("reply", [RECORD, done()])
    def test_something_else(self, reply: bytes) -> None:
        with replaying([reply]) as netlink, pytest.raises(ValueError, match="acknowledgement"):
            destroy(netlink, uapi.IPPROTO_TCP, self.MEANT)
