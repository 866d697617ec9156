"""capacity(): what there is toward a destination, whoever has it."""

import contextlib
import socket
from typing import Any

import pytest

import connectx
from connectx._connect.namespace import NAMESPACES
from connectx.linux import uapi
from connectx.linux.sockopts import set_ip_freebind
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import close_first, is_stream
from tests.dialer.drivers import HIGH, LOW, SIZE, Driver, close, every_transport, kind_of
from tests.kernel.raw import FIRST, SECOND, Transport

HERE = ("127.0.0.1", FIRST)


@every_transport
def test_counts_whoever_has_the_connections(
    driver: Driver, serving: Transport, closing: contextlib.ExitStack
) -> None:
    kind = kind_of(serving)
    address = (serving.source, FIRST)
    others = [closing.enter_context(connectx.create_connection(address, **kind)) for _ in range(3)]

    async def scenario() -> None:
        dialer = driver.dialer()
        assert (await dialer.capacity(address, **kind))[:3] == (SIZE, 3, SIZE - 3)
        mine = [
            closing.enter_context(await dialer.create_connection(address, **kind)) for _ in "12"
        ]
        capacity = await dialer.capacity(address, **kind)
        assert capacity[:3] == (SIZE, 5, SIZE - 5)
        (source,) = capacity.sources
        assert (source.source, source.total, source.free) == (serving.source, SIZE, SIZE - 5)
        assert source.in_use == {"ESTAB": 5}
        for sock in (*others, *mine):
            close(sock)
        assert (await dialer.capacity(address, **kind))[:3] == (SIZE, 0, SIZE)

    driver.run(scenario)


@every_transport
def test_sockets_of_other_destinations_take_nothing_away(
    driver: Driver, serving: Transport, closing: contextlib.ExitStack
) -> None:
    kind = kind_of(serving)
    closing.enter_context(serving.socket()).bind((serving.source, LOW))
    # Of another port, of another address, a listener or receiver, and one of another protocol.
    if not is_stream(serving):
        for port in (SECOND, SECOND + 1):
            closing.enter_context(connectx.create_connection((serving.source, port), **kind))
    other = socket.SOCK_DGRAM if is_stream(serving) else socket.SOCK_STREAM
    with contextlib.suppress(ConnectionRefusedError):
        closing.enter_context(connectx.create_connection((serving.source, FIRST), type=other))

    async def scenario() -> None:
        dialer = driver.dialer()
        capacity = await dialer.capacity((serving.source, FIRST), **kind)
        assert (capacity.total, capacity.in_use, capacity.free) == (SIZE, 0, SIZE)

    driver.run(scenario)


def test_of_each_source(driver: Driver, listening: Network, closing: contextlib.ExitStack) -> None:
    del listening

    async def scenario() -> None:
        dialer = driver.dialer(["127.0.0.2", "127.0.0.3", "::1", "127.0.0.4/31"])
        for source, count in (("127.0.0.2", 1), ("127.0.0.5", 3)):
            for _ in range(count):
                closing.enter_context(connectx.create_connection(HERE, source_address=(source, 0)))
        capacity = await dialer.capacity(HERE)
        assert {each.source: each.free for each in capacity.sources} == {
            "127.0.0.2": SIZE - 1,
            "127.0.0.3": SIZE,
            "127.0.0.4": SIZE,
            "127.0.0.5": SIZE - 3,
        }
        assert (capacity.total, capacity.in_use) == (4 * SIZE, 4)
        six = await dialer.capacity(("::1", FIRST))
        assert [each.source for each in six.sources] == ["::1"]

    driver.run(scenario)


def test_without_a_source_of_the_family_it_says_so(driver: Driver, listening: Network) -> None:
    del listening

    async def scenario() -> None:
        dialer = driver.dialer(["::1"])
        with pytest.raises(OSError, match="none of the dialer's sources is IPv4"):
            await dialer.capacity(HERE)

    driver.run(scenario)


def test_reserved_ports_are_none(
    driver: Driver, listening: Network, closing: contextlib.ExitStack
) -> None:
    listening.reserved_ports(f"{LOW + 1},{HIGH - 1}-{HIGH + 5}")

    async def scenario() -> None:
        dialer = driver.dialer()
        assert (await dialer.capacity(HERE)).total == SIZE - 3
        for _ in range(SIZE - 3):
            closing.enter_context(await dialer.create_connection(HERE))
        with pytest.raises(connectx.PortsExhausted):
            await dialer.create_connection(HERE)
        assert (await dialer.capacity(HERE)).free == 0
        NAMESPACES._forget()
        some = driver.dialer(ports=[(LOW, LOW + 2), (LOW + 2, LOW + 3)])
        # The overlap counts once.
        assert (await some.capacity(HERE)).total == 3

    driver.run(scenario)


def test_ports_outside_of_the_range_in_force_count_as_for_a_call(
    driver: Driver, listening: Network, closing: contextlib.ExitStack
) -> None:
    del listening

    async def scenario() -> None:
        dialer = driver.dialer(ports=(HIGH - 1, HIGH + 10))
        assert (await dialer.capacity(HERE)).total == 12
        for _ in range(12):
            closing.enter_context(await dialer.create_connection(HERE))
        assert (await dialer.capacity(HERE)).free == 0

    driver.run(scenario)


@pytest.mark.parametrize("mapped", [False, True])
def test_states_are_named_as_ss_names_them(
    driver: Driver, network: Network, servers: Servers, *, mapped: bool
) -> None:
    network.port_range(LOW, HIGH)
    listener = servers.listen("127.0.0.1", FIRST)
    host = "::ffff:127.0.0.1" if mapped else "127.0.0.1"

    async def scenario() -> None:
        dialer = driver.dialer()
        client = await dialer.create_connection((host, FIRST))
        server, _ = limits.accept(listener)
        close_first(client, server, uapi.TCP_TIME_WAIT)
        client = await dialer.create_connection((host, FIRST))
        server, _ = limits.accept(listener)
        with client:
            server.close()
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            client.settimeout(limits.LIMIT)
            assert limits.receive(client) == b""
            capacity = await dialer.capacity((host, FIRST))
            assert capacity.sources[0].in_use == {"TIME-WAIT": 1, "CLOSE-WAIT": 1}
            assert (capacity.in_use, capacity.free) == (2, SIZE - 2)

    driver.run(scenario)


def test_takes_what_a_call_takes(driver: Driver, network: Network, servers: Servers) -> None:
    network.port_range(LOW, HIGH)
    servers.listen("127.0.0.1", FIRST)

    async def scenario() -> None:
        dialer = driver.dialer(["127.0.0.1", "::1"])
        for address in (
            ["127.0.0.1", FIRST],
            ("::FFFF:127.0.0.1", FIRST),
            ("0:0::ffff:127.0.0.1", FIRST),
            ("::1%lo", FIRST),
            ("0::1", FIRST),
        ):
            given: Any = address
            assert (await dialer.capacity(given)).total == SIZE

    driver.run(scenario)


def test_an_address_within_a_prefix_counts_once(
    listening: Network, closing: contextlib.ExitStack
) -> None:
    del listening
    prefix = "2001:db8:1::/64"
    dialer = connectx.Dialer(["2001:db8:1::5", prefix], freebind=True)
    address = ("::1", FIRST)
    udp = socket.SOCK_DGRAM
    for _ in range(SIZE):
        closing.enter_context(dialer.create_connection(address, type=udp))
    sock = closing.enter_context(socket.socket(socket.AF_INET6, udp))
    set_ip_freebind(sock, on=True)
    sock.setsockopt(socket.IPPROTO_IP, uapi.IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind(("2001:db8:1::5", 0))
    dialer.connectx(sock, address)
    capacity = dialer.capacity(address, type=udp)
    assert (capacity.in_use, capacity.total) == (SIZE + 1, SIZE * (2**64 - 1))
    assert {each.source: sum(each.in_use.values()) for each in capacity.sources} == {
        "2001:db8:1::5": 1,
        prefix: SIZE,
    }


def test_takes_an_address_and_no_name(driver: Driver, listening: Network) -> None:
    del listening

    async def scenario() -> None:
        dialer = driver.dialer()
        for address in (("localhost", FIRST), ("127.0.0.1", 0)):
            with pytest.raises(ValueError, match=r"IP address|port is 1"):
                await dialer.capacity(address)
        with pytest.raises(TypeError):
            await dialer.capacity("127.0.0.1")  # type: ignore[arg-type]

    driver.run(scenario)


def test_a_link_local_destination_of_each_device(
    driver: Driver, network: Network, closing: contextlib.ExitStack
) -> None:
    network.port_range(LOW, HIGH)
    network.add_device_pair("one", "peer")
    network.add_address("fe80::1", 64, "one")
    network.add_address("fe80::2", 64, "peer")
    index = socket.if_nametoindex("one")

    async def scenario() -> None:
        dialer = driver.dialer()
        address = ("fe80::2", FIRST, 0, index)
        for _ in range(3):
            closing.enter_context(await dialer.create_connection(address, type=socket.SOCK_DGRAM))
        capacity = await dialer.capacity(address, type=socket.SOCK_DGRAM)
        assert (capacity.total, capacity.in_use) == (SIZE, 3)
        assert capacity.sources[0].source.startswith("fe80::")

    driver.run(scenario)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_one_link_local_address_on_two_devices_is_two_destinations(
    driver: Driver,
    network: Network,
    servers: Servers,
    closing: contextlib.ExitStack,
    kind: int,
) -> None:
    """A TIME_WAIT belongs to its device as well."""
    network.port_range(LOW, HIGH)
    for device in ("one", "two"):
        network.add_device_pair(device, f"{device}-peer")
        network.add_address("fe80::1", 64, device)
    listener = servers.listen("::", FIRST)
    one, two = (("fe80::1", FIRST, 0, socket.if_nametoindex(device)) for device in ("one", "two"))

    async def scenario() -> None:
        dialer = driver.dialer()
        if kind == socket.SOCK_STREAM:
            client = await dialer.create_connection(one)
            server, _ = limits.accept(listener)
            client.close()
            server.close()
        else:
            closing.enter_context(await dialer.create_connection(one, type=kind))
        for _ in range(SIZE - 1):
            closing.enter_context(await dialer.create_connection(one, type=kind))
        assert (await dialer.capacity(one, type=kind)).in_use == SIZE
        assert (await dialer.capacity(two, type=kind)).in_use == 0
        # To the last port of each, by what a survey says is free.
        for number in range(SIZE):
            sock = await dialer.create_connection(two, type=kind)
            closing.enter_context(sock)
            assert (await dialer.capacity(two, type=kind)).in_use == number + 1

    driver.run(scenario)
