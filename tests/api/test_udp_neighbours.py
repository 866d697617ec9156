"""What UDP connections leave to others on the same ports: services, and strangers' datagrams."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

import connectx
from connectx import PortsExhausted
from connectx._connect import callers_socket, connection, namespace, plan, udp_connect
from connectx.addresses import Address
from connectx.linux import uapi
from connectx.sandbox.networks import Network
from tests import limits
from tests.api.calls import CALLS, UDP_MAPPED, Call, port_of
from tests.kernel.raw import FIRST, SECOND, UDP, UDP6, UDPLITE, Transport

LOW: Final = 20000

every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
every_transport = pytest.mark.parametrize("transport", [UDP, UDP6, UDP_MAPPED, UDPLITE], ids=str)


@pytest.fixture(autouse=True)
def _two_ports(network: Network) -> None:
    network.port_range(LOW, LOW + 1)


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def service(transport: Transport, host: str, port: int, *options: tuple[int, Any]) -> socket.socket:
    """A socket that shares its port, and receives."""
    sock = transport.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for option, value in options:
        sock.setsockopt(socket.SOL_SOCKET, option, value)
    sock.bind((host, port))
    return sock


class TestServices:
    @every_call
    @every_transport
    @pytest.mark.parametrize("where", ["source", "wildcard"])
    @pytest.mark.parametrize("with_source", [False, True], ids=["any source", "source address"])
    def test_a_port_is_not_taken_that_a_service_has(
        self,
        transport: Transport,
        call: Call,
        closing: contextlib.ExitStack,
        where: str,
        *,
        with_source: bool,
    ) -> None:
        transport.socket().close()
        host = transport.source if where == "source" else transport.wildcard
        closing.enter_context(service(transport, host, LOW))
        source = (transport.source, 0) if with_source else None
        first = closing.enter_context(call(transport, source, (transport.source, FIRST), "auto"))
        # Toward another destination the other port is shared.
        second = closing.enter_context(call(transport, source, (transport.source, SECOND), "auto"))
        assert port_of(first) == port_of(second) == LOW + 1
        with pytest.raises(PortsExhausted):
            call(transport, source, (transport.source, FIRST), "auto")

    @every_call
    def test_nor_of_a_service_of_both_versions(
        self, call: Call, closing: contextlib.ExitStack
    ) -> None:
        closing.enter_context(service(UDP6, "::", LOW))
        for port in (FIRST, SECOND):
            sock = closing.enter_context(call(UDP, None, (UDP.source, port), "auto"))
            assert port_of(sock) == LOW + 1

    @every_call
    @every_transport
    def test_nor_where_the_kernel_has_no_windows(
        self,
        transport: Transport,
        call: Call,
        closing: contextlib.ExitStack,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for module in (plan, namespace):
            monkeypatch.setattr(module, "windows_work", lambda _: False)
        closing.enter_context(service(transport, transport.source, LOW))
        for port in (FIRST, SECOND):
            sock = closing.enter_context(call(transport, None, (transport.source, port), "auto"))
            assert port_of(sock) == LOW + 1
            with pytest.raises(PortsExhausted):
                call(transport, None, (transport.source, port), "auto")

    @every_call
    @every_transport
    def test_who_asks_for_it_by_number_gets_it(
        self, transport: Transport, call: Call, closing: contextlib.ExitStack
    ) -> None:
        transport.socket().close()
        closing.enter_context(service(transport, transport.source, LOW))
        source = (transport.source, LOW)
        for port in (FIRST, SECOND):
            sock = closing.enter_context(call(transport, source, (transport.source, port), "auto"))
            assert port_of(sock) == LOW


class TestStrangers:
    """What somebody else sends to the port before connect() is dropped."""

    @pytest.fixture
    def before_connect(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[Callable[[int], None]], None]:
        """Have something happen between bind() and connect(), to the port."""

        def arrange(happen: Callable[[int], None]) -> None:
            bind = udp_connect._bind

            def bind_and_more(sock: socket.socket, source: Address, *, releasable: bool) -> None:
                bind(sock, source, releasable=releasable)
                happen(sock.getsockname()[1])

            monkeypatch.setattr(udp_connect, "_bind", bind_and_more)

        return arrange

    @every_call
    @pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
    @pytest.mark.parametrize("transport", [UDP, UDP6], ids=str)
    @pytest.mark.parametrize("timeout", [None, 0, 5])
    def test_they_are_not_received(
        self,
        transport: Transport,
        call: Call,
        closing: contextlib.ExitStack,
        before_connect: Callable[[Callable[[int], None]], None],
        monkeypatch: pytest.MonkeyPatch,
        timeout: float | None,
        *,
        shared: bool,
    ) -> None:
        if shared:
            for module in (connection, callers_socket):
                monkeypatch.setattr(module, "claim_alone", lambda *_, **__: False)
        peer = closing.enter_context(transport.socket())
        peer.bind((transport.source, FIRST))
        stranger = closing.enter_context(transport.socket())
        stranger.bind((transport.source, SECOND))

        def send(port: int) -> None:
            for number in range(3):
                stranger.sendto(b"stranger %d" % number, (transport.source, port))

        before_connect(send)
        with monkeypatch.context() as patch:
            patch.setattr(socket, "getdefaulttimeout", lambda: timeout)
            sock = closing.enter_context(call(transport, None, (transport.source, FIRST), "auto"))
        assert sock.getsockopt(socket.SOL_SOCKET, uapi.SO_MEMINFO) == 0
        peer.sendto(b"peer", sock.getsockname())
        assert limits.receive(sock, 9) == b"peer"

    def test_what_the_destination_has_sent_stays(
        self,
        closing: contextlib.ExitStack,
        before_connect: Callable[[Callable[[int], None]], None],
    ) -> None:
        peer = closing.enter_context(UDP.socket())
        peer.bind((UDP.source, FIRST))
        stranger = closing.enter_context(UDP.socket())
        stranger.bind((UDP.source, SECOND))

        def send(port: int) -> None:
            stranger.sendto(b"stranger", (UDP.source, port))
            peer.sendto(b"peer", (UDP.source, port))

        before_connect(send)
        sock = closing.enter_context(
            connectx.create_connection((UDP.source, FIRST), type=socket.SOCK_DGRAM)
        )
        assert limits.receive(sock, 9) == b"peer"
