"""Sockets that the doctor names: whose they are, on which port, and in which state."""

import contextlib
import errno
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from connectx._diagnosis import causes
from connectx._diagnosis.finding import Severity
from connectx.addresses import Endpoint, PortRange
from connectx.linux import processes
from connectx.observe import Diagnosis
from connectx.observe.history import Pair
from connectx.observe.usage import look_at
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.observe.helpers import HERE, HIGH, LOW, PORT, SIZE, TOWARD, found, leave_time_wait, look

IN_USE = errno.EADDRINUSE
UDPLITE = 136


class TestPortTakenByChance:
    """A service cannot start, because connect() has given its port to an outgoing connection."""

    @pytest.fixture(params=["127.0.0.1", "::1"])
    def host(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def ask(self, host: str = "", protocol: str = "tcp") -> Diagnosis:
        return look(number=IN_USE, source=Endpoint(host, LOW), protocol=protocol)

    def family(self, host: str) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in host else socket.AF_INET

    def test_by_another_destination(self, network: Network, servers: Servers, host: str) -> None:
        network.port_range(LOW, LOW)
        servers.listen(host, PORT)
        with socket.socket(self.family(host)) as sock:
            sock.connect((host, PORT))
            for asked in ("", host):
                diagnosis = self.ask(asked)
                assert f"tcp port {LOW} is in use by an outgoing connection: " in diagnosis.verdict
                assert (
                    f"descriptor {sock.fileno()}, to {Endpoint(host, PORT)}." in diagnosis.verdict
                )
                finding = found(diagnosis, causes.PORT_BY_CHANCE)
                assert diagnosis.because == (finding,)
            network.port_range(LOW, LOW + 1)
            command = finding.command(finding.cause.remedies[0])
            subprocess.run(["sh", "-c", command], check=True, timeout=limits.COMMAND_LIMIT)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The port is the service's from now on, even if it comes later.
        with socket.socket(self.family(host)) as first, socket.socket(self.family(host)) as second:
            first.connect((host, PORT))
            assert first.getsockname()[1] == LOW + 1
            with pytest.raises(OSError, match="Cannot assign"):
                second.connect((host, PORT))
            servers.listen(host, LOW)

    def test_by_a_connection_to_itself(self, network: Network, host: str) -> None:
        network.port_range(LOW, LOW)
        with socket.socket(self.family(host)) as sock:
            sock.connect((host, LOW))
            finding = found(self.ask(), causes.PORT_BY_CHANCE)
        assert any("connected to itself" in line for line in finding.evidence)

    def test_of_udp(self, network: Network, host: str) -> None:
        network.port_range(LOW, LOW)
        with socket.socket(self.family(host), socket.SOCK_DGRAM) as sock:
            sock.connect((host, 53))
            diagnosis = self.ask(protocol="udp")
        assert f"udp port {LOW} is in use by an outgoing connection: " in diagnosis.verdict
        finding = found(diagnosis, causes.PORT_BY_CHANCE)
        assert f"ip_local_reserved_ports={LOW}" in finding.command(finding.cause.remedies[0])

    def test_not_after_a_bind(self, network: Network, servers: Servers, host: str) -> None:
        """A socket that was bound to the port asked for it."""
        network.port_range(LOW, HIGH)
        servers.listen(host, PORT)
        with socket.socket(self.family(host)) as sock:
            sock.bind((host, LOW))
            sock.connect((host, PORT))
            diagnosis = self.ask()
        assert "outgoing" not in diagnosis.verdict
        assert diagnosis.because[0].cause is causes.PORT_HELD

    def test_not_out_of_the_range(self, network: Network, servers: Servers, host: str) -> None:
        network.port_range(LOW + 1, HIGH)
        servers.listen(host, PORT)
        with socket.socket(self.family(host)) as sock:
            sock.bind((host, LOW))
            sock.connect((host, PORT))
            finding = found(self.ask(), causes.PORT_HELD)
        assert not any(finding.command(remedy) for remedy in finding.cause.remedies)

    def test_not_beside_a_listener(self, network: Network, servers: Servers, host: str) -> None:
        """What it has accepted is on its port, and no reason."""
        network.port_range(LOW, HIGH)
        listener = servers.listen(host, LOW)
        with socket.create_connection((host, LOW)), limits.accept(listener)[0]:
            diagnosis = self.ask()
        assert " LISTEN " in diagnosis.verdict
        finding = found(diagnosis, causes.PORT_HELD)
        assert f"ip_local_reserved_ports={LOW}" in str(
            [finding.command(remedy) for remedy in finding.cause.remedies]
        )


def test_a_port_toward_another_destination_is_free_to_share(
    connect: Callable[..., socket.socket],
) -> None:
    """Nobody has failed yet: connect() would share the port, so it is not in use."""
    source = Endpoint(*connect().getsockname())
    diagnosis = look(source=source, destination=Endpoint("127.0.0.9", PORT))
    assert diagnosis.verdict.endswith("this is not exhaustion.")
    diagnosis = look(source=source, destination=TOWARD)
    assert f"tcp port {source.port} is in use toward {TOWARD}" in diagnosis.verdict


def test_a_port_that_nobody_has_any_more(network: Network) -> None:
    del network
    diagnosis = look(number=IN_USE, source=Endpoint("", LOW))
    assert f"was on tcp port {LOW}, and none is in the way now" in diagnosis.verdict


def test_ports_out_of_the_range_are_looked_at(network: Network, servers: Servers) -> None:
    network.port_range(LOW, HIGH)
    servers.listen("127.0.0.1", PORT)
    servers.listen("127.0.0.1", 8080)
    source = Endpoint("127.0.0.1", 8080)
    diagnosis = look(number=IN_USE, source=source, destination=TOWARD, ports=PortRange(8080, 8080))
    assert "tcp port 8080 is in use: 127.0.0.1:8080 LISTEN" in diagnosis.verdict


class TestDeafSockets:
    """Unconnected UDP sockets that share a port: the newest receives, the others wait in vain."""

    @pytest.fixture(params=["127.0.0.1", "0.0.0.0", "::1", "::"])
    def host(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def open_two(
        self, network: Network, closing: contextlib.ExitStack
    ) -> Callable[..., list[socket.socket]]:
        network.port_range(LOW, HIGH)

        def opened(host: str, *options: int, protocol: int = 0) -> list[socket.socket]:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sockets = []
            for _ in range(2):
                sock = socket.socket(family, socket.SOCK_DGRAM, protocol)
                closing.enter_context(sock)
                for option in options:
                    sock.setsockopt(socket.SOL_SOCKET, option, 1)
                sock.bind((host, LOW))
                sockets.append(sock)
            return sockets

        return opened

    def test_by_address_reuse(
        self, open_two: Callable[..., list[socket.socket]], host: str
    ) -> None:
        sockets = open_two(host, socket.SO_REUSEADDR)
        diagnosis = look()
        finding = found(diagnosis, causes.DEAF)
        assert finding.severity is Severity.WARNING
        assert finding.title.startswith("a UDP socket receives nothing")
        first, second = (sock.fileno() for sock in sockets)
        (line,) = finding.evidence
        assert line.startswith(f"{Endpoint(host, LOW)}, 2 sockets: ")
        assert line.endswith(f"({os.getpid()}), descriptors {first}, {second}")

    @pytest.mark.parametrize(
        "options", [(socket.SO_REUSEPORT,), (socket.SO_REUSEPORT, socket.SO_REUSEADDR)], ids=str
    )
    def test_not_by_port_reuse(
        self, open_two: Callable[..., list[socket.socket]], host: str, options: tuple[int, ...]
    ) -> None:
        """The kernel spreads datagrams over these."""
        sockets = open_two(host, *options)
        assert look().healthy
        for sock in sockets:
            os.fchown(sock.fileno(), 1000, -1)
        # Another user's do not mix with ours.
        assert look().findings == ()

    def test_of_udp_lite(self, open_two: Callable[..., list[socket.socket]]) -> None:
        try:
            open_two("127.0.0.1", socket.SO_REUSEADDR, protocol=UDPLITE)
        except OSError as error:
            pytest.skip(f"kernel: no UDP-Lite ({error})")
        (line,) = found(look(), causes.DEAF).evidence
        assert line.startswith(f"127.0.0.1:{LOW} (UDP-Lite), 2 sockets")

    def test_not_one_on_each_address(self, network: Network, closing: contextlib.ExitStack) -> None:
        network.port_range(LOW, HIGH)
        for host in ("127.0.0.1", "127.0.0.2", "0.0.0.0"):
            sock = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, LOW))
        assert look().healthy

    def test_perhaps_for_multicast(self, open_two: Callable[..., list[socket.socket]]) -> None:
        sockets = open_two("0.0.0.0", socket.SO_REUSEADDR)
        member = socket.inet_aton("239.1.2.3") + socket.inet_aton("127.0.0.1")
        sockets[0].setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        finding = found(look(), causes.DEAF)
        assert finding.severity is Severity.NOTE
        assert "unless it is multicast" in finding.title

    @pytest.mark.parametrize("host", ["239.1.2.3", "255.255.255.255", "ff0e::1234"])
    def test_not_what_reaches_all(
        self, open_two: Callable[..., list[socket.socket]], host: str
    ) -> None:
        open_two(host, socket.SO_REUSEADDR)
        assert look().healthy

    @pytest.mark.parametrize("asked", [{}, {"protocol": "udp"}], ids=str)
    def test_looking_takes_no_datagram(
        self,
        open_two: Callable[..., list[socket.socket]],
        closing: contextlib.ExitStack,
        monkeypatch: pytest.MonkeyPatch,
        host: str,
        asked: dict[str, str],
    ) -> None:
        """Sockets that try a port are the newest on it, but where nothing arrives."""
        local = "::1" if ":" in host else "127.0.0.1"
        *_, newest = open_two(host, socket.SO_REUSEADDR)
        sender = closing.enter_context(socket.socket(newest.family, socket.SOCK_DGRAM))
        sender.bind((local, 0))
        sent = 0

        class Prying(socket.socket):
            """Has a datagram arrive at the very moment when a socket is bound."""

            def bind(self, address: Any) -> None:
                nonlocal sent
                super().bind(address)
                if self.type == socket.SOCK_DGRAM:
                    sender.sendto(b"here", (local, LOW))
                    sent += 1

        for module in ("census", "sharing"):
            monkeypatch.setattr(
                f"connectx._diagnosis.{module}.socket", SimpleNamespace(socket=Prying)
            )
        look(destination=Endpoint(local, 53), **asked)
        assert sent
        for _ in range(sent):
            assert newest.recv(9, socket.MSG_DONTWAIT) == b"here"


class TestSocketsWithoutAProcess:
    def test_in_the_queue_of_a_listener(self, network: Network, servers: Servers) -> None:
        """Nobody's yet, but not hidden: the program that listens does not accept them."""
        network.port_range(LOW, HIGH)
        servers.listen("127.0.0.1", LOW, backlog=20)
        network.port_range(LOW + 1, HIGH)
        for _ in range(12):
            with socket.create_connection(("127.0.0.1", LOW)) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        network.port_range(LOW, HIGH)
        diagnosis = look()
        assert diagnosis.unseen == ()
        finding = found(diagnosis, causes.CLOSE_WAIT)
        assert finding.evidence[0].startswith("not accepted yet by ")
        assert f"({os.getpid()})" in finding.evidence[0]
        assert f"accepted on 127.0.0.1:{LOW}: 12" in finding.evidence[0]

    def test_time_waits(self, listener: socket.socket, network: Network) -> None:
        network.sysctl("net.ipv4.tcp_tw_reuse", 0)
        for _ in range(SIZE):
            leave_time_wait(listener)
        finding = look(destination=TOWARD).because[0]
        assert finding.evidence[0] == f"{SIZE} TIME-WAIT; no process: {SIZE}"

    def test_hidden_ones(
        self, connect: Callable[..., socket.socket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for _ in range(SIZE):
            connect()
        for hidden, words in ((1, "processes that only root may see"), (0, "the kernel")):
            monkeypatch.setattr(
                processes, "owners", lambda hidden=hidden: processes.Owners({}, hidden)
            )
            diagnosis = look(destination=TOWARD)
            assert f"{words}: {SIZE}" in diagnosis.because[0].evidence[0]
            assert bool(diagnosis.unseen) == bool(hidden)

    def test_a_closer_look_hides_nothing(
        self, listener: socket.socket, network: Network, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What `connectx top` shows of a pair: TIME_WAITs have no process, hidden or not."""
        network.sysctl("net.ipv4.tcp_tw_reuse", 0)
        leave_time_wait(listener)
        monkeypatch.setattr("connectx.observe.usage.owners", lambda: processes.Owners({}, 3))
        pair = Pair("tcp", "127.0.0.1", TOWARD)
        assert look_at(pair).hidden == 0
        with socket.create_connection(HERE):
            assert look_at(pair).hidden == 3

    def test_a_time_wait_whose_peer_has_not_closed(
        self, network: Network, servers: Servers
    ) -> None:
        """It is reported as FIN-WAIT-2, and is a TIME_WAIT for all that matters."""
        network.port_range(LOW, HIGH)
        listener = servers.listen("127.0.0.1", PORT)
        with socket.create_connection(HERE) as sock, limits.accept(listener)[0] as accepted:
            source = Endpoint(*sock.getsockname())
            sock.close()
            assert limits.receive(accepted) == b""
            diagnosis = look(number=IN_USE, source=source)
            assert f"{source} TIME-WAIT" in diagnosis.verdict
            found(diagnosis, causes.PORT_LEFT)


def test_leaks_have_a_destination(
    connect: Callable[..., socket.socket], listener: socket.socket
) -> None:
    for number in range(12):
        sock = connect(None, (f"127.0.0.{1 + number // 8}", PORT))
        limits.accept(listener)[0].close()
        assert limits.receive(sock) == b""
    first, second, *_ = found(look(), causes.CLOSE_WAIT).evidence
    assert first.endswith(" to 127.0.0.1:9000: 8")
    assert second.endswith(" to 127.0.0.2:9000: 4")
    assert all(f"({os.getpid()}" in line for line in (first, second))


def test_processes_have_command_lines(connect: Callable[..., socket.socket]) -> None:
    for _ in range(SIZE):
        connect()
    program, *arguments = Path("/proc/self/cmdline").read_text().rstrip("\0").split("\0")
    line = look(destination=TOWARD).because[0].evidence[0]
    shown = " ".join([Path(program).name, *arguments])[:40]
    assert f"({os.getpid()}) [{shown}" in line


@pytest.mark.usefixtures("binds_are_seen")
def test_link_local_connections_have_owners(
    network: Network, closing: contextlib.ExitStack
) -> None:
    """Their source has a scope, by which the pair is found again."""
    network.port_range(LOW, HIGH)
    network.add_device_pair("va", "vb")
    for device, host in (("va", "fe80::1"), ("vb", "fe80::9")):
        network.add_address(host, 64, device)
    index = socket.if_nametoindex("va")
    for _ in range(SIZE):
        sock = closing.enter_context(socket.socket(socket.AF_INET6))
        sock.settimeout(0)
        assert sock.connect_ex(("fe80::7", PORT, 0, index)) == errno.EINPROGRESS
    for source in ("", f"fe80::1%{index}"):
        diagnosis = look(source=source, destination=Endpoint("fe80::7%va", PORT))
        (finding,) = diagnosis.findings
        assert f"{SIZE} SYN-SENT; " in finding.evidence[0]
        assert f"({os.getpid()})" in finding.evidence[0]


@pytest.mark.usefixtures("binds_are_seen")
def test_ports_that_are_held_have_owners(
    connect: Callable[..., socket.socket], closing: contextlib.ExitStack
) -> None:
    """Nothing is connected to the destination: who keeps its ports is named all the same."""
    for _ in range(SIZE):
        connect(("127.0.0.2", 0), ("127.0.0.3", PORT))
    (finding,) = look(destination=TOWARD).because
    assert finding.cause is causes.BOUND_FIRST
    assert f"{SIZE} connected; " in finding.evidence[0]
    assert f"({os.getpid()})" in finding.evidence[0]
    assert finding.also[0].title.startswith(f"no source port of {LOW}-{HIGH} is free")
    for _ in range(SIZE):
        sock = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        sock.connect(("127.0.0.3", 53))
    (finding,) = look(destination=TOWARD, protocol="udp", number=errno.EAGAIN).because
    assert finding.cause is causes.HELD_DATAGRAM
    assert any(f"({os.getpid()})" in line for line in finding.evidence)


def test_a_plain_udp_socket_of_ipv6_is_bound_to_both_versions(
    network: Network, closing: contextlib.ExitStack
) -> None:
    network.port_range(LOW, HIGH)
    for _ in range(SIZE):
        sock = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        sock.connect(("127.0.0.1", 53))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock, pytest.raises(BlockingIOError):
        sock.connect(("::1", 53))
    asked = {"number": errno.EAGAIN, "protocol": "udp", "destination": Endpoint("::1", 53)}
    diagnosis = look(**asked)
    assert "exhaustion for sockets that do not share ports" in diagnosis.verdict
    assert diagnosis.because[0].cause is causes.UNSHARED
