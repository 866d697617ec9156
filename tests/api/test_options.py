"""What a socket's owner has set on it is kept, and works."""

import errno
import os
import socket
import subprocess
from collections.abc import Callable

import pytest

from connectx import PortsExhausted, RangeNotHonoured, TupleInUse
from connectx.addresses import Address
from connectx.linux import sockopts, uapi
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import (
    ALL,
    DATAGRAMS,
    TCP_MAPPED,
    UDP_MAPPED,
    foreign_host,
    ip,
    other_host,
    port_of,
)
from tests.api.owner import LOW, PORTS, Owner, try_to_connect
from tests.kernel.raw import (
    FIRST,
    MPTCP,
    SECOND,
    TCP,
    TCP6,
    UDP,
    UDP6,
    UDPLITE,
    UDPLITE6,
    Transport,
)

#: Reached over the devices, and nobody is there.
AWAY, AWAY6 = "198.51.100.9", "2001:db8:100::9"

every_transport = pytest.mark.parametrize("transport", ALL, ids=str)
ipv4_and_ipv6 = pytest.mark.parametrize("transport", [TCP, TCP6, UDP, UDP6], ids=str)
datagrams = pytest.mark.parametrize("transport", DATAGRAMS, ids=str)


class TestMark:
    """SO_MARK selects the route, and with it the source."""

    @ipv4_and_ipv6
    def test_it_decides_the_source(
        self,
        owner: Owner,
        devices: tuple[int, int],  # noqa: ARG002 -- routed over
    ) -> None:
        sources, away = by_mark(owner.transport)
        for _ in range(2):
            for mark, source in sources.items():
                sock = owner.connect((away, FIRST), prepare=lambda sock: mark_as(sock, mark))  # noqa: B023 -- called at once
                assert sock.getsockname()[0] == source
                assert sockopts.get_so_mark(sock) == mark

    @ipv4_and_ipv6
    def test_each_source_has_all_ports(
        self,
        owner: Owner,
        devices: tuple[int, int],  # noqa: ARG002 -- routed over
    ) -> None:
        sources, away = by_mark(owner.transport)
        for mark in (0, 7):
            assert mark in sources
            taken = owner.fill((away, FIRST), prepare=lambda sock: mark_as(sock, mark))  # noqa: B023 -- called at once
            assert taken == PORTS

    @ipv4_and_ipv6
    def test_marks_of_32_bits(self, owner: Owner) -> None:
        sock = owner.connect(
            (owner.transport.source, FIRST), prepare=lambda sock: mark_as(sock, 0xFFFFFFFE)
        )
        assert sockopts.get_so_mark(sock) == 0xFFFFFFFE


def mark_as(sock: socket.socket, mark: int) -> None:
    if mark:
        sockopts.set_so_mark(sock, mark)


def by_mark(transport: Transport) -> tuple[dict[int, str], str]:
    """Route by mark; returns the source for each mark, and a destination."""
    if transport.family == socket.AF_INET:
        ip("route", "add", "198.51.100.0/24", "dev", "one")
        ip("route", "add", "198.51.100.0/24", "dev", "two", "table", "100")
        ip("rule", "add", "fwmark", "7", "table", "100")
        return {0: "10.0.1.1", 7: "10.0.2.1", 8: "10.0.1.1"}, AWAY
    ip("-6", "route", "add", "2001:db8:100::/64", "dev", "one")
    ip("-6", "route", "add", "2001:db8:100::/64", "dev", "two", "table", "100")
    ip("-6", "rule", "add", "fwmark", "7", "table", "100")
    return {0: "fd00:1::1", 7: "fd00:2::1", 8: "fd00:1::1"}, AWAY6


class TestDevice:
    """SO_BINDTODEVICE and SO_BINDTOIFINDEX, for datagrams as for streams."""

    @every_transport
    @pytest.mark.parametrize("has_source", [False, True], ids=["no source", "source address"])
    def test_every_port_over_the_loopback(self, owner: Owner, *, has_source: bool) -> None:
        host = owner.transport.source
        source = (host, 0) if has_source else None
        for destination in (FIRST, SECOND):
            assert owner.fill((host, destination), source, to_device("lo")) == PORTS

    @every_transport
    def test_ports_asked_for(self, owner: Owner) -> None:
        host = owner.transport.source
        for destination in (FIRST, SECOND):
            for port in (*PORTS, 30001):
                sock = owner.connect((host, destination), (host, port), to_device("lo"))
                assert sock.getsockname()[:2] == (host, port)
        for port in (LOW, 30001):
            with pytest.raises(TupleInUse):
                owner.connect((host, FIRST), (host, port), to_device("lo"))

    @pytest.mark.parametrize("transport", [TCP, TCP6, UDP, UDP6, UDPLITE, UDPLITE6], ids=str)
    def test_it_decides_the_source(self, owner: Owner, devices: tuple[int, int]) -> None:
        family = owner.transport.family
        away = AWAY if family == socket.AF_INET else AWAY6
        sources = (
            ("10.0.1.1", "10.0.2.1") if family == socket.AF_INET else ("fd00:1::1", "fd00:2::1")
        )
        version = "-6" if ":" in away else "-4"
        for name, metric in (("one", "1"), ("two", "2")):
            ip(version, "route", "add", away, "dev", name, "metric", metric)
        for name, index, source in zip(("one", "two"), devices, sources, strict=True):
            for destination in (FIRST, SECOND):
                assert owner.fill((away, destination), None, to_device(name)) == PORTS
                assert owner.fill((away, destination + 2), None, to_index(index)) == PORTS
            sock = owner.connect((away, 9100), None, to_device(name))
            assert sock.getsockname()[0] == source
            assert sockopts.get_so_bindtoifindex(sock) == index

    @datagrams
    def test_datagrams_come_and_go(self, owner: Owner, servers: Servers) -> None:
        host = owner.transport.source
        receiver = servers.receive(host, FIRST, protocol=owner.transport.protocol)
        sock = owner.connect((host, FIRST), (host, 0), to_device("lo"))
        sock.send(b"there")
        data, sender = limits.receive_from(receiver, 16)
        assert data == b"there"
        receiver.sendto(b"back", sender)
        assert limits.receive(sock, 16) == b"back"

    @datagrams
    @pytest.mark.parametrize("first_is_bound", [False, True])
    def test_a_socket_with_and_one_without_a_device_never_share_a_tuple(
        self, owner: Owner, *, first_is_bound: bool
    ) -> None:
        """Whichever came second would take the first one's datagrams."""
        host = owner.transport.source
        prepares = [to_device("lo"), lambda _: None]
        first, second = prepares if first_is_bound else reversed(prepares)
        for port in (LOW, 30001):
            owner.connect((host, FIRST), (host, port), first)
            with pytest.raises(TupleInUse):
                owner.connect((host, FIRST), (host, port), second)

    @datagrams
    @pytest.mark.parametrize("first_is_bound", [False, True])
    def test_nor_when_the_port_is_ours_to_choose(
        self, owner: Owner, *, first_is_bound: bool
    ) -> None:
        host = owner.transport.source
        prepares = [to_device("lo"), lambda _: None]
        first, second = prepares if first_is_bound else reversed(prepares)
        assert owner.fill((host, FIRST), None, first) == PORTS
        assert owner.fill((host, FIRST), None, second) == []

    @pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
    def test_a_vrf(self, owner: Owner, devices: tuple[int, int]) -> None:  # noqa: ARG002
        try:
            ip("link", "add", "red", "type", "vrf", "table", "100")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"kernel: no VRF: {error.stderr.decode().strip()}")
        ip("link", "set", "red", "up")
        ip("link", "set", "one", "master", "red")
        for destination in (FIRST, SECOND):
            assert owner.fill(("10.0.1.9", destination), None, to_device("red")) == PORTS


def to_device(name: str) -> Callable[[socket.socket], None]:
    return lambda sock: sock.setsockopt(
        socket.SOL_SOCKET, uapi.SO_BINDTODEVICE, name.encode() + b"\0"
    )


def to_index(index: int) -> Callable[[socket.socket], None]:
    return lambda sock: sockopts.set_so_bindtoifindex(sock, index)


class TestForeignSource:
    """IP_TRANSPARENT and IP_FREEBIND: source addresses that are not this host's."""

    @pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED, UDP, UDP6, UDP_MAPPED], ids=str)
    def test_ip_transparent(self, owner: Owner, devices: tuple[int, int]) -> None:  # noqa: ARG002
        host, destination = foreign_host(owner.transport), over_a_device(owner.transport)
        for port in (FIRST, SECOND):
            taken = owner.fill((destination, port), (host, 0), transparent)
            assert taken == PORTS
            sock = owner.connect((destination, port), (host, 30001), transparent)
            assert sock.getsockname()[:2] == (host, 30001)
        with pytest.raises(TupleInUse):
            owner.connect((destination, FIRST), (host, 30001), transparent)
        assert sockopts.get_ip_transparent(sock)

    @pytest.mark.parametrize("transport", [TCP6, UDP6], ids=str)
    def test_ip_freebind(self, owner: Owner, devices: tuple[int, int]) -> None:  # noqa: ARG002
        host, destination = foreign_host(owner.transport), over_a_device(owner.transport)
        assert owner.fill((destination, FIRST), (host, 0), freebind) == PORTS
        sock = owner.connect((destination, FIRST), (host, 30001), freebind)
        assert sock.getsockname()[:2] == (host, 30001)
        assert sockopts.get_ip_freebind(sock)

    @pytest.mark.parametrize("transport", [TCP, UDP, TCP_MAPPED, UDP_MAPPED], ids=str)
    def test_ip_freebind_where_the_address_is_not_even_routed_here(self, owner: Owner) -> None:
        """IPv4 binds it, and then refuses to connect from it (ip_route_output_key_hash_rcu)."""
        host = foreign_host(owner.transport)
        destination = (owner.transport.source, FIRST)
        plain = owner.new()
        freebind(plain)
        plain.bind((host, 0))
        with pytest.raises(OSError) as expected:  # noqa: PT011
            plain.connect(destination)
        with pytest.raises(OSError) as caught:  # noqa: PT011 -- compared with the kernel's own
            owner.connect(destination, (host, 0), freebind)
        assert caught.value.errno == expected.value.errno
        assert type(caught.value) is type(expected.value)

    @pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
    def test_ip_freebind_where_it_is_routed_here(self, owner: Owner, servers: Servers) -> None:
        ip("route", "add", "local", f"{foreign_host(owner.transport)}/32", "dev", "lo")
        servers.receive("127.0.0.1", 9100)
        assert (
            owner.fill(("127.0.0.1", FIRST), (foreign_host(owner.transport), 0), freebind) == PORTS
        )


def over_a_device(transport: Transport) -> str:
    """A destination on the network of a device."""
    if transport.source == "::1":
        return "fd00:1::9"
    return "10.0.1.9" if transport.family == socket.AF_INET else "::ffff:10.0.1.9"


def transparent(sock: socket.socket) -> None:
    sockopts.set_ip_transparent(sock, on=True)


def freebind(sock: socket.socket) -> None:
    sockopts.set_ip_freebind(sock, on=True)


class TestV6Only:
    @pytest.mark.parametrize("transport", [TCP6, UDP6], ids=str)
    def test_it_is_kept_and_works(self, owner: Owner) -> None:
        def v6_only(sock: socket.socket) -> None:
            sockopts.set_ipv6_v6only(sock, on=True)

        sock = owner.connect(("::1", FIRST), ("::1", 0), v6_only)
        assert sockopts.get_ipv6_v6only(sock)
        owner.connect(("::1", FIRST), ("::1", 30001), v6_only)
        owner.fill(("::1", FIRST), None, v6_only)

    @pytest.mark.parametrize("source", [None, "::ffff:127.0.0.1"])
    @pytest.mark.parametrize("port", [0, LOW, 30001])
    @pytest.mark.parametrize("transport", [TCP_MAPPED, UDP_MAPPED], ids=str)
    def test_it_refuses_ipv4_as_connect_does(
        self, owner: Owner, source: str | None, port: int
    ) -> None:
        plain = owner.new()
        sockopts.set_ipv6_v6only(plain, on=True)
        with pytest.raises(OSError) as expected:  # noqa: PT011
            bind_and_connect(plain, (source or "", port), (owner.transport.source, FIRST))
        sock = owner.new()
        sockopts.set_ipv6_v6only(sock, on=True)
        with pytest.raises(OSError) as caught:  # noqa: PT011 -- compared with the kernel's own
            try_to_connect(sock, (owner.transport.source, FIRST), (source or "", port))
        assert caught.value.errno == expected.value.errno
        assert type(caught.value) is type(expected.value)
        assert sockopts.get_ipv6_v6only(sock)


def bind_and_connect(sock: socket.socket, source: Address, destination: Address) -> None:
    if source != ("", 0):
        sockopts.set_ip_bind_address_no_port(sock, on=True)
        sock.bind(source)
    sock.connect(destination)


class TestLocalPortRange:
    """A window set by the owner: within the range it holds, outside it is refused."""

    @pytest.fixture(autouse=True)
    def _twenty_ports(self, owner: Owner) -> None:
        owner.network.port_range(20001, 20020)
        owner.network.reserved_ports("20004")

    @pytest.mark.parametrize(
        "low, high, ports",
        [
            pytest.param(20003, 20007, [20003, 20005, 20006, 20007], id="inside"),
            pytest.param(20006, 20006, [20006], id="one port"),
            pytest.param(20001, 20003, [20001, 20002, 20003], id="from the low end"),
            pytest.param(20018, 20020, [20018, 20019, 20020], id="up to the high end"),
            pytest.param(0, 20003, [20001, 20002, 20003], id="0 for the low end"),
            pytest.param(20018, 0, [20018, 20019, 20020], id="0 for the high end"),
        ],
    )
    @every_transport
    def test_inside(self, owner: Owner, low: int, high: int, ports: list[int]) -> None:
        host = owner.transport.source

        def narrow(sock: socket.socket) -> None:
            sockopts.set_ip_local_port_range(sock, low, high)

        for destination in (FIRST, SECOND):
            assert owner.fill((host, destination), None, narrow) == ports
        # The others have the rest.
        assert len(owner.fill((host, FIRST))) == 19 - len(ports)

    @every_transport
    def test_it_is_not_remembered_for_others(self, owner: Owner) -> None:
        host = owner.transport.source
        owner.connect(
            (host, FIRST), None, lambda s: sockopts.set_ip_local_port_range(s, 20001, 20001)
        )
        assert len(owner.fill((host, FIRST))) == 18

    @pytest.mark.parametrize(
        "low, high", [(19000, 19999), (30001, 30020), (19000, 20005), (20015, 20021), (1, 65535)]
    )
    @every_transport
    def test_outside(self, owner: Owner, low: int, high: int) -> None:
        sock = owner.new()
        sockopts.set_ip_local_port_range(sock, low, high)
        with pytest.raises(RangeNotHonoured, match=f"{low}-{high}") as caught:
            try_to_connect(sock, (owner.transport.source, FIRST))
        assert caught.value.errno == errno.EINVAL
        assert "20001-20020" in str(caught.value)
        assert sock.getsockname()[1] == 0
        assert tuple(sockopts.get_ip_local_port_range(sock)) == (low, high)

    @every_transport
    def test_only_reserved_ports(self, owner: Owner) -> None:
        sock = owner.new()
        sockopts.set_ip_local_port_range(sock, 20004, 20004)
        with pytest.raises(PortsExhausted) as caught:
            try_to_connect(sock, (owner.transport.source, FIRST))
        assert "1 reserved" in caught.value.explain()


class TestBoundToAnAddress:
    """bind((address, 0)) with IP_BIND_ADDRESS_NO_PORT, by the owner."""

    @pytest.mark.parametrize("source", [None, ("", 0)])
    @every_transport
    def test_it_is_the_source(self, owner: Owner, source: Address | None) -> None:
        other = other_source(owner)
        for destination in (FIRST, SECOND):
            taken = owner.fill((owner.transport.source, destination), source, bound_to(other))
            assert taken == PORTS
        assert owner.fill((owner.transport.source, FIRST)) == PORTS

    @pytest.mark.parametrize("port", [LOW, 30001])
    @every_transport
    def test_a_port_can_be_asked_for(self, owner: Owner, port: int) -> None:
        other = other_source(owner)
        for destination in (FIRST, SECOND):
            sock = owner.connect((owner.transport.source, destination), ("", port), bound_to(other))
            assert sock.getsockname()[:2] == (other, port)

    @every_transport
    def test_it_may_be_said_again(self, owner: Owner) -> None:
        other = other_source(owner)
        sock = owner.connect((owner.transport.source, FIRST), (other, 0), bound_to(other))
        assert sock.getsockname()[0] == other

    @every_transport
    def test_the_option_alone_does_no_harm(self, owner: Owner) -> None:
        def no_port(sock: socket.socket) -> None:
            sockopts.set_ip_bind_address_no_port(sock, on=True)

        host = owner.transport.source
        assert owner.fill((host, FIRST), None, no_port) == PORTS
        assert owner.fill((host, SECOND), (host, 0), no_port) == PORTS
        sock = owner.connect((host, SECOND), (other_source(owner), 30001), no_port)
        assert port_of(sock) == 30001


def other_source(owner: Owner) -> str:
    """Another address of this host than the one that would be taken anyway."""
    host = other_host(owner.transport)
    if host == "::2":
        owner.network.add_address(host)
    return host


def bound_to(host: str) -> Callable[[socket.socket], None]:
    def bind(sock: socket.socket) -> None:
        sockopts.set_ip_bind_address_no_port(sock, on=True)
        sock.bind((host, 0))

    return bind


class TestReusePort:
    @datagrams
    def test_sockets_that_all_have_so_reuseport_never_share_a_tuple(self, owner: Owner) -> None:
        def reuseport(sock: socket.socket) -> None:
            sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEPORT, 1)

        host = owner.transport.source
        for destination in (FIRST, SECOND):
            assert owner.fill((host, destination), None, reuseport) == PORTS
        for port in (LOW, 30001):
            owner.connect((host, 9100), (host, port), reuseport)
            with pytest.raises(TupleInUse):
                owner.connect((host, 9100), (host, port), reuseport)


@pytest.mark.parametrize("transport", [TCP, TCP6, MPTCP, UDP, UDP6], ids=str)
def test_the_socket_stays_the_same_one(owner: Owner) -> None:
    """The owner may have it registered somewhere: neither the socket nor its number changes."""
    sock = owner.new()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    number, cookie = sock.fileno(), sockopts.get_so_cookie(sock)
    host = owner.transport.source
    owner.connect((host, FIRST), (host, 30001))
    with pytest.raises(TupleInUse):
        try_to_connect(sock, (host, FIRST), (host, 30001))
    try_to_connect(sock, (host, FIRST))
    assert (sock.fileno(), sockopts.get_so_cookie(sock)) == (number, cookie)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.parametrize("transport", [UDP], ids=str)
def test_a_broadcast_needs_its_option_as_with_connect(owner: Owner) -> None:
    ip("address", "add", "10.9.0.1/24", "broadcast", "10.9.0.255", "dev", "lo")
    with pytest.raises(PermissionError, match=os.strerror(errno.EACCES)):
        owner.connect(("10.9.0.255", FIRST))

    def broadcast(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)

    assert owner.fill(("10.9.0.255", FIRST), None, broadcast) == PORTS


@pytest.mark.parametrize("transport", [UDP, UDP6], ids=str)
def test_multicast(owner: Owner, devices: tuple[int, int]) -> None:
    if owner.transport is UDP:
        ip("route", "add", "239.0.0.0/8", "dev", "two")
        assert owner.fill(("239.1.1.1", FIRST)) == PORTS
    else:
        assert owner.fill(("ff02::1", FIRST, 0, devices[1])) == PORTS
