"""Many sources and ranges are filled to the last port, in the order that was asked for."""

import asyncio
import contextlib
import socket

import pytest

import connectx
from connectx import PortsExhausted, SourceNotLocal
from connectx._connect.namespace import NAMESPACES, windows_work
from connectx.linux import features
from connectx.linux.features import Probe
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.api.calls import errno_of_exhaustion, ip, is_stream, port_of
from tests.dialer.drivers import (
    FOREVER,
    HIGH,
    LOW,
    PORTS,
    SIZE,
    Driver,
    Waits,
    by_source,
    close,
    every_transport,
    fill,
    four_tuples,
    kind_of,
    nothing_open,
    start,
)
from tests.kernel.raw import (
    FIRST,
    SECOND,
    TCP,
    UDP,
    UDP6,
    Transport,
)

TWO = ["127.0.0.2", "127.0.0.3"]
TWO6 = ["::1", "::2"]


class TestTwoSources:
    @every_transport
    def test_give_twice_the_range(
        self, driver: Driver, serving: Transport, closing: contextlib.ExitStack
    ) -> None:
        sources = TWO6 if ":" in serving.source else TWO
        address = (serving.source, FIRST)

        async def scenario() -> None:
            dialer = driver.dialer(sources)
            opened = []
            for count in range(1, 2 * SIZE + 1):
                sock = closing.enter_context(
                    await dialer.create_connection(address, **kind_of(serving))
                )
                opened.append(sock)
                assert sock.gettimeout() == (0 if driver.cancels else None)
                # Evenly: at any moment neither has more than one ahead.
                each = by_source(opened)
                assert {each.get(source, 0) for source in sources} <= {count // 2, (count + 1) // 2}
            assert dialer.stats().failures == {}
            for source in sources:
                mine = [sock for sock in opened if sock.getsockname()[0] == source]
                assert sorted(map(port_of, mine)) == PORTS
            with pytest.raises(PortsExhausted) as caught:
                await dialer.create_connection(address, **kind_of(serving))
            assert caught.value.errno == errno_of_exhaustion(serving)
            assert not isinstance(caught.value, BlockingIOError)
            # One place was free again, and is the next to be used.
            port = close(opened.pop())
            again = closing.enter_context(
                await dialer.create_connection(address, **kind_of(serving))
            )
            assert port_of(again) == port

        driver.run(scenario)

    def test_of_both_families_serve_their_own(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening

        async def scenario() -> None:
            dialer = driver.dialer([*TWO, *TWO6])
            for host, sources in (("127.0.0.1", TWO), ("::1", TWO6), ("::ffff:127.0.0.1", TWO)):
                opened = await fill(dialer, (host, FIRST), closing)
                mapped = "::ffff:" if "ffff" in host else ""
                if not mapped:
                    assert by_source(opened) == dict.fromkeys(sources, SIZE)
                    continue
                # On the same 4-tuples as the first, so there is none left.
                assert opened == []
                opened = await fill(dialer, (host, SECOND), closing)
                assert by_source(opened) == {f"{mapped}{source}": SIZE for source in sources}

        driver.run(scenario)

    def test_others_connections_are_in_the_way_of_one_only(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening
        for _ in PORTS:
            closing.enter_context(
                connectx.create_connection(("127.0.0.1", FIRST), source_address=(TWO[0], 0))
            )

        async def scenario() -> None:
            dialer = driver.dialer(TWO)
            opened = await fill(dialer, ("127.0.0.1", FIRST), closing)
            assert by_source(opened) == {TWO[1]: SIZE}

        driver.run(scenario)

    def test_none_at_all_leaves_it_to_routing(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening

        async def scenario() -> None:
            dialer = driver.dialer()
            assert by_source(await fill(dialer, ("127.0.0.1", FIRST), closing)) == {
                "127.0.0.1": SIZE
            }
            assert by_source(await fill(dialer, ("::1", FIRST), closing)) == {"::1": SIZE}

        driver.run(scenario)

    def test_one_that_is_not_local_is_an_error(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening, closing

        async def scenario() -> None:
            dialer = driver.dialer(["192.0.2.7"])
            with pytest.raises(SourceNotLocal):
                await dialer.create_connection(("127.0.0.1", FIRST))
            assert dialer.stats().opened == 0
            assert nothing_open(dialer.policy)

        driver.run(scenario)


def test_a_scope_is_looked_up_each_time(
    driver: Driver, network: Network, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interface's name may be another one's the next time."""
    for device in ("one", "two"):
        network.add_device_pair(device, f"{device}-peer")
        network.add_address("fe80::1", 64, device)
    servers.listen("::", FIRST)
    indexes = [socket.if_nametoindex(device) for device in ("one", "two")]

    async def scenario() -> None:
        to = driver.dialer()
        for index in (indexes[0], *indexes):
            monkeypatch.setattr(socket, "if_nametoindex", lambda _, index=index: index)
            with await to.create_connection(("fe80::1%one", FIRST)) as sock:
                assert sock.getpeername()[3] == index

    driver.run(scenario)


class TestRotation:
    def test_round_robin(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening
        sources = [*TWO, "127.0.0.4"]

        async def scenario() -> None:
            dialer = driver.dialer(sources, rotate="round-robin")
            taken: dict[int, list[str]] = {FIRST: [], SECOND: []}
            for port in (FIRST, SECOND, FIRST, SECOND, FIRST, FIRST, SECOND, SECOND):
                sock = closing.enter_context(await dialer.create_connection(("127.0.0.1", port)))
                taken[port].append(sock.getsockname()[0])
            # Each destination has turns of its own.
            for hosts in taken.values():
                first = sources.index(hosts[0])
                assert hosts == (sources * 3)[first : first + 4]
            # And still to the last port.
            rest = await fill(dialer, ("127.0.0.1", FIRST), closing)
            assert len(rest) == 3 * SIZE - 4

        driver.run(scenario)

    def test_most_free_is_per_destination(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening

        async def scenario() -> None:
            dialer = driver.dialer(TWO)
            first = [
                closing.enter_context(await dialer.create_connection(("127.0.0.1", FIRST)))
                for _ in range(4)
            ]
            gone = [sock for sock in first if sock.getsockname()[0] == TWO[1]]
            for sock in gone:
                close(sock)
            # The other destination is as good as new, and here the emptier one is next.
            second = closing.enter_context(await dialer.create_connection(("127.0.0.1", SECOND)))
            assert second.getsockname()[0] == TWO[0]
            for _ in gone:
                sock = closing.enter_context(await dialer.create_connection(("127.0.0.1", FIRST)))
                assert sock.getsockname()[0] == TWO[1]

        driver.run(scenario)

    def test_most_free_knows_others_connections_once_it_has_looked(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening
        for _ in range(4):
            closing.enter_context(
                connectx.create_connection(("127.0.0.1", FIRST), source_address=(TWO[0], 0))
            )

        async def scenario() -> None:
            dialer = driver.dialer(TWO)
            closing.enter_context(await dialer.create_connection(("127.0.0.1", FIRST)))
            capacity = await dialer.capacity(("127.0.0.1", FIRST))
            assert [source.free for source in capacity.sources] == [SIZE - 5, SIZE]
            opened = [
                closing.enter_context(await dialer.create_connection(("127.0.0.1", FIRST)))
                for _ in range(5)
            ]
            assert by_source(opened) == {TWO[1]: 5}

        driver.run(scenario)

    def test_sticky(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening
        sources = [f"127.0.0.{number}" for number in range(2, 10)]

        async def scenario() -> None:
            dialer = driver.dialer(sources, rotate="sticky")
            of_key = {}
            for key in ("alice", "bob", "carol", "dave"):
                opened = [
                    closing.enter_context(
                        await dialer.create_connection(("127.0.0.1", port), key=key)
                    )
                    for port in (FIRST, SECOND)
                ]
                (of_key[key],) = by_source(opened)
            assert len(set(of_key.values())) > 1
            # No other source takes its place when it is full.
            opened = await fill(dialer, ("127.0.0.1", FIRST), closing, key="alice")
            assert set(by_source(opened)) == {of_key["alice"]}
            # By default the destination's host is the key.
            a = closing.enter_context(await dialer.create_connection(("127.0.0.1", SECOND)))
            b = closing.enter_context(
                await dialer.create_connection(("127.0.0.1", SECOND), key="127.0.0.1")
            )
            assert len(by_source([a, b])) == 1

        driver.run(scenario)

    def test_sticky_waits_for_its_own_source_only(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        """Those who wait for a full one are in nobody else's way."""
        del listening
        address = ("127.0.0.1", FIRST)

        async def scenario() -> None:
            waits = Waits()
            to = driver.dialer(TWO, rotate="sticky", wait=FOREVER, on_wait=waits)
            keys: dict[str, str] = {}
            for number in range(20):
                keys.setdefault(to.policy.settings.sources.only(4, str(number)), str(number))
            full, free = (keys[source] for source in TWO)
            held = [
                closing.enter_context(await to.create_connection(address, key=full)) for _ in PORTS
            ]
            call = await start(to.create_connection(address, key=full))
            await waits.reach(1)
            async with asyncio.timeout(FOREVER / 2):
                sock = closing.enter_context(await to.create_connection(address, key=free))
            assert sock.getsockname()[0] == TWO[1]
            assert to.stats().waits == 1
            close(held.pop())
            closing.enter_context(await call)

        driver.run(scenario)

    def test_sticky_is_the_same_for_a_mapped_address(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening

        async def scenario() -> None:
            to = driver.dialer([f"127.0.0.{number}" for number in range(2, 40)], rotate="sticky")
            for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
                plain, mapped = [
                    closing.enter_context(await to.create_connection((each, FIRST)))
                    for each in (host, f"::ffff:{host}")
                ]
                assert f"::ffff:{plain.getsockname()[0]}" == mapped.getsockname()[0]

        driver.run(scenario)


class TestRanges:
    @pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
    def test_one_after_the_other(
        self, driver: Driver, serving: Transport, closing: contextlib.ExitStack
    ) -> None:
        if is_stream(serving) and not windows_work("tcp"):
            pytest.skip("kernel: no IP_LOCAL_PORT_RANGE")

        async def scenario() -> None:
            dialer = driver.dialer(ports=[(LOW + 4, LOW + 5), (LOW, LOW + 1)])
            opened = await fill(dialer, (serving.source, FIRST), closing, **kind_of(serving))
            ports = [port_of(sock) for sock in opened]
            assert sorted(ports[:2]) == [LOW + 4, LOW + 5]
            assert sorted(ports[2:]) == [LOW, LOW + 1]
            capacity = await dialer.capacity((serving.source, FIRST), **kind_of(serving))
            assert (capacity.total, capacity.free) == (4, 0)

        driver.run(scenario)

    @pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
    def test_disjoint_slices_share_an_address(
        self, driver: Driver, serving: Transport, closing: contextlib.ExitStack
    ) -> None:
        if is_stream(serving) and not windows_work("tcp"):
            pytest.skip("kernel: no IP_LOCAL_PORT_RANGE")

        async def scenario() -> None:
            found = []
            for slice_ in ((LOW, LOW + 3), (LOW + 4, HIGH)):
                dialer = driver.dialer(["127.0.0.1"], slice_)
                opened = await fill(dialer, (serving.source, FIRST), closing, **kind_of(serving))
                assert sorted(map(port_of, opened)) == list(range(slice_[0], slice_[1] + 1))
                found += opened
            assert len(four_tuples(found)) == SIZE

        driver.run(scenario)

    @pytest.mark.parametrize("ports", [(LOW - 1, LOW), (HIGH, HIGH + 1), (30000, 30010)])
    @pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
    def test_outside_of_the_range_in_force(
        self,
        driver: Driver,
        serving: Transport,
        closing: contextlib.ExitStack,
        ports: tuple[int, int],
    ) -> None:
        """They are bound one by one."""

        async def scenario() -> None:
            dialer = driver.dialer(ports=ports)
            opened = await fill(dialer, (serving.source, FIRST), closing, **kind_of(serving))
            assert sorted(map(port_of, opened)) == list(range(ports[0], ports[1] + 1))

        driver.run(scenario)

    @pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
    def test_outside_since_the_range_has_changed(
        self,
        driver: Driver,
        serving: Transport,
        network: Network,
        closing: contextlib.ExitStack,
    ) -> None:
        async def scenario() -> None:
            dialer = driver.dialer(ports=(LOW, LOW + 3))
            closing.enter_context(
                await dialer.create_connection((serving.source, FIRST), **kind_of(serving))
            )
            network.port_range(30000, 30009)
            # What is known of the namespace is looked up again after a second at most, and
            # before that when the kernel has ignored a window.
            NAMESPACES._forget()
            opened = await fill(dialer, (serving.source, FIRST), closing, **kind_of(serving))
            assert len(opened) == 3
            assert {port_of(sock) for sock in opened} < set(range(LOW, LOW + 4))

        driver.run(scenario)

    def test_a_window_that_is_ignored_is_noticed(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        """The range changes between two calls, and nobody has told."""
        if not windows_work("tcp"):
            pytest.skip("kernel: without windows ports are bound, which no range keeps from")

        async def scenario() -> None:
            dialer = driver.dialer(ports=(LOW, LOW + 3))
            closing.enter_context(await dialer.create_connection(("127.0.0.1", FIRST)))
            listening.port_range(30000, 30009)
            sock = closing.enter_context(await dialer.create_connection(("127.0.0.1", FIRST)))
            assert LOW <= port_of(sock) <= LOW + 3
            assert dialer.stats().opened == 2

        driver.run(scenario)

    @pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
    def test_without_windows(
        self,
        driver: Driver,
        serving: Transport,
        closing: contextlib.ExitStack,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """As on kernels before 6.3: the ports are bound one by one."""
        probe = features.probe

        def without(feature: features.Feature) -> Probe:
            return Probe.NO if "IP_LOCAL_PORT_RANGE" in feature.name else probe(feature)

        monkeypatch.setattr(features, "probe", without)

        async def scenario() -> None:
            dialer = driver.dialer(TWO, (LOW + 1, LOW + 4))
            opened = await fill(dialer, (serving.source, FIRST), closing, **kind_of(serving))
            assert by_source(opened) == dict.fromkeys(TWO, 4)
            assert {port_of(sock) for sock in opened} == set(range(LOW + 1, LOW + 5))

        driver.run(scenario)


class TestPrefixes:
    """Sources that are no address of this host: IP_FREEBIND."""

    def test_any_address_of_it(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening

        async def scenario() -> None:
            dialer = driver.dialer(["2001:db8:1::/64"], freebind=True)
            opened = [
                closing.enter_context(
                    await dialer.create_connection(("::1", FIRST), type=socket.SOCK_DGRAM)
                )
                for _ in range(3 * SIZE)
            ]
            hosts = by_source(opened)
            assert all(host.startswith("2001:db8:1:") for host in hosts)
            # 64 random bits: each has its own.
            assert len(hosts) == 3 * SIZE

        driver.run(scenario)

    def test_without_freebind_they_have_to_be_local(
        self, driver: Driver, listening: Network
    ) -> None:
        del listening

        async def scenario() -> None:
            dialer = driver.dialer(["2001:db8:1::/64"])
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with pytest.raises(SourceNotLocal):
                    await dialer.create_connection(("::1", FIRST), type=kind)

        driver.run(scenario)

    @pytest.mark.parametrize("ports", [None, (LOW, LOW + 3)])
    @pytest.mark.parametrize("transport", [UDP, UDP6], ids=str)
    def test_small_ones_are_lists_of_addresses(
        self,
        driver: Driver,
        serving: Transport,
        closing: contextlib.ExitStack,
        ports: tuple[int, int] | None,
    ) -> None:
        prefix = "192.0.2.8/30" if serving is UDP else "2001:db8::8/126"
        add_any_ip_route(prefix)

        async def scenario() -> None:
            dialer = driver.dialer([prefix], ports, freebind=True)
            opened = await fill(dialer, (serving.source, FIRST), closing, **kind_of(serving))
            assert set(by_source(opened).values()) == {4 if ports else SIZE}
            assert len(by_source(opened)) >= 2

        driver.run(scenario)

    def test_streams_from_a_routed_prefix(
        self, driver: Driver, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        """As a host that a whole prefix is routed to, which it has no single address of."""
        del listening
        add_any_ip_route("2001:db8:1::/64")

        async def scenario() -> None:
            dialer = driver.dialer(["2001:db8:1::/64"], freebind=True)
            opened = [
                closing.enter_context(await dialer.create_connection(("::1", FIRST)))
                for _ in range(2 * SIZE)
            ]
            assert len(by_source(opened)) == 2 * SIZE
            capacity = await dialer.capacity(("::1", FIRST))
            assert capacity.in_use == 2 * SIZE
            # The subnet's own address is its routers'.
            assert capacity.total == SIZE * (2**64 - 1)

        driver.run(scenario)


def add_any_ip_route(prefix: str) -> None:
    """Have every address of a prefix be local."""
    ip("-6" if ":" in prefix else "-4", "route", "add", "local", prefix, "dev", "lo")
