"""Snapshots against what ss(8) lists, row for row."""

import contextlib
import re
import socket
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest

from connectx.addresses import Endpoint
from connectx.linux import uapi
from connectx.linux.sockopts import set_ip_bind_address_no_port
from connectx.observe import Snapshot, snapshot
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import close_first

LOW, HIGH = 20000, 20999
PORT = 9000
HOSTS = ("127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1")

Key = tuple[str, str, str]


def listed(protocol: str) -> Iterator[tuple[str, str, int, str]]:
    """State, source, source port and destination, of every socket that ss has."""
    try:
        listing = subprocess.run(
            ["ss", "-Hn", {"tcp": "-ta", "udp": "-ua"}[protocol]],
            check=True,
            capture_output=True,
            text=True,
            timeout=limits.COMMAND_LIMIT,
        ).stdout
    except FileNotFoundError:
        pytest.skip("needs ss, of iproute2")
    for line in listing.splitlines():
        state, _, _, source, destination, *_ = line.split()
        host, _, port = source.rpartition(":")
        yield state, plain(host), int(port), plain_end(destination)


def plain(host: str) -> str:
    return re.sub(r"%\w+", "", host).strip("[]").removeprefix("::ffff:")


def plain_end(end: str) -> str:
    host, _, port = end.rpartition(":")
    host = plain(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def counted_by_ss(protocol: str) -> dict[Key, dict[str, int]]:
    everything = list(listed(protocol))
    holding = {"tcp": {"LISTEN"}, "udp": {"UNCONN"}}[protocol]
    held = {port for state, _, port, _ in everything if state in holding}
    rows: defaultdict[Key, Counter[str]] = defaultdict(Counter)
    for state, source, port, destination in everything:
        if state not in holding and LOW <= port <= HIGH and port not in held:
            rows[protocol, source, destination][state] += 1
    return {key: dict(states) for key, states in rows.items()}


def counted_by_us(taken: Snapshot) -> dict[Key, dict[str, int]]:
    rows = {(row.protocol, row.source, str(row.destination)): row for row in taken.rows}
    assert len(rows) == len(taken.rows)
    assert all(row.in_use == sum(row.states.values()) for row in taken.rows)
    return {key: dict(row.states) for key, row in rows.items()}


@pytest.fixture
def everything(network: Network, servers: Servers, closing: contextlib.ExitStack) -> None:
    """Connections in many states, on both families, IPv4-mapped ones among them."""
    network.port_range(LOW, HIGH)
    listener = servers.listen("::", PORT)
    # What holds a port for itself, and below a connection's own end on such a port.
    servers.receive("", HIGH)
    servers.listen("127.0.0.1", HIGH)

    def opened(host: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = closing.enter_context(socket.socket(family, kind))
        # Otherwise all of 127.0.0.0/8 is reached from 127.0.0.1.
        set_ip_bind_address_no_port(sock, on=True)
        sock.bind((host, 0))
        sock.connect((host, PORT))
        return sock

    for number, host in enumerate(HOSTS, 3):
        for _ in range(number):
            opened(host)
            closing.enter_context(limits.accept(listener)[0])
            opened(host, socket.SOCK_DGRAM)
        for _ in range(number + 4):
            client = opened(host)
            close_first(client, limits.accept(listener)[0], uapi.TCP_TIME_WAIT)
        for _ in range(number + 2):
            # FIN-WAIT-2 at whoever is first, CLOSE-WAIT at the other.
            first, second = opened(host), closing.enter_context(limits.accept(listener)[0])
            if number % 2:
                first, second = second, first
            first.shutdown(socket.SHUT_WR)
            assert limits.receive(second) == b""
            second.send(b"x")
            assert limits.receive(first) == b"x"
    # A queue that is full after one: what comes then gets no answer.
    servers.listen("127.0.0.1", PORT + 1, backlog=0)
    for _ in range(4):
        sock = closing.enter_context(socket.socket())
        sock.setblocking(False)  # noqa: FBT003 - named so by socket
        sock.connect_ex(("127.0.0.1", PORT + 1))
    closing.enter_context(socket.create_connection(("127.0.0.1", HIGH)))


@pytest.mark.usefixtures("everything")
class TestAgainstSs:
    def test_row_for_row(self) -> None:
        taken = snapshot()
        expected = counted_by_ss("tcp") | counted_by_ss("udp")
        assert counted_by_us(taken) == expected
        states = {state for row in expected.values() for state in row}
        assert states >= {"ESTAB", "TIME-WAIT", "FIN-WAIT-2", "CLOSE-WAIT", "SYN-SENT"}
        assert {key[:2] for key in expected} >= {
            (protocol, source)
            for protocol in ("tcp", "udp")
            for source in ("127.0.0.1", "127.0.0.2", "::1")
        }
        assert taken.held == {"tcp": 1, "udp": 1}

    def test_with_owners_as_without(self) -> None:
        taken = snapshot(processes=True)
        assert counted_by_us(taken) == counted_by_us(snapshot())
        assert all(sum(row.processes.values()) == row.in_use for row in taken.rows)

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
    def test_one_destination(self, host: str) -> None:
        end = Endpoint(host, PORT)
        taken = snapshot(destination=end)
        everywhere = counted_by_ss("tcp") | counted_by_ss("udp")
        expected = {key: states for key, states in everywhere.items() if key[2] == str(end)}
        assert expected
        assert counted_by_us(taken) == expected
