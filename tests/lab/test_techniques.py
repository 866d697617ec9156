"""``connectx lab techniques``: the whole experiment once, then its findings one by one.

What is asserted here is written down a second time on purpose: the experiment's own
expectations are part of what is tested.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from connectx.addresses import PROTOCOLS
from tests.lab.commands import connectx

if TYPE_CHECKING:
    import subprocess

SIZE = 64
FULL = [SIZE, SIZE]
ONE_ONLY = [SIZE, 0]

STREAMS = ("tcp", "mptcp")
DATAGRAMS = ("udp", "udplite")

CONNECTX_ADDRESS = "connectx.create_connection(), source_address=(ip, 0)"
CONNECTX_PORT = "connectx.create_connection(), source_address=(ip, port)"
LISTENER = "SO_REUSEADDR, bind(ip, port), listen()"

Result = dict[str, Any]


@pytest.fixture(scope="module")
def process() -> subprocess.CompletedProcess[str]:
    return connectx("lab", "techniques", "--json")


@pytest.fixture(scope="module")
def result(process: subprocess.CompletedProcess[str]) -> Result:
    found: Result = json.loads(process.stdout)
    return found


def observed(result: Result, table: str, protocols: tuple[str, ...], **fields: Any) -> list[Any]:
    """Return what was observed over each transport for rows with these fields."""
    wanted = fields.items()
    rows = [row for row in result[table] if row["protocol"] in protocols and wanted <= row.items()]
    assert rows, f"no row with {fields}"
    found = [row["observed"] for row in rows if row["observed"] is not None]
    if not found:
        pytest.skip(f"kernel: {rows[0].get('note') or 'lacks what one of the two takes'}")
    return found


class TestRun:
    def test_everything_is_as_expected(
        self, process: subprocess.CompletedProcess[str], result: Result
    ) -> None:
        everything = [*result["rows"], *result["mixing"], *result["listeners"]]
        assert [each for each in everything if each["agrees"] is False] == []
        assert (process.returncode, process.stderr) == (0, "")

    def test_says_where_it_was_and_what_it_changed(self, result: Result) -> None:
        assert result["machine"]["kernel"] == os.uname().release
        assert result["seconds"] > 0
        changes = " ".join(result["changes"])
        assert "net.ipv4.ip_local_port_range = 40000 40063" in changes
        assert "net.ipv4.ip_local_reserved_ports = " in changes

    def test_covers_each_transport_or_says_why_not(self, result: Result) -> None:
        tried = {(row["protocol"], row["family"]) for row in result["rows"]}
        left_out = {(each["protocol"], each["family"]) for each in result["left_out"]}
        assert tried.isdisjoint(left_out)
        assert tried | left_out == {
            (protocol, family) for protocol in PROTOCOLS for family in (4, 6)
        }
        assert {("tcp", 4), ("udp", 4)} <= tried
        assert all(each["reason"] for each in result["left_out"])

    def test_has_a_row_for_every_technique(self, result: Result) -> None:
        for protocol, count in (("tcp", 15), ("udp", 14)):
            rows = [
                row for row in result["rows"] if (row["protocol"], row["family"]) == (protocol, 4)
            ]
            assert len({row["technique"] for row in rows}) == len(rows) == count


SHARING_STREAMS = (
    "plain connect",
    "IP_BIND_ADDRESS_NO_PORT",
    "explicit source port, SO_REUSEADDR",
    "one-port window",
    "full-range window",
    "shifting windows",
    "connectx: no source",
    "connectx: source address",
    "connectx: address and port",
)

EXCLUSIVE_STREAMS = (
    "bind before connect",
    "bind before connect, SO_REUSEADDR",
    "bind before connect, SO_REUSEPORT",
    "bind before connect, SO_REUSEADDR, retries",
    "full-range window, no IP_BIND_ADDRESS_NO_PORT",
)


class TestStreams:
    @pytest.mark.parametrize("technique", SHARING_STREAMS)
    def test_that_share_ports(self, result: Result, technique: str) -> None:
        for found in observed(result, "rows", STREAMS, technique=technique):
            assert found == {
                "errno": "EADDRNOTAVAIL",
                "shares": True,
                "overshadows": False,
                "opened": FULL,
            }

    @pytest.mark.parametrize("technique", EXCLUSIVE_STREAMS)
    def test_that_lock_each_port_to_one_destination(self, result: Result, technique: str) -> None:
        for found in observed(result, "rows", STREAMS, technique=technique):
            assert found == {
                "errno": "EADDRINUSE",
                "shares": False,
                "overshadows": False,
                "opened": ONE_ONLY,
            }

    def test_the_2014_loop_shares_some_ports_with_a_sysctl(self, result: Result) -> None:
        name = "bind before connect, SO_REUSEADDR, retries, ip_autobind_reuse"
        for found in observed(result, "rows", STREAMS, technique=name):
            assert found["errno"] == "EADDRNOTAVAIL"
            assert found["opened"] == [SIZE, SIZE // 4]

    def test_where_an_article_has_it_otherwise_the_row_says_so(self, result: Result) -> None:
        notes = {row["technique"]: row["note"] or "" for row in result["rows"]}
        assert "2014 article" in notes["bind before connect, SO_REUSEADDR, retries"]
        assert "2022 article" in notes["SO_REUSEADDR"]
        assert "2024 article" in notes["full-range window, no IP_BIND_ADDRESS_NO_PORT"]


class TestDatagrams:
    @pytest.mark.parametrize(
        "technique, number",
        [
            ("plain connect", "EAGAIN"),
            ("bind before connect", "EADDRINUSE"),
            ("IP_BIND_ADDRESS_NO_PORT", "EAGAIN"),
            ("full-range window", "EAGAIN"),
        ],
    )
    def test_that_lock_each_port_to_one_destination(
        self, result: Result, technique: str, number: str
    ) -> None:
        for found in observed(result, "rows", DATAGRAMS, technique=technique):
            assert found == {
                "errno": number,
                "shares": False,
                "overshadows": False,
                "opened": ONE_ONLY,
            }

    @pytest.mark.parametrize(
        "technique, number",
        [
            ("SO_REUSEADDR", None),
            ("SO_REUSEPORT", None),
            ("explicit source port, SO_REUSEADDR", None),
            ("lookup without lock", "EAGAIN"),
            ("lock without lookup", None),
        ],
    )
    def test_that_overshadow(self, result: Result, technique: str, number: str | None) -> None:
        for found in observed(result, "rows", DATAGRAMS, technique=technique):
            assert (found["overshadows"], found["errno"]) == (True, number)

    @pytest.mark.parametrize(
        "technique, number",
        [
            ("SO_REUSEADDR as a lock", "EAGAIN"),
            ("connectx: no source", "EAGAIN"),
            ("connectx: source address", "EAGAIN"),
            ("connectx: address and port", "EADDRINUSE"),
        ],
    )
    def test_that_share_ports_and_never_overshadow(
        self, result: Result, technique: str, number: str
    ) -> None:
        for found in observed(result, "rows", DATAGRAMS, technique=technique):
            assert found == {
                "errno": number,
                "shares": True,
                "overshadows": False,
                "opened": FULL,
            }


NOTAVAIL = "EADDRNOTAVAIL at connect"
INUSE = "EADDRINUSE at bind"
AGAIN = "EAGAIN at connect"


class TestPairs:
    def test_are_all_there(self, result: Result) -> None:
        transports = {(row["protocol"], row["family"]) for row in result["rows"]}
        pairs = [
            (cell["protocol"], cell["family"], cell["first"], cell["second"])
            for cell in result["mixing"]
        ]
        assert len(set(pairs)) == len(pairs) == 17 * 17 * len(transports)

    @pytest.mark.parametrize(
        "first, second, expected",
        [
            ("connect()", "connect()", "ok"),
            ("connect()", "bind(ip, 0), connect()", INUSE),
            ("connect()", "SO_REUSEADDR, bind(ip, port), connect()", INUSE),
            ("SO_REUSEADDR, connect()", "SO_REUSEADDR, bind(ip, port), connect()", "ok"),
            ("bind(ip, 0), connect()", "connect()", NOTAVAIL),
            ("SO_REUSEADDR, bind(ip, port), connect()", "connect()", NOTAVAIL),
            ("connect()", CONNECTX_ADDRESS, "ok"),
            (CONNECTX_ADDRESS, "connect()", "ok"),
            (CONNECTX_ADDRESS, "SO_REUSEADDR, bind(ip, port), connect()", "ok"),
            ("SO_REUSEADDR, bind(ip, port), connect()", CONNECTX_PORT, "ok"),
            ("bind(ip, 0), connect()", CONNECTX_PORT, "EADDRINUSE at connectx"),
            (LISTENER, "connect()", NOTAVAIL),
            (LISTENER, CONNECTX_PORT, "EADDRINUSE at connectx"),
            (CONNECTX_ADDRESS, LISTENER, "ok"),
        ],
    )
    def test_of_tcp(self, result: Result, first: str, second: str, expected: str) -> None:
        for found in observed(result, "mixing", ("tcp",), first=first, second=second):
            assert found == expected

    @pytest.mark.parametrize(
        "first, second, expected",
        [
            ("connect()", "connect()", AGAIN),
            ("SO_REUSEADDR, connect()", "SO_REUSEADDR, bind(ip, 0), connect()", "ok"),
            ("connect()", CONNECTX_ADDRESS, "EAGAIN at connectx"),
            ("connect()", CONNECTX_PORT, "EADDRINUSE at connectx"),
            (CONNECTX_ADDRESS, CONNECTX_ADDRESS, "ok"),
            (CONNECTX_ADDRESS, "connect()", AGAIN),
            (CONNECTX_ADDRESS, "bind(ip, 0), connect()", INUSE),
        ],
    )
    def test_of_udp(self, result: Result, first: str, second: str, expected: str) -> None:
        for found in observed(result, "mixing", DATAGRAMS, first=first, second=second):
            assert found == expected


class TestServices:
    @pytest.mark.parametrize("protocols", [STREAMS, DATAGRAMS], ids=str)
    @pytest.mark.parametrize("outgoing", ["connect()", "bind(ip, 0), connect()"])
    def test_cannot_start_where_a_connection_has_the_port(
        self, result: Result, protocols: tuple[str, ...], outgoing: str
    ) -> None:
        for found in observed(result, "listeners", protocols, outgoing=outgoing, reserved=False):
            assert found == {"takes": True, "service": INUSE}

    @pytest.mark.parametrize("protocols", [STREAMS, DATAGRAMS], ids=str)
    @pytest.mark.parametrize("outgoing", ["connect()", "bind(ip, 0), connect()", CONNECTX_ADDRESS])
    def test_can_start_where_the_port_is_reserved(
        self, result: Result, protocols: tuple[str, ...], outgoing: str
    ) -> None:
        for found in observed(result, "listeners", protocols, outgoing=outgoing, reserved=True):
            assert found == {"takes": False, "service": "ok"}

    @pytest.mark.parametrize("reserved", [False, True])
    def test_of_tcp_can_start_beside_connectx_anyway(self, result: Result, reserved: bool) -> None:  # noqa: FBT001 -- pytest passes parameters by name
        for found in observed(
            result, "listeners", STREAMS, outgoing=CONNECTX_PORT, reserved=reserved
        ):
            assert found == {"takes": True, "service": "ok"}

    @pytest.mark.parametrize("outgoing", [CONNECTX_ADDRESS, CONNECTX_PORT])
    def test_of_udp_cannot(self, result: Result, outgoing: str) -> None:
        for found in observed(result, "listeners", DATAGRAMS, outgoing=outgoing, reserved=False):
            assert found == {"takes": True, "service": INUSE}
