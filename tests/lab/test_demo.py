"""``connectx demo``, on a range small enough for a test."""

from __future__ import annotations

import json
import os
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from connectx.addresses import PortRange
from connectx.lab import demo
from connectx.sandbox.holders import Held
from tests.lab.commands import connectx

if TYPE_CHECKING:
    import contextlib
    import subprocess

    from connectx.sandbox.networks import Network
    from connectx.sandbox.servers import Servers

PORTS = 200
RANGE = "40000-40199"

Ways = dict[tuple[str, str], dict[str, Any]]


def connectx_demo(
    *arguments: str, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return connectx("demo", *arguments, prefix=prefix)


def by_way(result: subprocess.CompletedProcess[str]) -> Ways:
    return {(way["protocol"], way["technique"]): way for way in json.loads(result.stdout)["ways"]}


@pytest.fixture(scope="module")
def result() -> subprocess.CompletedProcess[str]:
    return connectx_demo("--ports", RANGE, "--json")


@pytest.fixture(scope="module")
def ways(result: subprocess.CompletedProcess[str]) -> Ways:
    return by_way(result)


def opened(way: dict[str, Any]) -> list[int]:
    return [destination["opened"] for destination in way["destinations"]]


def last_errno(way: dict[str, Any]) -> str | None:
    name: str | None = way["destinations"][-1]["errno"]
    return name


class TestFindings:
    def test_where_they_come_from(self, result: subprocess.CompletedProcess[str]) -> None:
        found = json.loads(result.stdout)
        assert found["kernel"] == os.uname().release
        assert found["ports"] == [40000, 40199]
        assert found["cores"] >= 1
        assert found["seconds"] > 0
        assert len(found["ways"]) == 8

    @pytest.mark.parametrize("protocol, number", [("tcp", "EADDRNOTAVAIL"), ("udp", "EAGAIN")])
    def test_connectx_uses_every_port_for_every_destination(
        self, ways: Ways, protocol: str, number: str
    ) -> None:
        way = ways[protocol, "connectx"]
        assert opened(way) == [PORTS, PORTS]
        assert [each["errno"] for each in way["destinations"]] == [number, number]
        assert [each["stopped"] for each in way["destinations"]] == [demo.FULL, demo.FULL]
        assert all(each["rate"] > 0 for each in way["destinations"])
        assert way["duplicates"] == 0
        assert way["echoed"] == 2 * PORTS

    def test_connectx_kept_its_word(self, result: subprocess.CompletedProcess[str]) -> None:
        assert (result.returncode, result.stderr) == (0, "")

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_bind_locks_each_port_to_one_destination(self, ways: Ways, protocol: str) -> None:
        way = ways[protocol, "bind"]
        assert opened(way) == [PORTS, 0]
        assert last_errno(way) == "EADDRINUSE"
        assert way["destinations"][1]["stopped"] == "gave up, refused"
        assert way["destinations"][1]["rate"] is None
        assert (way["duplicates"], way["echoed"]) == (0, PORTS)

    def test_plain_connect_shares_ports_for_tcp(self, ways: Ways) -> None:
        way = ways["tcp", "connect"]
        assert (opened(way), last_errno(way)) == ([PORTS, PORTS], "EADDRNOTAVAIL")
        assert way["echoed"] == 2 * PORTS

    def test_plain_connect_locks_ports_for_udp(self, ways: Ways) -> None:
        way = ways["udp", "connect"]
        assert (opened(way), last_errno(way)) == ([PORTS, 0], "EAGAIN")

    def test_so_reuseaddr_does_not_help_tcp(self, ways: Ways) -> None:
        way = ways["tcp", "SO_REUSEADDR"]
        assert (opened(way), last_errno(way)) == ([PORTS, 0], "EADDRINUSE")

    def test_so_reuseaddr_overshadows_udp(self, ways: Ways) -> None:
        way = ways["udp", "SO_REUSEADDR"]
        assert (opened(way), last_errno(way)) == ([PORTS, PORTS], None)
        assert way["duplicates"] > 0
        # The newest socket on a 4-tuple gets what was meant for all of them.
        assert way["echoed"] == 2 * PORTS - way["duplicates"]


class TestRanges:
    @pytest.mark.parametrize("ports", ["40000-40000", "1024-1026", "65534-65535"])
    def test_at_the_edges(self, ports: str) -> None:
        low, _, high = ports.partition("-")
        size = int(high) - int(low) + 1
        ways = by_way(connectx_demo("--ports", ports, "--json"))
        for protocol in ("tcp", "udp"):
            assert opened(ways[protocol, "connectx"]) == [size, size]
            assert ways[protocol, "connectx"]["echoed"] == 2 * size


class TestSpreading:
    def test_over_processes_of_few_descriptors(self) -> None:
        prefix = ("sh", "-c", 'ulimit -n 100 && exec "$@"', "sh")
        ways = by_way(connectx_demo("--ports", RANGE, "--json", prefix=prefix))
        for protocol in ("tcp", "udp"):
            way = ways[protocol, "connectx"]
            assert (opened(way), way["echoed"]) == ([PORTS, PORTS], 2 * PORTS)
        assert ways["udp", "SO_REUSEADDR"]["duplicates"] > 0

    def test_one_protocol_only(self) -> None:
        ways = by_way(connectx_demo("--ports", RANGE, "--json", "--protocol", "udp"))
        assert {protocol for protocol, _ in ways} == {"udp"}


class TestEstimate:
    def test_grows_with_the_range_until_patience_ends_it(self) -> None:
        sizes = [1, 1_000, 10_000, 28_232, 60_000]
        estimates = [
            demo.estimate(demo.DEMONSTRATED, PortRange(1025, 1024 + size)) for size in sizes
        ]
        assert estimates == sorted(estimates)
        # Three ways are as slow as they can be, with each destination.
        rest = demo.estimate(["udp"], PortRange(1025, 61024))
        assert demo.estimate(["tcp"], PortRange(1025, 61024)) == pytest.approx(
            3 * 2 * demo.PATIENCE + rest
        )

    def test_is_about_each_protocol_by_itself(self) -> None:
        ports = PortRange(32768, 60999)
        assert demo.estimate(["tcp", "udp"], ports) == pytest.approx(
            demo.estimate(["tcp"], ports) + demo.estimate(["udp"], ports)
        )
        assert demo.estimate(["udp"], ports) < demo.estimate(["tcp"], ports)


@pytest.fixture
def held(closing: contextlib.ExitStack) -> Held:
    first, second = socket.socketpair()
    closing.enter_context(first)
    closing.enter_context(second)
    held = Held([], (first, second), {})

    def close() -> None:
        for sock in held.sockets:
            sock.close()

    closing.callback(close)
    return held


class TestOpening:
    def test_stops_when_it_takes_too_long(
        self, network: Network, monkeypatch: pytest.MonkeyPatch, held: Held
    ) -> None:
        del network  # It is enough that the sockets are in it.
        monkeypatch.setattr(demo, "PATIENCE", -1.0)
        opening = demo.open_connections(
            held, print, demo.connect, socket.SOCK_DGRAM, ("127.0.0.2", 7), 10, demo.Opening()
        )
        assert (opening.opened, opening.stopped) == (1, demo.SLOW)

    def test_goes_on_from_where_descriptors_were_used_up(
        self,
        network: Network,
        servers: Servers,
        monkeypatch: pytest.MonkeyPatch,
        held: Held,
    ) -> None:
        # It looks at the time when it begins, and twice for a connection.
        times = iter([100.0, 101.0, 101.5, 102.0, 102.5, 103.0, 103.5])
        monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: next(times)))
        network.port_range(40000, 40009)
        servers.listen("127.0.0.2", 7)
        opening = demo.open_connections(
            held,
            print,
            demo.connect,
            socket.SOCK_STREAM,
            ("127.0.0.2", 7),
            10,
            demo.Opening(opened=7, seconds=3.0, spent=4.0),
        )
        assert len(held.sockets) == 3
        assert (opening.opened, opening.stopped) == (10, demo.FULL)
        # Two turns: until the last one, and altogether, from 4 s on.
        assert (opening.seconds, opening.spent) == (7.0, 7.5)

    @pytest.mark.parametrize("technique", demo.TECHNIQUES.values(), ids=demo.TECHNIQUES)
    def test_does_not_take_a_broken_experiment_for_a_finding(
        self, technique: demo.Technique, network: Network, held: Held
    ) -> None:
        del network
        with pytest.raises(ConnectionRefusedError):
            demo.open_connections(
                held, print, technique, socket.SOCK_STREAM, ("127.0.0.2", 7), 10, demo.Opening()
            )
