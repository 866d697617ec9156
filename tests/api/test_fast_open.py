"""The data argument: with the SYN where TCP Fast Open allows it, else after the handshake."""

import array
import contextlib
import errno
import os
import select
import socket
from typing import Any, Final

import pytest

import connectx
from connectx.linux import uapi
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import TCP_MAPPED, UDP_MAPPED, is_stream, port_of, reset_on_close
from tests.kernel.raw import FIRST, MPTCP, SECOND, TCP, TCP6, UDP, UDP6, UDPLITE, Transport

LOW, HIGH = 20001, 20008
CLOSED, SILENT = 9998, 9999
TCPI_OPT_SYN_DATA: Final = 32

#: net.ipv4.tcp_fastopen: 1 for clients, 2 for servers.
SETTINGS: Final = {"off": 0, "clients alone": 1, "servers alone": 2, "on": 3}

streams = pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED, MPTCP], ids=str)
tcp = pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED], ids=str)
datagrams = pytest.mark.parametrize("transport", [UDP, UDP6, UDP_MAPPED, UDPLITE], ids=str)
every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
every_timeout = pytest.mark.parametrize("timeout", [None, 5.0], ids=["blocking", "timeout"])


class Peers:
    """A server that accepts Fast Open, and the test's own clients of it."""

    def __init__(
        self, transport: Transport, servers: Servers, stack: contextlib.ExitStack, backlog: int = 16
    ) -> None:
        self.transport = transport
        self.host = transport.source
        self._stack = stack
        self.listener = servers.listen(transport.source, FIRST, protocol=transport.protocol)
        if transport.protocol == uapi.IPPROTO_TCP:
            self.listener.setsockopt(socket.IPPROTO_TCP, uapi.TCP_FASTOPEN, backlog)

    def new(self, timeout: float | None = None) -> socket.socket:
        sock = self._stack.enter_context(self.transport.socket())
        sock.settimeout(timeout)
        return sock

    def send(self, sock: socket.socket, data: bytes, source: tuple[str, int] | None = None) -> int:
        return connectx.connectx(sock, source, (self.host, FIRST), data=data)

    def accept(self) -> socket.socket:
        accepted, _ = limits.accept(self.listener)
        return self._stack.enter_context(accepted)

    def get_cookie(self) -> None:
        """A first connection, after which the client has a cookie."""
        sock = self.new()
        assert self.send(sock, b"first") == 5
        assert receive(self.accept(), 5) == b"first"
        reset_on_close(sock)
        sock.close()


@pytest.fixture
def peers(
    transport: Transport,
    setting: int,
    network: Network,
    servers: Servers,
    closing: contextlib.ExitStack,
) -> Peers:
    network.port_range(LOW, HIGH)
    network.sysctl("net.ipv4.tcp_fastopen", setting)
    transport.socket().close()
    return Peers(transport, servers, closing)


def receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = limits.receive(sock, size - len(data))
        assert chunk, f"closed after {data!r}"
        data += chunk
    return data


def came_with_the_syn(accepted: socket.socket) -> bool:
    """Whether the server took data from the SYN: tcpi_options in struct tcp_info."""
    options = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]
    return bool(options & TCPI_OPT_SYN_DATA)


def assert_nothing_more(accepted: socket.socket, client: socket.socket) -> None:
    """What was sent has arrived once, and the connection goes on."""
    client.send(b"end")
    assert receive(accepted, 3) == b"end"


@every_setting
@every_timeout
class TestTaken:
    @pytest.mark.parametrize("source", ["none", "address", "in range", "out of range"])
    @streams
    def test_the_server_receives_it(
        self, peers: Peers, setting: int, timeout: float | None, source: str
    ) -> None:
        asked = {
            "none": None,
            "address": (peers.host, 0),
            "in range": (peers.host, LOW),
            "out of range": (peers.host, 30001),
        }[source]
        # The second one has a cookie, if it is to have one at all.
        for number in range(2):
            sock = peers.new(timeout)
            assert peers.send(sock, b"hello", asked) == 5
            assert sock.gettimeout() == timeout
            accepted = peers.accept()
            assert receive(accepted, 5) == b"hello"
            assert_nothing_more(accepted, sock)
            if peers.transport is not MPTCP:
                assert came_with_the_syn(accepted) == (number == 1 and setting == 3)
            reset_on_close(sock)
            sock.close()

    @pytest.mark.parametrize(
        "data",
        [
            b"hello",
            bytearray(b"hello"),
            memoryview(b"hello"),
            memoryview(b"_hello_")[1:-1],
            memoryview(bytearray(b"hello")),
            memoryview(array.array("I", [1, 2, 3])),
            memoryview(array.array("Q", [1, 2, 3])),
        ],
        ids=["bytes", "bytearray", "memoryview", "slice", "writable", "of 4 octets", "of 8 octets"],
    )
    @pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
    def test_from_whatever_holds_bytes(
        self,
        transport: Transport,
        network: Network,
        servers: Servers,
        closing: contextlib.ExitStack,
        setting: int,
        timeout: float | None,
        data: Any,
    ) -> None:
        network.sysctl("net.ipv4.tcp_fastopen", setting)
        expected = bytes(data)
        sock = closing.enter_context(transport.socket())
        sock.settimeout(timeout)
        if is_stream(transport):
            peers = Peers(transport, servers, closing)
            assert connectx.connectx(sock, None, (peers.host, FIRST), data=data) == len(expected)
            assert receive(peers.accept(), len(expected)) == expected
        else:
            receiver = servers.receive(transport.source, FIRST)
            taken = connectx.connectx(sock, None, (transport.source, FIRST), data=data)
            assert taken == len(expected)
            assert limits.receive(receiver, 64) == expected

    @tcp
    def test_more_than_fits_a_segment(
        self, peers: Peers, setting: int, timeout: float | None
    ) -> None:
        data = os.urandom(200_000)
        if setting == SETTINGS["on"]:
            peers.get_cookie()
        sock = peers.new(timeout)
        taken = peers.send(sock, data)
        assert 0 < taken <= len(data)
        sock.settimeout(0)
        accepted = peers.accept()
        received = b""
        # As with send(): the rest is the caller's to send.
        while len(received) < len(data):
            if taken < len(data) and select.select([], [sock], [], 0)[1]:
                taken += sock.send(data[taken:])
            received += limits.receive(accepted, 1 << 20)
        assert received == data

    @tcp
    def test_nothing(self, peers: Peers, setting: int, timeout: float | None) -> None:
        del setting
        for data in (b"", bytearray(), memoryview(b"")):
            sock = peers.new(timeout)
            assert connectx.connectx(sock, None, (peers.host, FIRST), data=data) == 0
            assert_nothing_more(peers.accept(), sock)


@every_setting
class TestPorts:
    """Choosing a port is the same with data, and what is sent arrives once."""

    @streams
    def test_every_port(self, peers: Peers, setting: int) -> None:
        del setting
        socks = []
        for number in range(HIGH - LOW + 1):
            socks.append(peers.new(5))
            assert peers.send(socks[-1], b"%5d" % number) == 5
            accepted = peers.accept()
            assert receive(accepted, 5) == b"%5d" % number
            assert_nothing_more(accepted, socks[-1])
        assert sorted(map(port_of, socks)) == list(range(LOW, HIGH + 1))
        with pytest.raises(connectx.PortsExhausted):
            peers.send(peers.new(5), b"hello")
        with pytest.raises(connectx.TupleInUse):
            peers.send(peers.new(5), b"hello", (peers.host, LOW))
        peers.listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            peers.listener.accept()

    @streams
    @pytest.mark.parametrize("strategy", ["kernel", "full-range", "shifting-window", "one-port"])
    def test_every_strategy(self, peers: Peers, setting: int, strategy: str) -> None:
        del setting
        for _ in range(2):
            sock = peers.new(5)
            taken = connectx.connectx(
                sock,
                None,
                (peers.host, FIRST),
                data=b"hello",
                strategy=strategy,  # type: ignore[arg-type] # any of them
            )
            assert taken == 5
            assert receive(peers.accept(), 5) == b"hello"


@every_setting
class TestNonBlocking:
    @tcp
    def test_without_a_cookie_none_is_taken(self, peers: Peers, setting: int) -> None:
        del setting
        sock = peers.new(0)
        with pytest.raises(BlockingIOError) as caught:
            peers.send(sock, b"hello")
        assert caught.value.errno == errno.EINPROGRESS
        assert select.select([], [sock], [], limits.LIMIT)[1]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert_nothing_more(peers.accept(), sock)

    @tcp
    def test_with_a_cookie_it_is_taken_at_once(self, peers: Peers, setting: int) -> None:
        if setting != SETTINGS["on"]:
            with pytest.raises(BlockingIOError):
                peers.send(peers.new(0), b"hello")
            return
        peers.get_cookie()
        sock = peers.new(0)
        assert peers.send(sock, b"hello") == 5
        accepted = peers.accept()
        assert came_with_the_syn(accepted)
        assert receive(accepted, 5) == b"hello"
        assert select.select([], [sock], [], limits.LIMIT)[1]
        assert_nothing_more(accepted, sock)


@every_setting
@every_timeout
class TestFailures:
    """Those of connect(), whichever call it is that connects."""

    @streams
    def test_refused(self, peers: Peers, setting: int, timeout: float | None) -> None:
        del setting
        sock = peers.new(timeout)
        with pytest.raises(ConnectionRefusedError):
            connectx.connectx(sock, None, (peers.host, CLOSED), data=b"hello")
        assert sock.gettimeout() == timeout

    @tcp
    def test_refused_with_a_cookie(self, peers: Peers, setting: int, timeout: float | None) -> None:
        if setting == SETTINGS["on"]:
            peers.get_cookie()
        peers.listener.close()
        sock = peers.new(timeout)
        # A SYN that carries data is gone when the refusal comes: without blocking, the
        # call has then returned, as send() does.
        try:
            assert peers.send(sock, b"hello") == 5
        except ConnectionRefusedError:
            return
        assert setting == SETTINGS["on"]
        with pytest.raises(ConnectionRefusedError):
            limits.receive(sock)

    @streams
    def test_no_route(self, peers: Peers, setting: int, timeout: float | None) -> None:
        del setting
        nowhere = {"127.0.0.1": "192.0.2.9", "::1": "2001:db8::9"}.get(
            peers.host, "::ffff:192.0.2.9"
        )
        with pytest.raises(OSError, match=os.strerror(errno.ENETUNREACH)):
            connectx.connectx(peers.new(timeout), None, (nowhere, FIRST), data=b"hello")


@every_setting
@streams
def test_timed_out(peers: Peers, setting: int, servers: Servers) -> None:
    del setting
    servers.listen(peers.host, SILENT, protocol=peers.transport.protocol, backlog=0)
    peers.new().connect((peers.host, SILENT))
    sock = peers.new(0.02)
    with pytest.raises(TimeoutError):
        connectx.connectx(sock, None, (peers.host, SILENT), data=b"hello")


@datagrams
class TestDatagrams:
    @pytest.mark.parametrize("timeout", [None, 5.0, 0], ids=["blocking", "timeout", "non-blocking"])
    @pytest.mark.parametrize("port", [0, LOW, 30001])
    def test_one_is_sent(
        self,
        transport: Transport,
        network: Network,
        servers: Servers,
        closing: contextlib.ExitStack,
        timeout: float | None,
        port: int,
    ) -> None:
        network.port_range(LOW, HIGH)
        receiver = servers.receive(transport.source, FIRST, protocol=transport.protocol)
        sock = closing.enter_context(transport.socket())
        sock.settimeout(timeout)
        taken = connectx.connectx(
            sock, (transport.source, port), (transport.source, FIRST), data=b"hello"
        )
        assert taken == 5
        assert limits.receive_from(receiver, 16) == (b"hello", sock.getsockname())
        receiver.settimeout(0)
        with pytest.raises(BlockingIOError):
            receiver.recv(16)

    def test_none_is_sent_without_data(
        self, transport: Transport, servers: Servers, closing: contextlib.ExitStack
    ) -> None:
        receiver = servers.receive(transport.source, FIRST, protocol=transport.protocol)
        receiver.settimeout(0)
        sock = closing.enter_context(transport.socket())
        assert connectx.connectx(sock, None, (transport.source, FIRST)) == 0
        with pytest.raises(BlockingIOError):
            receiver.recv(16)

    def test_none_is_sent_when_no_port_is_left(
        self,
        transport: Transport,
        network: Network,
        servers: Servers,
        closing: contextlib.ExitStack,
    ) -> None:
        network.port_range(LOW, LOW)
        receiver = servers.receive(transport.source, FIRST, protocol=transport.protocol)
        for expected in (None, connectx.PortsExhausted):
            sock = closing.enter_context(transport.socket())
            if expected is None:
                connectx.connectx(sock, None, (transport.source, FIRST), data=b"hello")
            else:
                with pytest.raises(expected):
                    connectx.connectx(sock, None, (transport.source, FIRST), data=b"again")
        assert limits.receive(receiver, 16) == b"hello"
        receiver.settimeout(0)
        with pytest.raises(BlockingIOError):
            receiver.recv(16)


class TestFastOpenConnect:
    """TCP_FASTOPEN_CONNECT, set by the owner: connect() waits for the first send()."""

    @pytest.mark.parametrize("setting", [3])
    @pytest.mark.parametrize("source", ["none", "address", "in range", "out of range"])
    @tcp
    def test_it_is_kept_and_works(self, peers: Peers, source: str) -> None:
        peers.get_cookie()
        asked = {
            "none": None,
            "address": (peers.host, 0),
            "in range": (peers.host, LOW),
            "out of range": (peers.host, 30001),
        }[source]
        sock = peers.new()
        sock.setsockopt(socket.IPPROTO_TCP, uapi.TCP_FASTOPEN_CONNECT, 1)
        assert peers.send(sock, b"", asked) == 0
        assert sock.send(b"hello") == 5
        accepted = peers.accept()
        assert came_with_the_syn(accepted)
        assert receive(accepted, 5) == b"hello"
        if asked and asked[1]:
            assert accepted.getpeername()[1] == asked[1]
        assert LOW <= port_of(sock) <= HIGH or source == "out of range"

    @pytest.mark.parametrize("setting", [3])
    @pytest.mark.parametrize("with_cookie", [False, True])
    @tcp
    def test_together_with_data(self, peers: Peers, *, with_cookie: bool) -> None:
        if with_cookie:
            peers.get_cookie()
        sock = peers.new(5)
        sock.setsockopt(socket.IPPROTO_TCP, uapi.TCP_FASTOPEN_CONNECT, 1)
        assert peers.send(sock, b"hello") == 5
        accepted = peers.accept()
        assert receive(accepted, 5) == b"hello"
        assert_nothing_more(accepted, sock)
        assert came_with_the_syn(accepted) == with_cookie

    @pytest.mark.parametrize("setting", [3])
    @pytest.mark.parametrize("transport", [TCP], ids=str)
    def test_a_port_that_waits_for_data_is_taken(self, peers: Peers) -> None:
        peers.get_cookie()
        for _ in range(HIGH - LOW + 1):
            sock = peers.new()
            sock.setsockopt(socket.IPPROTO_TCP, uapi.TCP_FASTOPEN_CONNECT, 1)
            peers.send(sock, b"")
        with pytest.raises(connectx.PortsExhausted):
            peers.send(peers.new(), b"")


@pytest.mark.parametrize("setting", [3])
@pytest.mark.parametrize("transport", [TCP], ids=str)
def test_another_destination_needs_no_second_cookie(
    peers: Peers, servers: Servers, setting: int
) -> None:
    """A cookie is a server's, whatever the port: kept by the kernel, and not by us."""
    del setting
    peers.get_cookie()
    listener = servers.listen(peers.host, SECOND)
    listener.setsockopt(socket.IPPROTO_TCP, uapi.TCP_FASTOPEN, 16)
    sock = peers.new()
    assert connectx.connectx(sock, None, (peers.host, SECOND), data=b"hello") == 5
    accepted, _ = limits.accept(listener)
    with accepted:
        assert receive(accepted, 5) == b"hello"
