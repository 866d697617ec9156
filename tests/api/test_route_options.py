"""Options of a UDP socket that decide its source in connect() do so in connectx().

Also where others have the port, so that the source has to be known before connect(), and where
the port is outside of the range, so that another socket goes first.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

import pytest

import connectx
from connectx import TupleInUse
from connectx.addresses import Address
from connectx.linux import sockopts, uapi
from connectx.sandbox.networks import Network
from tests import limits
from tests.api.calls import UDP_MAPPED, ip, port_of
from tests.api.owner import LOW, Owner
from tests.kernel.raw import FIRST, SECOND, UDP, UDP6, Transport

Prepare = Callable[[socket.socket], None]

FAR: Final = {UDP: "198.51.100.9", UDP6: "2001:db8:100::9", UDP_MAPPED: "::ffff:198.51.100.9"}
GROUP: Final = {UDP: "239.1.1.1", UDP6: "ff0e::1", UDP_MAPPED: "::ffff:239.1.1.1"}
LINK_GROUP: Final = "ff02::5"

IP, IPV6 = uapi.IPPROTO_IP, uapi.IPPROTO_IPV6

PREFER_TEMPORARY: Final = 0x0001  # linux/in6.h


def setting(level: int, option: int, value: int | bytes) -> Prepare:
    return lambda sock: sock.setsockopt(level, option, value)


def index_of(device: str) -> bytes:
    return struct.pack("!I", socket.if_nametoindex(device))


def group_device(sock: socket.socket) -> None:
    sock.setsockopt(IP, uapi.IP_MULTICAST_IF, socket.inet_aton("10.0.2.1"))


#: By name: the transports, the destinations, and what sets the option.
OPTIONS: Final[dict[str, tuple[tuple[Transport, ...], dict[Transport, str], Prepare]]] = {
    "nothing": ((UDP, UDP6, UDP_MAPPED), FAR, lambda _: None),
    "nothing, multicast": ((UDP, UDP6, UDP_MAPPED), GROUP, lambda _: None),
    "IP_TOS": ((UDP, UDP_MAPPED), FAR, setting(IP, uapi.IP_TOS, 0x10)),
    "IP_UNICAST_IF": (
        (UDP, UDP_MAPPED),
        FAR,
        lambda sock: sock.setsockopt(IP, uapi.IP_UNICAST_IF, index_of("two")),
    ),
    "IP_MULTICAST_IF": ((UDP, UDP_MAPPED), GROUP, group_device),
    "IPV6_TCLASS": ((UDP6,), FAR, setting(IPV6, uapi.IPV6_TCLASS, 0x10)),
    "IPV6_UNICAST_IF": (
        (UDP6,),
        FAR,
        lambda sock: sock.setsockopt(IPV6, uapi.IPV6_UNICAST_IF, index_of("two")),
    ),
    "IPV6_MULTICAST_IF": (
        (UDP6,),
        GROUP,
        lambda sock: sock.setsockopt(IPV6, uapi.IPV6_MULTICAST_IF, socket.if_nametoindex("two")),
    ),
    "IPV6_MULTICAST_IF, of the link": (
        (UDP6,),
        {UDP6: LINK_GROUP},
        lambda sock: sock.setsockopt(IPV6, uapi.IPV6_MULTICAST_IF, socket.if_nametoindex("two")),
    ),
    "SO_BINDTODEVICE": (
        (UDP, UDP6, UDP_MAPPED),
        FAR,
        setting(uapi.SOL_SOCKET, uapi.SO_BINDTODEVICE, b"two\0"),
    ),
    "SO_MARK": ((UDP, UDP6, UDP_MAPPED), FAR, setting(uapi.SOL_SOCKET, uapi.SO_MARK, 7)),
    "uid": (
        (UDP, UDP6, UDP_MAPPED),
        FAR,
        # As if somebody else had made it.
        lambda sock: os.fchown(sock.fileno(), 4321, -1),
    ),
}
CASES: Final = [
    pytest.param(transport, name, id=f"{name}-{transport}")
    for name, (transports, _, _) in OPTIONS.items()
    for transport in transports
]

every_port = pytest.mark.parametrize("port", [LOW, 30001], ids=["in the range", "outside"])


@pytest.fixture
def uplinks(network: Network, devices: tuple[int, int]) -> None:  # noqa: ARG001
    """Two devices, the first of which has the better routes, and rules for the second."""
    for version, first, second in (
        ("-4", "10.0.1.254", "10.0.2.254"),
        ("-6", "fd00:1::ff", "fd00:2::ff"),
    ):
        for metric, (gateway, device) in enumerate(((first, "one"), (second, "two")), start=1):
            where = ("default", "via", gateway, "dev", device)
            ip(version, "route", "add", *where, "metric", str(metric))
        ip(version, "route", "add", *where, "table", "77")
        ip(version, "rule", "add", "tos", "0x10", "table", "77")
        ip(version, "rule", "add", "fwmark", "7", "table", "77")
        ip(version, "rule", "add", "uidrange", "4321-4321", "table", "77")


def by_connect(owner: Owner, prepare: Prepare, to: Address) -> str:
    """The source of a plain connect(), on a port that nobody has."""
    with owner.transport.socket() as sock:
        prepare(sock)
        sock.bind((owner.transport.wildcard, 45000))
        sock.connect(to)
        source: str = sock.getsockname()[0]
        return source


def by_connectx(
    owner: Owner, prepare: Prepare, source: Address | None, to: Address
) -> socket.socket:
    sock = owner.stack.enter_context(owner.transport.socket())
    prepare(sock)
    connectx.connectx(sock, source, to)
    return sock


def have(owner: Owner, port: int) -> None:
    """Have a port in use by others, who share it."""
    host = owner.transport.source
    owner.connect((host, SECOND), (host, port))


@every_port
@pytest.mark.parametrize("shared", [False, True], ids=["nobody's", "shared"])
@pytest.mark.parametrize("transport, name", CASES)
@pytest.mark.usefixtures("uplinks")
def test_a_port_asked_for(owner: Owner, name: str, port: int, *, shared: bool) -> None:
    _, destinations, prepare = OPTIONS[name]
    host = destinations[owner.transport]
    to = (host, FIRST)
    expected = by_connect(owner, prepare, to)
    if shared:
        have(owner, port)
    sock = by_connectx(owner, prepare, ("", port), to)
    assert sock.getsockname()[:2] == (expected, port)
    # The 4-tuple is known to be in use to the next one that is like it.
    with pytest.raises(TupleInUse):
        by_connectx(owner, prepare, ("", port), to)
    if not name.startswith("nothing") and host != LINK_GROUP:
        assert expected != by_connect(owner, lambda _: None, to)


@pytest.mark.parametrize("transport, name", CASES)
@pytest.mark.usefixtures("uplinks")
def test_any_port_where_all_are_shared(owner: Owner, name: str) -> None:
    _, destinations, prepare = OPTIONS[name]
    host = destinations[owner.transport]
    for number in (FIRST, SECOND):
        expected = by_connect(owner, prepare, (host, number))
        socks = [by_connectx(owner, prepare, None, (host, number)) for _ in range(4)]
        assert {sock.getsockname()[0] for sock in socks} == {expected}
        assert len(set(map(port_of, socks))) == 4
        with pytest.raises(connectx.PortsExhausted):
            by_connectx(owner, prepare, None, (host, number))


class TestPrivacyAddresses:
    """IPV6_ADDR_PREFERENCES, about which RTM_GETROUTE says nothing."""

    @pytest.fixture(autouse=True)
    def _temporary(self, network: Network, devices: tuple[int, int]) -> None:  # noqa: ARG002
        network.sysctl("net.ipv6.conf.one.use_tempaddr", 1)
        network.sysctl("net.ipv6.conf.one.dad_transmits", 0)
        network.sysctl("net.ipv6.conf.one.accept_dad", 0)
        ip("-6", "address", "add", "2001:db8:5::1/64", "dev", "one", "mngtmpaddr", "nodad")
        limits.until(self.is_there, "a temporary address")

    def is_there(self) -> bool:
        with contextlib.suppress(OSError):
            return self.preferred() != "2001:db8:5::1"
        return False

    def preferred(self) -> str:
        with UDP6.socket() as sock:
            self.prefer(sock)
            sock.connect(("2001:db8:5::9", 9))
            source: str = sock.getsockname()[0]
            return source

    def prefer(self, sock: socket.socket) -> None:
        sock.setsockopt(IPV6, uapi.IPV6_ADDR_PREFERENCES, PREFER_TEMPORARY)

    @every_port
    @pytest.mark.parametrize("shared", [False, True], ids=["nobody's", "shared"])
    @pytest.mark.parametrize("transport", [UDP6], ids=str)
    def test_the_preferred_one_is_the_source(
        self, owner: Owner, port: int, *, shared: bool
    ) -> None:
        if shared:
            have(owner, port)
        for prepare, expected in (
            (self.prefer, self.preferred()),
            (lambda _: None, "2001:db8:5::1"),
        ):
            sock = by_connectx(owner, prepare, ("", port), ("2001:db8:5::9", FIRST))
            assert sock.getsockname()[:2] == (expected, port)
            with pytest.raises(TupleInUse):
                by_connectx(owner, prepare, ("", port), ("2001:db8:5::9", FIRST))


@every_port
@pytest.mark.parametrize("scope", [0, 1, 99])
@pytest.mark.parametrize("shared", [False, True], ids=["nobody's", "shared"])
@pytest.mark.parametrize("transport", [UDP6], ids=str)
@pytest.mark.usefixtures("uplinks")
def test_the_scope_of_a_global_address_is_ignored(
    owner: Owner, scope: int, port: int, *, shared: bool
) -> None:
    if shared:
        have(owner, port)
    to = (FAR[UDP6], FIRST, 0, scope)
    sock = by_connectx(owner, lambda _: None, ("", port), to)
    assert sock.getsockname()[0] == "fd00:1::1"
    # It is one destination, whatever the scope.
    with pytest.raises(TupleInUse):
        by_connectx(owner, lambda _: None, ("", port), (FAR[UDP6], FIRST))


@every_port
@pytest.mark.parametrize("shared", [False, True], ids=["nobody's", "shared"])
@pytest.mark.parametrize("transport", [UDP6], ids=str)
def test_a_link_local_source_that_routing_chooses(
    owner: Owner, network: Network, port: int, *, shared: bool
) -> None:
    network.add_device_pair("one", "one-peer")
    ip("-6", "address", "flush", "dev", "one")
    network.add_address("fe80::7", 64, "one")
    ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "one")
    if shared:
        have(owner, port)
    to = (FAR[UDP6], FIRST)
    sock = by_connectx(owner, lambda _: None, ("", port), to)
    assert sock.getsockname()[:2] == ("fe80::7", port)
    with pytest.raises(TupleInUse):
        by_connectx(owner, lambda _: None, ("", port), to)
    for call in (connectx.create_connection, connectx.Dialer().create_connection):
        made = owner.stack.enter_context(call(to, type=socket.SOCK_DGRAM))
        assert made.getsockname()[0] == "fe80::7"


def test_options_are_read_as_they_were_set(network: Network, devices: tuple[int, int]) -> None:  # noqa: ARG001
    with UDP.socket() as sock:
        for name in ("IP_TOS", "IP_UNICAST_IF", "IP_MULTICAST_IF"):
            OPTIONS[name][2](sock)
        assert sockopts.get_ip_tos(sock) == 0x10
        assert sockopts.get_ip_unicast_if(sock) == devices[1]
        assert sockopts.get_ip_multicast_if(sock) == socket.inet_aton("10.0.2.1")
    with UDP6.socket() as sock:
        for name in ("IPV6_TCLASS", "IPV6_UNICAST_IF", "IPV6_MULTICAST_IF"):
            OPTIONS[name][2](sock)
        sock.setsockopt(IPV6, uapi.IPV6_ADDR_PREFERENCES, PREFER_TEMPORARY)
        assert sockopts.get_ipv6_tclass(sock) == 0x10
        assert sockopts.get_ipv6_unicast_if(sock) == devices[1]
        assert sockopts.get_ipv6_multicast_if(sock) == devices[1]
        assert sockopts.get_ipv6_addr_preferences(sock) & 0xFF == PREFER_TEMPORARY
