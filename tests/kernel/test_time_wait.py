"""TIME_WAIT: who may use its source 2-tuple again, and when.

The connections here are closed by the client first, so the client's side holds
the TIME_WAIT, or while the server has not closed its own, the FIN_WAIT2 that the
kernel keeps in the same kind of bucket.
"""

import contextlib
import errno
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from connectx.linux import uapi
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.kernel.raw import (
    FIRST,
    INUSE,
    NOTAVAIL,
    OK,
    SECOND,
    TCP,
    TCP6,
    Found,
    Sockets,
    Technique,
    abort,
    available,
    connect_class,
    destroy,
    look_up,
    prepare,
)

PORT: Final = 20001
WINDOW: Final = (PORT, PORT)

CONNECT: Final = connect_class(WINDOW)
CONNECT_REUSEADDR: Final = connect_class(WINDOW, reuseaddr=True)
EXPLICIT: Final = Technique("REUSEADDR + bind(ip, port)", reuseaddr=True, bind=PORT)
BIND: Final = Technique("bind(ip, port)", bind=PORT)
BIND_ANY: Final = Technique("bind(ip, 0)", bind=0)
STATES: Final = {"TIME_WAIT": uapi.TCP_TIME_WAIT, "FIN_WAIT2": uapi.TCP_FIN_WAIT2}

REUSE_DELAY: Final = "net.ipv4.tcp_tw_reuse_delay"

pytestmark = pytest.mark.parametrize("transport", [TCP, TCP6], ids=str)


class Connections:
    """Leaves closed connections behind, and tries to make new ones in their place."""

    def __init__(self, sockets: Sockets, stack: contextlib.ExitStack) -> None:
        self.transport = sockets.transport
        self._sockets = sockets
        self._stack = stack

    def leave(self, technique: Technique, state: str = "TIME_WAIT", port: int = FIRST) -> None:
        """Connect, and close from the client's side; wait until that is in the state."""
        self.close(technique, port, server_too=state == "TIME_WAIT")
        self.wait_for(STATES[state], port)

    def close(self, technique: Technique, port: int = FIRST, *, server_too: bool = True) -> None:
        client = self._sockets.open(technique, port)
        server, _ = limits.accept(self._sockets.listeners[port])
        self._stack.enter_context(server)
        client.close()
        assert limits.receive(server) == b""
        if server_too:
            server.close()

    def wait_for(self, state: int, port: int = FIRST) -> Found:
        def look() -> Found | None:
            found = look_up(self.transport, PORT, port)
            return found if found and found.state == state else None

        return limits.until(look, f"a socket in state {state}")

    def outcome(self, technique: Technique, port: int = FIRST) -> str:
        """As Sockets.outcome(), but OK as soon as the kernel has taken the 4-tuple, and undone.

        In place of a FIN_WAIT2 the handshake would take a while: the server's side is
        still there.
        """
        with self.transport.socket() as sock:
            sock.settimeout(0)
            call = "bind"
            try:
                prepare(sock, technique, self.transport.source)
                call = "connect"
                sock.connect((self.transport.source, port))
            except BlockingIOError:
                abort(sock)
            except OSError as error:
                return f"{errno.errorcode[error.errno or 0]} at {call}"
        return OK

    def is_accepted_in_time(self, technique: Technique, port: int = FIRST) -> bool:
        """Try again and again: that the delay has passed is nothing one could wait for."""
        return limits.until(lambda: self.outcome(technique, port) == OK, "the port is given again")


@pytest.fixture
def connections(sockets: Sockets, network: Network, closing: contextlib.ExitStack) -> Connections:
    network.port_range(PORT, PORT)
    return Connections(sockets, closing)


def allow_reuse(network: Network, setting: int, *, after_ms: int = 1) -> None:
    network.sysctl("net.ipv4.tcp_tw_reuse", setting)
    # Before 6.14 the delay is one second, whatever one does.
    if Path("/proc/sys", *REUSE_DELAY.split(".")).exists():
        network.sysctl(REUSE_DELAY, after_ms)


@pytest.mark.parametrize("setting", [0, 1, 2])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("left", [*CONNECT_REUSEADDR, EXPLICIT], ids=str)
def test_an_explicit_bind_reuses_it_at_once(
    connections: Connections, network: Network, left: Technique, state: str, setting: int
) -> None:
    allow_reuse(network, setting, after_ms=60_000)
    connections.leave(left, state)
    assert connections.outcome(EXPLICIT) == OK


def test_an_explicit_bind_needs_timestamps(connections: Connections, network: Network) -> None:
    network.sysctl("net.ipv4.tcp_timestamps", 0)
    connections.leave(EXPLICIT)
    assert connections.outcome(EXPLICIT) == NOTAVAIL


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("left", CONNECT, ids=str)
def test_an_explicit_bind_is_refused_where_the_old_socket_had_no_reuseaddr(
    connections: Connections, left: Technique, state: str
) -> None:
    connections.leave(left, state)
    assert connections.outcome(EXPLICIT) == INUSE


@pytest.mark.parametrize("left", [CONNECT[0], CONNECT_REUSEADDR[0], EXPLICIT], ids=str)
def test_reuseaddr_and_bind_to_port_0_does_not_help(
    connections: Connections, left: Technique
) -> None:
    connections.leave(left)
    assert connections.outcome(Technique("", reuseaddr=True, bind=0)) == INUSE


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("left", CONNECT + CONNECT_REUSEADDR, ids=str)
def test_left_by_the_connect_class_it_blocks_its_own_destination_alone(
    connections: Connections, network: Network, left: Technique, state: str
) -> None:
    network.sysctl("net.ipv4.tcp_tw_reuse", 0)
    connections.leave(left, state)
    for technique in available(connections.transport, CONNECT + CONNECT_REUSEADDR):
        assert connections.outcome(technique, FIRST) == NOTAVAIL
        assert connections.outcome(technique, SECOND) == OK


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("left", [EXPLICIT, BIND, BIND_ANY], ids=str)
def test_left_by_an_explicit_bind_it_blocks_the_connect_class_to_everywhere(
    connections: Connections, network: Network, left: Technique, state: str
) -> None:
    allow_reuse(network, 1)
    connections.leave(left, state)
    for technique in available(connections.transport, CONNECT + CONNECT_REUSEADDR):
        assert connections.outcome(technique, FIRST) == NOTAVAIL
        assert connections.outcome(technique, SECOND) == NOTAVAIL


@pytest.mark.parametrize("reuse", [0, 1])
def test_bind_to_port_0_is_given_it_where_autobind_reuse_is_on(
    connections: Connections, network: Network, reuse: int
) -> None:
    network.sysctl("net.ipv4.ip_autobind_reuse", reuse)
    any_port = Technique("REUSEADDR + bind(ip, 0)", reuseaddr=True, bind=0)
    connections.leave(any_port)
    assert connections.outcome(BIND_ANY) == INUSE
    assert connections.outcome(any_port) == (OK if reuse else INUSE)


@pytest.mark.parametrize("setting", [1, 2])
@pytest.mark.parametrize("left", CONNECT + CONNECT_REUSEADDR, ids=str)
def test_the_connect_class_reuses_it_after_the_delay(
    connections: Connections, network: Network, left: Technique, setting: int
) -> None:
    allow_reuse(network, setting)
    connections.leave(left)
    assert connections.is_accepted_in_time(left)


def test_the_delay_is_a_second_by_default(connections: Connections, network: Network) -> None:
    if not Path("/proc/sys", *REUSE_DELAY.split(".")).exists():
        pytest.skip("kernel: the delay is no sysctl before 6.14")
    assert network.namespace.get_sysctl(REUSE_DELAY) == "1000"
    network.sysctl(REUSE_DELAY, 60_000)
    connections.leave(CONNECT[0])
    assert connections.outcome(CONNECT[0]) == NOTAVAIL
    network.sysctl(REUSE_DELAY, 1)
    assert connections.is_accepted_in_time(CONNECT[0])


@pytest.mark.parametrize("timestamps, setting, state", [(0, 1, "TIME_WAIT"), (1, 1, "FIN_WAIT2")])
def test_the_connect_class_never_reuses_it(
    connections: Connections, network: Network, timestamps: int, setting: int, state: str
) -> None:
    (wanted, *_) = CONNECT
    allow_reuse(network, setting)
    network.sysctl("net.ipv4.tcp_timestamps", timestamps)
    connections.leave(wanted, state)
    # Another one, that may be reused, tells that the delay has passed for the first too.
    network.sysctl("net.ipv4.tcp_timestamps", 1)
    connections.leave(wanted, port=SECOND)
    assert connections.is_accepted_in_time(wanted, SECOND)
    assert connections.outcome(wanted) == NOTAVAIL


@pytest.mark.parametrize("setting", [1, 2])
def test_by_default_only_loopback_addresses_are_reused(
    connections: Connections, network: Network, closing: contextlib.ExitStack, setting: int
) -> None:
    host = "192.0.2.7" if connections.transport.family == TCP.family else "2001:db8::7"
    network.add_address(host)
    elsewhere = Sockets(replace(connections.transport, source=host), closing)
    elsewhere.serve(closing.enter_context(Servers()))
    away = Connections(elsewhere, closing)
    (wanted, *_) = CONNECT
    allow_reuse(network, setting)
    away.leave(wanted)
    connections.leave(wanted)
    assert connections.is_accepted_in_time(wanted)
    assert away.outcome(wanted) == (OK if setting == 1 else NOTAVAIL)


@pytest.mark.parametrize("wildcard", [False, True], ids=["its address", "wildcard"])
@pytest.mark.parametrize("reuseaddr", [False, True], ids=["", "SO_REUSEADDR"])
def test_a_service_that_closes_first_leaves_it_on_its_port(
    connections: Connections, closing: contextlib.ExitStack, *, reuseaddr: bool, wildcard: bool
) -> None:
    """Whoever binds the port then, on the address or on all, needs SO_REUSEADDR as it had."""
    transport = connections.transport
    host = transport.wildcard if wildcard else transport.source
    service = Technique("", reuseaddr=reuseaddr, bind=PORT)

    def bind(technique: Technique, host: str) -> socket.socket:
        sock = closing.enter_context(transport.socket())
        prepare(sock, technique, host)
        return sock

    listener = bind(service, host)
    listener.listen()
    with transport.socket() as client:
        prepare(client, Technique("", reuseaddr=True, bind=PORT + 1), transport.source)
        client.connect((transport.source, PORT))
        accepted, _ = limits.accept(listener)
        accepted.close()
        assert limits.receive(client) == b""
    listener.close()
    limits.until(lambda: look_up(transport, PORT, PORT + 1), "a TIME_WAIT on the service's port")
    for address in (transport.source, transport.wildcard):
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            bind(BIND, address)
        if reuseaddr:
            bind(service, address).close()
        else:
            with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
                bind(EXPLICIT, address)
    # connect() chooses it for nobody, to whatever destination.
    for technique in available(transport, CONNECT + CONNECT_REUSEADDR):
        assert connections.outcome(technique) == NOTAVAIL


@pytest.mark.parametrize("left", [CONNECT_REUSEADDR[0], EXPLICIT], ids=str)
def test_sock_destroy_ends_it(connections: Connections, left: Technique) -> None:
    connections.leave(left)
    assert connections.outcome(CONNECT[0]) == NOTAVAIL
    destroy(connections.transport, PORT, FIRST)
    assert connections.outcome(BIND) == OK


def test_it_lasts_a_minute_whatever_tcp_fin_timeout_says(
    connections: Connections, network: Network
) -> None:
    network.sysctl("net.ipv4.tcp_fin_timeout", 5)
    connections.leave(CONNECT[0])
    assert 50_000 < connections.wait_for(uapi.TCP_TIME_WAIT).expires <= 60_000
    connections.leave(CONNECT[0], "FIN_WAIT2", SECOND)
    assert connections.wait_for(uapi.TCP_FIN_WAIT2, SECOND).expires <= 5_000


def test_above_tcp_max_tw_buckets_there_is_none(connections: Connections, network: Network) -> None:
    network.sysctl("net.ipv4.tcp_max_tw_buckets", 1)
    connections.leave(CONNECT[0])
    before = time_wait_overflows()
    connections.close(CONNECT[0], SECOND)
    limits.until(lambda: time_wait_overflows() > before, "a TIME_WAIT too many")
    assert connections.outcome(CONNECT[0], SECOND) == OK
    assert connections.outcome(CONNECT[0], FIRST) == NOTAVAIL


def time_wait_overflows() -> int:
    lines = Path("/proc/thread-self/net/netstat").read_text().splitlines()
    names, values = (line.split() for line in lines[:2])
    return int(values[names.index("TCPTimeWaitOverflow")])
