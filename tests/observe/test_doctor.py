"""Each finding: built in a private network, told, and not told where all is well."""

import contextlib
import errno
import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import connectx
from connectx._diagnosis import causes
from connectx._diagnosis.census import tells_binds_apart
from connectx._diagnosis.finding import Severity
from connectx.addresses import Endpoint, PortRange
from connectx.linux import netns, processes
from connectx.observe import Diagnosis, diagnose
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.observe.helpers import HERE, HIGH, LOW, PORT, SIZE, TOWARD, found, leave_time_wait, look


def test_a_healthy_machine(connect: Callable[..., socket.socket]) -> None:
    for _ in range(SIZE // 4):
        connect()
    for question in ({}, {"destination": TOWARD}, {"source": "127.0.0.1", "destination": TOWARD}):
        diagnosis = look(**question)
        assert {finding.cause for finding in diagnosis.findings} <= {causes.OLD_KERNEL}
        assert diagnosis.healthy
        assert diagnosis.unseen == ()
    assert diagnosis.netns == f"net:[{netns.current().inode}]"
    assert "15 of 20 source ports are free" in diagnosis.verdict


class TestMeaningsOf99:
    """As somebody would ask who has just seen "Cannot assign requested address"."""

    def ask(self, **question: Any) -> Diagnosis:
        diagnosis = look(number=errno.EADDRNOTAVAIL, **question)
        assert diagnosis.verdict.startswith("99 (EADDRNOTAVAIL) ")
        return diagnosis

    def test_exhausted(self, connect: Callable[..., socket.socket]) -> None:
        for _ in range(SIZE):
            connect()
        with pytest.raises(OSError, match="Cannot assign requested address"):
            connect()
        diagnosis = self.ask(destination=TOWARD)
        assert "here means exhaustion" in diagnosis.verdict
        assert "20 connections to it" in diagnosis.verdict
        assert diagnosis.findings[0].cause is causes.CONNECTED
        assert diagnosis.findings[0].severity is Severity.CRITICAL
        assert f"({os.getpid()}" in str(diagnosis.findings)
        assert not diagnosis.healthy

    @pytest.mark.usefixtures("binds_are_seen")
    def test_polluted_by_binds(self, connect: Callable[..., socket.socket]) -> None:
        for number in range(SIZE):
            connect(("127.0.0.2", 0), (f"127.0.0.{3 + number % 4}", PORT))
        with pytest.raises(OSError, match="Cannot assign requested address"):
            connect()
        diagnosis = self.ask(destination=TOWARD)
        assert "20 ports that listeners and binds before connect() hold" in diagnosis.verdict
        finding = found(diagnosis, causes.BOUND_FIRST)
        assert finding.severity is Severity.CRITICAL
        assert finding.title.startswith("20 of 20 source ports are locked")
        assert f"({os.getpid()}" in finding.evidence[0]
        # Nobody asked where to: that there is a lock shows all the same.
        assert "closed to connect()" in self.ask().verdict

    def test_time_wait(self, listener: socket.socket, network: Network) -> None:
        network.sysctl("net.ipv4.tcp_tw_reuse", 0)
        for _ in range(SIZE):
            leave_time_wait(listener)
        with pytest.raises(OSError, match="Cannot assign requested address"):
            socket.create_connection(HERE)
        diagnosis = self.ask(destination=TOWARD)
        assert "TIME_WAITs that this host left by closing first" in diagnosis.verdict
        churn = [finding for finding in diagnosis.findings if finding.cause is causes.TIME_WAIT]
        assert any("tcp_tw_reuse is 0" in line for each in churn for line in each.evidence)
        assert "sysctl -w net.ipv4.tcp_tw_reuse=1" in [
            churn[0].command(remedy) for remedy in churn[0].cause.remedies
        ]

    def test_source_not_local(self, listener: socket.socket) -> None:
        del listener
        with pytest.raises(OSError, match="Cannot assign requested address"):
            socket.create_connection(HERE, source_address=("192.0.2.7", 0))
        diagnosis = self.ask(destination=TOWARD, source="192.0.2.7")
        assert "not one of this host's" in diagnosis.verdict
        assert "not exhaustion" in diagnosis.verdict
        finding = found(diagnosis, causes.NOT_LOCAL)
        assert finding.evidence[1] == "it has no IPv4 address but those of the loopback"
        assert look(source="127.0.0.1").healthy

    def test_ipv6_off(self, network: Network) -> None:
        network.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
        with pytest.raises(OSError, match="Cannot assign requested address"):
            socket.create_connection(("::1", PORT))
        diagnosis = self.ask(destination=Endpoint("::1", PORT))
        assert "IPv6 is switched off" in diagnosis.verdict
        assert found(diagnosis, causes.IPV6_OFF).severity is Severity.CRITICAL
        # It is no finding where nobody asks for IPv6.
        assert look(destination=TOWARD).healthy
        assert "or the address is an IPv6 one, and IPv6 is off here" in self.ask().verdict
        assert found(self.ask(), causes.IPV6_OFF).severity is Severity.WARNING

    def test_none_of_them(self, connect: Callable[..., socket.socket]) -> None:
        connect()
        assert "is not exhaustion here and now: 19 of 20" in self.ask(destination=TOWARD).verdict
        assert "does not look like exhaustion" in self.ask().verdict
        assert self.ask().healthy


class TestOtherErrnos:
    @pytest.mark.usefixtures("binds_are_seen")
    def test_98(self, connect: Callable[..., socket.socket]) -> None:
        for _ in range(SIZE):
            connect(("127.0.0.1", 0))
        with pytest.raises(OSError, match="Address already in use"):
            connect(("127.0.0.1", 0))
        diagnosis = look(number=errno.EADDRINUSE)
        assert "comes from bind()" in diagnosis.verdict
        assert "IP_BIND_ADDRESS_NO_PORT" in diagnosis.verdict

    def test_11_of_udp(self, network: Network, closing: contextlib.ExitStack) -> None:
        network.port_range(LOW, HIGH)
        for number in range(SIZE + 1):
            sock = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            if number < SIZE:
                sock.connect(HERE)
        with pytest.raises(BlockingIOError):
            sock.connect(("127.0.0.1", PORT + 1))
        diagnosis = look(
            number=errno.EAGAIN, protocol="udp", destination=Endpoint("127.0.0.1", PORT + 1)
        )
        assert "here means exhaustion" in diagnosis.verdict
        assert diagnosis.findings[0].cause is causes.HELD_DATAGRAM

    def test_others(self, network: Network) -> None:
        del network
        assert "is not exhaustion, which gives" in look(number=errno.ECONNREFUSED).verdict
        assert "say --protocol udp" in look(number=errno.EAGAIN).verdict

    def test_no_route(self, network: Network) -> None:
        del network
        diagnosis = look(number=errno.EADDRNOTAVAIL, destination=Endpoint("198.51.100.9", 443))
        assert "Network is unreachable" in diagnosis.verdict


def test_filling_with_rate_and_time_left(
    connect: Callable[..., socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        connect()
    assert look().healthy

    def meanwhile(_: float) -> None:
        for _ in range(10):
            connect()

    monkeypatch.setattr("connectx._diagnosis.machine._wait", meanwhile)
    monkeypatch.setattr("connectx._diagnosis.doctor_rules._A_RATE_TAKES", 0.0)
    finding = found(look(), causes.CONNECTED)
    assert finding.severity is Severity.WARNING
    assert finding.title.startswith("15 of 20 source ports (75 %) are in use")
    assert "none is left in" in finding.evidence[1]


def test_explicit_binds(
    closing: contextlib.ExitStack, connect: Callable[..., socket.socket]
) -> None:
    for port in range(LOW, LOW + 5):
        sock = closing.enter_context(socket.socket())
        sock.bind(("127.0.0.9", port))
    connect()
    diagnosis = look()
    if diagnosis.healthy:
        pytest.skip("kernel: before 6.8 a dump leaves bound sockets out")
    finding = found(diagnosis, causes.POLLUTED)
    assert finding.title.startswith("5 of 20 source ports are closed to connect()")
    assert not any(finding.command(remedy) for remedy in finding.cause.remedies)


@pytest.mark.usefixtures("binds_are_seen")
def test_a_time_wait_of_an_explicit_bind(network: Network, servers: Servers) -> None:
    network.port_range(LOW, HIGH)
    server = servers.listen("127.0.0.1", PORT)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", LOW))
        sock.connect(HERE)
        accepted, _ = limits.accept(server)
        sock.shutdown(socket.SHUT_WR)
        assert limits.receive(accepted) == b""
        accepted.close()
        assert limits.receive(sock) == b""
    finding = found(look(), causes.POLLUTED)
    assert "1 TIME-WAIT" in finding.evidence[0]


def test_close_wait(
    connect: Callable[..., socket.socket], listener: socket.socket, network: Network
) -> None:
    del network
    for number in range(12):
        sock = connect()
        accepted, _ = limits.accept(listener)
        accepted.close()
        assert limits.receive(sock) == b""
        if number == 8:
            assert look().healthy
    finding = found(look(), causes.CLOSE_WAIT)
    assert finding.title.startswith("12 connections")
    assert finding.severity is Severity.WARNING
    assert f"({os.getpid()}" in finding.evidence[0]


def test_idle_connections(connect: Callable[..., socket.socket]) -> None:
    sockets = [connect() for _ in range(SIZE * 6 // 10)]
    assert causes.IDLE not in {each.cause for each in look(idle_after=3600.0).findings}
    finding = found(look(idle_after=0.0), causes.IDLE)
    assert finding.title.startswith(f"{len(sockets)} connections")


def test_overshadowed_datagrams(network: Network, closing: contextlib.ExitStack) -> None:
    network.port_range(LOW, HIGH)

    sockets: list[socket.socket] = []

    def opened(destination: tuple[str, int]) -> None:
        sock = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        sockets.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", LOW))
        sock.connect(destination)

    opened(HERE)
    opened(("127.0.0.2", PORT))
    assert look().healthy
    opened(HERE)
    finding = found(look(), causes.OVERSHADOWED)
    assert finding.severity is Severity.CRITICAL
    assert finding.evidence[0].startswith("127.0.0.1:20001 -> 127.0.0.1:9000: ")
    assert f"({os.getpid()}" in finding.evidence[0]
    assert finding.evidence[0].endswith(
        f", descriptors {sockets[0].fileno()}, {sockets[2].fileno()}"
    )


def test_listeners_in_the_range(network: Network, closing: contextlib.ExitStack) -> None:
    network.port_range(LOW, HIGH)
    for port in (LOW + 3, LOW + 4, LOW + 9, HIGH + 1):
        sock = closing.enter_context(socket.socket())
        sock.bind(("127.0.0.1", port))
        sock.listen()
    network.reserved_ports(str(LOW + 9))
    finding = found(look(), causes.LISTENERS)
    assert finding.title.startswith("2 listeners")
    assert finding.severity is Severity.NOTE
    command = finding.command(finding.cause.remedies[0])
    assert command == "sysctl -w net.ipv4.ip_local_reserved_ports=20004-20005,20010"
    network.reserved_ports(command.partition("=")[2])
    assert causes.LISTENERS not in {each.cause for each in look().findings}


def test_a_window_outside_the_range(network: Network) -> None:
    network.port_range(LOW, HIGH)
    assert look(ports=PortRange(LOW, LOW + 3)).healthy
    finding = found(look(ports=PortRange(LOW - 5, LOW + 3)), causes.NOT_HONOURED)
    assert finding.command(finding.cause.remedies[0]).endswith("='19996 20020'")


def test_timestamps_off(network: Network) -> None:
    network.sysctl("net.ipv4.tcp_timestamps", 0)
    assert found(look(), causes.TIMESTAMPS_OFF).severity is Severity.WARNING


def test_more_time_waits_than_there_may_be(listener: socket.socket, network: Network) -> None:
    network.sysctl("net.ipv4.tcp_max_tw_buckets", 4)
    network.sysctl("net.ipv4.tcp_tw_reuse", 0)
    for _ in range(6):
        leave_time_wait(listener)
    finding = found(look(), causes.TIME_WAIT_OVERFLOW)
    assert finding.severity is Severity.WARNING
    assert "2 connections ended without one" in finding.evidence[0]


def test_a_process_without_descriptors(
    network: Network, connect: Callable[..., socket.socket], closing: contextlib.ExitStack
) -> None:
    del network
    sock = connect()
    for _ in range(200):
        closing.enter_context(sock.dup())
    used = len(list(Path("/proc/self/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, hard))
    try:
        diagnosis = look()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    finding = found(diagnosis, causes.DESCRIPTORS)
    assert f"--pid {os.getpid()} " in finding.command(finding.cause.remedies[0])
    assert look().healthy


@pytest.mark.usefixtures("binds_are_seen")
def test_a_loopback_that_is_down(connect: Callable[..., socket.socket]) -> None:
    """What is tried is tried there."""
    connect(("127.0.0.1", 0))
    subprocess.run(["ip", "link", "set", "lo", "down"], check=True, timeout=limits.COMMAND_LIMIT)
    found(look(), causes.BOUND_FIRST)


def test_ports_that_cannot_be_tried(
    connect: Callable[..., socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, and all the rest is looked at."""

    def fail(*_: object) -> bool:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    connect(("127.0.0.1", 0))
    monkeypatch.setattr("connectx._diagnosis.census._takes", fail)
    diagnosis = look()
    assert diagnosis.healthy
    if tells_binds_apart():
        assert "Network is unreachable" in diagnosis.unseen[0]


def test_hidden_owners_are_not_those_that_there_are_not(
    listener: socket.socket, connect: Callable[..., socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that nobody has accepted, or whose end has been closed, has no process."""
    del listener
    connect()
    for _ in range(3):
        socket.create_connection(HERE).close()
    seen = processes.owners().by_inode
    monkeypatch.setattr(processes, "owners", lambda: processes.Owners(seen, hidden=1))
    assert look().unseen == ()
    monkeypatch.setattr(processes, "owners", lambda: processes.Owners({}, hidden=1))
    assert look().unseen == ("the owners of some sockets, which only root may see",)


class TestErrors:
    """diagnose(): what was caught tells most of it."""

    def test_exhaustion(self, connect: Callable[..., socket.socket]) -> None:
        for _ in range(SIZE):
            connect()
        with pytest.raises(connectx.PortsExhausted) as caught:
            connectx.create_connection(HERE)
        diagnosis = diagnose(caught.value)
        assert "here means exhaustion" in diagnosis.verdict
        # One table of causes.
        assert diagnosis.findings[0].cause.summary in caught.value.explain()

    def test_a_plain_error(self, connect: Callable[..., socket.socket]) -> None:
        for _ in range(SIZE):
            connect()
        with pytest.raises(OSError, match="Cannot assign") as caught:
            socket.create_connection(HERE)
        assert (
            "may well come from exhaustion: 20 of 20 source ports" in diagnose(caught.value).verdict
        )
        assert "here means" in diagnose(caught.value, destination=TOWARD).verdict

    def test_a_source_that_is_not_local(self, listener: socket.socket) -> None:
        del listener
        with pytest.raises(connectx.SourceNotLocal) as caught:
            connectx.create_connection(HERE, source_address=("192.0.2.7", 0))
        assert "not one of this host's" in diagnose(caught.value).verdict

    def test_a_range_that_is_not_honoured(self, network: Network) -> None:
        network.port_range(LOW, HIGH)
        dialer = connectx.Dialer(ports=(LOW - 10, LOW))
        with socket.socket() as sock, pytest.raises(connectx.RangeNotHonoured) as caught:
            dialer.connectx(sock, HERE)
        assert "22 (EINVAL)" in diagnose(caught.value).verdict


@pytest.mark.parametrize(
    "wrong",
    [
        {"protocol": "sctp"},
        {"source": "here"},
        {"destination": Endpoint("there", 1)},
        {"destination": Endpoint("", 443)},
        {"destination": Endpoint("127.0.0.1", 0)},
    ],
)
def test_wrong_use(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"protocol|address|port"):
        look(**wrong)


class TestRules:
    """Of nftables and iptables, which a new namespace has none of."""

    def test_a_translation_to_fewer_ports(self, network: Network) -> None:
        del network
        nft("""
            table ip nat {
                chain post {
                    type nat hook postrouting priority 100;
                    ip daddr 198.51.100.0/24 masquerade
                    ip protocol tcp snat to 192.0.2.1:1024-65535
                }
            }
        """)
        assert look().healthy
        nft("add rule ip nat post ip protocol tcp masquerade to :10000-12000")
        finding = found(look(), causes.TRANSLATED)
        assert "2,001 ports" in finding.title
        assert finding.evidence == ("nft: ip protocol tcp masquerade to :10000-12000",)

    def test_no_table_comes_of_looking(self, network: Network) -> None:
        """To list one that is not there would make it, and have connections tracked."""
        del network

        def tables() -> list[str]:
            names = [Path(f"/proc/thread-self/net/{name}_tables_names") for name in ("ip", "ip6")]
            listing = subprocess.run(
                ["nft", "list", "tables"],
                capture_output=True,
                check=True,
                timeout=limits.COMMAND_LIMIT,
            )
            return [*(name.read_text() for name in names if name.exists()), str(listing.stdout)]

        if shutil.which("nft") is None:
            pytest.skip("needs nft, of nftables")
        before = tables()
        look()
        assert tables() == before

    @pytest.mark.parametrize("variant", ["iptables-nft", "iptables-legacy"])
    def test_a_translation_by_iptables(self, network: Network, variant: str) -> None:
        del network
        if shutil.which(variant) is None:
            pytest.skip(f"needs {variant}, of iptables")
        rule = "POSTROUTING -p tcp -j SNAT --to-source 192.0.2.1:40000-49999"
        subprocess.run(
            [variant, "-t", "nat", "-A", *rule.split()], check=True, timeout=limits.COMMAND_LIMIT
        )
        finding = found(look(), causes.TRANSLATED)
        assert "10,000 ports" in finding.title
        assert "192.0.2.1:40000-49999" in finding.evidence[0]

    def test_a_full_table_of_tracked_connections(self, network: Network) -> None:
        """As many as the machine allows in all its namespaces, which one cannot change."""
        network.port_range(1024, 65535)
        nft("""
            table ip filter {
                chain in { type filter hook input priority 0; ct state new drop; }
                chain out { type filter hook output priority 0; ct state new counter; }
            }
        """)
        assert look().healthy
        most = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
        if most > 1_000_000:
            pytest.skip(f"kernel: filling a table of {most} takes too long")
        with contextlib.ExitStack() as sockets:
            for start in range(0, most * 85 // 100, 60_000):
                sock = sockets.enter_context(socket.socket(type=socket.SOCK_DGRAM))
                sock.bind((f"127.0.1.{start // 60_000 + 1}", 1024))
                for port in range(2000, 2000 + min(60_000, most * 85 // 100 - start)):
                    sock.sendto(b"", ("127.0.0.1", port))
        finding = found(look(), causes.CONNTRACK)
        assert finding.severity is Severity.WARNING
        assert finding.title.endswith(f"entries of {most:,}")


def nft(rules: str) -> None:
    if shutil.which("nft") is None:
        pytest.skip("needs nft, of nftables")
    subprocess.run(
        ["nft", "-f", "-"], input=rules, text=True, check=True, timeout=limits.COMMAND_LIMIT
    )
