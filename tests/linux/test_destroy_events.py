"""The kernel reports when sockets end, whichever process they belong to."""

import contextlib
import errno
import select
import socket
import threading

import pytest

import connectx
from connectx._connect.request import parse
from connectx._dial.endings import Ending, Endings, Unreported, listen
from connectx.linux import netns, uapi
from connectx.linux.destroy_events import DestroyEvents
from connectx.linux.sock_diag import SocketRecord
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import TCP_MAPPED, UDP_MAPPED, is_stream, reset_on_close
from tests.kernel.raw import FIRST, MPTCP, TCP, TCP6, UDP, UDP6, UDPLITE, Transport

every_transport = pytest.mark.parametrize(
    "transport", [TCP, TCP6, TCP_MAPPED, MPTCP, UDP, UDP6, UDP_MAPPED], ids=str
)


@pytest.fixture
def sock(transport: Transport, network: Network, servers: Servers) -> socket.socket:
    """A connected socket, for the test to close."""
    del network
    transport.socket().close()  # Skips the test if the kernel lacks the protocol.
    if is_stream(transport):
        servers.listen(transport.source, FIRST, protocol=transport.protocol)
    sock = transport.socket()
    connectx.connectx(sock, None, (transport.source, FIRST))
    return sock


def heard(events: DestroyEvents, wanted: int) -> list[SocketRecord]:
    """The next `wanted` reports, of which one message may carry several."""
    records: list[SocketRecord] = []

    def take(record: SocketRecord | None) -> bool:
        assert record is not None
        records.append(record)
        return False

    while len(records) < wanted:
        assert select.select([events], [], [], limits.LIMIT)[0], "nothing was heard"
        assert not events.take(take)
    return records


class Told(Unreported):
    """Notes which sockets it is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.cookies: list[bytes] = []

    def ended(self, cookie: bytes) -> None:
        self.cookies.append(cookie)


@pytest.mark.parametrize("reset", [False, True])
@every_transport
def test_of_a_connection(sock: socket.socket, transport: Transport, *, reset: bool) -> None:
    to = parse(
        int(transport.family),
        int(transport.type),
        int(sock.proto),
        "auto",
        None,
        sock.getpeername(),
    )
    found: list[Ending] = []
    unreported = Told()
    cookie = sock.getsockopt(socket.SOL_SOCKET, uapi.SO_COOKIE, 8)
    with DestroyEvents(stream=is_stream(transport)) as events:
        assert not events.take(lambda _: True)
        if is_stream(transport):
            if not reset:
                # A plain close would leave a TIME_WAIT, whose end is not reported.
                sock.shutdown(socket.SHUT_WR)
            reset_on_close(sock)
        sock.close()
        endings = Endings(to, events, unreported)
        while not found:
            assert select.select([events], [], [], limits.LIMIT)[0], "nothing was heard"
            # A socket that was reset has no port any more; one that was refused has.
            found = endings.take()
    assert found[0].host
    # For MPTCP, the kernel reports the subflow.
    assert (cookie in unreported.cookies) == (transport is not MPTCP)


@pytest.mark.parametrize("transport", [UDP], ids=str)
def test_others_do_not_concern(sock: socket.socket, network: Network) -> None:
    del network
    other = parse(int(socket.AF_INET), int(socket.SOCK_DGRAM), 0, "auto", None, ("127.0.0.1", 9))
    name = sock.getsockname()
    with DestroyEvents(stream=False) as events:
        sock.close()
        (record,) = heard(events, 1)
        endings = Endings(other, events, Unreported())
        assert not endings._note(record)
        assert endings.take() == []
    assert record.source_port == name[1]
    assert (record.destination, record.destination_port) == (b"\x7f\0\0\1", FIRST)


@pytest.mark.parametrize("transport", [UDPLITE], ids=str)
def test_of_udp_lite_nothing_is_told(sock: socket.socket) -> None:
    """The kernel has no group for UDP-Lite (sock_diag_destroy_group)."""
    with DestroyEvents(stream=False) as events:
        sock.close()
        with UDP.socket() as other:
            other.connect(("127.0.0.1", FIRST + 1))
        (record,) = heard(events, 1)
        assert record.destination_port == FIRST + 1


@pytest.mark.parametrize("transport", [UDP, TCP], ids=str)
def test_the_other_kind_is_not_heard(sock: socket.socket, transport: Transport) -> None:
    with (
        DestroyEvents(stream=not is_stream(transport)) as deaf,
        DestroyEvents(stream=is_stream(transport)) as events,
    ):
        if is_stream(transport):
            reset_on_close(sock)
        sock.close()
        heard(events, 1)
        assert not deaf.take(lambda _: True)


@pytest.mark.parametrize("transport", [UDP], ids=str)
def test_another_namespace_is_not_heard(sock: socket.socket) -> None:
    with DestroyEvents(stream=False) as events:

        def elsewhere() -> None:
            with netns.private_network():
                for _ in range(3):
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                        other.connect(("127.0.0.1", FIRST))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        limits.join(thread)
        sock.close()
        assert len(heard(events, 1)) == 1


@pytest.mark.parametrize("transport", [UDP], ids=str)
def test_lost_messages_may_have_been_about_anybody(sock: socket.socket) -> None:
    with DestroyEvents(stream=False) as events:
        # The smallest possible buffer: a few messages fill it.
        events._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        while not events.take(lambda record: record is None):
            # The kernel reports them some time later (sock_diag_broadcast_destroy).
            for _ in range(200):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                    other.connect(("127.0.0.1", FIRST + 1))
        # It keeps listening, also for late reports of the other sockets.
        events._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        port = sock.getsockname()[1]
        ports: list[int] = []
        sock.close()
        while port not in ports:
            assert select.select([events], [], [], limits.LIMIT)[0], "nothing was heard"

            def take(record: SocketRecord | None) -> bool:
                ports.append(record.source_port if record else 0)
                return False

            events.take(take)


@pytest.mark.parametrize("transport", [UDP], ids=str)
def test_each_end_is_asked_about(sock: socket.socket) -> None:
    """If several concern somebody, all must be asked about: each frees another source."""
    asked: list[SocketRecord | None] = []
    with UDP.socket() as other, DestroyEvents(stream=False) as events:
        other.connect(("127.0.0.1", FIRST))
        sock.close()
        other.close()
        while len(asked) < 2:
            assert select.select([events], [], [], limits.LIMIT)[0], "nothing was heard"

            def take(record: SocketRecord | None) -> bool:
                asked.append(record)
                return True

            assert events.take(take)


@pytest.mark.parametrize("transport", [UDP], ids=str)
def test_lost_messages_may_have_been_about_any_source(sock: socket.socket) -> None:
    to = parse(int(socket.AF_INET), int(socket.SOCK_DGRAM), 0, "auto", None, sock.getpeername())
    sock.close()
    with DestroyEvents(stream=False) as events:
        endings = Endings(to, events, Unreported())
        assert endings._note(None)
        assert endings._found == [Ending(None, certain=True)]


def test_closes_its_descriptor(network: Network) -> None:
    del network
    events = DestroyEvents(stream=True)
    assert events.fileno() >= 0
    events.close()
    events.close()
    assert events.fileno() == -1


def test_where_the_kernel_has_no_such_groups(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    del network
    to = parse(int(socket.AF_INET), int(socket.SOCK_STREAM), 0, "auto", None, ("127.0.0.1", 9))

    def refuse(*_: object, **__: object) -> DestroyEvents:
        raise OSError(errno.EPROTONOSUPPORT, "no SOCK_DIAG")

    with contextlib.closing(
        listen(to, Unreported()) or pytest.skip("kernel: no destroy notifications")
    ):
        pass
    monkeypatch.setattr("connectx.linux.destroy_events.DestroyEvents", refuse)
    assert listen(to, Unreported()) is None
