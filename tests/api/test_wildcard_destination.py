"""The wildcard address as a destination: the peer is the one that bind() and connect() give."""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

import pytest
from _pytest.mark import ParameterSet

import connectx
from connectx import Dialer, aio
from connectx.addresses import Address
from connectx.linux import sockopts
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import (
    TCP_MAPPED,
    UDP_MAPPED,
    by_connectx,
    by_create_connection,
    is_stream,
    reset_on_close,
)
from tests.dialer.drivers import kind_of
from tests.kernel.raw import FIRST, MPTCP, TCP, TCP6, UDP, UDP6, UDPLITE, Transport

PORT: Final = 40123

#: A destination port on which no single address has a listener.
SERVICE: Final = FIRST + 5

#: A source of each family, and all that the wildcard may stand for.
OWN: Final = {"v4": "192.0.2.7", "v6": "2001:db8::7", "mapped": "::ffff:192.0.2.7"}
HERE: Final = ("192.0.2.7", "127.0.0.1", "2001:db8::7", "::1")
WILDCARDS: Final = {"v4": ["0.0.0.0"], "v6": ["::"], "mapped": ["::ffff:0.0.0.0", "::"]}


def form(transport: Transport) -> str:
    if transport.family == socket.AF_INET:
        return "v4"
    return "mapped" if "ffff" in transport.source else "v6"


CASES: Final = [
    pytest.param(transport, wildcard, id=f"{transport}-{wildcard}")
    for transport in (TCP, TCP6, TCP_MAPPED, MPTCP, UDP, UDP6, UDP_MAPPED, UDPLITE)
    for wildcard in WILDCARDS[form(transport)]
]


def is_tcp(case: ParameterSet) -> bool:
    transport = case.values[0]
    return isinstance(transport, Transport) and transport.protocol == TCP.protocol


@pytest.fixture(autouse=True)
def _places(network: Network, servers: Servers) -> None:
    network.add_address("192.0.2.7", 32)
    network.add_address("2001:db8::7", 128)
    for host in HERE:
        servers.listen(host, FIRST, protocol=socket.IPPROTO_TCP)
    servers.listen("192.0.2.7", FIRST + 1, protocol=MPTCP.protocol)
    servers.listen("127.0.0.1", FIRST + 1, protocol=MPTCP.protocol)


def port_of_server(transport: Transport) -> int:
    return FIRST + (transport.protocol == MPTCP.protocol)


def plain_peer(transport: Transport, source: str, wildcard: str) -> str:
    with transport.socket() as sock:
        if source:
            sock.bind((source, 0))
        sock.connect((wildcard, port_of_server(transport)))
        peer: str = sock.getpeername()[0]
        return peer


def by_asyncio(transport: Transport, source: Address | None, destination: Address) -> socket.socket:
    return asyncio.run(
        aio.create_connection(destination[:2], source_address=source, **kind_of(transport))
    )


@pytest.mark.parametrize("call", [by_connectx, by_create_connection, by_asyncio])
@pytest.mark.parametrize("port", [0, PORT])
@pytest.mark.parametrize("with_host", [True, False], ids=["source address", "no source"])
@pytest.mark.parametrize("transport, wildcard", CASES)
def test_the_peer_is_connects(
    transport: Transport,
    wildcard: str,
    call: Callable[..., socket.socket],
    port: int,
    *,
    with_host: bool,
) -> None:
    source = OWN[form(transport)] if with_host else ""
    expected = plain_peer(transport, source, wildcard)
    to = (wildcard, port_of_server(transport))
    with call(transport, (source, port), to) as sock:
        assert sock.getpeername()[0] == expected
        assert not port or sock.getsockname()[1] == port


@pytest.mark.parametrize("call", [by_connectx, by_create_connection, by_asyncio])
@pytest.mark.parametrize("port", [0, PORT])
@pytest.mark.parametrize("with_host", [True, False], ids=["source address", "no source"])
@pytest.mark.parametrize("service", ["0.0.0.0", "::"])
@pytest.mark.parametrize("transport, wildcard", [each for each in CASES if is_tcp(each)])
def test_the_service_is_on_every_address(
    transport: Transport,
    wildcard: str,
    servers: Servers,
    service: str,
    call: Callable[..., socket.socket],
    port: int,
    *,
    with_host: bool,
) -> None:
    source = OWN[form(transport)] if with_host else ""
    to = (wildcard, SERVICE)
    listener = servers.listen(service, SERVICE)
    with transport.socket() as plain:
        if source:
            plain.bind((source, 0))
        if plain.connect_ex(to):
            # IPv6, which a service on 0.0.0.0 does not serve.
            assert service == "0.0.0.0"
            with pytest.raises(ConnectionRefusedError):
                call(transport, (source, port), to)
            return
        limits.accept(listener)[0].close()
    with call(transport, (source, port), to) as sock:
        accepted, _ = limits.accept(listener)
        with accepted:
            assert accepted.getpeername()[1] == sock.getsockname()[1]
            assert sock.getpeername()[1] == SERVICE
        assert not port or sock.getsockname()[1] == port
        reset_on_close(sock)


def test_a_socket_that_is_bound_to_an_address() -> None:
    with TCP.socket() as sock:
        sockopts.set_ip_bind_address_no_port(sock, on=True)
        sock.bind(("192.0.2.7", 0))
        connectx.connectx(sock, None, ("0.0.0.0", FIRST))
        assert sock.getpeername()[0] == "192.0.2.7"


@pytest.mark.parametrize("transport", [TCP, UDP, TCP6, UDP6], ids=str)
def test_the_sources_of_a_dialer(transport: Transport) -> None:
    source, (wildcard, *_) = OWN[form(transport)], WILDCARDS[form(transport)]
    kind = kind_of(transport)
    dialer = Dialer([source], limit=1)
    with dialer.create_connection((wildcard, FIRST), **kind) as sock:
        assert sock.getpeername()[0] == plain_peer(transport, source, wildcard)
    # One that is detached is found by its true peer.
    detached = dialer.create_connection((wildcard, FIRST), **kind)
    with socket.socket(fileno=detached.detach()) as other:
        with pytest.raises(connectx.PortsExhausted, match="limit"):
            dialer.create_connection((wildcard, FIRST), **kind)
        if is_stream(transport):
            reset_on_close(other)
    dialer.create_connection((wildcard, FIRST), **kind).close()
