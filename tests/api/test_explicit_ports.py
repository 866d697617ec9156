"""A source port asked for by number, with something else on it already."""

import contextlib
import errno
import socket
from dataclasses import dataclass

import pytest

from connectx import ConnectxError, PortHeld, TupleInUse
from connectx.addresses import Endpoint
from connectx.linux import uapi
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import (
    CAP_NET_BIND_SERVICE,
    TCP_MAPPED,
    UDP_MAPPED,
    Client,
    close_first,
    errno_of_taken_tuple,
    is_stream,
    other_host,
    port_of,
    without_capability,
)
from tests.kernel.raw import (
    FIRST,
    MPTCP,
    SECOND,
    TCP,
    TCP6,
    UDP,
    UDP6,
    UDPLITE,
    Technique,
    Transport,
    prepare,
)

LOW, HIGH = 20001, 20008
INSIDE, RESERVED, OUTSIDE = 20003, 20005, 30003

every_transport = pytest.mark.parametrize(
    "transport", [TCP, TCP6, TCP_MAPPED, MPTCP, UDP, UDP6, UDP_MAPPED, UDPLITE], ids=str
)
streams = pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED, MPTCP], ids=str)
datagrams = pytest.mark.parametrize("transport", [UDP, UDP6, UDP_MAPPED, UDPLITE], ids=str)
every_place = pytest.mark.parametrize(
    "port", [INSIDE, RESERVED, OUTSIDE], ids=["in range", "reserved", "out of range"]
)


@pytest.fixture(autouse=True)
def _eight_ports(network: Network) -> None:
    network.port_range(LOW, HIGH)
    network.reserved_ports(str(RESERVED))


@dataclass(frozen=True)
class Others:
    """Sockets of somebody else, made by system calls alone."""

    transport: Transport
    stack: contextlib.ExitStack

    def bound(self, host: str, port: int, *options: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = self.stack.enter_context(
            socket.socket(family, self.transport.type, self.transport.protocol)
        )
        for option in options:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        sock.bind((host, port))
        return sock

    def connected(self, technique: Technique, destination: int) -> socket.socket:
        sock = self.stack.enter_context(self.transport.socket())
        prepare(sock, technique, self.transport.source)
        sock.connect((self.transport.source, destination))
        return sock


@pytest.fixture
def others(transport: Transport, network: Network, closing: contextlib.ExitStack) -> Others:
    network.add_address("::2")
    return Others(transport, closing)


def ask(client: Client, port: int, destination: int = FIRST) -> socket.socket:
    sock = client.open(destination, (client.transport.source, port))
    assert sock.getsockname()[:2] == (client.transport.source, port)
    return sock


def refusal(client: Client, port: int, destination: int = FIRST) -> ConnectxError:
    with pytest.raises(ConnectxError) as caught:
        ask(client, port, destination)
    error = caught.value
    assert error.source == Endpoint(client.transport.source, port)
    assert error.destination == Endpoint(client.transport.source, destination)
    return error


def assert_held(error: ConnectxError) -> None:
    assert type(error) is PortHeld
    assert error.errno == errno.EADDRINUSE


def assert_taken(error: ConnectxError, transport: Transport) -> None:
    assert type(error) is TupleInUse
    assert error.errno == errno_of_taken_tuple(transport)


@every_place
@every_transport
class TestHeldByOthers:
    """Whatever holds the port against everybody is PortHeld, wherever the port lies."""

    def test_on_the_source_address(self, client: Client, others: Others, port: int) -> None:
        others.bound(others.transport.source, port)
        assert_held(refusal(client, port))

    def test_on_the_wildcard_address(self, client: Client, others: Others, port: int) -> None:
        others.bound(others.transport.wildcard, port)
        assert_held(refusal(client, port))

    def test_with_so_reuseport(self, client: Client, others: Others, port: int) -> None:
        others.bound(others.transport.source, port, uapi.SO_REUSEPORT)
        assert_held(refusal(client, port))

    def test_bound_and_connected_to_another_destination(
        self, client: Client, others: Others, port: int
    ) -> None:
        others.connected(Technique("", bind=port), SECOND)
        assert_held(refusal(client, port))

    def test_on_another_address_it_is_not_in_the_way(
        self, client: Client, others: Others, port: int
    ) -> None:
        others.bound(other_host(others.transport), port)
        ask(client, port)

    def test_and_once_it_is_gone_the_port_is_free(
        self, client: Client, others: Others, port: int
    ) -> None:
        holder = others.bound(others.transport.source, port)
        assert_held(refusal(client, port))
        holder.close()
        ask(client, port)


@every_place
@streams
class TestListeners:
    @pytest.mark.parametrize("options", [(), (uapi.SO_REUSEADDR,)], ids=["", "SO_REUSEADDR"])
    @pytest.mark.parametrize("wildcard", [False, True])
    def test_hold_the_port(
        self,
        client: Client,
        others: Others,
        port: int,
        options: tuple[int, ...],
        *,
        wildcard: bool,
    ) -> None:
        host = others.transport.wildcard if wildcard else others.transport.source
        others.bound(host, port, *options).listen()
        assert_held(refusal(client, port))

    def test_on_another_address_is_not_in_the_way(
        self, client: Client, others: Others, port: int
    ) -> None:
        others.bound(other_host(others.transport), port).listen()
        ask(client, port)


@every_place
@every_transport
class TestSharedByOthers:
    def test_bound_with_so_reuseaddr(self, client: Client, others: Others, port: int) -> None:
        binder = others.bound(others.transport.source, port, uapi.SO_REUSEADDR)
        ask(client, port)
        assert_taken(refusal(client, port), client.transport)
        binder.close()
        ask(client, port, SECOND)

    def test_bound_with_so_reuseaddr_and_connected_to_another_destination(
        self, client: Client, others: Others, port: int
    ) -> None:
        others.connected(Technique("", reuseaddr=True, bind=port), SECOND)
        ask(client, port)
        assert_taken(refusal(client, port), client.transport)
        assert_taken(refusal(client, port, SECOND), client.transport)

    def test_by_ourselves(self, client: Client, port: int) -> None:
        ask(client, port, SECOND)
        ask(client, port)
        assert_taken(refusal(client, port), client.transport)
        assert_taken(refusal(client, port, SECOND), client.transport)

    def test_after_a_taken_one_is_closed_it_is_free(self, client: Client, port: int) -> None:
        sock = ask(client, port)
        assert_taken(refusal(client, port), client.transport)
        client.close(sock)
        ask(client, port)


@every_transport
class TestPlainConnect:
    """A port that connect() has picked for somebody else: streams share it, datagrams never."""

    def test_to_another_destination(self, client: Client, others: Others) -> None:
        port = port_of(others.connected(Technique("connect"), SECOND))
        if is_stream(client.transport):
            ask(client, port)
        else:
            assert_held(refusal(client, port))

    def test_to_the_same_destination(self, client: Client, others: Others) -> None:
        port = port_of(others.connected(Technique("connect"), FIRST))
        error = refusal(client, port)
        if is_stream(client.transport):
            assert_taken(error, client.transport)
        else:
            # Exclusive and on the 4-tuple: either name fits.
            assert isinstance(error, TupleInUse | PortHeld)
            assert error.errno == errno.EADDRINUSE


@streams
class TestOtherFamily:
    def test_a_dual_stack_listener_holds_the_port_for_ipv4_too(
        self, client: Client, others: Others
    ) -> None:
        others.bound("::", INSIDE).listen()
        assert_held(refusal(client, INSIDE))


@datagrams
class TestDualStackReceiver:
    def test_it_holds_the_port_for_ipv4_too(self, client: Client, others: Others) -> None:
        others.bound("::", INSIDE)
        assert_held(refusal(client, INSIDE))


class Leaver:
    """Leaves connections behind that the client's side has closed first."""

    def __init__(self, transport: Transport, servers: Servers) -> None:
        # A listener of its own, since it accepts.
        self.destination = 9100
        self._listener = servers.listen(
            transport.source, self.destination, protocol=transport.protocol
        )

    def leave(self, client: socket.socket, state: int) -> int:
        """Close a connection, and wait until it is in the state; returns the port."""
        port = port_of(client)
        server, _ = limits.accept(self._listener)
        with server:
            close_first(client, server, state)
        return port


@pytest.fixture
def leaver(transport: Transport, network: Network, servers: Servers) -> Leaver:
    # So that nothing but an explicit bind can take a TIME_WAIT over.
    network.sysctl("net.ipv4.tcp_tw_reuse", 0)
    return Leaver(transport, servers)


every_state = pytest.mark.parametrize(
    "state", [uapi.TCP_TIME_WAIT, uapi.TCP_FIN_WAIT2], ids=["TIME_WAIT", "FIN_WAIT2"]
)


@every_state
@pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED], ids=str)
class TestTimeWait:
    def test_ours_with_a_chosen_port_is_taken_over(
        self, client: Client, leaver: Leaver, state: int
    ) -> None:
        port = leaver.leave(client.open(leaver.destination), state)
        client.opened.clear()
        ask(client, port, leaver.destination)

    @every_place
    def test_ours_with_a_port_asked_for_is_taken_over(
        self, client: Client, leaver: Leaver, state: int, port: int
    ) -> None:
        leaver.leave(ask(client, port, leaver.destination), state)
        client.opened.clear()
        ask(client, port, leaver.destination)

    def test_it_is_taken_over_again_and_again(
        self, client: Client, leaver: Leaver, state: int
    ) -> None:
        for _ in range(5):
            leaver.leave(ask(client, INSIDE, leaver.destination), state)
        client.opened.clear()
        ask(client, INSIDE, leaver.destination)

    def test_toward_another_destination_it_is_not_in_the_way(
        self, client: Client, leaver: Leaver, state: int
    ) -> None:
        leaver.leave(ask(client, INSIDE, leaver.destination), state)
        client.opened.clear()
        ask(client, INSIDE, FIRST)

    def test_anothers_without_so_reuseaddr_is_in_the_way(
        self, client: Client, others: Others, leaver: Leaver, state: int
    ) -> None:
        port = leaver.leave(others.connected(Technique("connect"), leaver.destination), state)
        assert_taken(refusal(client, port, leaver.destination), client.transport)

    def test_without_timestamps_it_is_in_the_way(
        self, client: Client, leaver: Leaver, network: Network, state: int
    ) -> None:
        network.sysctl("net.ipv4.tcp_timestamps", 0)
        leaver.leave(ask(client, INSIDE, leaver.destination), state)
        client.opened.clear()
        assert_taken(refusal(client, INSIDE, leaver.destination), client.transport)

    def test_anothers_explicit_bind_with_so_reuseaddr_is_taken_over(
        self, client: Client, others: Others, leaver: Leaver, state: int
    ) -> None:
        technique = Technique("", reuseaddr=True, bind=INSIDE)
        leaver.leave(others.connected(technique, leaver.destination), state)
        ask(client, INSIDE, leaver.destination)


class TestPrivilegedPorts:
    """Below ip_unprivileged_port_start the kernel's own answer is passed on."""

    @every_transport
    def test_with_the_privilege_they_are_ports_like_others(
        self, client: Client, others: Others
    ) -> None:
        ask(client, 100)
        ask(client, 100, SECOND)
        assert_taken(refusal(client, 100), client.transport)
        others.bound(others.transport.source, 101)
        assert_held(refusal(client, 101))

    @every_transport
    def test_without_the_privilege_the_kernel_refuses(self, client: Client) -> None:
        with without_capability(CAP_NET_BIND_SERVICE), pytest.raises(PermissionError) as caught:
            ask(client, 1023)
        assert caught.value.errno == errno.EACCES

    @every_transport
    def test_the_limit_is_the_namespaces(self, client: Client, network: Network) -> None:
        network.sysctl("net.ipv4.ip_unprivileged_port_start", 100)
        with without_capability(CAP_NET_BIND_SERVICE):
            ask(client, 100)
            with pytest.raises(PermissionError):
                ask(client, 99)
        network.sysctl("net.ipv4.ip_unprivileged_port_start", 50)
        with without_capability(CAP_NET_BIND_SERVICE):
            ask(client, 99)


@pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED], ids=str)
@pytest.mark.parametrize("wildcard", [False, True], ids=["its address", "wildcard"])
class TestTimeWaitOfAService:
    """A service has closed a connection, and then itself: the port is not free yet."""

    def leave(self, others: Others, port: int, *options: int, wildcard: bool) -> None:
        transport = others.transport
        host = transport.wildcard if wildcard else transport.source
        with others.bound(host, port, *options) as listener, transport.socket() as visitor:
            listener.listen()
            visitor.connect((transport.source, port))
            accepted, _ = limits.accept(listener)
            with accepted:
                close_first(accepted, visitor, uapi.TCP_TIME_WAIT)

    @every_place
    def test_holds_the_port(
        self, client: Client, others: Others, port: int, *, wildcard: bool
    ) -> None:
        self.leave(others, port, wildcard=wildcard)
        assert_held(refusal(client, port))

    @every_place
    def test_shares_it_as_the_service_did(
        self, client: Client, others: Others, port: int, *, wildcard: bool
    ) -> None:
        self.leave(others, port, uapi.SO_REUSEADDR, wildcard=wildcard)
        ask(client, port)

    @pytest.mark.parametrize("options", [(), (uapi.SO_REUSEADDR,)], ids=["", "SO_REUSEADDR"])
    def test_is_chosen_for_nobody(
        self, client: Client, others: Others, options: tuple[int, ...], *, wildcard: bool
    ) -> None:
        self.leave(others, INSIDE, *options, wildcard=wildcard)
        client.fill(FIRST)
        assert client.ports(FIRST) == [
            port for port in range(LOW, HIGH + 1) if port not in (INSIDE, RESERVED)
        ]
