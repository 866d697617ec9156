"""loop_with(): a loop whose connections are a dialer's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest

import connectx
from connectx import aio
from tests import limits
from tests.aio.here import FACTORIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectx.sandbox.networks import Network
    from connectx.sandbox.servers import Servers
    from tests.aio.conftest import Run

SOURCE = "192.0.2.7"
SERVERS = ("198.51.100.9", "198.51.100.10")
SERVER = (SERVERS[0], 443)


@pytest.fixture(autouse=True)
def world(network: Network, servers: Servers) -> None:
    for address in (SOURCE, *SERVERS):
        network.add_address(address)
    servers.echo(*(servers.listen(host, 443) for host in SERVERS), servers.receive(SERVERS[0], 53))


@pytest.fixture
def dialer() -> connectx.Dialer:
    return connectx.Dialer([SOURCE], ports=(40000, 40000))


@pytest.fixture(params=list(FACTORIES))
def runner(
    request: pytest.FixtureRequest, dialer: connectx.Dialer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[asyncio.Runner]:
    """Runs what it is given on a new loop that has the dialer."""
    monkeypatch.setattr(asyncio, "new_event_loop", FACTORIES[request.param])
    with asyncio.Runner(loop_factory=lambda: aio.loop_with(dialer)) as made:
        yield made


class Keeps(asyncio.DatagramProtocol, asyncio.Protocol):
    """A protocol of either kind, which keeps what comes."""

    def __init__(self) -> None:
        self.received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received.set_result(data)

    def datagram_received(self, data: bytes, _: Any) -> None:
        self.received.set_result(data)

    def connection_lost(self, _: Exception | None) -> None:
        self.lost.set_result(None)


def name(transport: asyncio.BaseTransport) -> Any:
    return transport.get_extra_info("sockname")[:2]


def test_of_a_running_loop(run: Run, dialer: connectx.Dialer) -> None:
    async def scenario() -> None:
        loop = aio.loop_with(aio.Dialer(dialer))
        made = [await loop.create_connection(Keeps, host, 443) for host in SERVERS]
        for transport, protocol in made:
            assert name(transport) == (SOURCE, 40000)
            transport.write(b"hello")
            assert await protocol.received == b"hello"
        # The loop itself is as it was, and the rest is the loop's.
        own = asyncio.get_running_loop()
        transport, protocol = await own.create_connection(Keeps, *SERVER)
        assert name(transport) != (SOURCE, 40000)
        assert loop.time() <= own.time()
        for each, keeps in (*made, (transport, protocol)):
            each.close()
            await keeps.lost

    run(scenario)
    assert dialer.stats().opened == 2


def test_of_a_new_loop(runner: asyncio.Runner, dialer: connectx.Dialer) -> None:
    async def scenario() -> None:
        reader, writer = await asyncio.open_connection(*SERVER)
        assert name(writer.transport) == (SOURCE, 40000)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        await writer.wait_closed()

    runner.run(limits.ended(scenario))
    assert dialer.stats().opened == 1


def test_datagrams(runner: asyncio.Runner, dialer: connectx.Dialer) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(
            Keeps, remote_addr=(SERVERS[0], 53), allow_broadcast=True
        )
        assert name(transport) == (SOURCE, 40000)
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)
        transport.sendto(b"hello")
        assert await protocol.received == b"hello"
        transport.close()
        await protocol.lost
        # Nothing to connect to: it is the loop's.
        transport, protocol = await loop.create_datagram_endpoint(Keeps, local_addr=(SOURCE, 40001))
        assert name(transport) == (SOURCE, 40001)
        transport.close()
        await protocol.lost

    runner.run(limits.ended(scenario))
    assert dialer.stats().opened == 1


@pytest.mark.parametrize(
    "options",
    [{"local_addr": (SOURCE, 0)}, {"family": socket.AF_INET}, {"proto": socket.IPPROTO_TCP}],
    ids=str,
)
def test_arguments_of_the_loop(runner: asyncio.Runner, options: dict[str, Any]) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(Keeps, *SERVER, **options)
        assert name(transport) == (SOURCE, 40000)
        transport.close()
        await protocol.lost

    runner.run(limits.ended(scenario))


def test_a_socket_is_used_as_it_is(runner: asyncio.Runner, dialer: connectx.Dialer) -> None:
    async def scenario() -> None:
        sock = socket.create_connection(SERVER)
        sock.settimeout(0)
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(Keeps, sock=sock)
        transport.close()
        await protocol.lost

    runner.run(limits.ended(scenario))
    assert dialer.stats().attempts == 0


def test_a_want_of_ports_is_raised(runner: asyncio.Runner, dialer: connectx.Dialer) -> None:
    async def scenario() -> None:
        with pytest.raises(connectx.PortsExhausted):
            await asyncio.open_connection(*SERVER)

    with dialer.create_connection(SERVER):
        runner.run(limits.ended(scenario))


def test_a_protocol_that_cannot_be_made_leaves_nothing(
    runner: asyncio.Runner, dialer: connectx.Dialer
) -> None:
    def fail() -> Keeps:
        raise LookupError

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(LookupError):
            await loop.create_connection(fail, *SERVER)
        with pytest.raises(LookupError):
            await loop.create_datagram_endpoint(fail, remote_addr=(SERVERS[0], 53))

    runner.run(limits.ended(scenario))
    assert dialer.capacity(SERVER).in_use == 0


def test_tls_arguments_are_looked_at_first(runner: asyncio.Runner, dialer: connectx.Dialer) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        for option in ({"server_hostname": "x"}, {"ssl_handshake_timeout": 1.0}):
            arguments: dict[str, Any] = option
            with pytest.raises(ValueError, match="only meaningful with ssl"):
                await loop.create_connection(Keeps, *SERVER, **arguments)
        with contextlib.suppress(ValueError):
            await loop.create_connection(Keeps)

    runner.run(limits.ended(scenario))
    assert dialer.stats().attempts == 0
