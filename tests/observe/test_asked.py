"""Calls that have failed, or only seem to: what doctor makes of them."""

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import connectx
from connectx._connect.namespace import windows_work
from connectx._diagnosis import causes
from connectx._diagnosis.census import tells_binds_apart
from connectx._diagnosis.finding import Severity
from connectx.addresses import Endpoint, PortRange
from connectx.observe import diagnose
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.observe.helpers import (
    HERE,
    HIGH,
    LOW,
    PORT,
    SIZE,
    TOWARD,
    found,
    leave_time_wait,
    look,
)

NOT_AVAILABLE = errno.EADDRNOTAVAIL


def test_other_sources_are_no_exhaustion(connect: Callable[..., socket.socket]) -> None:
    """Each has a range of its own."""
    for number in range(SIZE):
        connect((f"127.0.0.{2 + number % 2}", 0))
    if tells_binds_apart():
        # They were bound first, which is another matter: it locks the ports for everybody.
        assert found(look(), causes.BOUND_FIRST)


@pytest.mark.usefixtures("binds_are_seen")
def test_other_sources_that_share(listener: socket.socket, closing: contextlib.ExitStack) -> None:
    del listener
    for number in range(SIZE):
        source = (f"127.0.0.{2 + number % 2}", 0)
        closing.enter_context(connectx.create_connection(HERE, source_address=source))
    diagnosis = look(number=NOT_AVAILABLE, destination=TOWARD)
    assert "is not exhaustion here and now: 20 of 20" in diagnosis.verdict
    assert "from 127.0.0.1 to 127.0.0.1:9000" in diagnosis.verdict
    socket.create_connection(HERE).close()
    for _ in range(SIZE // 2):
        closing.enter_context(connectx.create_connection(HERE, source_address=("127.0.0.2", 0)))
    # Whoever asks may not know which source the call asked for: the full one is the answer.
    for number in (NOT_AVAILABLE, 0):
        diagnosis = look(number=number, destination=TOWARD)
        first, second = diagnosis.verdict.splitlines()
        assert "is free from 127.0.0.2 to 127.0.0.1:9000 (tcp)" in first
        assert "exhaustion" in first
        assert "not exhaustion" not in diagnosis.verdict
        assert second.startswith("Without a source address, connect() uses 127.0.0.1 toward")
        (finding,) = diagnosis.because
        assert finding.cause is causes.CONNECTED
        assert "127.0.0.2" in finding.title
        assert f"({os.getpid()}" in finding.evidence[0]
    diagnosis = look(number=NOT_AVAILABLE, destination=TOWARD, source=Endpoint("127.0.0.2", 0))
    assert "here means exhaustion" in diagnosis.verdict


def test_time_waits_that_a_connect_takes_over(listener: socket.socket, network: Network) -> None:
    network.sysctl("net.ipv4.tcp_tw_reuse", 1)
    for _ in range(SIZE):
        leave_time_wait(listener)
    while "here means exhaustion" in look(number=NOT_AVAILABLE, destination=TOWARD).verdict:
        # They have to be a second old.
        select.select((), (), (), 0.05)
    for _ in range(SIZE):
        with socket.create_connection(HERE):
            pass


@pytest.mark.usefixtures("binds_are_seen")
def test_time_waits_that_nobody_takes_over(listener: socket.socket, network: Network) -> None:
    """They were left by sockets that were bound, and lock their ports."""
    network.port_range(LOW, LOW + 1)
    network.sysctl("net.ipv4.tcp_tw_reuse", 1)
    if Path("/proc/sys/net/ipv4/tcp_tw_reuse_delay").exists():
        network.sysctl("net.ipv4.tcp_tw_reuse_delay", 1)
    for port in (LOW, LOW + 1):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            sock.connect(HERE)
            accepted, _ = limits.accept(listener)
            sock.shutdown(socket.SHUT_WR)
            assert limits.receive(accepted) == b""
            accepted.close()
            assert limits.receive(sock) == b""
    with pytest.raises(OSError, match="Cannot assign") as caught:
        socket.create_connection(HERE)
    diagnosis = diagnose(caught.value, destination=TOWARD)
    assert "here means exhaustion" in diagnosis.verdict
    assert "2 TIME_WAITs" in diagnosis.verdict


@pytest.mark.usefixtures("binds_are_seen")
def test_clients_of_the_discard_service_lock_nothing(
    network: Network, servers: Servers, closing: contextlib.ExitStack
) -> None:
    network.port_range(LOW, HIGH)
    for host in ("127.0.0.1", "127.255.255.254"):
        servers.listen(host, 9)
        for _ in range(SIZE // 3):
            closing.enter_context(socket.create_connection((host, 9)))
    assert look().healthy


def test_a_window(listener: socket.socket, closing: contextlib.ExitStack) -> None:
    del listener
    if not windows_work("tcp"):
        pytest.skip("kernel: no IP_LOCAL_PORT_RANGE")
    dialer = connectx.Dialer(ports=(LOW, LOW + 3))
    for _ in range(4):
        closing.enter_context(dialer.create_connection(HERE))
    with pytest.raises(connectx.PortsExhausted) as caught:
        dialer.create_connection(HERE)
    assert caught.value.ports == PortRange(LOW, LOW + 3)
    diagnosis = diagnose(caught.value)
    assert "no source port of 20001-20004 is free" in diagnosis.verdict
    ports = PortRange(LOW, LOW + 4)
    diagnosis = look(number=NOT_AVAILABLE, destination=TOWARD, ports=ports)
    assert "1 of 5 source ports are free" in diagnosis.verdict


def test_udp_that_does_not_share(network: Network, closing: contextlib.ExitStack) -> None:
    """One port each, whatever the destination; those that share still find one."""
    network.port_range(LOW, HIGH)
    for number in range(SIZE):
        sock = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        sock.connect((f"127.0.1.{number}", 53))
        if number == SIZE - 3:
            # Two of twenty are left.
            assert look().healthy
    with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(BlockingIOError):
        sock.connect(("127.0.2.1", 53))
    assert found(look(), causes.UNSHARED).severity is Severity.CRITICAL
    diagnosis = look(number=errno.EAGAIN, protocol="udp")
    assert "exhaustion for sockets that do not share ports" in diagnosis.verdict


def test_udp_that_shares(network: Network, servers: Servers, closing: contextlib.ExitStack) -> None:
    """A plain connect() fails all the same."""
    network.port_range(LOW, HIGH)
    servers.receive("127.0.0.1", 53)
    to = ("127.0.0.1", 53)
    for _ in range(SIZE):
        closing.enter_context(connectx.create_connection(to, type=socket.SOCK_DGRAM))
    with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(BlockingIOError):
        sock.connect(("127.0.2.1", 53))
    question = {"number": errno.EAGAIN, "protocol": "udp"}
    diagnosis = look(**question, destination=Endpoint("127.0.2.1", 53))
    assert "exhaustion for sockets that do not share ports" in diagnosis.verdict
    assert "20 of 20 source ports are free" in diagnosis.verdict
    assert "because of 20 connections to it" in look(**question, destination=Endpoint(*to)).verdict


def test_without_fast_open_nobody_knows(
    connect: Callable[..., socket.socket], network: Network
) -> None:
    network.sysctl("net.ipv4.tcp_fastopen", 0)
    for _ in range(SIZE):
        connect(None, ("127.0.0.9", PORT))
    diagnosis = look(number=NOT_AVAILABLE, destination=TOWARD)
    assert "may be exhaustion" in diagnosis.verdict
    assert causes.HELD not in {finding.cause for finding in diagnosis.findings}


class TestWhoHasThePort:
    def test_a_listener(self, network: Network, servers: Servers) -> None:
        del network
        servers.listen("127.0.0.1", 8080)
        for source in (Endpoint("", 8080), Endpoint("127.0.0.1", 8080)):
            diagnosis = look(number=errno.EADDRINUSE, source=source)
            assert (
                "here means that tcp port 8080 is in use: 127.0.0.1:8080 LISTEN"
                in diagnosis.verdict
            )
            finding = found(diagnosis, causes.PORT_HELD)
            assert finding.evidence[0].startswith("127.0.0.1:8080 LISTEN ")
            assert f"({os.getpid()}" in finding.evidence[0]
        diagnosis = look(number=errno.EADDRINUSE, source=Endpoint("127.0.0.2", 8080))
        assert "here means" not in diagnosis.verdict

    def test_one_on_the_tuple(self, connect: Callable[..., socket.socket]) -> None:
        sock = connect()
        source = Endpoint(*sock.getsockname())
        diagnosis = look(number=NOT_AVAILABLE, source=source, destination=TOWARD)
        assert "is in use toward 127.0.0.1:9000: 127.0.0.1:" in diagnosis.verdict
        elsewhere = Endpoint("127.0.0.9", PORT)
        # Toward another destination the port is shared.
        diagnosis = look(number=NOT_AVAILABLE, source=source, destination=elsewhere)
        assert "is not exhaustion here and now" in diagnosis.verdict
        mapped = Endpoint("::ffff:127.0.0.1", PORT)
        diagnosis = look(number=NOT_AVAILABLE, source=source, destination=mapped)
        assert "is in use toward 127.0.0.1:9000: 127.0.0.1:" in diagnosis.verdict
        anywhere = Endpoint("", source.port)
        diagnosis = look(number=NOT_AVAILABLE, source=anywhere, destination=TOWARD)
        assert "is in use toward 127.0.0.1:9000: 127.0.0.1:" in diagnosis.verdict

    def test_one_on_the_tuple_beside_a_listener(
        self, listener: socket.socket, servers: Servers, closing: contextlib.ExitStack
    ) -> None:
        """The verdict is about the socket on the 4-tuple, not the first one on the port."""
        del listener
        dialing = closing.enter_context(socket.socket())
        dialing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        dialing.bind(("127.0.0.1", LOW))
        dialing.connect(HERE)
        servers.listen("127.0.0.1", LOW)
        source = Endpoint("127.0.0.1", LOW)
        diagnosis = look(number=NOT_AVAILABLE, source=source, destination=TOWARD)
        assert f": 127.0.0.1:{LOW} ESTAB python" in diagnosis.verdict
        states = {line.split()[1] for line in found(diagnosis, causes.TUPLE_IN_USE).evidence}
        assert states == {"ESTAB", "LISTEN"}

    @pytest.mark.usefixtures("binds_are_seen")
    def test_one_that_locks_it_on_another_address(
        self, connect: Callable[..., socket.socket]
    ) -> None:
        connect(("127.0.0.2", LOW))
        source = Endpoint("127.0.0.1", LOW)
        diagnosis = look(number=NOT_AVAILABLE, source=source, destination=TOWARD)
        assert f"tcp port {LOW} is in use: " in diagnosis.verdict

    @pytest.mark.parametrize(
        "host, of, taken",
        [
            ("0.0.0.0", "127.0.0.7", True),
            ("::", "127.0.0.7", True),
            ("127.0.0.7", "0.0.0.0", True),
            ("127.0.0.7", "127.0.0.8", False),
            ("::1", "127.0.0.7", False),
        ],
    )
    def test_by_addresses_in_common(
        self, network: Network, servers: Servers, host: str, of: str, *, taken: bool
    ) -> None:
        del network
        servers.listen(of, 8080)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            if taken:
                with pytest.raises(OSError, match="Address already in use"):
                    sock.bind((host, 8080))
            else:
                sock.bind((host, 8080))
        diagnosis = look(number=errno.EADDRINUSE, source=Endpoint(host, 8080))
        assert ("port 8080 is in use: " in diagnosis.verdict) == taken

    def test_only_time_waits(self, network: Network, servers: Servers) -> None:
        """Of a server that has gone, and closed first."""
        del network
        listener = servers.listen("127.0.0.1", 8080)
        with socket.create_connection(("127.0.0.1", 8080)) as client:
            server, _ = limits.accept(listener)
            server.shutdown(socket.SHUT_WR)
            assert limits.receive(client) == b""
            client.close()
            assert limits.receive(server) == b""
            server.close()
        listener.close()
        with socket.socket() as sock, pytest.raises(OSError, match="Address already in use"):
            sock.bind(("127.0.0.1", 8080))
        diagnosis = look(number=errno.EADDRINUSE, source=Endpoint("127.0.0.1", 8080))
        assert found(diagnosis, causes.PORT_LEFT).evidence[0].startswith("127.0.0.1:8080 TIME-WAIT")

    def test_by_an_error(self, network: Network, servers: Servers) -> None:
        network.port_range(LOW, HIGH)
        servers.listen("127.0.0.1", PORT)
        servers.listen("127.0.0.1", LOW)
        with pytest.raises(connectx.PortHeld) as caught:
            connectx.create_connection(HERE, source_address=("127.0.0.1", LOW))
        assert f"tcp port {LOW} is in use: " in diagnose(caught.value).verdict


def test_an_address_that_is_checked_for_duplicates(network: Network) -> None:
    network.add_device_pair("va", "vb")
    network.sysctl("net.ipv6.conf.va.accept_dad", 1)
    network.sysctl("net.ipv6.conf.va.dad_transmits", 100)
    subprocess.run(
        ["ip", "address", "add", "2001:db8::7/64", "dev", "va"],
        check=True,
        timeout=limits.COMMAND_LIMIT,
    )
    with socket.socket(socket.AF_INET6) as sock, pytest.raises(OSError, match="Cannot assign"):
        sock.bind(("2001:db8::7", 0))
    diagnosis = look(number=NOT_AVAILABLE, source="2001:db8::7")
    assert "being checked for duplicates" in diagnosis.verdict
    assert found(diagnosis, causes.NOT_YET_LOCAL).severity is Severity.CRITICAL


@pytest.mark.usefixtures("binds_are_seen")
def test_a_link_local_destination(network: Network, closing: contextlib.ExitStack) -> None:
    """On each device it is another one."""
    network.port_range(LOW, HIGH)
    for pair in (("va", "vb"), ("vc", "vd")):
        network.add_device_pair(*pair)
        for device, host in zip(pair, ("fe80::1", "fe80::9"), strict=True):
            network.add_address(host, 64, device)
    for device, number in (("va", SIZE), ("vc", 3)):
        for _ in range(number):
            sock = closing.enter_context(socket.socket(socket.AF_INET6))
            sock.settimeout(0)
            # Nobody answers: it stays in SYN-SENT.
            to = ("fe80::7", PORT, 0, socket.if_nametoindex(device))
            assert sock.connect_ex(to) == errno.EINPROGRESS
    diagnosis = look(number=NOT_AVAILABLE, destination=Endpoint("fe80::7%va", PORT))
    assert "here means exhaustion" in diagnosis.verdict
    diagnosis = look(number=NOT_AVAILABLE, destination=Endpoint("fe80::7%vc", PORT))
    assert "17 of 20 source ports are free" in diagnosis.verdict
    with pytest.raises(OSError, match="no interface is named 'nothing'"):
        look(destination=Endpoint("fe80::7%nothing", PORT))


def test_close_wait_is_its_owners(
    connect: Callable[..., socket.socket],
    listener: socket.socket,
    closing: contextlib.ExitStack,
) -> None:
    """Another process has more connections there, and leaks none."""
    child = os.fork()
    if not child:
        sys.stdin.close()
        for _ in range(2):
            connect()
        signal.pause()
    try:
        for _ in range(12):
            sock = connect()
            # Ours comes after the child's two, which stay open, or before.
            accepted, peer = limits.accept(listener)
            while peer[1] != sock.getsockname()[1]:
                closing.enter_context(accepted)
                accepted, peer = limits.accept(listener)
            accepted.close()
            assert limits.receive(sock) == b""
        finding = found(look(), causes.CLOSE_WAIT)
    finally:
        os.kill(child, 9)
        limits.status_of(child)
    assert f"({os.getpid()}" in finding.evidence[0]
    assert f"({child}" not in finding.evidence[0]


@pytest.mark.usefixtures("binds_are_seen")
def test_several_destinations(connect: Callable[..., socket.socket]) -> None:
    """As a name has them: one look, and an answer for each that the source can go to."""
    for _ in range(SIZE):
        connect()
    both = [Endpoint("::1", PORT), TOWARD]
    diagnosis = look(number=NOT_AVAILABLE, destination=both)
    first, second = diagnosis.verdict.splitlines()
    assert first.startswith("99 (EADDRNOTAVAIL) here means exhaustion: no source port of ")
    assert "to 127.0.0.1:9000 " in first
    assert second.startswith(
        "Without a source address, connect() uses ::1 toward [::1]:9000: 20 of"
    )
    severities = [list(Severity).index(each.severity) for each in diagnosis.findings]
    assert severities == sorted(severities)
    diagnosis = look(number=NOT_AVAILABLE, source="127.0.0.1", destination=both)
    assert "\n" not in diagnosis.verdict
    assert "here means exhaustion" in diagnosis.verdict


def test_a_name_with_an_address_of_ipv6_that_is_off(network: Network) -> None:
    network.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    diagnosis = look(number=NOT_AVAILABLE, destination=[Endpoint("::1", PORT), TOWARD])
    assert "127.0.0.1:9000" in diagnosis.verdict
    assert diagnosis.healthy


def test_udp_of_ipv6_is_no_lack_of_ipv4(network: Network, closing: contextlib.ExitStack) -> None:
    network.port_range(LOW, HIGH)
    for port in range(LOW, HIGH + 1):
        sock = closing.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        sock.bind(("::1", port))
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 53))
    assert look().healthy


def test_names_are_looked_up(connect: Callable[..., socket.socket]) -> None:
    for _ in range(SIZE):
        connect()
    asked = ["--errno", "99", "--destination", f"localhost:{PORT}"]
    done = subprocess.run(
        [sys.executable, "-m", "connectx", "doctor", "--seconds", "0", *asked],
        capture_output=True,
        text=True,
        check=False,
        timeout=limits.COMMAND_LIMIT,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "here means exhaustion" in done.stdout


@pytest.mark.parametrize(
    "destination", ["no such name:443", "127.0.0.1:http", "[::1", "x", "localhost:99999"]
)
def test_destinations_that_are_none(network: Network, destination: str) -> None:
    del network
    done = subprocess.run(
        [sys.executable, "-m", "connectx", "doctor", "--destination", destination],
        capture_output=True,
        text=True,
        check=False,
        timeout=limits.COMMAND_LIMIT,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("connectx doctor: ")
    assert destination.removesuffix(":443") in last


def test_output_that_nobody_takes(network: Network) -> None:
    """Not to be taken for findings."""
    del network
    with open("/dev/full", "w") as full:  # noqa: PTH123 -- a device
        done = subprocess.run(
            [sys.executable, "-m", "connectx", "doctor", "--seconds", "0"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=limits.COMMAND_LIMIT,
        )
    assert done.returncode == 2
    assert "No space left on device" in done.stderr


def test_sources_of_udp_that_are_full(
    network: Network, servers: Servers, closing: contextlib.ExitStack
) -> None:
    """As for TCP: the one that a call may have asked for is the answer."""
    network.port_range(LOW, HIGH)
    servers.receive("127.0.0.1", PORT)
    for host in ("127.0.0.2", "127.0.0.3"):
        for _ in range(SIZE):
            sock = connectx.create_connection(
                HERE, source_address=(host, 0), type=socket.SOCK_DGRAM
            )
            closing.enter_context(sock)
    diagnosis = look(protocol="udp", destination=TOWARD)
    first, *others = diagnosis.verdict.splitlines()
    assert first.startswith(f"No source port of {LOW}-{HIGH} is free from 127.0.0.2 to {TOWARD}")
    assert first.endswith("this is exhaustion.")
    assert others[0] == f"No source port is free from 127.0.0.3 to {TOWARD}, either."
    assert len(diagnosis.because) == 1
    assert not any(" is not exhaustion" in line for line in others)
