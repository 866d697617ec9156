"""Facts made up for the doctor's rules: a machine that is well, and what may differ from it."""

import errno
from ipaddress import ip_network
from typing import Any

from connectx._diagnosis import causes
from connectx._diagnosis.facts import (
    Call,
    Census,
    Facts,
    Holder,
    Overshadowing,
    Row,
    SharedPort,
    WatchedPair,
)
from connectx._diagnosis.finding import Severity
from connectx.addresses import Endpoint, PortRange
from connectx.linux.nat_rules import Rule, Rules, Translation
from connectx.linux.proc_net import Table
from connectx.linux.processes import Descriptors, Process

PORTS = PortRange(32768, 60999)
TO = Endpoint("198.51.100.9", 443)
PROXY = Process(7, "proxy", "")

HEALTHY = Facts(
    ports=PORTS,
    reserved=(),
    step_width=0,
    ipv6=True,
    addresses=("192.0.2.7", "192.0.2.8", "2001:db8::7"),
    has_ipv6_switch=True,
    link_local=("eth0", "eth1"),
    unprivileged_port_start=1024,
    udp_unused=28_000,
    udp_unused_by_ipv6=27_000,
    udp_owners={},
    pairs=(),
    holders=(),
    services=frozenset(),
    tells_binds_apart=True,
    overshadowed=(),
    deaf=(),
    unseen_owner="hidden",
    close_wait={},
    close_wait_gain=0,
    time_wait=Table(100, 262144),
    time_wait_overflows=0,
    overflows_gain=0,
    tcp_tw_reuse=2,
    tcp_timestamps=1,
    descriptors={PROXY: Descriptors(100, 1024, 4096)},
    conntrack=Table(1000, 262144),
    rules=Rules(translations=(Translation(Rule("to :1024-65535"), PortRange(1024, 65535)),)),
    offset_by_port=None,
    conntrack_is_ours=True,
    kernel="6.18.5",
    lacking=(),
    seconds=1.0,
    unseen=(),
    call=None,
)

CALL = Call(
    "tcp", errno.EADDRNOTAVAIL, Endpoint("192.0.2.7", 0), TO, None, census_source="192.0.2.7"
)
ON_PORT = (Holder("tcp", "0.0.0.0", 8080, "LISTEN", "httpd (8)"),)


def pair(
    in_use: int,
    rate: float = 0.0,
    idle: int = 0,
    *,
    capacity: int = 28_232,
    reusable: int = 0,
    source: str = "192.0.2.7",
    protocol: str = "tcp",
    **states: int,
) -> WatchedPair:
    named = {
        name.replace("_", "-"): number for name, number in (states or {"ESTAB": in_use}).items()
    }
    row = Row(protocol, source, TO, in_use, capacity, named, {PROXY: in_use}, reusable)
    return WatchedPair(row, rate, idle)


def holders(number: int, state: str) -> tuple[Holder, ...]:
    return tuple(
        Holder("tcp", "192.0.2.7", PORTS.low + each, state, "proxy (7)") for each in range(number)
    )


def translating(ports: PortRange, **conditions: Any) -> Rules:
    return Rules(translations=(Translation(Rule("x", **conditions), ports),))


def redirecting(ports: PortRange, **conditions: Any) -> Rules:
    return Rules(redirections=(Rule("x", ports=(ports,), **conditions),))


C, W, N = Severity.CRITICAL, Severity.WARNING, Severity.NOTE

#: What differs from a healthy machine, and what that gives: nothing is None.
CASES: list[tuple[dict[str, Any], tuple[causes.Cause, Severity] | None]] = [
    ({}, None),
    ({"pairs": (pair(19_000),)}, None),
    ({"pairs": (pair(20_000),)}, (causes.CONNECTED, W)),
    ({"pairs": (pair(26_900),)}, (causes.CONNECTED, C)),
    ({"pairs": (pair(26_900, ESTAB=10_000, TIME_WAIT=1),)}, (causes.CONNECTED, C)),
    ({"pairs": (pair(10_000, rate=20.0),)}, None),
    ({"pairs": (pair(10_000, rate=40.0),)}, None),
    ({"pairs": (pair(10_000, rate=40.0),), "seconds": 10.0}, (causes.CONNECTED, W)),
    ({"pairs": (pair(10_000, rate=400.0),)}, (causes.CONNECTED, W)),
    ({"pairs": (pair(5_000, rate=4000.0),)}, None),
    ({"pairs": (pair(19_000, ESTAB=14_000, TIME_WAIT=5_000),)}, None),
    ({"pairs": (pair(19_000, ESTAB=13_000, TIME_WAIT=6_000),)}, (causes.TIME_WAIT, W)),
    ({"pairs": (pair(19_000, idle=14_000),)}, None),
    ({"pairs": (pair(19_000, idle=15_000),)}, (causes.IDLE, W)),
    ({"holders": holders(1, "connected")}, (causes.BOUND_FIRST, N)),
    ({"holders": holders(300, "connected")}, (causes.BOUND_FIRST, W)),
    ({"holders": holders(9000, "connected")}, (causes.BOUND_FIRST, C)),
    ({"holders": holders(300, "bound")}, (causes.POLLUTED, W)),
    ({"holders": holders(9000, "TIME-WAIT")}, (causes.POLLUTED, C)),
    ({"holders": holders(300, "accepted")}, (causes.POLLUTED, W)),
    ({"holders": holders(1, "LISTEN")}, (causes.LISTENERS, N)),
    ({"holders": holders(2, "LISTEN"), "reserved": (PortRange(32000, 32769),)}, None),
    ({"close_wait": {"proxy (7)": 9}}, None),
    ({"close_wait": {"proxy (7)": 6, "": 4}}, (causes.CLOSE_WAIT, N)),
    ({"close_wait": {"proxy (7)": 10}, "close_wait_gain": 1}, (causes.CLOSE_WAIT, W)),
    ({"close_wait": {"proxy (7)": 1500}}, (causes.CLOSE_WAIT, W)),
    ({"udp_unused": 1412}, None),
    ({"udp_unused": 1411}, (causes.UNSHARED, W)),
    ({"udp_unused": 0}, (causes.UNSHARED, C)),
    ({"overshadowed": (Overshadowing(TO, TO, ("a", "b")),)}, (causes.OVERSHADOWED, C)),
    ({"deaf": (SharedPort("udp", TO, 2, ("a", "b")),)}, (causes.DEAF, W)),
    ({"deaf": (SharedPort("udp", TO, 2, ("a",), certain=False),)}, (causes.DEAF, N)),
    ({"descriptors": {PROXY: Descriptors(820, 1024, 4096)}}, (causes.DESCRIPTORS, W)),
    ({"descriptors": {PROXY: Descriptors(1000, 1024, 4096)}}, (causes.DESCRIPTORS, C)),
    ({"conntrack": None}, None),
    ({"conntrack": Table(1000, 0)}, None),
    ({"conntrack": Table(220_000, 262_144)}, (causes.CONNTRACK, W)),
    ({"conntrack": Table(262_144, 262_144)}, (causes.CONNTRACK, C)),
    ({"rules": translating(PortRange(1, 28_231))}, (causes.TRANSLATED, W)),
    (
        {"rules": translating(PortRange(1, 9), sources=(ip_network("10.0.0.0/8"),))},
        (causes.TRANSLATED, N),
    ),
    ({"rules": Rules(random=(Rule("x"),)), "offset_by_port": False}, None),
    ({"rules": Rules(random=(Rule("x"),))}, None),
    (
        {"rules": Rules(random=(Rule("x"),)), "offset_by_port": True},
        (causes.RANDOM_TRANSLATION, W),
    ),
    (
        {"rules": Rules(random=(Rule("x", ("udp",)),)), "offset_by_port": True, "call": CALL},
        (causes.RANDOM_TRANSLATION, N),
    ),
    ({"rules": redirecting(PortRange(30000, 32767))}, None),
    ({"rules": redirecting(PortRange(30000, 32768))}, (causes.SWALLOWED, W)),
    (
        {
            "rules": redirecting(PortRange(30000, 32768)),
            "reserved": (PortRange(32768, 32768),),
        },
        None,
    ),
    (
        {"rules": redirecting(PortRange(40000, 40000), destinations=(ip_network("10.96.0.1/32"),))},
        None,
    ),
    ({"time_wait": None, "time_wait_overflows": 5}, None),
    ({"time_wait": Table(210_000, 262_144)}, (causes.TIME_WAIT_OVERFLOW, W)),
    ({"time_wait_overflows": 5}, (causes.TIME_WAIT_OVERFLOW, N)),
    ({"time_wait_overflows": 5, "overflows_gain": 1}, (causes.TIME_WAIT_OVERFLOW, W)),
    ({"tcp_timestamps": 0}, (causes.TIMESTAMPS_OFF, W)),
    # Searches in random steps: where most ports are in use, or blocks of them are reserved.
    ({"step_width": 28_232}, None),
    ({"step_width": 64, "pairs": (pair(19_000),)}, None),
    ({"step_width": 64, "pairs": (pair(27_000, reusable=26_900, TIME_WAIT=27_000),)}, None),
    ({"step_width": 64, "reserved": (PortRange(40000, 40062),)}, None),
    ({"step_width": 64, "reserved": (PortRange(40000, 40063),)}, (causes.NARROW_STEPS, N)),
    ({"step_width": 1, "reserved": (PortRange(40000, 40000),)}, (causes.NARROW_STEPS, N)),
    ({"step_width": 0, "reserved": (PortRange(40000, 40063),)}, None),
    # What lies in the range counts, and adjacent blocks as one.
    ({"step_width": 64, "reserved": (PortRange(30000, 32800),)}, None),
    (
        {"step_width": 64, "reserved": (PortRange(40000, 40031), PortRange(40032, 40063))},
        (causes.NARROW_STEPS, N),
    ),
    ({"lacking": ("something",)}, (causes.OLD_KERNEL, N)),
    ({"call": CALL._replace(source_is_local=True, needs_ipv6=True)}, None),
    ({"call": CALL._replace(source_is_local=False)}, (causes.NOT_LOCAL, C)),
    (
        {"call": CALL._replace(source_is_local=False, is_tentative=True)},
        (causes.NOT_YET_LOCAL, C),
    ),
    ({"call": CALL, "ipv6": False}, None),
    (
        {"call": CALL._replace(needs_ipv6=True, without_ipv6="all"), "ipv6": False},
        (causes.IPV6_OFF, C),
    ),
    ({"call": CALL._replace(needs_ipv6=True, without_ipv6="lo")}, (causes.IPV6_OFF, C)),
    ({"call": CALL._replace(devices=(("fe80::7", ""),))}, (causes.LINK_LOCAL, C)),
    ({"call": CALL._replace(devices=(("fe80::7", "a"), ("fe80::9", "a")))}, None),
    ({"call": CALL._replace(devices=(("fe80::7", "a"), ("fe80::9", "b")))}, (causes.LINK_LOCAL, C)),
    ({"call": CALL._replace(destination=None), "ipv6": False}, (causes.IPV6_OFF, W)),
    ({"call": CALL._replace(on_port=ON_PORT)}, (causes.PORT_HELD, C)),
    ({"call": CALL._replace(on_port=ON_PORT, on_tuple=True)}, (causes.TUPLE_IN_USE, C)),
    ({"call": CALL._replace(on_port=ON_PORT, by_chance=True)}, (causes.PORT_BY_CHANCE, C)),
    (
        {"call": CALL._replace(on_port=(ON_PORT[0]._replace(state="TIME-WAIT"),))},
        (causes.PORT_LEFT, C),
    ),
    ({"call": CALL._replace(on_port=ON_PORT, number=0)}, (causes.PORT_HELD, N)),
    ({"call": CALL._replace(ports=PORTS)}, None),
    ({"call": CALL._replace(ports=PortRange(1024, 40000))}, (causes.NOT_HONOURED, C)),
    ({"call": CALL._replace(ports=PortRange(80, 80), number=errno.EADDRINUSE)}, None),
    ({"call": CALL._replace(census=Census(PORTS, 28_000, 0, 0, 0, untold=232))}, None),
    ({"call": CALL._replace(census=Census(PORTS, 0, 28_232, 0, 0, reusable=9))}, None),
    ({"pairs": (pair(28_000, reusable=27_000, TIME_WAIT=28_000),)}, None),
    ({"call": CALL._replace(census=Census(PORTS, 28_231, 0, 0, 0))}, None),
    ({"call": CALL._replace(census=Census(PORTS, 28_232, 0, 0, 0))}, (causes.CONNECTED, C)),
    ({"call": CALL._replace(census=Census(PORTS, 0, 0, 28_232, 0))}, (causes.HELD, C)),
    (
        {
            "call": CALL._replace(
                protocol="udp", number=errno.EAGAIN, census=Census(PORTS, 0, 0, 28_232, 0)
            )
        },
        (causes.HELD_DATAGRAM, C),
    ),
]
