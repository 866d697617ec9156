"""A port of the range that somebody binds on another address, and lets go again.

connect() gives such a port to nobody, and since 6.17.8 gives it out again when the binder has
gone, although older connections are still on it (tests/kernel/test_binders_elsewhere.py).
"""

import contextlib
import socket
from typing import Final

import pytest

import connectx
from connectx import Dialer, PortsExhausted
from connectx.linux import uapi
from connectx.linux.disconnect import disconnect
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.api.calls import MPTCP_MAPPED, TCP_MAPPED, Client, port_of, reset_on_close
from tests.dialer.drivers import kind_of
from tests.kernel.raw import (
    FIRST,
    MPTCP,
    SECOND,
    TCP,
    TCP6,
    UDP,
    UDP6,
    Transport,
    recomputes_buckets,
)

LOW, HIGH = 20001, 20002

#: By IP version of the socket and the packets: three sources, of which others bind the second.
HOSTS: Final = {
    "127.0.0.1": ("127.0.0.2", "127.0.0.3", "127.0.0.4"),
    "::1": ("2001:db8::2", "2001:db8::3", "2001:db8::4"),
    "::ffff:127.0.0.1": ("::ffff:127.0.0.2", "::ffff:127.0.0.3", "::ffff:127.0.0.4"),
}

streams = pytest.mark.parametrize(
    "transport", [TCP, TCP6, TCP_MAPPED, MPTCP, MPTCP_MAPPED], ids=str
)


@pytest.fixture(autouse=True)
def _one_port(network: Network) -> None:
    network.port_range(LOW, LOW)
    for host in HOSTS["::1"]:
        network.add_address(host)


@pytest.fixture
def hosts(transport: Transport) -> tuple[str, ...]:
    return HOSTS[transport.source]


class Binders:
    """Makes the sockets of others, by system calls alone."""

    def __init__(self, transport: Transport, stack: contextlib.ExitStack) -> None:
        self._transport = transport
        self._stack = stack

    def bound(self, host: str, port: int = LOW) -> socket.socket:
        sock = self._stack.enter_context(self._transport.socket())
        self.bind(sock, host, port)
        return sock

    @staticmethod
    def bind(sock: socket.socket, host: str, port: int = LOW) -> None:
        sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, 1)
        sock.bind((host, port))


@pytest.fixture
def binders(transport: Transport, closing: contextlib.ExitStack) -> Binders:
    return Binders(transport, closing)


@streams
class TestOneComesAndGoes:
    @pytest.mark.parametrize(
        "strategy", ["auto", "kernel", "full-range", "one-port", "shifting-window"]
    )
    @pytest.mark.parametrize("first_of_all", [False, True], ids=["", "a connection stays"])
    def test_the_port_is_nobodys_and_then_everybodys(
        self,
        client: Client,
        binders: Binders,
        hosts: tuple[str, ...],
        strategy: str,
        *,
        first_of_all: bool,
    ) -> None:
        first, elsewhere, last = hosts
        if first_of_all:
            client.open(FIRST, (first, 0), strategy=strategy)
        binder = binders.bound(elsewhere)
        for _ in range(2):
            with pytest.raises(PortsExhausted):
                client.open(FIRST, (last, 0), strategy=strategy)
        binder.close()
        if first_of_all and not recomputes_buckets():
            with pytest.raises(PortsExhausted):
                client.open(FIRST, (last, 0), strategy=strategy)
            client.close(client.opened[0])
        assert port_of(client.open(FIRST, (last, 0), strategy=strategy)) == LOW

    def test_who_asks_for_it_binds_it_on_an_address_of_its_own(
        self, client: Client, binders: Binders, hosts: tuple[str, ...]
    ) -> None:
        first, elsewhere, last = hosts
        client.open(FIRST, (first, 0))
        binder = binders.bound(elsewhere)
        assert port_of(client.open(FIRST, (last, LOW))) == LOW
        # From now on it is a binder, too.
        binder.close()
        with pytest.raises(PortsExhausted):
            client.open(SECOND, (last, 0))
        client.close(client.opened[1])
        if recomputes_buckets():
            client.open(SECOND, (last, 0))

    def test_the_other_port_is_taken_and_later_both(
        self, network: Network, client: Client, binders: Binders, hosts: tuple[str, ...]
    ) -> None:
        first, elsewhere, last = hosts
        network.port_range(LOW, HIGH)
        binder = binders.bound(elsewhere)
        assert port_of(client.open(FIRST, (first, 0))) == HIGH
        assert port_of(client.open(FIRST, (last, 0))) == HIGH
        with pytest.raises(PortsExhausted):
            client.open(FIRST, (last, 0))
        binder.close()
        assert port_of(client.open(FIRST, (last, 0))) == LOW
        with pytest.raises(PortsExhausted):
            client.open(FIRST, (last, 0))


@pytest.fixture
def listening(transport: Transport, servers: Servers) -> None:
    transport.socket().close()
    servers.listen(transport.source, FIRST, protocol=transport.protocol)


@pytest.mark.usefixtures("listening")
class TestOneSocket:
    @streams
    def test_that_was_refused_connects_when_the_binder_has_gone(
        self,
        transport: Transport,
        binders: Binders,
        hosts: tuple[str, ...],
        closing: contextlib.ExitStack,
    ) -> None:
        _, elsewhere, last = hosts
        binder = binders.bound(elsewhere)
        sock = closing.enter_context(transport.socket())
        for _ in range(2):
            with pytest.raises(PortsExhausted):
                connectx.connectx(sock, (last, 0), (transport.source, FIRST))
        binder.close()
        connectx.connectx(sock, (last, 0), (transport.source, FIRST))
        assert sock.getsockname()[:2] == (last, LOW)

    @pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED], ids=str)
    def test_that_we_have_connected_shuts_the_port_once_it_is_bound(
        self,
        transport: Transport,
        binders: Binders,
        hosts: tuple[str, ...],
        closing: contextlib.ExitStack,
    ) -> None:
        """Its owner disconnects it and binds the port; another binder comes and goes."""
        first, elsewhere, last = hosts
        ours = closing.enter_context(transport.socket())
        connectx.connectx(ours, (first, 0), (transport.source, FIRST))
        disconnect(ours)
        binders.bind(ours, elsewhere)
        binders.bound(elsewhere).close()
        sock = closing.enter_context(transport.socket())
        with pytest.raises(PortsExhausted):
            connectx.connectx(sock, (last, 0), (transport.source, FIRST))
        ours.close()
        connectx.connectx(sock, (last, 0), (transport.source, FIRST))


@pytest.mark.parametrize("transport", [TCP, TCP6, MPTCP], ids=str)
@pytest.mark.usefixtures("listening")
def test_a_dialer_finds_the_port_again(
    transport: Transport, binders: Binders, hosts: tuple[str, ...]
) -> None:
    """Of two sources, each of which has the one port."""
    first, elsewhere, last = hosts
    dialer = Dialer([first, last])
    kind = kind_of(transport)
    to = (transport.source, FIRST)

    def opened() -> list[socket.socket]:
        socks: list[socket.socket] = []
        with contextlib.suppress(PortsExhausted):
            while len(socks) < 3:
                socks.append(dialer.create_connection(to, **kind))
        return socks

    binder = binders.bound(elsewhere)
    assert opened() == []
    binder.close()
    socks = opened()
    assert sorted(sock.getsockname()[0] for sock in socks) == sorted([first, last])
    for sock in socks:
        reset_on_close(sock)
        sock.close()


@pytest.mark.parametrize("transport", [UDP, UDP6], ids=str)
def test_datagrams_share_no_address_and_so_lose_nothing(
    client: Client, binders: Binders, hosts: tuple[str, ...]
) -> None:
    first, elsewhere, last = hosts
    binders.bound(elsewhere)
    for host in (first, last):
        assert port_of(client.open(FIRST, (host, 0))) == LOW
