import contextlib
import errno
import socket
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectx.linux import uapi
from connectx.linux.netlink import MalformedMessage, NetlinkError, NetlinkSocket
from connectx.linux.route import Route, RouteLookup, attributes_in, decode_route
from connectx.linux.sockopts import set_so_bindtoifindex, set_so_mark
from connectx.linux.structs import NLMSGHDR
from connectx.sandbox.networks import Network
from tests import limits
from tests.linux.captures.replay import datagrams, replaying


def family_of(host: str) -> int:
    return uapi.AF_INET6 if ":" in host else uapi.AF_INET


def pack(host: str) -> bytes:
    return socket.inet_pton(family_of(host), host)


def ip(*arguments: str) -> None:
    try:
        subprocess.run(
            ["ip", *arguments], check=True, capture_output=True, timeout=limits.COMMAND_LIMIT
        )
    except FileNotFoundError:
        pytest.skip("needs ip, of iproute2")


@pytest.fixture
def netlink(network: Network, closing: contextlib.ExitStack) -> NetlinkSocket:
    """In a network with two devices, each with addresses and a gateway."""
    for number, (device, peer) in enumerate([("one", "one-peer"), ("two", "two-peer")], start=1):
        network.add_device_pair(device, peer)
        network.add_address(f"10.0.{number}.1", 24, device)
        network.add_address(f"fd00:{number}::1", 64, device)
        network.add_address(f"fe80::{number}", 64, device)
    return closing.enter_context(NetlinkSocket(uapi.NETLINK_ROUTE))


def find_route(
    netlink: NetlinkSocket, host: str, port: int = 0, source: bytes = b"", **options: Any
) -> Route:
    """The route of a socket's packets to a host; options: of RouteLookup."""
    return RouteLookup(family_of(host), **options).find(netlink, pack(host), port, source)


def route(netlink: NetlinkSocket, host: str, **options: Any) -> tuple[str, int]:
    """The source and device for a destination."""
    found = find_route(netlink, host, **options)
    return socket.inet_ntop(family_of(host), found.source), found.interface


def connected(host: str, device: int = 0, mark: int = 0) -> str:
    """The source that connect() really takes."""
    with socket.socket(family_of(host), socket.SOCK_DGRAM) as sock:
        if device:
            set_so_bindtoifindex(sock, device)
        if mark:
            set_so_mark(sock, mark)
        sock.connect((host, 53))
        source: str = sock.getsockname()[0]
        return source


@pytest.mark.parametrize(
    "host, source, device",
    [
        ("127.0.0.1", "127.0.0.1", "lo"),
        ("127.9.9.9", "127.0.0.1", "lo"),
        ("10.0.1.7", "10.0.1.1", "one"),
        ("10.0.2.7", "10.0.2.1", "two"),
        # A local address is reached over the loopback, and from itself.
        ("10.0.2.1", "10.0.2.1", "lo"),
        ("::1", "::1", "lo"),
        ("fd00:1::7", "fd00:1::1", "one"),
        ("fd00:2::7", "fd00:2::1", "two"),
    ],
)
def test_the_source_is_the_one_connect_takes(
    netlink: NetlinkSocket, host: str, source: str, device: str
) -> None:
    assert route(netlink, host) == (source, socket.if_nametoindex(device))
    assert connected(host) == source


@pytest.mark.parametrize(
    "prefix, source", [("192.0.2.0/24", "10.0.1.9"), ("2001:db8::/32", "fd00:1::9")]
)
def test_a_routes_own_source_is_preferred(
    network: Network, netlink: NetlinkSocket, prefix: str, source: str
) -> None:
    network.add_address(source, None, "one")
    ip("route", "add", prefix, "dev", "one", "src", source)
    host = prefix.split("/", maxsplit=1)[0] + "9" if ":" in prefix else "192.0.2.9"
    assert route(netlink, host) == (source, socket.if_nametoindex("one"))
    assert connected(host) == source


@pytest.mark.parametrize("host", ["192.0.2.9", "2001:db8::9"])
def test_the_mark_decides_by_rule(netlink: NetlinkSocket, host: str) -> None:
    version = "-6" if ":" in host else "-4"
    ip(version, "route", "add", "default", "dev", "one")
    ip(version, "route", "add", "default", "dev", "two", "table", "100")
    ip(version, "rule", "add", "fwmark", "7", "table", "100")
    one, two = ("fd00:1::1", "fd00:2::1") if ":" in host else ("10.0.1.1", "10.0.2.1")
    assert route(netlink, host) == (one, socket.if_nametoindex("one"))
    assert route(netlink, host, mark=8)[0] == one
    assert route(netlink, host, mark=7) == (two, socket.if_nametoindex("two"))
    assert connected(host) == one
    assert connected(host, mark=7) == two


@pytest.mark.parametrize("host", ["192.0.2.9", "2001:db8::9"])
def test_the_device_decides(netlink: NetlinkSocket, host: str) -> None:
    version = "-6" if ":" in host else "-4"
    ip(version, "route", "add", "default", "dev", "one")
    ip(version, "route", "add", "default", "dev", "two", "metric", "9999")
    one, two = ("fd00:1::1", "fd00:2::1") if ":" in host else ("10.0.1.1", "10.0.2.1")
    device = socket.if_nametoindex("two")
    assert route(netlink, host)[0] == one
    assert route(netlink, host, interface=device) == (two, device)
    assert connected(host, device) == two


@pytest.mark.parametrize("device", ["one", "two"])
def test_the_scope_decides_for_a_link_local_destination(
    netlink: NetlinkSocket, device: str
) -> None:
    scope = socket.if_nametoindex(device)
    found, interface = route(netlink, "fe80::99", interface=scope)
    assert interface == scope
    assert found.startswith("fe80::")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.connect(("fe80::99", 53, 0, scope))
        assert sock.getsockname()[0] == found


@pytest.mark.parametrize("host", ["192.0.2.9", "2001:db8::9"])
@pytest.mark.parametrize(
    "selector, options",
    [
        (("uidrange", "4711-4711"), {"uid": 4711}),
        (("ipproto", "udp", "dport", "53"), {"protocol": uapi.IPPROTO_UDP, "port": 53}),
        (("ipproto", "tcp"), {"protocol": uapi.IPPROTO_MPTCP}),
        (("dport", "53"), {"protocol": uapi.IPPROTO_UDPLITE, "port": 53}),
        (("tos", "0x10"), {"tos": 0x10}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_rules_see_what_the_socket_has(
    netlink: NetlinkSocket, host: str, selector: tuple[str, ...], options: dict[str, int]
) -> None:
    version = "-6" if ":" in host else "-4"
    ip(version, "route", "add", "default", "dev", "one")
    ip(version, "route", "add", "default", "dev", "two", "table", "100")
    ip(version, "rule", "add", *selector, "table", "100")
    one, two = ("fd00:1::1", "fd00:2::1") if ":" in host else ("10.0.1.1", "10.0.2.1")
    assert route(netlink, host)[0] == one
    assert route(netlink, host, **options)[0] == two


@pytest.mark.parametrize("host", ["192.0.2.9", "2001:db8::9"])
@pytest.mark.parametrize(
    "kind, number",
    [
        ("", errno.ENETUNREACH),
        ("unreachable", errno.EHOSTUNREACH),
        ("prohibit", errno.EACCES),
        ("blackhole", errno.EINVAL),
    ],
)
def test_without_a_route_the_error_is_connects(
    netlink: NetlinkSocket, host: str, kind: str, number: int
) -> None:
    if kind:
        ip("route", "add", kind, host)
    with pytest.raises(NetlinkError) as caught:
        route(netlink, host)
    assert caught.value.errno == number
    with pytest.raises(OSError) as refused:  # noqa: PT011 -- compared below
        connected(host)
    assert refused.value.errno == number


def test_a_device_that_is_not_there(netlink: NetlinkSocket) -> None:
    with pytest.raises(NetlinkError) as caught:
        route(netlink, "10.0.1.7", interface=9999)
    assert caught.value.errno in {errno.ENODEV, errno.ENETUNREACH}


def test_no_source_address(network: Network, netlink: NetlinkSocket) -> None:
    network.sysctl("net.ipv6.conf.two.disable_ipv6", 1)
    network.add_device_pair("three", "three-peer")
    network.sysctl("net.ipv6.conf.lo.disable_ipv6", 1)
    for device in ("one", "three"):
        ip("-6", "address", "flush", "dev", device)
        ip("-6", "address", "flush", "dev", f"{device}-peer")
    ip("-6", "address", "flush", "dev", "two-peer")
    ip("-6", "route", "add", "2001:db8::/32", "dev", "three")
    with pytest.raises(NetlinkError) as caught:
        route(netlink, "2001:db8::9")
    assert caught.value.errno == errno.EADDRNOTAVAIL
    with pytest.raises(OSError) as refused:  # noqa: PT011 -- compared below
        connected("2001:db8::9")
    assert refused.value.errno == errno.EADDRNOTAVAIL


# Decoding.


@pytest.mark.parametrize(
    "name, host",
    [("route-ipv4", "127.0.0.1"), ("route-ipv6", "::1")],
)
def test_replayed_routes(name: str, host: str) -> None:
    with replaying(datagrams(name)) as netlink:
        assert find_route(netlink, host) == Route(pack(host), 1)
    with replaying(datagrams("route-none")) as netlink, pytest.raises(NetlinkError) as caught:
        find_route(netlink, host)
    assert caught.value.errno == errno.ENETUNREACH


@given(
    st.sampled_from(["route-ipv4", "route-ipv6"]),
    st.integers(0, 150),
    st.integers(0, 255),
    st.integers(0, 150),
)
def test_a_changed_route_is_decoded_or_refused(name: str, at: int, value: int, size: int) -> None:
    family = uapi.AF_INET if name == "route-ipv4" else uapi.AF_INET6
    octets = bytearray(datagrams(name)[0][NLMSGHDR.size :])
    octets[at : at + 1] = bytes([value])
    with contextlib.suppress(MalformedMessage, NetlinkError):
        found = decode_route(family, bytes(octets[:size]))
        assert len(found.source) == (4 if family == uapi.AF_INET else 16)


@given(st.binary(max_size=100))
def test_attributes_end(octets: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        assert len(list(attributes_in(memoryview(octets)))) <= 25


@pytest.mark.parametrize(
    "family, destination",
    [(uapi.AF_INET, bytes(16)), (uapi.AF_INET6, bytes(4)), (socket.AF_UNIX, bytes(4))],
)
def test_wrong_use(network: Network, family: int, destination: bytes) -> None:  # noqa: ARG001
    with (
        NetlinkSocket(uapi.NETLINK_ROUTE) as netlink,
        pytest.raises(ValueError, match=r"do not match|not a family"),
    ):
        RouteLookup(family).find(netlink, destination)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_asked_source_is_the_route_s_source(network: Network, host: str) -> None:  # noqa: ARG001
    """The kernel does not repeat it (rt_fill_info), and still names the device."""
    with NetlinkSocket(uapi.NETLINK_ROUTE) as netlink:
        source, interface = route(netlink, host, source=pack(host))
    assert source == host
    assert socket.if_indextoname(interface) == "lo"


def test_another_source_than_ipv6_would_have_chosen(
    network: Network, netlink: NetlinkSocket
) -> None:
    """The kernel names that one, too."""
    network.add_address("2001:db8:5::1", 64, "one")
    network.add_address("2001:db8:5::2", 64, "one")
    away = pack("2001:db8:5::9")
    for host in ("2001:db8:5::1", "2001:db8:5::2"):
        found = RouteLookup(uapi.AF_INET6).find(netlink, away, 53, pack(host))
        assert found.source == pack(host)
