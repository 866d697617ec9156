"""The errors: their classes, their fields, and what explain() has to say."""

import contextlib
import copy
import errno
import pickle
import re
import socket
from typing import Any, Final

import pytest

import connectx
from connectx import (
    ConnectxError,
    NotSupported,
    PortHeld,
    PortsExhausted,
    RangeNotHonoured,
    SourceNotLocal,
    TupleInUse,
)
from connectx.addresses import Endpoint
from connectx.linux import sockopts, uapi
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import (
    TCP_MAPPED,
    UDP_MAPPED,
    Client,
    close_first,
    foreign_host,
    ip,
    is_stream,
    port_of,
    protocol_name,
)
from tests.kernel.raw import FIRST, MPTCP, SECOND, TCP, TCP6, UDP, UDP6, UDPLITE, Transport

LOW, HIGH = 20001, 20010
PORTS: Final = list(range(LOW, HIGH + 1))

every_transport = pytest.mark.parametrize(
    "transport", [TCP, TCP6, TCP_MAPPED, MPTCP, UDP, UDP6, UDP_MAPPED, UDPLITE], ids=str
)
with_or_without_source = pytest.mark.parametrize(
    "has_source", [False, True], ids=["no source", "source address"]
)

CLASSES: Final = [
    (ConnectxError, errno.EADDRNOTAVAIL),
    (PortsExhausted, errno.EADDRNOTAVAIL),
    (TupleInUse, errno.EADDRNOTAVAIL),
    (PortHeld, errno.EADDRINUSE),
    (SourceNotLocal, errno.EADDRNOTAVAIL),
    (RangeNotHonoured, errno.EINVAL),
    (NotSupported, errno.EOPNOTSUPP),
]


@pytest.fixture(autouse=True)
def _ten_ports(network: Network) -> None:
    network.port_range(LOW, HIGH)


class TestClasses:
    @pytest.mark.parametrize("kind, number", CLASSES)
    def test_they_are_os_errors(self, kind: type[ConnectxError], number: int) -> None:
        assert issubclass(kind, ConnectxError)
        assert issubclass(kind, OSError)
        assert not issubclass(kind, BlockingIOError | ConnectionError | TimeoutError)
        error = made(kind)
        assert error.errno == number
        assert error.args == (number, "in words")
        assert error.strerror == "in words"
        assert str(error) == f"[Errno {number}] in words"
        assert error.explain() == str(error)

    @pytest.mark.parametrize("kind, number", CLASSES)
    def test_an_errno_of_its_own(self, kind: type[ConnectxError], number: int) -> None:
        del number
        error = made(kind, errno=errno.EAGAIN)
        assert error.errno == errno.EAGAIN
        # OSError(EAGAIN) would make this one, which reads "in progress".
        assert type(error) is kind
        assert not isinstance(error, BlockingIOError)

    @pytest.mark.parametrize("kind, number", CLASSES)
    def test_the_public_names(self, kind: type[ConnectxError], number: int) -> None:
        del number
        assert kind.__name__ in connectx.__all__
        assert getattr(connectx, kind.__name__) is kind


def made(kind: type[ConnectxError], **more: Any) -> ConnectxError:
    return kind(
        "in words",
        protocol="tcp",
        source=Endpoint("", 0),
        destination=Endpoint("192.0.2.1", 443),
        strategy="auto",
        **more,
    )


def fields(error: ConnectxError) -> dict[str, object]:
    names = (
        "errno",
        "strerror",
        "args",
        "protocol",
        "source",
        "destination",
        "strategy",
        "attempts",
    )
    return {name: getattr(error, name) for name in names} | {"text": str(error)}


@every_transport
class TestFields:
    def test_of_an_exhausted_range(self, client: Client) -> None:
        error = client.fill(FIRST)
        assert error.protocol == protocol_name(client.transport)
        assert error.source.port == 0
        assert error.destination == Endpoint(client.transport.source, FIRST)
        assert error.strategy == "auto"
        assert isinstance(error.attempts, int)
        assert str(error.destination) in str(error)
        assert protocol_name(client.transport) in str(error)

    def test_of_a_taken_tuple(self, client: Client) -> None:
        source = (client.transport.source, LOW)
        client.open(FIRST, source)
        with pytest.raises(TupleInUse) as caught:
            client.open(FIRST, source)
        error = caught.value
        assert error.source == Endpoint(*source)
        assert str(error.source) in str(error)
        assert str(error.destination) in str(error)

    def test_of_a_held_port(self, client: Client, closing: contextlib.ExitStack) -> None:
        closing.enter_context(client.transport.socket()).bind((client.transport.wildcard, LOW))
        with pytest.raises(PortHeld) as caught:
            client.open(FIRST, ("", LOW))
        assert caught.value.source.port == LOW
        assert str(LOW) in str(caught.value)

    def test_of_a_source_that_is_not_local(self, client: Client) -> None:
        host = foreign_host(client.transport)
        for port in (0, LOW, 30001):
            with pytest.raises(SourceNotLocal) as caught:
                client.open(FIRST, (host, port))
            error = caught.value
            assert error.errno == errno.EADDRNOTAVAIL
            assert error.source == Endpoint(host, port)
            assert host in str(error)
            assert "IP_FREEBIND" in f"{error} {error.explain()}"

    @pytest.mark.parametrize("copied", ["pickle", "copy", "deepcopy"])
    def test_they_travel(self, client: Client, copied: str) -> None:
        error = client.fill(FIRST)
        if copied == "pickle":
            again = pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own
        else:
            again = getattr(copy, copied)(error)
        assert type(again) is type(error)
        assert fields(again) == fields(error)
        # The sockets are not counted again in another process, which may be on another machine.
        assert str(error) in again.explain()

    def test_the_cause_is_no_riddle(self, client: Client) -> None:
        """Whoever prints the traceback sees one error, not the dozens of refusals behind it."""
        client.fill(FIRST)
        with pytest.raises(PortsExhausted) as caught:
            client.open(FIRST)
        chain = []
        error: BaseException | None = caught.value
        while error is not None:
            chain.append(error)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        assert len(chain) <= 3


def figures(error: ConnectxError) -> dict[str, int]:
    """The numbers in explain(), by what they count."""
    text = error.explain()
    assert text.startswith(str(error))
    found = {
        name: int(number)
        for number, name in re.findall(r"(\d+) ([a-zA-Z_ ]+?)(?=[,.:]| by| now)", text)
    }
    names = ("ports", "connected", "in TIME_WAIT", "held", "reserved", "free")
    return {name: found[name] for name in names if name in found}


@every_transport
@with_or_without_source
class TestExplainExhaustion:
    def source(self, client: Client, *, has_source: bool) -> tuple[str, int] | None:
        return (client.transport.source, 0) if has_source else None

    def test_all_connected(self, client: Client, *, has_source: bool) -> None:
        error = client.fill(FIRST, self.source(client, has_source=has_source))
        expected = {"ports": 10, "connected": 10, "in TIME_WAIT": 0, "held": 0, "reserved": 0}
        assert_figures(error, client.transport, expected | {"free": 0})
        text = error.explain()
        assert "source addresses" in text
        assert "ip_local_port_range" in text
        assert f"{LOW}-{HIGH}" in text
        if has_source:
            assert client.transport.source in text

    def test_connected_and_reserved(
        self, client: Client, network: Network, *, has_source: bool
    ) -> None:
        network.reserved_ports("19000,20002,20004-20006,30000")
        error = client.fill(FIRST, self.source(client, has_source=has_source))
        expected = {"ports": 10, "connected": 6, "in TIME_WAIT": 0, "held": 0, "reserved": 4}
        assert_figures(error, client.transport, expected | {"free": 0})
        assert "ip_local_reserved_ports" in error.explain()

    def test_reserved_and_used_all_the_same(
        self, client: Client, network: Network, *, has_source: bool
    ) -> None:
        """A reserved port that was asked for by number is connected like any other."""
        network.reserved_ports("20002,20004")
        client.open(FIRST, (client.transport.source, 20002))
        error = client.fill(FIRST, self.source(client, has_source=has_source))
        expected = {"ports": 10, "connected": 9, "in TIME_WAIT": 0, "held": 0, "reserved": 1}
        assert_figures(error, client.transport, expected | {"free": 0})

    def test_connected_and_held(
        self, client: Client, closing: contextlib.ExitStack, *, has_source: bool
    ) -> None:
        """Binds without IP_BIND_ADDRESS_NO_PORT, connected elsewhere or nowhere, and a server."""
        transport = client.transport
        bound, elsewhere, server = (
            closing.enter_context(
                socket.socket(transport.family, transport.type, transport.protocol)
            )
            for _ in range(3)
        )
        bound.bind((transport.source, 20001))
        elsewhere.bind((transport.source, 0))
        elsewhere.connect((transport.source, SECOND))
        server.bind((transport.wildcard, 20003 if port_of(elsewhere) != 20003 else 20004))
        if is_stream(transport):
            server.listen()
        error = client.fill(FIRST, self.source(client, has_source=has_source))
        held = len({port_of(bound), port_of(elsewhere), port_of(server)})
        assert held == 3
        expected = {"ports": 10, "connected": 7, "in TIME_WAIT": 0, "held": 3, "reserved": 0}
        assert_figures(error, transport, expected | {"free": 0})
        wanted = "IP_BIND_ADDRESS_NO_PORT" if is_stream(transport) else "SO_REUSEADDR"
        assert wanted in error.explain()

    def test_free_by_the_time_one_asks(self, client: Client, *, has_source: bool) -> None:
        source = self.source(client, has_source=has_source)
        error = client.fill(FIRST, source)
        for _ in range(3):
            client.close(client.opened[0])
        expected = {"ports": 10, "connected": 7, "in TIME_WAIT": 0, "held": 0, "reserved": 0}
        assert_figures(error, client.transport, expected | {"free": 3})
        assert "try again" in error.explain()

    def test_connections_to_other_destinations_do_not_count(
        self, client: Client, *, has_source: bool
    ) -> None:
        source = self.source(client, has_source=has_source)
        client.fill(SECOND, source)
        error = client.fill(FIRST, source)
        expected = {"ports": 10, "connected": 10, "in TIME_WAIT": 0, "held": 0, "reserved": 0}
        assert_figures(error, client.transport, expected | {"free": 0})

    def test_ports_that_others_share_are_free(self, client: Client, *, has_source: bool) -> None:
        source = self.source(client, has_source=has_source)
        client.fill(FIRST, source)
        ours = tuple(client.opened)
        client.fill(SECOND, source)
        error = client.fill(FIRST, source)
        for sock in ours[:4]:
            client.close(sock)
        expected = {"ports": 10, "connected": 6, "in TIME_WAIT": 0, "held": 0, "reserved": 0}
        assert_figures(error, client.transport, expected | {"free": 4})

    def test_ports_that_connected_sockets_keep_for_themselves_are_held(
        self, client: Client, closing: contextlib.ExitStack, *, has_source: bool
    ) -> None:
        """Bind before connect, to another destination: the most common way to lose ports."""
        host = client.transport.source
        for _ in range(3):
            sock = closing.enter_context(client.transport.socket())
            sock.bind((host, 0))
            sock.connect((host, SECOND))
        error = client.fill(FIRST, self.source(client, has_source=has_source))
        expected = {"ports": 10, "connected": 7, "in TIME_WAIT": 0, "held": 3, "reserved": 0}
        assert_figures(error, client.transport, expected | {"free": 0})

    def test_the_greatest_share_comes_first(
        self, client: Client, network: Network, *, has_source: bool
    ) -> None:
        network.reserved_ports("20001-20007")
        error = client.fill(FIRST, self.source(client, has_source=has_source))
        text = error.explain()
        assert text.index("ip_local_reserved_ports excludes") < text.index("Open connections")

    def test_it_is_plain_lines(self, client: Client, *, has_source: bool) -> None:
        text = client.fill(FIRST, self.source(client, has_source=has_source)).explain()
        lines = text.splitlines()
        assert 3 <= len(lines) <= 16
        assert all(line.strip() and len(line) < 240 for line in lines)


def assert_figures(error: ConnectxError, transport: Transport, expected: dict[str, int]) -> None:
    if not is_stream(transport):
        # Datagrams know no TIME_WAIT.
        del expected["in TIME_WAIT"]
    assert figures(error) == expected


@pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED], ids=str)
@pytest.mark.parametrize(
    "state", [uapi.TCP_TIME_WAIT, uapi.TCP_FIN_WAIT2], ids=["TIME_WAIT", "FIN_WAIT2"]
)
def test_explain_counts_time_wait(
    transport: Transport,
    client: Client,
    network: Network,
    servers: Servers,
    state: int,
) -> None:
    network.sysctl("net.ipv4.tcp_tw_reuse", 0)
    listener = servers.listen(transport.source, 9100)
    for _ in range(4):
        sock = client.open(9100)
        server, _ = limits.accept(listener)
        with server:
            close_first(sock, server, state)
    client.opened.clear()
    error = client.fill(9100)
    assert figures(error) == {
        "ports": 10,
        "connected": 6,
        "in TIME_WAIT": 4,
        "held": 0,
        "reserved": 0,
        "free": 0,
    }
    assert "tcp_tw_reuse" in error.explain()


@every_transport
class TestExplainOthers:
    def test_a_taken_tuple(self, client: Client) -> None:
        client.open(FIRST, (client.transport.source, LOW))
        with pytest.raises(TupleInUse) as caught:
            client.open(FIRST, (client.transport.source, LOW))
        text = caught.value.explain()
        assert text.startswith(str(caught.value))
        assert "another source port" in text

    def test_a_held_port(self, client: Client, closing: contextlib.ExitStack) -> None:
        closing.enter_context(client.transport.socket()).bind((client.transport.source, LOW))
        with pytest.raises(PortHeld) as caught:
            client.open(FIRST, (client.transport.source, LOW))
        text = caught.value.explain()
        assert text.startswith(str(caught.value))
        assert "another source port" in text
        assert "ip_local_reserved_ports" in text

    def test_the_socket_may_be_gone(self, client: Client) -> None:
        """Nothing of a failed call need stay open for its error to be explained."""
        error = client.fill(FIRST)
        for sock in tuple(client.opened):
            client.close(sock)
        assert "10 free" in error.explain()


@every_transport
def test_an_owners_window_is_what_is_counted(
    transport: Transport, client: Client, closing: contextlib.ExitStack
) -> None:
    del client
    for expected in (None, None, PortsExhausted):
        sock = closing.enter_context(transport.socket())
        sockopts.set_ip_local_port_range(sock, 20004, 20005)
        if expected is None:
            connectx.connectx(sock, None, (transport.source, FIRST))
            continue
        with pytest.raises(expected) as caught:
            connectx.connectx(sock, None, (transport.source, FIRST))
        assert "20004-20005" in caught.value.explain()
        assert figures(caught.value)["ports"] == 2
        assert figures(caught.value)["connected"] == 2


class TestKernelsOwn:
    """What is not about source ports is passed on as it is."""

    @pytest.mark.parametrize("transport", [TCP6, UDP6], ids=str)
    @pytest.mark.parametrize("source", [None, ("", LOW), ("", 30001)])
    def test_ipv6_is_disabled(
        self, client: Client, network: Network, source: tuple[str, int] | None
    ) -> None:
        network.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
        with client.transport.socket() as plain, pytest.raises(OSError) as expected:  # noqa: PT011
            plain.connect((client.transport.source, FIRST))
        with pytest.raises(OSError) as caught:  # noqa: PT011 -- compared with the kernel's own
            client.open(FIRST, source)
        assert caught.value.errno == expected.value.errno
        assert not isinstance(caught.value, PortsExhausted | TupleInUse | PortHeld)

    @pytest.mark.parametrize("transport", [TCP6, UDP6], ids=str)
    def test_ipv6_is_disabled_and_a_source_given(self, client: Client, network: Network) -> None:
        network.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
        for port in (0, LOW, 30001):
            with pytest.raises(SourceNotLocal):
                client.open(FIRST, (client.transport.source, port))

    @pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED, MPTCP], ids=str)
    @pytest.mark.parametrize("port", [None, 0, LOW, 30001])
    def test_refused(self, client: Client, port: int | None) -> None:
        source = None if port is None else (client.transport.source, port)
        with pytest.raises(ConnectionRefusedError) as caught:
            client.open(9998, source)
        assert type(caught.value) is ConnectionRefusedError

    @every_transport
    @pytest.mark.parametrize("port", [None, LOW, 30001])
    def test_no_route(self, client: Client, port: int | None) -> None:
        host = foreign_host(client.transport)
        with client.transport.socket() as plain, pytest.raises(OSError) as expected:  # noqa: PT011
            plain.connect((host, FIRST))
        with pytest.raises(OSError) as caught:  # noqa: PT011 -- compared with the kernel's own
            client.open(FIRST, None if port is None else ("", port), host=host)
        assert caught.value.errno == expected.value.errno
        assert type(caught.value) is type(expected.value)

    @pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
    @pytest.mark.parametrize("port", [None, LOW, 30001])
    @pytest.mark.parametrize("kind", ["unreachable", "prohibit", "blackhole"])
    def test_routes_that_refuse(self, client: Client, kind: str, port: int | None) -> None:
        ip("route", "add", kind, "192.0.2.0/24")
        with client.transport.socket() as plain, pytest.raises(OSError) as expected:  # noqa: PT011
            plain.connect(("192.0.2.77", FIRST))
        with pytest.raises(OSError) as caught:  # noqa: PT011 -- compared with the kernel's own
            client.open(FIRST, None if port is None else ("", port), host="192.0.2.77")
        assert caught.value.errno == expected.value.errno
        assert type(caught.value) is type(expected.value)


class TestUnserved:
    @pytest.mark.parametrize(
        "strategy",
        ["full-range", "shifting-window", "shifting-window:5", "one-port", "explicit-bind"],
    )
    @pytest.mark.parametrize("transport", [UDP, UDP6, UDP_MAPPED, UDPLITE], ids=str)
    @pytest.mark.parametrize("port", [0, LOW, 30001])
    def test_strategies_for_streams_alone(self, client: Client, strategy: str, port: int) -> None:
        with pytest.raises(NotSupported) as caught:
            client.open(FIRST, (client.transport.source, port), strategy=strategy)
        error = caught.value
        assert error.errno == errno.EOPNOTSUPP
        assert error.strategy == strategy
        assert strategy in str(error)
        assert protocol_name(client.transport) in str(error)
        assert "auto" in str(error)

    @pytest.mark.parametrize("call", ["connectx"], indirect=True)
    @pytest.mark.parametrize("transport", [TCP, TCP6, MPTCP], ids=str)
    def test_explicit_bind_needs_sockets_it_may_replace(self, client: Client) -> None:
        with pytest.raises(NotSupported, match=r"create_connection\(\)"):
            client.open(FIRST, strategy="explicit-bind")
        # With a port asked for there is nothing to try again.
        client.open(FIRST, (client.transport.source, LOW), strategy="explicit-bind")
