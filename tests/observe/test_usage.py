"""Snapshots against what was opened, in private networks."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from connectx.addresses import Endpoint, PortRange
from connectx.linux import netns
from connectx.linux.processes import owners
from connectx.observe import Row, snapshot
from connectx.observe.history import Pair
from connectx.observe.usage import look_at
from connectx.sandbox.networks import Network, experiment_network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import reset_on_close
from tests.observe.helpers import leave_time_wait

LOW, HIGH = 20000, 20099
PORT = 9000


@pytest.fixture
def opened(
    network: Network, servers: Servers, closing: contextlib.ExitStack
) -> Callable[..., socket.socket]:
    """Opens connections to a listener on every address; closed without a TIME_WAIT."""
    network.port_range(LOW, HIGH)
    servers.listen("::", PORT)

    def connect(
        destination: str, source: str = "", kind: int = socket.SOCK_STREAM, port: int = 0
    ) -> socket.socket:
        family = socket.AF_INET6 if ":" in destination else socket.AF_INET
        sock = closing.enter_context(socket.socket(family, kind))
        if source or port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((source, port))
        sock.connect((destination, PORT))
        if kind == socket.SOCK_STREAM:
            reset_on_close(sock)
        return sock

    return connect


def test_nothing_is_in_use(network: Network) -> None:
    network.port_range(LOW, HIGH)
    taken = snapshot()
    assert taken.rows == ()
    assert taken.ports == PortRange(LOW, HIGH)
    assert taken.reserved == 0
    assert taken.held == {"tcp": 0, "udp": 0}
    assert taken.netns == str(Path("/proc/thread-self/ns/net").readlink())
    assert taken.taken_at.utcoffset() is not None


def test_pairs_of_source_and_destination(opened: Callable[..., socket.socket]) -> None:
    for _ in range(7):
        opened("127.0.0.1")
    for _ in range(5):
        opened("127.0.0.2", "127.0.0.3")
    for _ in range(3):
        opened("::1")
    for _ in range(2):
        opened("127.0.0.1", kind=socket.SOCK_DGRAM)
    # Of an IPv4-mapped address, which is the same 4-tuple space.
    opened("::ffff:127.0.0.1")
    rows = snapshot().rows
    assert [(row.protocol, row.source, str(row.destination), row.in_use) for row in rows] == [
        ("tcp", "127.0.0.1", "127.0.0.1:9000", 8),
        ("tcp", "127.0.0.3", "127.0.0.2:9000", 5),
        ("tcp", "::1", "[::1]:9000", 3),
        ("udp", "127.0.0.1", "127.0.0.1:9000", 2),
    ]
    assert {row.capacity for row in rows} == {100}
    assert rows[0].utilisation == 0.08
    assert rows[0].free == 92
    assert rows[0].states == {"ESTAB": 8}


def test_states(opened: Callable[..., socket.socket], servers: Servers) -> None:
    leave_time_wait(servers.listen("127.0.0.5", PORT + 1), ("127.0.0.5", PORT + 1))
    opened("127.0.0.5")
    taken = {row.destination.port: row.states for row in snapshot().rows}
    assert taken == {PORT: {"ESTAB": 1}, PORT + 1: {"TIME-WAIT": 1}}


def test_reserved_ports_and_holders_are_no_capacity(
    network: Network, opened: Callable[..., socket.socket], closing: contextlib.ExitStack
) -> None:
    network.reserved_ports(f"{LOW - 10}-{LOW + 9},{HIGH}")
    # One of the listeners is on a port that is reserved anyway.
    for port in (LOW + 20, LOW + 21, HIGH):
        listener = closing.enter_context(socket.socket())
        listener.bind(("127.0.0.77", port))
        listener.listen()
    for host, port in (("127.0.0.1", LOW + 30), ("127.0.0.77", LOW + 31), ("", LOW + 32)):
        sock = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        sock.bind((host, port))
    # After these, whose ports the kernel could choose.
    opened("127.0.0.1")
    opened("127.0.0.1", kind=socket.SOCK_DGRAM)
    taken = snapshot()
    assert taken.reserved == 11
    assert taken.held == {"tcp": 2, "udp": 1}
    # TCP's are taken from every address, UDP's from their own or from all.
    assert {row.protocol: row.capacity for row in taken.rows} == {"tcp": 87, "udp": 87}


def test_the_destination_s_own_port_is_no_capacity_at_its_own_address(
    network: Network, closing: contextlib.ExitStack
) -> None:
    """From there a socket would be connected to itself."""
    network.port_range(LOW, HIGH)
    for source in ("127.0.0.1", "127.0.0.2"):
        sock = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((source, LOW + 1))
        sock.connect(("127.0.0.1", LOW + 50))
    assert {row.source: row.capacity for row in snapshot().rows} == {
        "127.0.0.1": 99,
        "127.0.0.2": 100,
    }


def test_a_bound_tcp_socket_is_a_holder(network: Network, closing: contextlib.ExitStack) -> None:
    network.port_range(LOW, HIGH)
    sock = closing.enter_context(socket.socket())
    sock.bind(("127.0.0.1", LOW))
    if not snapshot().held["tcp"]:
        pytest.skip("kernel: before 6.8 a dump leaves bound sockets out")
    assert snapshot().held["tcp"] == 1


def test_what_comes_in_does_not_count(
    network: Network, servers: Servers, closing: contextlib.ExitStack
) -> None:
    """The listener's port lies within the range, and so do its connections' source ports."""
    network.port_range(LOW, HIGH)
    listener = servers.listen("127.0.0.1", LOW + 50)
    for _ in range(9):
        sock = closing.enter_context(socket.create_connection(("127.0.0.1", LOW + 50)))
        closing.enter_context(limits.accept(listener)[0])
        reset_on_close(sock)
    (row,) = snapshot().rows
    assert (row.in_use, row.capacity) == (9, 99)
    assert row.destination == Endpoint("127.0.0.1", LOW + 50)


def test_a_full_destination_is_full(network: Network, opened: Callable[..., socket.socket]) -> None:
    network.port_range(LOW, LOW + 9)
    network.reserved_ports(f"{LOW}")
    for _ in range(9):
        opened("127.0.0.1")
    with pytest.raises(OSError, match="Cannot assign"):
        opened("127.0.0.1")
    opened("127.0.0.2")
    (first, second) = snapshot().rows
    assert (first.utilisation, first.free) == (1.0, 0)
    assert second.in_use == 1


@pytest.mark.parametrize("destinations", [1, 7])
@pytest.mark.parametrize("processes", [False, True])
def test_what_a_connect_may_take_over_is_free(
    network: Network, servers: Servers, destinations: int, *, processes: bool
) -> None:
    if not Path("/proc/sys/net/ipv4/tcp_tw_reuse_delay").exists():
        pytest.skip("kernel: before 6.14 the delay is a second")
    # An even number: of an odd one connect() may pass over the last port.
    network.port_range(LOW, LOW + 3)
    network.sysctl("net.ipv4.tcp_tw_reuse_delay", 59_000)
    network.add_address("192.0.2.7")
    listener = servers.listen("::", PORT)
    hosts = ["192.0.2.7", *(f"127.0.0.{number}" for number in range(1, destinations + 1))]

    def leave_time_waits(number: int) -> None:
        for host in hosts:
            for _ in range(number):
                leave_time_wait(listener, (host, PORT))

    leave_time_waits(4)
    before = snapshot(processes=processes)
    assert [(row.in_use, row.reusable, row.free, row.utilisation) for row in before.rows] == [
        (4, 0, 0, 1.0)
    ] * len(hosts)
    network.sysctl("net.ipv4.tcp_tw_reuse_delay", 1)

    def look() -> list[Row]:
        rows = snapshot(processes=processes).rows
        return list(rows) if all(row.reusable == 4 for row in rows[1:]) else []

    rows = limits.until(look, "the last TIME_WAIT is a millisecond old")
    # By default only between loopback addresses.
    assert (rows[0].destination.host, rows[0].reusable, rows[0].free) == ("192.0.2.7", 0, 0)
    assert all((row.in_use, row.taken, row.free) == (4, 0, 4) for row in rows[1:])
    assert {row.utilisation for row in rows[1:]} == {0.0}
    hosts.pop(0)
    # And so it is.
    leave_time_waits(1)
    network.sysctl("net.ipv4.tcp_timestamps", 0)
    assert {row.reusable for row in snapshot(processes=processes).rows} == {0}


class TestUnshared:
    def test_what_a_plain_connect_can_have(
        self, network: Network, closing: contextlib.ExitStack
    ) -> None:
        network.port_range(LOW, LOW + 19)
        network.reserved_ports(f"{LOW},{LOW + 1}")

        def plain(host: str) -> socket.socket:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = closing.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sock.connect((host, PORT))
            return sock

        assert snapshot().unshared == {"udp": 18}
        for number in range(10):
            plain(f"127.0.1.{number}")
        plain("::1")
        servers = [closing.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2)]
        # One more, and one that is reserved anyway.
        servers[0].bind(("127.0.0.9", LOW + 1))
        used = {port for port in range(LOW + 2, LOW + 20) if not is_free(port)}
        servers[1].bind(("127.0.0.9", min(set(range(LOW + 2, LOW + 20)) - used)))
        taken = snapshot(protocols=["tcp", "udp"], destination=Endpoint("127.0.1.1", 0))
        assert taken.unshared == {"udp": 18 - len(used) - 1} == {"udp": 6}
        assert taken.rows[0].utilisation < 0.1
        for number in range(6):
            plain(f"127.0.2.{number}")
        with pytest.raises(BlockingIOError):
            plain("127.0.3.1")
        assert snapshot().unshared == {"udp": 0}

    def test_tcp_has_none(self, network: Network) -> None:
        del network
        assert snapshot(protocols=["tcp"]).unshared == {}


def is_free(port: int) -> bool:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(("", port))
        except OSError:
            return False
    return True


class TestWildcards:
    """UDP receivers on all addresses hold the ports of the families that they are for."""

    @pytest.fixture
    def received(self, network: Network, closing: contextlib.ExitStack) -> Callable[..., None]:
        network.port_range(LOW, HIGH)

        def receive(host: str, *ports: int, v6only: bool = False) -> None:
            for port in ports:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                sock = closing.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                if v6only:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((host, port))

        return receive

    @pytest.fixture
    def capacities(
        self, closing: contextlib.ExitStack
    ) -> Callable[..., dict[str, tuple[int, int]]]:
        def capacities(port: int, *families: str) -> dict[str, tuple[int, int]]:
            """Of IPv4, IPv6 and IPv4-mapped sockets on a port: how many are counted, of how many.

            families: those where the port is free.
            """
            for host in families or ("127.0.0.1", "::1"):
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                sock = closing.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                sock.bind((host, port))
                sock.connect((host, PORT))
            return {row.source: (row.in_use, row.capacity) for row in snapshot().rows}

        return capacities

    def test_of_ipv6_only(
        self,
        received: Callable[..., None],
        capacities: Callable[..., dict[str, tuple[int, int]]],
    ) -> None:
        received("::", LOW, LOW + 1, v6only=True)
        assert capacities(LOW, "127.0.0.1") == {"127.0.0.1": (1, 100)}
        assert capacities(LOW + 1, "::ffff:127.0.0.1") == {"127.0.0.1": (2, 100)}
        assert capacities(LOW + 2) == {"127.0.0.1": (3, 100), "::1": (1, 98)}
        assert capacities(LOW + 3, "::ffff:127.0.0.1")["127.0.0.1"] == (4, 100)
        assert snapshot().held["udp"] == 2

    def test_of_ipv4_only(
        self,
        received: Callable[..., None],
        capacities: Callable[..., dict[str, tuple[int, int]]],
    ) -> None:
        received("0.0.0.0", LOW, LOW + 1)
        assert capacities(LOW, "::1") == {"::1": (1, 100)}
        assert capacities(LOW + 2) == {"127.0.0.1": (1, 98), "::1": (2, 100)}
        assert snapshot().held["udp"] == 2

    def test_of_both(
        self,
        received: Callable[..., None],
        capacities: Callable[..., dict[str, tuple[int, int]]],
    ) -> None:
        received("::", LOW, LOW + 1)
        received("::1", LOW + 5)
        assert capacities(LOW + 2) == {"127.0.0.1": (1, 98), "::1": (1, 97)}
        assert snapshot().held["udp"] == 2

    def test_of_tcp_any_of_them_is_held_for_all(
        self, network: Network, opened: Callable[..., socket.socket], servers: Servers
    ) -> None:
        servers.listen("::1", LOW)
        network.port_range(LOW, HIGH)
        for host in ("127.0.0.1", "::1"):
            opened(host)
        assert {row.capacity for row in snapshot().rows} == {99}


class TestLinkLocal:
    """An address and a port on two devices are two destinations."""

    @pytest.fixture
    def devices(self, network: Network, closing: contextlib.ExitStack) -> dict[str, int]:
        network.port_range(LOW, LOW + 19)
        indexes = {}
        for device, number in (("one", 12), ("two", 9)):
            network.add_device_pair(device, f"{device}-peer")
            network.add_address("fe80::1", 64, device)
            indexes[device] = socket.if_nametoindex(device)
            for _ in range(number):
                sock = closing.enter_context(socket.socket(socket.AF_INET6))
                sock.setblocking(False)  # noqa: FBT003 - named so by socket
                sock.bind(("fe80::1", 0, 0, indexes[device]))
                sock.connect_ex(("fe80::9", PORT, 0, indexes[device]))
        return indexes

    def test_each_is_counted_by_itself(self, devices: dict[str, int]) -> None:
        found = [(row.source, row.destination, row.in_use) for row in snapshot().rows]
        assert found == [
            (f"fe80::1%{devices[name]}", Endpoint("fe80::9", PORT, 0, devices[name]), number)
            for name, number in (("one", 12), ("two", 9))
        ]
        assert str(found[0][1]) == f"[fe80::9%{devices['one']}]:{PORT}"

    def test_filters(self, devices: dict[str, int]) -> None:
        one = devices["one"]
        for arguments in (
            {"destination": Endpoint("fe80::9%one", PORT)},
            {"destination": Endpoint(f"fe80::9%{one}", 0)},
            {"destination": Endpoint("fe80::9", PORT, 0, one)},
            {"source": "fe80::1%one"},
            {"source": "fe80::1%one", "destination": Endpoint(f"fe80::9%{one}", 0)},
        ):
            assert [row.in_use for row in snapshot(**arguments).rows] == [12]
        assert len(snapshot(destination=Endpoint("fe80::9", PORT)).rows) == 2
        with pytest.raises(ValueError, match="are not on the same interface"):
            snapshot(source="fe80::1%two", destination=Endpoint("fe80::9%one", PORT))
        with pytest.raises(OSError, match="no interface is named 'three'"):
            snapshot(source="fe80::1%three")

    def test_a_receiver_holds_its_port_on_its_device(
        self, devices: dict[str, int], closing: contextlib.ExitStack
    ) -> None:
        for index in devices.values():
            for port in (LOW, LOW + 1):
                sock = closing.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
                sock.bind(("fe80::1", port, 0, index))
                if port == LOW or index == devices["two"]:
                    sock.connect(("fe80::9", PORT, 0, index))
        capacities = {
            row.destination.scope_id: row.capacity for row in snapshot(protocols=["udp"]).rows
        }
        assert capacities == {devices["one"]: 19, devices["two"]: 20}

    def test_of_other_addresses_they_are_together(
        self, devices: dict[str, int], closing: contextlib.ExitStack
    ) -> None:
        del devices
        for device in ("", "lo"):
            sock = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            sock.connect(("127.0.0.1", PORT))
        (row,) = snapshot(protocols=["udp"]).rows
        assert (row.source, row.destination.scope_id, row.in_use) == ("127.0.0.1", 0, 2)

    def test_a_closer_look(self, devices: dict[str, int]) -> None:
        del devices
        for row in snapshot().rows:
            assert sum(look_at(Pair.of(row)).states.values()) == row.in_use


def test_filters(opened: Callable[..., socket.socket]) -> None:
    for source, destination in (
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2"),
        ("::1", "::1"),
    ):
        opened(destination, source)
    assert len(snapshot().rows) == 4
    assert len(snapshot(source="127.0.0.2").rows) == 2
    assert len(snapshot(destination=Endpoint("127.0.0.1", 0)).rows) == 2
    assert len(snapshot(destination=Endpoint("127.0.0.1", PORT)).rows) == 2
    assert len(snapshot(destination=Endpoint("", PORT)).rows) == 4
    assert len(snapshot(destination=Endpoint("", PORT + 1)).rows) == 0
    assert len(snapshot(source="127.0.0.2", destination=Endpoint("127.0.0.2", 0)).rows) == 1
    assert len(snapshot(source="::1").rows) == 1
    assert len(snapshot(protocols=["udp"]).rows) == 0


def test_another_range(opened: Callable[..., socket.socket]) -> None:
    opened("127.0.0.1", port=30001)
    opened("127.0.0.1", port=30003)
    assert snapshot().rows == ()
    (row,) = snapshot(port_range=PortRange(30000, 30002)).rows
    assert (row.in_use, row.capacity) == (1, 3)


def test_more_holes_than_one_filter_takes(
    network: Network, opened: Callable[..., socket.socket]
) -> None:
    network.port_range(20001, 24000)
    network.reserved_ports(",".join(map(str, range(20002, 24000, 2))))
    for port in (20001, 20003, 23997, 23999, 24000):
        opened("127.0.0.1", port=port)
    opened("127.0.0.1", port=20002)
    (row,) = snapshot().rows
    assert (row.in_use, row.capacity) == (5, 2001)


def test_processes(opened: Callable[..., socket.socket]) -> None:
    opened("127.0.0.1")
    (row,) = snapshot(processes=True).rows
    ((process, number),) = row.processes.items()
    assert process is not None
    assert (process.pid, number) == (os.getpid(), 1)
    assert process.command == Path("/proc/self/comm").read_text().strip()


def test_owners_of_a_socket_that_is_shared(opened: Callable[..., socket.socket]) -> None:
    sock = opened("127.0.0.1")
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[sock.fileno()])
    try:
        pids = {each.pid for each in owners().by_inode[os.fstat(sock.fileno()).st_ino]}
    finally:
        child.communicate(timeout=limits.LIMIT)
    assert pids == {os.getpid(), child.pid}


class TestOtherNamespaces:
    def test_by_pid_and_path(self, network: Network, servers: Servers) -> None:
        network.port_range(LOW, HIGH)
        servers.listen("127.0.0.1", PORT)
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        with socket.create_connection(("127.0.0.1", PORT)) as sock, experiment_network():
            reset_on_close(sock)
            elsewhere = netns.current()
            assert snapshot().rows == ()
            for name in (str(child.pid), f"/proc/{child.pid}/ns/net"):
                taken = snapshot(netns=name)
                assert taken.ports == PortRange(LOW, HIGH)
                assert [row.in_use for row in taken.rows] == [1]
            assert netns.current() == elsewhere
        child.communicate(timeout=limits.LIMIT)

    def test_by_a_name_that_there_is_not(self, network: Network) -> None:
        del network
        before = netns.current()
        for name in ("no-such-name", "/no/such/path", "4194304"):
            with pytest.raises(FileNotFoundError, match="no such network namespace"):
                snapshot(netns=name)
        with pytest.raises(OSError, match="cannot enter"):
            snapshot(netns="/dev/null")
        assert netns.current() == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"protocols": ["sctp"]},
        {"source": "here"},
        {"source": "::1", "destination": Endpoint("127.0.0.1", 0)},
        {"destination": Endpoint("there", 0)},
    ],
)
def test_wrong_use(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"protocol|IP version|address"):
        snapshot(**wrong)  # type: ignore[arg-type]
