"""The commands that the doctor prints, from facts made up for them."""

from collections.abc import Iterable

import pytest

from connectx._diagnosis import causes
from connectx._diagnosis.doctor_rules import find
from connectx._diagnosis.facts import (
    Census,
)
from connectx.addresses import PortRange
from connectx.linux.nat_rules import Rule, Rules
from connectx.linux.proc_net import Table
from connectx.linux.processes import Descriptors
from tests._diagnosis.made_up import CALL, HEALTHY, PORTS, PROXY


def test_no_command_that_does_harm() -> None:
    """Neither an empty list of reserved ports, nor a narrower range, nor what is set already."""
    call = CALL._replace(census=Census(PORTS, 0, 28_232, 0, 0))
    facts = HEALTHY._replace(call=call)
    (finding,) = find(facts)
    commands = [finding.command(each) for each in finding.cause.remedies]
    assert commands == ["", "sysctl -w net.ipv4.tcp_tw_reuse=1"]
    (finding,) = find(facts._replace(tcp_tw_reuse=1))
    assert not any(finding.command(each) for each in finding.cause.remedies)
    call = CALL._replace(census=Census(PORTS, 0, 0, 28_232, 0))
    (finding,) = find(HEALTHY._replace(call=call))
    assert [each for each in map(finding.command, finding.cause.remedies) if each] == [
        "sysctl -w net.ipv4.ip_local_port_range='10240 65535'"
    ]
    call = CALL._replace(census=Census(PORTS, 28_232, 0, 0, 0))
    for ports, start, wider in (
        (PORTS, 1024, "10240 65535"),
        (PORTS, 20_000, "20000 65535"),
        (PortRange(1024, 65535), 1024, ""),
    ):
        (finding,) = find(
            HEALTHY._replace(call=call, ports=ports, unprivileged_port_start=start, rules=Rules())
        )
        command = finding.command(finding.cause.remedies[-1])
        assert command == (f"sysctl -w net.ipv4.ip_local_port_range='{wider}'" if wider else "")


WIDEN = causes.CONNECTED.remedies[-1]


@pytest.mark.parametrize(
    "services, reserved, redirected, first",
    [
        ({80, 9999}, (), (), ""),
        ({11211, 11212, 15000}, (), (), "net.ipv4.ip_local_reserved_ports=11211-11212,15000 "),
        ({11211}, (PortRange(11211, 11211),), (), ""),
        ({11211}, (PortRange(50, 60),), (), "net.ipv4.ip_local_reserved_ports=50-60,11211 "),
        ((), (), (PortRange(30000, 32767),), "net.ipv4.ip_local_reserved_ports=30000-32767 "),
        # More than one write(2) takes: nothing would be better than half of it.
        (range(10241, 20000, 2), (), (), None),
    ],
)
def test_services_are_reserved_before_the_range_is_widened(
    services: Iterable[int],
    reserved: tuple[PortRange, ...],
    redirected: tuple[PortRange, ...],
    first: str | None,
) -> None:
    facts = HEALTHY._replace(
        call=CALL._replace(census=Census(PORTS, 28_232, 0, 0, 0)),
        services=frozenset(services),
        reserved=reserved,
        rules=Rules(redirections=(Rule("x", ports=redirected),)),
    )
    (finding,) = find(facts)
    widen = "net.ipv4.ip_local_port_range='10240 65535'"
    assert finding.command(WIDEN) == ("" if first is None else f"sysctl -w {first}{widen}")


def test_commands_run_in_the_namespace_that_was_looked_at() -> None:
    facts = HEALTHY._replace(
        call=CALL._replace(census=Census(PORTS, 28_232, 0, 0, 0)),
        descriptors={PROXY: Descriptors(1000, 1024, 4096)},
        within="nsenter --net=/run/netns/blue ",
    )
    commands = {
        command: remedy
        for finding in find(facts)
        for remedy in finding.cause.remedies
        if (command := finding.command(remedy))
    }
    assert sorted(commands) == [
        "nsenter --net=/run/netns/blue sysctl -w net.ipv4.ip_local_port_range='10240 65535'",
        # A process is the same one in every network namespace.
        "prlimit --pid 7 --nofile=4096:",
    ]


@pytest.mark.parametrize(
    "limit, hard, more",
    [(1024, 1024, "4096"), (1024, 2000, "2000:"), (1024, 1 << 20, "4096:"), (1 << 20, 1 << 21, "")],
)
def test_a_limit_of_descriptors_is_raised_as_far_as_no_privilege_is_needed(
    limit: int, hard: int, more: str
) -> None:
    facts = HEALTHY._replace(descriptors={PROXY: Descriptors(limit, limit, hard)})
    (finding,) = find(facts)
    command = finding.command(finding.cause.remedies[0])
    assert command == (f"prlimit --pid 7 --nofile={more}" if more else "")


def test_the_table_of_connections_is_made_larger_only_where_that_can_be() -> None:
    """A container sees the machine's limit, and cannot change it."""
    full = HEALTHY._replace(conntrack=Table(262_144, 262_144))
    (finding,) = find(full)
    assert finding.command(finding.cause.remedies[0]).endswith("_max=524288")
    (finding,) = find(full._replace(conntrack_is_ours=False))
    assert finding.command(finding.cause.remedies[0]) == ""
    assert "set only on the machine itself" in finding.evidence[0]
