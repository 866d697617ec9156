"""What is selected, what is closed, and what is left alone."""

import contextlib
import errno
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from connectx.addresses import Endpoint, PortRange
from connectx.linux import uapi
from connectx.linux.sock_diag import SocketRecord
from connectx.observe import kill as module
from connectx.observe.kill import Outcome, Wanted, require, select
from connectx.sandbox.networks import Network, experiment_network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import CAP_NET_ADMIN, close_first, reset_on_close, without_capability

PORT = 9000

Connect = Callable[..., tuple[socket.socket, socket.socket]]


def kill(*arguments: Any, **keywords: Any) -> Outcome:
    """module.kill(); skips the test where this kernel closes no TIME_WAIT (5.10)."""
    outcome = module.kill(*arguments, **keywords)
    if outcome.refused.keys() == {errno.EOPNOTSUPP}:
        pytest.skip("kernel: it closes no sockets in TIME-WAIT")
    return outcome


@pytest.fixture(autouse=True)
def able(network: Network) -> None:
    network.sysctl("net.ipv4.tcp_tw_reuse", 0)
    try:
        require("tcp")
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip(f"kernel: {error}")


@pytest.fixture
def connect(servers: Servers, closing: contextlib.ExitStack) -> Connect:
    """Both ends of a connection to a listener on every address."""
    listener = servers.listen("::", PORT)

    def connected(host: str = "127.0.0.1", port: int = 0) -> tuple[socket.socket, socket.socket]:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        client = closing.enter_context(socket.socket(family))
        if port:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind((host, port))
        client.connect((host, PORT))
        return client, closing.enter_context(limits.accept(listener)[0])

    return connected


def leave_time_wait(connect: Connect, *arguments: str | int) -> int:
    client, server = connect(*arguments)
    port: int = client.getsockname()[1]
    close_first(client, server, uapi.TCP_TIME_WAIT)
    return port


def ports(wanted: Wanted) -> list[int]:
    return sorted(record.source_port for record in select(wanted))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_the_tuple_of_a_time_wait_is_free_at_once(
    network: Network, connect: Connect, host: str
) -> None:
    network.port_range(20000, 20000)
    leave_time_wait(connect, host)
    with pytest.raises(OSError, match="Cannot assign"):
        connect(host)
    selected = select(Wanted())
    assert [record.source_port for record in selected] == [20000]
    # To look changes nothing.
    with pytest.raises(OSError, match="Cannot assign"):
        connect(host)
    assert kill(Wanted(), selected) == Outcome(1, 0, {})
    assert select(Wanted()) == []
    client, _ = connect(host)
    assert client.getsockname()[1] == 20000


def test_only_time_wait_unless_told_otherwise(connect: Connect) -> None:
    client, server = connect()
    port = leave_time_wait(connect)
    assert ports(Wanted()) == [port]
    kill(Wanted(), select(Wanted()))
    client.send(b"x")
    assert limits.receive(server) == b"x"
    connect()


def test_an_owner_gets_an_error(connect: Connect) -> None:
    client, server = connect()
    other, _ = connect("127.0.0.2")
    wanted = Wanted(states=("ESTAB",), destination=Endpoint("127.0.0.1", PORT))
    assert kill(wanted, select(wanted)) == Outcome(1, 0, {})
    with pytest.raises(ConnectionAbortedError):
        limits.receive(client)
    with pytest.raises(ConnectionResetError):
        limits.receive(server)
    other.getpeername()


def test_datagram_sockets(closing: contextlib.ExitStack) -> None:
    socks = []
    for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "127.0.0.2"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = closing.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        sock.connect((host, 53))
        socks.append(sock)
    wanted = Wanted("udp", ("ESTAB",), destination=Endpoint("127.0.0.1", 53))
    assert kill(wanted, select(wanted)) == Outcome(2, 0, {})
    for sock, hit in zip(socks, (True, False, True, False), strict=True):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == (hit and errno.ECONNABORTED)


def test_several_sockets_on_one_tuple(closing: contextlib.ExitStack) -> None:
    """The lookup finds the newest; the others only when it is gone."""
    socks = []
    for _ in range(5):
        sock = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 20000))
        sock.connect(("127.0.0.1", 53))
        socks.append(sock)
    wanted = Wanted("udp", ("ESTAB",), source="127.0.0.1")
    selected = select(wanted)
    assert kill(wanted, selected[1:2]) == Outcome(0, 0, {errno.ENOENT: 1})
    assert kill(wanted, selected) == Outcome(5, 0, {})
    assert select(wanted) == []


def test_what_goes_or_is_replaced_meanwhile_is_not_hit(connect: Connect) -> None:
    for port in (20000, 20001):
        leave_time_wait(connect, "127.0.0.1", port)
    selected = select(Wanted())
    # An explicit bind takes the place of a TIME_WAIT.
    client, server = connect("127.0.0.1", 20000)
    assert kill(Wanted(), selected) == Outcome(1, 1, {})
    client.send(b"x")
    assert limits.receive(server) == b"x"


class TestFilters:
    def test_by_address_and_port(self, connect: Connect) -> None:
        for number, host in enumerate(("127.0.0.1", "127.0.0.1", "127.0.0.2", "::1")):
            leave_time_wait(connect, host, 20000 + number)
        assert ports(Wanted()) == [20000, 20001, 20002, 20003]
        assert ports(Wanted(source="127.0.0.2")) == [20002]
        assert ports(Wanted(destination=Endpoint("::1", 0))) == [20003]
        assert ports(Wanted(destination=Endpoint("", PORT + 1))) == []
        assert ports(Wanted(source_ports=PortRange(20001, 20002))) == [20001, 20002]
        assert len(ports(Wanted(limit=3))) == 3
        wanted = Wanted(limit=1)
        assert kill(wanted, select(wanted)) == Outcome(1, 0, {})
        assert len(ports(Wanted())) == 3

    def test_by_state(self, connect: Connect) -> None:
        client, server = connect()
        client.shutdown(socket.SHUT_WR)
        assert limits.receive(server) == b""
        server.send(b"x")
        assert limits.receive(client) == b"x"
        of = {"source": "127.0.0.1"}
        assert ports(Wanted(states=("FIN-WAIT-2",), **of)) == [client.getsockname()[1]]  # type: ignore[arg-type]
        assert ports(Wanted(states=("CLOSE-WAIT",), **of)) == [PORT]  # type: ignore[arg-type]
        assert len(ports(Wanted(states=("CLOSE-WAIT", "FIN-WAIT-2"), **of))) == 2  # type: ignore[arg-type]
        assert ports(Wanted(states=("LISTEN",), source="::")) == [PORT]

    @pytest.mark.parametrize(
        "wrong",
        [
            Wanted("sctp"),
            Wanted(states=()),
            Wanted(states=("BOUND-INACTIVE",)),
            Wanted("udp"),
            Wanted("udp", ("LISTEN",)),
            Wanted(states=("ESTAB",)),
            Wanted(states=("TIME-WAIT", "LISTEN")),
            Wanted("udp", ("ESTAB",), source_ports=PortRange(1, 2)),
            Wanted(source="here"),
            Wanted(source="::1", destination=Endpoint("127.0.0.1", 0)),
        ],
    )
    def test_wrong_use(self, wrong: Wanted) -> None:
        with pytest.raises(ValueError, match=r"protocol|state|closed by|IP version|address"):
            select(wrong)


def cookies(selected: list[SocketRecord]) -> list[bytes]:
    return [record.cookie for record in selected]


class TestRefusals:
    def test_nothing_is_closed_without_the_capability(self, connect: Connect) -> None:
        leave_time_wait(connect)
        selected = select(Wanted())
        with without_capability(CAP_NET_ADMIN):
            assert cookies(select(Wanted())) == cookies(selected)
            with pytest.raises(PermissionError, match="CAP_NET_ADMIN"):
                require("tcp")
            with pytest.raises(PermissionError, match="CAP_NET_ADMIN"):
                kill(Wanted(), selected)
        assert cookies(select(Wanted())) == cookies(selected)

    def test_are_counted(self, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
        for _ in range(3):
            leave_time_wait(connect)
        # As if the privilege were lost after the question for it.
        monkeypatch.setattr(module, "require_destroy", lambda *_: None)
        selected = select(Wanted())
        with without_capability(CAP_NET_ADMIN):
            assert kill(Wanted(), selected) == Outcome(0, 0, {errno.EPERM: 3})


def test_in_another_namespace(connect: Connect) -> None:
    port = leave_time_wait(connect)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        with experiment_network():
            assert select(Wanted()) == []
            where = str(child.pid)
            require("udp", netns=where)
            selected = select(Wanted(), netns=where)
            assert [record.source_port for record in selected] == [port]
            assert kill(Wanted(), selected) == Outcome(0, 1, {})
            assert kill(Wanted(), selected, netns=where) == Outcome(1, 0, {})
    finally:
        child.communicate(timeout=limits.LIMIT)
    assert select(Wanted()) == []


def test_a_queue_of_connections_that_wait(connect: Connect) -> None:
    """Of 300, each is closed once."""
    for _ in range(300):
        client, _ = connect()
        reset_on_close(client)
    wanted = Wanted(states=("ESTAB",), destination=Endpoint("127.0.0.1", PORT))
    assert kill(wanted, select(wanted)) == Outcome(300, 0, {})


def test_of_two_devices_with_the_same_addresses(
    network: Network, closing: contextlib.ExitStack
) -> None:
    for pair in (("va", "vb"), ("vc", "vd")):
        network.add_device_pair(*pair)
    sockets = {}
    for device in ("va", "vc"):
        # The kernel's own comes when its worker gets to it.
        network.add_address("fe80::1", 64, device)
        sock = closing.enter_context(socket.socket(socket.AF_INET6))
        sock.setblocking(False)  # noqa: FBT003 -- the standard library's way
        # Nobody answers: it stays in SYN-SENT.
        where = ("fe80::9", PORT, 0, socket.if_nametoindex(device))
        assert sock.connect_ex(where) == errno.EINPROGRESS
        sockets[device] = sock
    wanted = Wanted(states=("SYN-SENT",), destination=Endpoint("fe80::9%va", PORT))
    assert kill(wanted, select(wanted)) == Outcome(1, 0, {})
    ends = {
        device: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        for device, sock in sockets.items()
    }
    assert ends == {"va": errno.ECONNABORTED, "vc": 0}
    with pytest.raises(OSError, match="no interface is named 'nothing'"):
        select(wanted._replace(destination=Endpoint("fe80::9%nothing", PORT)))
