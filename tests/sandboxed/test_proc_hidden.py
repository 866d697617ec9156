"""Without /proc/sys, or without /proc: what windows show takes the place of the sysctls."""

import errno
import socket
from functools import partial
from typing import Any

import pytest

import connectx
from connectx import Dialer, PortHeld, PortsExhausted, RangeNotHonoured, TupleInUse
from connectx._connect import namespace, plan
from connectx.linux import port_range
from connectx.sandbox.networks import Network
from tests.api.calls import TCP_MAPPED, UDP_MAPPED, by_create_connection, is_stream, port_of
from tests.dialer.drivers import kind_of
from tests.kernel.raw import FIRST, MPTCP, SECOND, TCP, TCP6, UDP, UDP6, Transport
from tests.sandboxed.client import (
    DATAGRAMS,
    HIGH,
    LOW,
    PORTS,
    STREAMS,
    Client,
    Sandbox,
    asked_ports,
    calls,
    calls_with_a_source,
    streams,
)
from tests.sandboxed.threads import with_hidden

every_transport = pytest.mark.parametrize("transport", [*STREAMS, *DATAGRAMS, MPTCP], ids=str)


@pytest.fixture(params=["/proc/sys", "/proc"])
def hidden(request: pytest.FixtureRequest) -> str:
    path: str = request.param
    return path


@pytest.fixture
def sandbox(hidden: str) -> Sandbox:
    return partial(with_hidden, hidden)


@calls
@every_transport
def test_every_port_toward_each_destination_and_then_exhaustion(client: Client) -> None:
    for port in (FIRST, SECOND):
        assert sorted(port_of(client.open(port)) for _ in PORTS) == PORTS
        with pytest.raises(PortsExhausted):
            client.open(port)


@calls
@pytest.mark.parametrize("transport", [TCP, TCP6, UDP, UDP6], ids=str)
def test_ports_that_only_the_kernel_knows_to_be_reserved(client: Client, network: Network) -> None:
    network.sysctl("net.ipv4.ip_local_reserved_ports", f"{LOW},{HIGH}")
    for port in (FIRST, SECOND):
        assert sorted(port_of(client.open(port)) for _ in PORTS[2:]) == PORTS[1:-1]
        with pytest.raises(PortsExhausted):
            client.open(port)


@calls_with_a_source
@asked_ports
@every_transport
def test_a_port_asked_for(client: Client, port: int) -> None:
    for destination in (FIRST, SECOND):
        assert port_of(client.open(destination, port)) == port
        with pytest.raises(TupleInUse):
            client.open(destination, port)


@calls_with_a_source
@pytest.mark.parametrize("transport", [TCP, TCP6, UDP, UDP_MAPPED], ids=str)
def test_a_reserved_port_asked_for_is_its_users_wish(client: Client, network: Network) -> None:
    network.sysctl("net.ipv4.ip_local_reserved_ports", f"{LOW}")
    for destination in (FIRST, SECOND):
        assert port_of(client.open(destination, LOW)) == LOW


@calls_with_a_source
@asked_ports
@pytest.mark.parametrize("transport", [TCP, TCP6, UDP, UDP6], ids=str)
def test_a_held_port_asked_for(client: Client, port: int) -> None:
    holder = client.plain(port)
    if is_stream(client.place):
        holder.listen()
    with pytest.raises(PortHeld):
        client.open(FIRST, port)


@pytest.mark.parametrize("strategy", ["kernel", "full-range", "shifting-window", "one-port"])
@pytest.mark.parametrize("name", ["create_connection", "connectx", "asyncio"])
@streams
def test_every_strategy(client: Client, strategy: str) -> None:
    assert port_of(client.open(FIRST, strategy=strategy)) in PORTS


@pytest.mark.parametrize("refusal", [errno.EAFNOSUPPORT, errno.EPERM], ids=errno.errorcode.get)
@calls
@every_transport
def test_netlink_is_refused_as_well(client: Client, hidden: str, refusal: int) -> None:
    client.sandbox = partial(with_hidden, hidden, netlink=refusal)
    assert sorted(port_of(client.open(FIRST)) for _ in PORTS) == PORTS
    with pytest.raises(PortsExhausted if is_stream(client.place) else connectx.NotSupported):
        client.open(FIRST)


@calls_with_a_source
@asked_ports
@streams
def test_netlink_is_refused_as_well_and_a_port_asked_for(
    client: Client, hidden: str, port: int
) -> None:
    client.sandbox = partial(with_hidden, hidden, netlink=errno.EPERM)
    for destination in (FIRST, SECOND):
        if client.call.__name__ == "by_connectx" and hidden == "/proc" and port not in PORTS:
            # A socket that could get stuck on the port, and nobody who could be asked.
            with pytest.raises(connectx.NotSupported, match="AF_NETLINK"):
                client.open(destination, port)
        else:
            assert port_of(client.open(destination, port)) == port


@pytest.mark.parametrize("name", ["create_connection"])
@pytest.mark.parametrize("transport", [TCP, TCP6, UDP, UDP6], ids=str)
def test_explain_says_what_it_could_not_see(client: Client) -> None:
    def explanation() -> str:
        connect = partial(by_create_connection, client.place, None, (client.place.source, FIRST))
        for _ in PORTS:
            client.stack.enter_context(connect())
        with pytest.raises(PortsExhausted) as caught:
            connect()
        return caught.value.explain()

    said = client.sandbox(explanation)
    assert "4 connected" in said
    assert "net.ipv4.ip_local_reserved_ports" in said
    assert "Reserved ports count as free" in said


@pytest.mark.parametrize("transport", [TCP, UDP, TCP_MAPPED], ids=str)
class TestDialer:
    def test_ports_within_the_range(self, place: Transport, sandbox: Sandbox) -> None:
        def scenario() -> list[int]:
            dialer = Dialer(ports=(LOW, LOW + 1))
            socks = [self.dial(dialer, place) for _ in range(2)]
            with pytest.raises(PortsExhausted):
                self.dial(dialer, place)
            taken = sorted(map(port_of, socks))
            assert dialer.capacity((place.source, FIRST), **kind_of(place)).free == 0
            for sock in socks:
                sock.close()
            return taken

        assert sandbox(scenario) == [LOW, LOW + 1]

    def test_ports_beyond_the_range(self, place: Transport, sandbox: Sandbox) -> None:
        beyond = Dialer(ports=(HIGH, HIGH + 1))

        def bound() -> list[int]:
            with self.dial(beyond, place) as first, self.dial(beyond, place) as second:
                return sorted(sock.getsockname()[1] for sock in (first, second))

        def clamped() -> None:
            with (
                socket.socket(place.family, place.type) as sock,
                pytest.raises(RangeNotHonoured),
            ):
                beyond.connectx(sock, (place.source, FIRST))

        assert sandbox(bound) == [HIGH, HIGH + 1]
        sandbox(clamped)

    def dial(self, dialer: Dialer, place: Transport) -> socket.socket:
        return dialer.create_connection((place.source, FIRST), **kind_of(place))


@pytest.mark.parametrize("name", ["create_connection"])
@pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
def test_a_range_that_changes(
    client: Client, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespace, "FRESH", 0.0)
    assert port_of(client.open(FIRST)) in PORTS
    network.port_range(20011, 20012)
    ports = sorted(port_of(client.open(FIRST)) for _ in range(2))
    assert ports == [20011, 20012]


class TestWithoutWindows:
    """A kernel older than IP_LOCAL_PORT_RANGE."""

    @pytest.fixture(autouse=True)
    def _old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (plan, namespace):
            monkeypatch.setattr(module, "windows_work", lambda _: False)
        monkeypatch.setattr(port_range, "find_port_range", lambda: None)

    @calls
    @pytest.mark.parametrize("transport", [TCP, TCP6, *DATAGRAMS], ids=str)
    def test_ports_of_the_kernels_choice(self, client: Client) -> None:
        ports = sorted(port_of(client.open(FIRST)) for _ in PORTS)
        assert ports == PORTS
        with pytest.raises(PortsExhausted):
            client.open(FIRST)

    @calls_with_a_source
    @asked_ports
    @pytest.mark.parametrize("transport", [TCP, TCP6, *DATAGRAMS], ids=str)
    def test_a_port_asked_for(self, client: Client, port: int) -> None:
        for destination in (FIRST, SECOND):
            assert port_of(client.open(destination, port)) == port

    @pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
    def test_ports_of_a_dialer(self, place: Transport, sandbox: Sandbox) -> None:
        def scenario() -> None:
            dialer: Any = Dialer(ports=(LOW, LOW + 1))
            with pytest.raises(connectx.NotSupported):
                dialer.create_connection((place.source, FIRST), **kind_of(place))

        sandbox(scenario)
