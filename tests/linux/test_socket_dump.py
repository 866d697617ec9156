import contextlib
import re
import socket
import subprocess
from array import array
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectx.addresses import Endpoint, PortRange
from connectx.linux import uapi
from connectx.linux.netlink import DumpInterrupted, MalformedMessage, NetlinkSocket
from connectx.linux.sock_diag import (
    ALL_STATES,
    decode_record,
)
from connectx.linux.socket_dump import Filter, Group, filter_between, ports_toward, records, tally
from connectx.linux.sockopts import get_so_cookie, set_so_bindtoifindex
from connectx.linux.structs import NLMSGHDR
from connectx.sandbox.servers import Servers
from tests import limits
from tests.linux.captures.replay import SEQUENCE, datagrams, replaying
from tests.linux.sockets import IPV4, IPV6, MAPPED, Open, pack


def half_close(client: socket.socket, server: socket.socket) -> None:
    """Bring a client to FIN_WAIT2. The answer acknowledges its FIN, which may else wait 40 ms."""
    client.shutdown(socket.SHUT_WR)
    assert limits.receive(server) == b""
    server.send(b"x")
    assert limits.receive(client) == b"x"


SS_STATES = {
    "LISTEN": uapi.TCP_LISTEN,
    "ESTAB": uapi.TCP_ESTABLISHED,
    "TIME-WAIT": uapi.TCP_TIME_WAIT,
    "UNCONN": uapi.TCP_CLOSE,
    "FIN-WAIT-2": uapi.TCP_FIN_WAIT2,
    "CLOSE-WAIT": uapi.TCP_CLOSE_WAIT,
    "SYN-SENT": uapi.TCP_SYN_SENT,
}


def listed_by_ss(option: str) -> Iterator[tuple[int, str, int, str, int]]:
    """What ss lists: state, source, port, destination, port."""
    try:
        listing = subprocess.run(
            ["ss", "-Hna", option],
            check=True,
            capture_output=True,
            text=True,
            timeout=limits.COMMAND_LIMIT,
        ).stdout
    except FileNotFoundError:
        pytest.skip("needs ss, of iproute2")
    for line in listing.splitlines():
        state, _, _, *ends = line.split()[:5]
        source, destination = (re.sub(r"%\w+", "", end).rsplit(":", 1) for end in ends)
        ports = [0 if end[1] == "*" else int(end[1]) for end in (source, destination)]
        # What ss writes as "*" is the dual-stack wildcard.
        hosts = [end[0].strip("[]").replace("*", "::") for end in (source, destination)]
        yield SS_STATES[state], hosts[0], ports[0], hosts[1], ports[1]


def listed_by_us(netlink: NetlinkSocket, protocol: int) -> list[tuple[int, str, int, str, int]]:
    # ss leaves bound, unconnected TCP sockets out.
    states = ALL_STATES & ~(1 << uapi.TCP_BOUND_INACTIVE)
    # AF_INET6 has the IPv4-mapped ones as well, which AF_INET would give a second time.
    listed = records(netlink, Filter(protocol, states, family=uapi.AF_INET6))
    ipv4 = records(netlink, Filter(protocol, states, family=uapi.AF_INET))
    listed += [record for record in ipv4 if len(record.source) == 4]
    return [
        (
            r.state,
            socket.inet_ntop(r.family, r.source),
            r.source_port,
            socket.inet_ntop(r.family, r.destination),
            r.destination_port,
        )
        for r in listed
    ]


def test_tcp_dump_is_what_ss_lists(
    netlink: NetlinkSocket, servers: Servers, open_socket: Open, closing: contextlib.ExitStack
) -> None:
    listeners = [servers.listen(host, 8000) for host in ("127.0.0.1", "::1", "::ffff:127.0.0.2")]
    for number, listener in enumerate(listeners):
        host = listener.getsockname()[0]
        for port in range(20000, 20040):
            client = open_socket(uapi.IPPROTO_TCP, (host, port), (host, 8000))
            server = closing.enter_context(limits.accept(listener)[0])
            if port % 8 == number:
                half_close(client, server)
            elif port % 8 == number + 3:
                client.close()
                server.close()
    open_socket(uapi.IPPROTO_TCP, ("::1", 20100)).listen()
    open_socket(uapi.IPPROTO_TCP, ("127.0.0.1", 20101))
    assert sorted(listed_by_us(netlink, uapi.IPPROTO_TCP)) == sorted(listed_by_ss("-t"))


def test_udp_dump_is_what_ss_lists(netlink: NetlinkSocket, open_socket: Open) -> None:
    for host in ("127.0.0.1", "::1", "::ffff:127.0.0.2"):
        for port in range(20000, 20100):
            peer = (host, 53) if port % 3 else None
            open_socket(uapi.IPPROTO_UDP, (host, port), peer)
    open_socket(uapi.IPPROTO_UDP, ("0.0.0.0", 20200))
    open_socket(uapi.IPPROTO_UDP, ("::", 20201))
    assert sorted(listed_by_us(netlink, uapi.IPPROTO_UDP)) == sorted(listed_by_ss("-u"))


def test_bound_tcp_sockets_are_dumped(netlink: NetlinkSocket, open_socket: Open) -> None:
    sock = open_socket(uapi.IPPROTO_TCP, ("127.0.0.1", 20000))
    found = records(
        netlink,
        Filter(uapi.IPPROTO_TCP, 1 << uapi.TCP_BOUND_INACTIVE, family=uapi.AF_INET),
    )
    if not found:
        pytest.skip("kernel: before 6.8 a dump leaves bound sockets out")
    # The state asked for is one of the filter alone: its sockets are in TCP_CLOSE.
    assert [(r.state, r.source_port, r.cookie) for r in found] == [
        (uapi.TCP_CLOSE, 20000, get_so_cookie(sock))
    ]


FILTERS: list[tuple[dict[str, bytes | int], set[int]]] = [
    ({}, {1, 2, 3, 4, 5}),
    ({"source": pack("127.0.0.1")}, {1, 3, 5}),
    ({"destination": pack("127.0.0.1")}, {1, 3, 4}),
    ({"source_port": 20002}, {2}),
    ({"destination_port": 54}, {3, 5}),
    ({"source": pack("127.0.0.1"), "destination": pack("127.0.0.9")}, {5}),
    ({"destination": pack("127.0.0.1"), "destination_port": 53}, {1, 4}),
    ({"source": pack("127.0.0.9")}, set()),
]


@pytest.mark.parametrize("wanted, expected", FILTERS)
def test_filters(
    netlink: NetlinkSocket, open_socket: Open, wanted: dict[str, bytes], expected: set[int]
) -> None:
    for number, source, destination, port in (
        (1, "127.0.0.1", "127.0.0.1", 53),
        (2, "127.0.0.2", "127.0.0.2", 53),
        (3, "127.0.0.1", "127.0.0.1", 54),
        # IPv4-mapped ones occupy IPv4 tuples.
        (4, "::ffff:127.0.0.3", "::ffff:127.0.0.1", 53),
        (5, "::ffff:127.0.0.1", "::ffff:127.0.0.9", 54),
        (6, "::1", "::1", 53),
    ):
        open_socket(uapi.IPPROTO_UDP, (source, 20000 + number), (destination, port))
    found = records(netlink, Filter(uapi.IPPROTO_UDP, family=uapi.AF_INET, **wanted))  # type: ignore[arg-type]
    assert {record.source_port - 20000 for record in found} == expected
    assert len(found) == len(expected)


def test_dump_by_interface(netlink: NetlinkSocket, open_socket: Open) -> None:
    loopback = socket.if_nametoindex("lo")
    open_socket(uapi.IPPROTO_UDP, ("::1", 20000), ("::1", 53))
    bound = open_socket(uapi.IPPROTO_UDP, family=socket.AF_INET6)
    set_so_bindtoifindex(bound, loopback)
    bound.bind(("::1", 20001))
    bound.connect(("::1", 53))
    (record,) = records(netlink, Filter(uapi.IPPROTO_UDP, interface=loopback, family=uapi.AF_INET6))
    assert (record.source_port, record.interface) == (20001, loopback)
    ports = ports_toward(
        netlink, uapi.IPPROTO_UDP, uapi.AF_INET6, IPV6, IPV6, 53, interface=loopback
    )
    assert ports == {uapi.TCP_ESTABLISHED: array("H", [20001])}


@pytest.mark.parametrize(
    "family, own, mapped",
    [
        (uapi.AF_INET, "127.0.0.1", "::ffff:127.0.0.1"),
        (uapi.AF_INET6, "::1", None),
    ],
)
def test_ports_toward(
    netlink: NetlinkSocket, open_socket: Open, family: int, own: str, mapped: str | None
) -> None:
    expected = set()
    for port in range(20000, 20600):
        host = mapped if mapped and port % 7 == 0 else own
        open_socket(uapi.IPPROTO_UDP, (host, port), (host, 53 + port % 2))
        if port % 2 == 0:
            expected.add(port)
    open_socket(uapi.IPPROTO_UDP, (own, 21000))
    for source in (None, pack(own)):
        ports = ports_toward(netlink, uapi.IPPROTO_UDP, family, source, pack(own), 53)
        assert ports.keys() == {uapi.TCP_ESTABLISHED}
        assert ports[uapi.TCP_ESTABLISHED].typecode == "H"
        assert sorted(ports[uapi.TCP_ESTABLISHED]) == sorted(expected)
    elsewhere = pack("127.0.0.2") if family == uapi.AF_INET else pack("::2")
    assert ports_toward(netlink, uapi.IPPROTO_UDP, family, elsewhere, pack(own), 53) == {}
    unwanted = ALL_STATES & ~(1 << uapi.TCP_ESTABLISHED)
    assert ports_toward(netlink, uapi.IPPROTO_UDP, family, None, pack(own), 53, unwanted) == {}


def test_ports_toward_tells_states_apart(
    netlink: NetlinkSocket, servers: Servers, open_socket: Open, closing: contextlib.ExitStack
) -> None:
    listener = servers.listen("127.0.0.1", 8000)
    half_closed = set()
    for port in range(20000, 20300):
        client = open_socket(uapi.IPPROTO_TCP, ("127.0.0.1", port), ("127.0.0.1", 8000))
        server = closing.enter_context(limits.accept(listener)[0])
        if port % 3 == 0:
            half_close(client, server)
            half_closed.add(port)
    ports = ports_toward(netlink, uapi.IPPROTO_TCP, uapi.AF_INET, IPV4, IPV4, 8000)
    assert set(ports[uapi.TCP_FIN_WAIT2]) == half_closed
    assert set(ports[uapi.TCP_ESTABLISHED]) == set(range(20000, 20300)) - half_closed
    assert sum(map(len, ports.values())) == 300


def test_mptcp_ports_are_its_subflows(netlink: NetlinkSocket, open_socket: Open) -> None:
    listener = open_socket(uapi.IPPROTO_MPTCP, ("127.0.0.1", 8000))
    listener.listen()
    open_socket(uapi.IPPROTO_MPTCP, ("127.0.0.1", 20000), ("127.0.0.1", 8000))
    ports = ports_toward(netlink, uapi.IPPROTO_MPTCP, uapi.AF_INET, IPV4, IPV4, 8000)
    assert ports == {uapi.TCP_ESTABLISHED: array("H", [20000])}


def test_replayed_dumps() -> None:
    # The second dump is of AF_INET6, and empty.
    with replaying([*datagrams("dump-udp"), *datagrams("dump-empty")]) as netlink:
        listed = records(netlink, Filter(uapi.IPPROTO_UDP, family=uapi.AF_INET))
    assert sorted(record.source_port for record in listed) == list(range(20000, 20060))
    assert {record[:3] for record in listed} == {(uapi.AF_INET, uapi.TCP_ESTABLISHED, IPV4)}
    with replaying(datagrams("dump-tcp")) as netlink:
        listed = records(netlink, Filter(uapi.IPPROTO_TCP, family=uapi.AF_INET6))
    assert sorted((r.state, r.source, r.source_port, r.destination_port) for r in listed) == [
        (uapi.TCP_ESTABLISHED, IPV6, 80, 21000),
        (uapi.TCP_ESTABLISHED, IPV6, 21000, 80),
        (uapi.TCP_ESTABLISHED, MAPPED, 80, 21001),
        (uapi.TCP_LISTEN, bytes(16), 80, 0),
    ]


INTERRUPTED = NLMSGHDR.pack(20, uapi.NLMSG_DONE, uapi.NLM_F_DUMP_INTR, SEQUENCE, 0) + bytes(4)


def test_an_interrupted_dump_is_repeated() -> None:
    replies = [*datagrams("dump-tcp")[:-1], INTERRUPTED, *datagrams("dump-tcp")]
    with replaying(replies) as netlink:
        assert len(records(netlink, Filter(uapi.IPPROTO_TCP, family=uapi.AF_INET6))) == 4


def test_an_interrupted_dump_is_repeated_8_times_at_most() -> None:
    with replaying([INTERRUPTED] * 7 + datagrams("dump-tcp")) as netlink:
        assert len(records(netlink, Filter(uapi.IPPROTO_TCP, family=uapi.AF_INET6))) == 4
    with replaying([INTERRUPTED] * 8) as netlink, pytest.raises(DumpInterrupted):
        records(netlink, Filter(uapi.IPPROTO_TCP, family=uapi.AF_INET6))


def test_a_dump_of_something_else_is_malformed() -> None:
    for reply in (
        NLMSGHDR.pack(88, uapi.RTM_NEWROUTE, 0, SEQUENCE, 0) + bytes(72),
        NLMSGHDR.pack(84, uapi.SOCK_DIAG_BY_FAMILY, 0, SEQUENCE, 0) + bytes(68),
    ):
        for decode in (
            lambda netlink: records(netlink, Filter(uapi.IPPROTO_UDP, family=uapi.AF_INET6)),
            lambda netlink: ports_toward(netlink, uapi.IPPROTO_UDP, uapi.AF_INET6, None, IPV6, 53),
        ):
            with replaying([reply]) as netlink, pytest.raises(MalformedMessage):
                decode(netlink)
    with pytest.raises(MalformedMessage):
        decode_record(bytes(71))


@given(st.binary(min_size=72, max_size=72), st.integers(1, 4))
def test_any_record_is_decoded_or_refused(record: bytes, count: int) -> None:
    reply = NLMSGHDR.pack(88, uapi.SOCK_DIAG_BY_FAMILY, 0, SEQUENCE, 0) + record
    done = NLMSGHDR.pack(20, uapi.NLMSG_DONE, 0, SEQUENCE, 0) + bytes(4)
    with replaying([reply * count, done]) as netlink:
        ports = ports_toward(netlink, uapi.IPPROTO_UDP, uapi.AF_INET6, None, IPV6, 53)
    assert ports == {record[1]: array("H", [int.from_bytes(record[4:6], "big")] * count)}
    if record[0] not in {uapi.AF_INET, uapi.AF_INET6}:
        with pytest.raises(MalformedMessage):
            decode_record(record)
    else:
        assert decode_record(record).source_port == int.from_bytes(record[4:6], "big")


@pytest.mark.parametrize("protocol, family", [(1, uapi.AF_INET), (uapi.IPPROTO_UDP, 0)])
def test_wrong_use_of_dump(netlink: NetlinkSocket, protocol: int, family: int) -> None:
    with pytest.raises(ValueError, match="not a"):
        records(netlink, Filter(protocol, family=family))
    with pytest.raises(ValueError, match=r"not a|do not match"):
        ports_toward(netlink, protocol, family, IPV4, IPV6, 53)


FAMILIES = (uapi.AF_INET, uapi.AF_INET6)

RANGES: list[tuple[PortRange, ...]] = [
    (),
    (PortRange(20000, 20099),),
    (PortRange(20050, 20050),),
    (PortRange(20000, 20009), PortRange(20020, 20020), PortRange(20090, 20200)),
    (PortRange(1, 19999), PortRange(20100, 65535)),
    tuple(PortRange(port, port) for port in range(20098, 20000, -2)),
]


@pytest.mark.parametrize("protocol", [uapi.IPPROTO_TCP, uapi.IPPROTO_UDP])
@pytest.mark.parametrize("ranges", RANGES, ids=lambda ranges: f"{len(ranges)} ranges")
def test_a_dump_of_some_source_ports(
    netlink: NetlinkSocket,
    servers: Servers,
    open_socket: Open,
    protocol: int,
    ranges: tuple[PortRange, ...],
) -> None:
    servers.listen("127.0.0.1", 8000)
    for port in range(20000, 20100):
        open_socket(protocol, ("127.0.0.1", port), ("127.0.0.1", 8000))
    expected = sum(low <= port <= high for port in range(20000, 20100) for low, high in ranges)
    wanted = Filter(
        protocol,
        1 << uapi.TCP_ESTABLISHED,
        destination_port=8000,
        ports=ranges,
        family=uapi.AF_INET,
    )
    assert sum(tally(netlink, wanted).values()) == expected
    wanted = wanted._replace(source=IPV4, destination=IPV4)
    assert sum(tally(netlink, wanted).values()) == expected
    wanted = wanted._replace(source=pack("127.0.0.2"))
    assert tally(netlink, wanted) == {}


def test_tally_counts_what_a_dump_has(
    netlink: NetlinkSocket, servers: Servers, open_socket: Open, closing: contextlib.ExitStack
) -> None:
    listener = servers.listen("::", 8000)
    for number in range(700):
        host = ("127.0.0.1", "::1", "::ffff:127.0.0.1")[number % 3]
        client = open_socket(uapi.IPPROTO_TCP, (host, 20000 + number), (host, 8000))
        server = closing.enter_context(limits.accept(listener)[0])
        if number % 5 == 0:
            half_close(client, server)
    for family in FAMILIES:
        counted = tally(netlink, Filter(uapi.IPPROTO_TCP, family=family))
        listed = records(netlink, Filter(uapi.IPPROTO_TCP, family=family))
        assert counted == Counter(
            Group(*each[:3], each.destination, each.destination_port, each.interface)
            for each in listed
        )
        assert len({group.state for group in counted}) >= 3
        assert sum(counted.values()) > 700
    both = tally(netlink, Filter(uapi.IPPROTO_TCP))
    tables = [tally(netlink, Filter(uapi.IPPROTO_TCP, family=family)) for family in FAMILIES]
    assert both == tables[0] | tables[1]


def test_replayed_tallies() -> None:
    with replaying([*datagrams("dump-udp"), *datagrams("dump-empty")]) as netlink:
        counted = tally(netlink, Filter(uapi.IPPROTO_UDP, family=uapi.AF_INET))
    assert sum(counted.values()) == 60
    with replaying([*datagrams("dump-tcp")[:-1], INTERRUPTED, *datagrams("dump-tcp")]) as netlink:
        counted = tally(netlink, Filter(uapi.IPPROTO_TCP, family=uapi.AF_INET6))
    assert sum(counted.values()) == 4
    with replaying([INTERRUPTED] * 8) as netlink, pytest.raises(DumpInterrupted):
        tally(netlink, Filter(uapi.IPPROTO_TCP, family=uapi.AF_INET6))


class TestFilterBetween:
    """From text to what the kernel compares."""

    def test_ipv4_mapped_addresses_are_those_of_ipv4(self) -> None:
        wanted = filter_between(uapi.IPPROTO_TCP, ALL_STATES, "::ffff:127.0.0.1", Endpoint("", 443))
        assert (wanted.family, wanted.source, wanted.destination) == (uapi.AF_INET, IPV4, None)
        assert (wanted.destination_port, wanted.interface) == (443, 0)

    def test_without_an_address_both_families_are_meant(self) -> None:
        assert filter_between(uapi.IPPROTO_UDP, ALL_STATES, "", Endpoint("", 0)).family is None

    def test_a_scope_counts_where_the_address_needs_it(self) -> None:
        loopback = socket.if_nametoindex("lo")
        for source, to, interface in (
            ("fe80::1%lo", Endpoint("fe80::9", 443), loopback),
            ("fe80::1", Endpoint("fe80::9", 443, 0, 7), 7),
            ("2001:db8::1%lo", Endpoint("2001:db8::9", 443, 0, 7), 0),
        ):
            wanted = filter_between(uapi.IPPROTO_TCP, ALL_STATES, source, to)
            assert (wanted.family, wanted.interface) == (uapi.AF_INET6, interface)

    @pytest.mark.parametrize(
        "source, to, message",
        [
            ("::1", Endpoint("127.0.0.1", 0), "::1 and 127.0.0.1 are not of the same IP version"),
            ("fe80::1%7", Endpoint("fe80::9%8", 0), "are not on the same interface"),
            ("here", Endpoint("", 0), "not an IP address: 'here'"),
        ],
    )
    def test_ends_that_do_not_go_together(self, source: str, to: Endpoint, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            filter_between(uapi.IPPROTO_TCP, ALL_STATES, source, to)
