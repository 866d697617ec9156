"""Rules with facts made up for them; tests/observe/test_doctor.py has them from the kernel."""

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectx._diagnosis import causes
from connectx._diagnosis.doctor_rules import RULES, find
from connectx._diagnosis.facts import (
    Census,
    SharedPort,
    WatchedPair,
)
from connectx._diagnosis.finding import Severity, duration
from connectx._diagnosis.verdict import together, verdict
from connectx.addresses import Endpoint, PortRange
from connectx.linux.proc_net import Table
from connectx.linux.processes import Descriptors
from tests._diagnosis.made_up import (
    CALL,
    CASES,
    HEALTHY,
    ON_PORT,
    PORTS,
    PROXY,
    TO,
    C,
    N,
    W,
    holders,
    pair,
)


@pytest.mark.parametrize("differing, expected", CASES, ids=lambda case: str(case)[:60])
def test_rules(differing: dict[str, Any], expected: tuple[causes.Cause, Severity] | None) -> None:
    findings = find(HEALTHY._replace(**differing))
    assert [(each.cause, each.severity) for each in findings] == ([expected] if expected else [])
    for finding in findings:
        assert finding.evidence
        for remedy in finding.cause.remedies:
            command = finding.command(remedy)
            assert "{" not in command
            # Whoever pastes it knows what it breaks.
            assert not command or remedy.breaks


def test_every_rule_has_a_case() -> None:
    silent = [
        rule
        for rule in RULES
        if not any(list(rule(HEALTHY._replace(**differing))) for differing, _ in CASES)
    ]
    assert silent == []
    assert all(list(rule(HEALTHY)) == [] for rule in RULES)


def test_the_worst_comes_first() -> None:
    found = find(
        HEALTHY._replace(
            lacking=("something",),
            tcp_timestamps=0,
            pairs=(pair(28_232, ESTAB=1000, TIME_WAIT=27_232),),
        )
    )
    assert [each.severity for each in found] == [C, W, N]
    assert found[0].cause is causes.TIME_WAIT
    assert "tcp_tw_reuse would not help" in found[0].evidence[2]
    (other,) = found[0].also
    assert other.severity is W
    assert other.title == "27,232 source ports rest in TIME_WAIT"


def test_several_full_pairs_are_one_finding() -> None:
    pairs = (pair(20_000, source="192.0.2.8"), pair(28_000), pair(28_100, source="192.0.2.9"))
    (finding,) = find(HEALTHY._replace(pairs=pairs))
    assert [each.severity for each in (finding, *finding.also)] == [C, C, W]
    assert [each.title.split()[0] for each in (finding, *finding.also)] == [
        "28,000",
        "28,100",
        "20,000",
    ]


def test_one_pair_is_found_once() -> None:
    """By the rule about the call, which knows best what keeps the ports."""
    call = CALL._replace(census=Census(PORTS, 100, 0, 28_132, 0))
    (finding,) = find(HEALTHY._replace(call=call, pairs=(pair(28_000),)))
    assert finding.cause is causes.HELD
    (first, second) = find(
        HEALTHY._replace(call=call, pairs=(pair(28_000), pair(28_000, source="192.0.2.8")))
    )
    assert (first.cause, second.cause) == (causes.HELD, causes.CONNECTED)
    assert "192.0.2.8" in second.title


@pytest.mark.parametrize(
    "reuse, says",
    [
        (0, "is 0, which is off: 1 would help"),
        (1, "is 1 already"),
        (2, "is 2, which covers loopback addresses only: 1 would help"),
    ],
)
def test_whether_reuse_would_help(reuse: int, says: str) -> None:
    pairs = (pair(19_000, ESTAB=9_000, TIME_WAIT=10_000),)
    (_, finding) = find(HEALTHY._replace(tcp_tw_reuse=reuse, pairs=(*pairs, pair(27_000))))
    assert says in finding.evidence[2]


@pytest.mark.parametrize("width", [2, 64, 4_294_967_295])
def test_random_steps_where_most_ports_are_in_use(width: int) -> None:
    """Reserved blocks or not: wider steps would make the searches no shorter."""
    fuller = pair(26_000, source="192.0.2.8")
    facts = HEALTHY._replace(
        step_width=width,
        reserved=(PortRange(40000, 40999),),
        pairs=(pair(20_000), fuller, pair(20_000, protocol="udp")),
    )
    _, finding = find(facts)
    assert (finding.cause, finding.severity) == (causes.RANDOM_STEPS, W)
    assert f"ip_local_port_step_width is {width};" in finding.evidence[0]
    assert finding.evidence[1].startswith("26,000 of 28,232 source ports are in use from 192.0.2.8")
    assert finding.fields == {"width": width, "pairs": (facts.pairs[0], fuller)}
    assert [finding.command(each) for each in finding.cause.remedies] == [
        "",
        "sysctl -w net.ipv4.ip_local_port_step_width=0",
    ]
    # A width of 1 changes nothing, and UDP does not search so.
    for harmless in (
        facts._replace(step_width=1),
        facts._replace(pairs=(pair(26_000, protocol="udp"),)),
    ):
        assert causes.RANDOM_STEPS not in {each.cause for each in find(harmless)}


@pytest.mark.parametrize(
    "reserved, step",
    [
        ((PortRange(40000, 40099), PortRange(50000, 50199)), 800),
        ((PortRange(40000, 59999),), 28_232),
        ((PortRange(1, 32769),), 8),
    ],
)
def test_steps_of_four_blocks_are_advised(reserved: tuple[PortRange, ...], step: int) -> None:
    (finding,) = find(HEALTHY._replace(step_width=2, reserved=reserved))
    (remedy,) = finding.cause.remedies
    assert finding.command(remedy) == f"sysctl -w net.ipv4.ip_local_port_step_width={step}"


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2 h"),
        (2e5, "2 d"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


FULL_CENSUS = Census(PORTS, 20_000, 8_000, 200, 32)


@pytest.mark.parametrize(
    "call, says",
    [
        ({"number": 0, "census": FULL_CENSUS}, "this is exhaustion"),
        ({"number": 0, "census": FULL_CENSUS._replace(connected=0)}, "this is not exhaustion"),
        ({"number": 0, "census": Census(PORTS, 28_000, 0, 0, 0)}, "not exhaustion yet, but nearly"),
        ({"number": 0}, ""),
        ({"census": FULL_CENSUS}, "because of 20,000 connections to it"),
        ({"census": Census(PORTS, 8_000, 20_000, 200, 32)}, "because of 20,000 TIME_WAITs"),
        ({"census": Census(PORTS, 200, 0, 28_000, 32)}, "because of 28,000 ports that listeners"),
        ({"census": Census(PORTS, 0, 0, 32, 28_200)}, "because of 28,200 reserved ports"),
        ({"census": FULL_CENSUS._replace(connected=1)}, "is not exhaustion here and now: 19,999"),
        ({"source_is_local": False}, "here means that the source address is not one"),
        ({"source_is_local": False, "is_tentative": True}, "being checked for duplicates"),
        (
            {"on_port": ON_PORT},
            "here means that tcp port 0 is in use: 0.0.0.0:8080 LISTEN httpd (8).",
        ),
        (
            {"on_port": ON_PORT, "on_tuple": True},
            "here means that tcp port 0 is in use toward 198.51.100.9:443: 0.0.0.0:8080",
        ),
        ({"census": Census(PORTS, 28_000, 0, 0, 0, untold=232)}, "may be exhaustion"),
        ({"number": 0, "census": Census(PORTS, 28_000, 0, 0, 0, untold=232)}, "is certainly free"),
        ({"protocol": "udp"}, "from UDP is not exhaustion, which gives 11"),
        ({"unreachable": "no way"}, "does not look like exhaustion: no way."),
        ({}, "does not look like exhaustion"),
        ({"number": errno.EADDRINUSE}, "98 (EADDRINUSE) comes from bind(), not from connect()"),
        ({"number": errno.EADDRINUSE, "protocol": "udp"}, "another socket has the port"),
        ({"number": errno.EAGAIN}, "from a TCP connect() is not exhaustion"),
        ({"number": errno.EAGAIN, "protocol": "udp", "census": FULL_CENSUS}, "here means exhaust"),
        (
            {"number": errno.EAGAIN, "protocol": "udp", "census": Census(PORTS, 1, 0, 0, 0)},
            "is not exhaustion here and now: 28,000 ports have no UDP socket at all.",
        ),
        ({"number": errno.ECONNREFUSED}, "111 (ECONNREFUSED) is not exhaustion, which gives"),
        ({"number": errno.EMFILE}, "is not exhaustion, which gives"),
    ],
    ids=str,
)
def test_verdicts(call: dict[str, Any], says: str) -> None:
    facts = HEALTHY._replace(call=CALL._replace(**call))
    said = verdict(facts, find(facts)).text
    assert said == "" if says == "" else says in said


@pytest.mark.parametrize(
    "number, differing",
    [
        (errno.EMFILE, {"descriptors": {PROXY: Descriptors(1024, 1024, 4096)}}),
        (errno.ETIMEDOUT, {"conntrack": Table(262_144, 262_144)}),
    ],
)
def test_errnos_that_come_from_elsewhere(number: int, differing: dict[str, Any]) -> None:
    facts = HEALTHY._replace(call=CALL._replace(number=number), **differing)
    assert "may well come from this" in verdict(facts, find(facts)).text


def test_without_ipv6() -> None:
    facts = HEALTHY._replace(call=CALL._replace(needs_ipv6=True, without_ipv6="all"), ipv6=False)
    assert "here means that IPv6 is switched off" in verdict(facts, find(facts)).text
    facts = facts._replace(call=CALL._replace(destination=None))
    assert "or the address is an IPv6 one, and IPv6 is off here" in verdict(facts, find(facts)).text


def test_udp_sockets_that_do_not_share() -> None:
    call = CALL._replace(number=errno.EAGAIN, protocol="udp", census=Census(PORTS, 1, 0, 0, 0))
    facts = HEALTHY._replace(call=call, udp_unused=0)
    said = verdict(facts, find(facts)).text
    assert "exhaustion for sockets that do not share ports" in said
    assert "28,231 of 28,232 source ports are free" in said


def test_a_note_is_no_reason() -> None:
    call = CALL._replace(destination=None)
    facts = HEALTHY._replace(call=call, holders=holders(1, "connected"))
    assert "does not look like exhaustion" in verdict(facts, find(facts)).text


def test_another_source_that_is_full() -> None:
    """The verdict comes first, whichever address connect() would have chosen."""
    call = CALL._replace(
        source=Endpoint("", 0), census=Census(PORTS, 1, 0, 0, 0), census_source="192.0.2.8"
    )
    full = CALL._replace(census=Census(PORTS, 28_232, 0, 0, 0))
    calls = (full, call, full._replace(census_source="192.0.2.9"))
    views = [HEALTHY._replace(call=each) for each in calls]
    answers = [verdict(view, find(view)) for view in views]
    assert [each.rank for each in answers] == [0, 2, 0]
    assert together(answers, calls).splitlines() == [
        (
            "99 (EADDRNOTAVAIL) here means exhaustion: no source port of 32768-60999 is free from "
            "192.0.2.7 to 198.51.100.9:443 (tcp), because of 28,232 connections to it."
        ),
        (
            "Without a source address, connect() uses 192.0.2.8 toward 198.51.100.9:443: 28,231 of "
            "28,232 source ports are free from there."
        ),
        "No source port is free from 192.0.2.9 to 198.51.100.9:443, either.",
    ]


def test_the_protocol_of_the_call_counts() -> None:
    """What TCP connections take says nothing about a UDP call, and the other way round."""
    call = CALL._replace(number=errno.EAGAIN, protocol="udp", destination=None)
    facts = HEALTHY._replace(call=call, pairs=(pair(28_232),), holders=holders(9_000, "connected"))
    said = verdict(facts, find(facts)).text
    assert "does not look like exhaustion: no UDP source port of the range is in use" in said
    facts = facts._replace(pairs=(pair(28_232), pair(28_100, source="192.0.2.8", protocol="udp")))
    answer = verdict(facts, find(facts))
    assert "may well come from exhaustion: 28,100 of" in answer.text
    assert answer.because == (causes.CONNECTED,)
    in_use = facts._replace(call=call._replace(number=errno.EADDRINUSE))
    assert "IP_BIND_ADDRESS_NO_PORT" not in verdict(in_use, find(in_use)).text


def test_a_kernel_that_does_not_tell_binds_apart() -> None:
    facts = HEALTHY._replace(call=CALL._replace(census=FULL_CENSUS._replace(connected=1)))
    assert "locked" not in verdict(facts, []).text
    assert (
        "bound before they connected" in verdict(facts._replace(tells_binds_apart=False), []).text
    )


def test_verdicts_without_a_destination_look_at_the_machine() -> None:
    call = CALL._replace(destination=None)
    facts = HEALTHY._replace(call=call, pairs=(pair(28_000),))
    assert (
        "may well come from exhaustion: 28,000 of 28,232 source ports (99 %) are in use from "
        in verdict(facts, find(facts)).text
    )
    facts = HEALTHY._replace(call=call, holders=holders(9000, "connected"))
    assert "closed to connect()" in verdict(facts, find(facts)).text
    facts = facts._replace(call=call._replace(number=errno.EADDRINUSE))
    assert "IP_BIND_ADDRESS_NO_PORT" in verdict(facts, find(facts)).text


counts = st.integers(0, 400_000)


@given(st.lists(counts, min_size=12, max_size=12), st.floats(-1e6, 1e6))
def test_any_numbers_make_readable_findings(numbers: list[int], rate: float) -> None:
    facts = HEALTHY._replace(
        pairs=(pair(numbers[0], rate, numbers[3], capacity=numbers[1], TIME_WAIT=numbers[2]),),
        close_wait={"": numbers[4]},
        time_wait=Table(numbers[5], numbers[6]),
        time_wait_overflows=numbers[7],
        overflows_gain=numbers[8],
        descriptors={PROXY: Descriptors(numbers[9], numbers[10], 1 << 30)},
        conntrack=Table(numbers[11], numbers[0]),
    )
    for finding in find(facts):
        assert finding.title
        assert all(finding.evidence)


def test_owners_are_seen_hidden_or_none() -> None:
    row = pair(28_000).row._replace(processes={PROXY: 27_000, None: 1_000}, hidden=400)
    (finding,) = find(HEALTHY._replace(pairs=(WatchedPair(row),)))
    assert finding.evidence[1:4] == ("proxy (7): 27,000", "no process: 600", "hidden: 400")


def test_more_shared_ports_than_are_listed() -> None:
    ports = [
        SharedPort("udp", Endpoint("192.0.2.7", 9000 + number), 3, ("proxy (7)",))
        for number in range(7)
    ]
    uncertain = SharedPort("udplite", TO, 2, ("a", "b"), certain=False)
    (finding,) = find(HEALTHY._replace(deaf=(*ports, uncertain)))
    assert finding.title.startswith("14 UDP sockets receive nothing")
    assert finding.evidence[0] == "192.0.2.7:9000, 3 sockets: proxy (7)"
    assert finding.evidence[-1] == "and 2 more ports"
    assert len(finding.details) == 2
    (other,) = finding.also
    assert other.severity is N
    assert "unless it is multicast" in other.title
    assert other.evidence == ("198.51.100.9:443 (UDP-Lite), 2 sockets: a; b",)


def test_reserved_ports_are_listed() -> None:
    call = CALL._replace(census=Census(PORTS, 0, 0, 0, 28_232))
    reserved = (
        PortRange(1024, 60_999),
        *(PortRange(port, port) for port in range(61_000, 61_020, 2)),
    )
    (finding,) = find(HEALTHY._replace(call=call, reserved=reserved))
    assert (
        finding.evidence[-1] == "reserved: 1024-61000, 61002, 61004, 61006, 61008 and 5 more ranges"
    )


def test_a_plain_udp_socket_of_ipv6_needs_a_port_of_neither_version() -> None:
    to = Endpoint("2001:db8::9", 53)
    call = CALL._replace(number=errno.EAGAIN, protocol="udp", destination=to, needs_ipv6=True)
    facts = HEALTHY._replace(call=call, udp_unused_by_ipv6=0, udp_owners={"proxy (7)": 28_232})
    answer = verdict(facts, find(facts))
    assert "exhaustion for sockets that do not share ports" in answer.text
    (finding,) = find(facts)
    assert (finding.cause, finding.severity) == (causes.UNSHARED, C)
    assert finding.evidence[1] == "UDP sockets in the range; proxy (7): 28,232"
    assert find(facts._replace(call=call._replace(needs_ipv6=False))) == []


def test_ports_for_sockets_that_share_are_not_for_all() -> None:
    call = CALL._replace(number=0, protocol="udp", census=Census(PORTS, 1, 0, 0, 0))
    facts = HEALTHY._replace(call=call, udp_unused=0)
    answer = verdict(facts, find(facts))
    assert "but only for sockets that share ports" in answer.text
    assert answer.because == (causes.UNSHARED,)


@pytest.mark.parametrize(
    "states, cause",
    [
        (("LISTEN", "LISTEN", "connected"), causes.HELD),
        (("connected", "connected", "LISTEN"), causes.BOUND_FIRST),
        (("bound", "TIME-WAIT", "connected"), causes.POLLUTED),
        ((), causes.HELD),
    ],
)
def test_what_holds_ports_is_one_finding(states: tuple[str, ...], cause: causes.Cause) -> None:
    """The call's finding, and the machine's about the same sockets, have one cause."""
    held = tuple(each for state in states for each in holders(9_000, state))
    call = CALL._replace(census=Census(PORTS, 100, 0, 28_132, 0))
    facts = HEALTHY._replace(call=call, holders=held)
    found = find(facts)
    assert [each.cause for each in found if each.severity is C].count(cause) == 1
    (finding,) = (each for each in found if each.cause is cause)
    titles = [each.title for each in (finding, *finding.also)]
    assert any(title.startswith("no source port of ") for title in titles)
    assert verdict(facts, found).because == (cause,)


def test_udp_pairs_that_do_not_share_are_one_finding() -> None:
    watched = pair(28_232, protocol="udp")._replace(shared=False)
    call = CALL._replace(number=errno.EAGAIN, protocol="udp", census=Census(PORTS, 28_232, 0, 0, 0))
    facts = HEALTHY._replace(call=call, pairs=(watched,), udp_unused=0)
    (finding,) = find(facts)
    assert finding.cause is causes.UNSHARED
    assert verdict(facts, [finding]).because == (causes.UNSHARED,)
    (finding, other) = find(facts._replace(pairs=(watched._replace(shared=True),)))
    assert (finding.cause, other.cause) == (causes.CONNECTED, causes.UNSHARED)
    assert verdict(facts, [finding, other]).because == (causes.CONNECTED,)
