"""Prefixes of sources: used in full, and looked up by one dump for all of them."""

import contextlib
import math
import socket
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import connectx
from connectx._dial import connecting, policy
from connectx._dial.policy import Policy
from connectx._dial.slots import WORTH_COUNTING
from connectx.linux import uapi
from connectx.linux.devices import EVERY_DEVICE
from connectx.linux.netlink import NetlinkSocket, Run
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import close_first, ip, reset_on_close
from tests.dialer.drivers import LOW, Driver
from tests.dialer.waiting import both_kinds
from tests.kernel.raw import FIRST

HERE = ("127.0.0.1", FIRST)


@pytest.fixture
def dumps(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The requests of all dumps of sockets."""
    asked: list[bytes] = []
    original = NetlinkSocket.dump

    def dump(self: NetlinkSocket, kind: int, payload: bytes) -> Iterator[Run]:
        if payload != EVERY_DEVICE:
            asked.append(payload)
        return original(self, kind, payload)

    monkeypatch.setattr(NetlinkSocket, "dump", dump)
    return asked


@both_kinds
@pytest.mark.parametrize(
    "prefix, address", [("127.1.2.0/23", HERE), ("2001:db8:1::/119", ("::1", FIRST))]
)
def test_a_prefix_is_used_in_full(
    network: Network,
    servers: Servers,
    closing: contextlib.ExitStack,
    kind: int,
    prefix: str,
    address: tuple[str, int],
) -> None:
    """One that is too large for a list of its addresses."""
    network.port_range(LOW, LOW)
    ip("route", "add", "local", prefix, "dev", "lo")
    servers.listen(address[0], FIRST, backlog=1024)
    dialer = connectx.Dialer([prefix], freebind=True)
    total = dialer.capacity(address, type=kind).total
    assert total in (510, 511)
    sources = Counter(
        closing.enter_context(dialer.create_connection(address, type=kind)).getsockname()[0]
        for _ in range(total)
    )
    assert len(sources) == total
    assert dialer.capacity(address, type=kind).free == 0
    with pytest.raises(connectx.PortsExhausted):
        dialer.create_connection(address, type=kind)


@both_kinds
def test_capacity_asks_once_for_all_sources(
    listening: Network, closing: contextlib.ExitStack, dumps: list[bytes], kind: int
) -> None:
    del listening
    for host, count in (("127.0.1.7", 2), ("127.0.1.200", 1), ("127.0.2.9", 3), ("127.0.4.1", 1)):
        for _ in range(count):
            source = (host, 0)
            closing.enter_context(
                connectx.create_connection(HERE, source_address=source, type=kind)
            )
    dialer = connectx.Dialer(["127.0.1.0/24", "127.0.2.0/23"])
    dumps.clear()
    found = dialer.capacity(HERE, type=kind)
    # UDP's sockets are in two tables, by the socket's own family.
    assert len(dumps) == (1 if kind == socket.SOCK_STREAM else 2)
    assert {each.source: each.in_use for each in found.sources if each.in_use} == {
        "127.0.1.7": {"ESTAB": 2},
        "127.0.1.200": {"ESTAB": 1},
        "127.0.2.0/23": {"ESTAB": 3},
    }
    assert found.in_use == 6


@both_kinds
@pytest.mark.parametrize("wait", [None, 0.2])
def test_a_call_that_finds_all_full_asks_once_for_all(
    driver: Driver,
    listening: Network,
    closing: contextlib.ExitStack,
    dumps: list[bytes],
    kind: int,
    wait: float | None,
) -> None:
    """And not about each of a hundred sources."""
    listening.port_range(LOW, LOW + 1)
    others = [
        closing.enter_context(
            connectx.create_connection(HERE, source_address=(f"127.0.1.{number}", 0), type=kind)
        )
        for number in range(1, 127)
        for _ in range(2)
    ]

    async def scenario() -> None:
        dialer = driver.dialer(["127.0.1.0/25"], wait=wait)
        with pytest.raises(connectx.PortsExhausted):
            await dialer.create_connection(HERE, type=kind)
        attempts = dialer.stats().attempts
        if wait is None:
            assert attempts == 2
            dumps.clear()
            with pytest.raises(connectx.PortsExhausted):
                await dialer.create_connection(HERE, type=kind)
            # For the two that were tried, and for all.
            assert len(dumps) <= 3 * 2
        else:
            assert attempts < 60
        # The one that has a port is found, whichever it is.
        reset_on_close(others[100])
        others[100].close()
        sock = closing.enter_context(await dialer.create_connection(HERE, type=kind))
        assert sock.getsockname()[0] == "127.0.1.51"

    driver.run(scenario)


def test_time_wait_may_be_taken_over_so_it_is_tried(network: Network, servers: Servers) -> None:
    network.port_range(LOW, LOW)
    listener = servers.listen(*HERE)
    sources = [f"127.0.0.{number}" for number in (2, 3, 4, 5, 1, 6)]
    socks = []
    for source in sources:
        socks.append(connectx.create_connection(HERE, source_address=(source, 0)))
        server, _ = limits.accept(listener)
        if source == sources[-2]:
            close_first(socks[-1], server, uapi.TCP_TIME_WAIT)
        else:
            server.close()
    dialer = connectx.Dialer(sources)
    with pytest.raises(connectx.PortsExhausted):
        dialer.create_connection(HERE)
    # Two, and the one that nobody has a connection from.
    assert dialer.stats().attempts == 3
    for sock in socks:
        sock.close()


@both_kinds
@pytest.mark.parametrize(
    "sources, count",
    [
        (None, 1),
        (["127.0.0.1"], 1),
        (["127.0.0.1", "127.0.0.2"], 2),
        (["127.0.0.0/22"], 1022),
        (["127.0.0.0/22", "127.0.0.1"], 1022),
    ],
)
def test_the_destinations_own_port_is_none_at_its_address(
    listening: Network, kind: int, sources: list[str] | None, count: int
) -> None:
    """From there a socket would be connected to itself."""
    listening.port_range(FIRST - 1, FIRST + 1)
    assert connectx.Dialer(sources).capacity(HERE, type=kind).total == 3 * count - 1


def test_a_full_source_at_the_destinations_address_is_known_to_be_full(
    listening: Network, closing: contextlib.ExitStack
) -> None:
    """Over UDP: over TCP the listener has the port at each address."""
    kind = socket.SOCK_DGRAM
    listening.port_range(FIRST - 1, FIRST + 1)
    sources = [f"127.0.0.{number}" for number in (2, 3, 4, 1)]
    for source in sources:
        for _ in range(2 if source == "127.0.0.1" else 3):
            closing.enter_context(
                connectx.create_connection(HERE, source_address=(source, 0), type=kind)
            )
    dialer = connectx.Dialer(sources)
    assert dialer.capacity(HERE, type=kind).free == 0
    with pytest.raises(connectx.PortsExhausted):
        dialer.create_connection(HERE, type=kind)
    assert dialer.stats().attempts == 2


@both_kinds
def test_an_ipv4_mapped_destination_has_the_same_sources(
    listening: Network, closing: contextlib.ExitStack, kind: int
) -> None:
    del listening
    dialer = connectx.Dialer(["127.0.0.2", "127.0.0.3"])
    mapped = ("::ffff:127.0.0.1", FIRST)
    for address in (HERE, mapped, mapped):
        closing.enter_context(dialer.create_connection(address, type=kind))
    for address in (HERE, mapped):
        found = dialer.capacity(address, type=kind)
        assert [each.in_use for each in found.sources] == [{"ESTAB": 2}, {"ESTAB": 1}]
    assert dialer.capacity(mapped, type=kind).sources[0].source == "::ffff:127.0.0.2"


class TestOthersConnections:
    """They are counted now and then, as "most-free" wants to know of them."""

    @pytest.fixture
    def open_to(self, network: Network, servers: Servers) -> tuple[str, int]:
        network.port_range(LOW, LOW + 199)
        servers.listen(*HERE, backlog=1024)
        return HERE

    @both_kinds
    def test_once_for_all_sources(
        self,
        open_to: tuple[str, int],
        closing: contextlib.ExitStack,
        dumps: list[bytes],
        kind: int,
    ) -> None:
        dialer = connectx.Dialer(["127.1.0.0/24"])
        for _ in range(WORTH_COUNTING):
            assert not dumps
            closing.enter_context(dialer.create_connection(open_to, type=kind))
        assert len(dumps) == (1 if kind == socket.SOCK_STREAM else 2)

    @both_kinds
    @pytest.mark.parametrize("own", [True, False], ids=["own socket", "caller's socket"])
    def test_not_within_a_call_that_has_a_timeout(
        self,
        open_to: tuple[str, int],
        closing: contextlib.ExitStack,
        dumps: list[bytes],
        kind: int,
        *,
        own: bool,
    ) -> None:
        dialer = connectx.Dialer(["127.1.0.0/24"])
        for _ in range(2 * WORTH_COUNTING):
            if own:
                closing.enter_context(dialer.create_connection(open_to, 60, type=kind))
            else:
                sock = closing.enter_context(socket.socket(type=kind))
                sock.settimeout(60)
                dialer.connectx(sock, open_to)
        assert not dumps

    def test_for_a_hundredth_of_the_time(
        self,
        open_to: tuple[str, int],
        closing: contextlib.ExitStack,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        clock = SimpleNamespace(now=1000.0)
        clock.monotonic = lambda: clock.now
        monkeypatch.setattr(connecting, "time", clock)
        monkeypatch.setattr(policy, "time", clock)
        dialer = connectx.Dialer(["127.1.0.0/24"])
        counted: list[float] = []

        def capacity(*_: Any) -> None:
            counted.append(clock.now)
            # Another thread leaves it to this one.
            assert dialer._policy.open.count_again == math.inf
            clock.now += 2.0

        monkeypatch.setattr(Policy, "capacity", capacity)

        def open_some(number: int) -> None:
            for _ in range(number):
                sock = dialer.create_connection(open_to, type=socket.SOCK_DGRAM)
                closing.enter_context(sock)

        open_some(2 * WORTH_COUNTING)
        assert counted == [1000.0]
        clock.now += 99 * 2.0
        open_some(2 * WORTH_COUNTING)
        assert counted == [1000.0, 1200.0]
