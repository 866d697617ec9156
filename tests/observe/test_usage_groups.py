"""Rows of a snapshot taken together."""

import pytest

from connectx.addresses import Endpoint
from connectx.linux.processes import Process
from connectx.observe import Row
from connectx.observe.usage import GROUPINGS, UNKNOWN, group

FIRST, SECOND = Endpoint("198.51.100.9", 443), Endpoint("2001:db8::9", 443)
WEB = Process(7, "web", "web.service")


def row(
    source: str, destination: Endpoint, in_use: int, capacity: int = 100, protocol: str = "tcp"
) -> Row:
    states = {"ESTAB": in_use - 1, "TIME-WAIT": 1}
    return Row(protocol, source, destination, in_use, capacity, states, {WEB: in_use - 1, None: 1})


ROWS = (
    row("192.0.2.7", FIRST, 40),
    row("192.0.2.8", FIRST, 20, capacity=30),
    row("192.0.2.7", Endpoint("198.51.100.9", 80), 5),
    row("2001:db8::7", SECOND, 5),
    row("192.0.2.7", FIRST, 90, protocol="udp"),
)


def summary(by: str) -> list[tuple[str, str, int, int]]:
    return [(each.protocol, each.name, each.in_use, each.pairs) for each in group(ROWS, by)]


def test_by_source() -> None:
    assert summary("source") == [
        ("udp", "192.0.2.7", 90, 1),
        ("tcp", "192.0.2.7", 45, 2),
        ("tcp", "192.0.2.8", 20, 1),
        ("tcp", "2001:db8::7", 5, 1),
    ]
    assert {each.capacity for each in group(ROWS, "source")} == {None}


def test_by_destination_capacities_add_up() -> None:
    assert summary("destination") == [
        ("udp", "198.51.100.9:443", 90, 1),
        ("tcp", "198.51.100.9:443", 60, 2),
        ("tcp", "198.51.100.9:80", 5, 1),
        ("tcp", "[2001:db8::9]:443", 5, 1),
    ]
    assert [each.capacity for each in group(ROWS, "destination")] == [100, 130, 100, 100]


def test_by_process_and_state() -> None:
    assert summary("process") == [
        ("udp", "web (7, web.service)", 89, 1),
        ("tcp", "web (7, web.service)", 66, 4),
        ("tcp", UNKNOWN, 4, 4),
        ("udp", UNKNOWN, 1, 1),
    ]
    assert summary("state") == [
        ("udp", "ESTAB", 89, 1),
        ("tcp", "ESTAB", 66, 4),
        ("tcp", "TIME-WAIT", 4, 4),
        ("udp", "TIME-WAIT", 1, 1),
    ]


def test_the_fullest_pair_is_by_share() -> None:
    fullest = {(each.protocol, each.name): each.fullest for each in group(ROWS, "destination")}
    assert fullest["tcp", "198.51.100.9:443"] is ROWS[1]


@pytest.mark.parametrize("by", GROUPINGS)
def test_nothing_falls_into_no_group(by: str) -> None:
    assert group([], by) == []
    assert sum(each.in_use for each in group(ROWS, by)) == sum(each.in_use for each in ROWS)


def test_wrong_use() -> None:
    with pytest.raises(KeyError):
        group(ROWS, "colour")
