"""The checks of the conformance suite: the columns of its table.

A check is an async function of a `Case`; its docstring is what the table says it is about.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import itertools
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import pytest
import trustme

import connectx
from connectx import aio
from connectx.errors import ConnectxError, PortsExhausted
from tests.integrations import http_server, servers
from tests.integrations.frame import (
    BLOCKING,
    Client,
    Options,
    Peer,
    Row,
    Server,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from connectx.sandbox.networks import Network

    Check = Callable[["Case"], Coroutine[Any, Any, None]]

SOURCES: Final = ("192.0.2.7", "192.0.2.8")
SOURCES_6: Final = ("2001:db8::7", "2001:db8::8")
HOSTS: Final = ("198.51.100.9", "198.51.100.10", "198.51.100.11")
HOST_6: Final = "2001:db8::9"
PORT: Final = 40000


class Case(contextlib.ExitStack):
    """A row in a private network, with servers of its own."""

    def __init__(self, row: Row, network: Network, directory: Path) -> None:
        super().__init__()
        self.row = row
        self.adapter = row.adapter
        for address in (*SOURCES, *SOURCES_6, *HOSTS, HOST_6):
            network.add_address(address)
        network.port_range(32768, 60999)
        self._directory = directory
        self._ports = iter(range(9000, 9100))

    @functools.cached_property
    def authority(self) -> trustme.CA:
        """Issues the servers' certificates."""
        return trustme.CA()

    def ca(self, authority: trustme.CA | None = None) -> str:
        """A file with the certificate of who issues the servers', or of somebody else."""
        path = self._directory / f"{id(authority)}.pem"
        (authority or self.authority).cert_pem.write_to_path(str(path))
        return str(path)

    def server(self, host: str = HOSTS[0], *, tls: bool = False, port: int = 0) -> Server:
        """Start a server, of the kind that the adapter asks."""
        server = Server(host, port or next(self._ports), tls)
        self.adapter.begin(self, server, self.authority.issue_cert(host) if tls else None)
        return server

    def resetting(self) -> Server:
        """Start a server that resets its connections."""
        return self.serving(http_server.reset, HOSTS[0])

    def proxy(self) -> Server:
        """Start an HTTP proxy."""
        return self.serving(http_server.answer, HOSTS[2])

    def serving(self, serve: Callable[..., None], host: str) -> Server:
        """Start a server of some other kind."""
        server = Server(host, next(self._ports))
        servers.start(self, *server.address, serve)
        return server

    def nobody(self) -> Server:
        """Return where nothing listens."""
        return Server(HOSTS[0], next(self._ports))

    def silent(self) -> Server:
        """Return a server that has no place for another connection."""
        server = self.nobody()
        servers.silence(self, *server.address)
        return server

    def client(self, *, plain: bool = False, **options: Any) -> Client:
        """Make a client: of the library's own (plain) or of ours, with dialer= and others."""
        given: dict[str, Any] = {
            key: options.pop(key) for key in ("dialer", "sources", "ports") if key in options
        }
        library = self.row.library if plain else self.row.integration
        return self.adapter.client(library, Options(given=given, **options))


async def asked(client: Client, server: Server) -> Peer:
    """Ask a server who it sees."""
    host, port, number = (await client.ask(server)).split()
    return Peer(host, int(port), int(number))


def cause(error: BaseException | None) -> ConnectxError | None:
    """The error of connectx that a library's comes from, if there is one."""
    while error is not None and not isinstance(error, ConnectxError):
        error = error.__cause__
    return error


def descriptors() -> set[str]:
    """What this process has open but for netlink and /dev/null.

    connectx keeps some of the one, and libuv one of the other, for when there is nothing left.
    """
    gc.collect()
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        # The listing's own is in it, and closed by now.
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{each.name} {each.readlink()}")
    return {
        each
        for each in found
        if not each.endswith(" /dev/null") and ("socket:" not in each or not _is_netlink(each))
    }


def nothing_is_left(dialer: connectx.Dialer, server: Server, before: set[str]) -> None:
    """No descriptor, port or slot; dialer: with a limit of 1. before: the descriptors."""
    assert descriptors() == before
    assert dialer.capacity(server.address).in_use == 0
    # That it gets as far as the server says that there is a slot.
    with contextlib.suppress(ConnectionRefusedError, TimeoutError):
        dialer.create_connection(server.address, 0.2).close()


def _is_netlink(each: str) -> bool:
    sock = socket.socket(fileno=os.dup(int(each.partition(" ")[0])))
    with sock:
        return sock.family == socket.AF_NETLINK


async def shares_a_port(case: Case) -> None:
    """Two servers see the same source address and port, in a range of one port."""
    one, other = case.server(HOSTS[0]), case.server(HOSTS[1])
    dialer = connectx.Dialer([SOURCES[0]], ports=(PORT, PORT))
    async with case.client(dialer=dialer) as first, case.client(dialer=dialer) as second:
        assert (await asked(first, one))[:2] == (SOURCES[0], PORT)
        assert (await asked(second, other))[:2] == (SOURCES[0], PORT)


async def has_the_source(case: Case) -> None:
    """The source address is the dialer's, given as `dialer=` of either kind or as `sources=`."""
    server = case.server()
    for source in SOURCES:
        dialer = connectx.Dialer([source])
        for given in (
            {"dialer": dialer},
            {"dialer": aio.Dialer(dialer)},
            {"sources": [source], "ports": (PORT, PORT + 9)},
        ):
            async with case.client(**given) as client:
                assert (await asked(client, server)).host == source
        # Both faces have the same counts.
        assert dialer.stats().opened == 2


async def has_an_ipv6_source(case: Case) -> None:
    """The source address is the dialer's over IPv6, too."""
    server = case.server(HOST_6)
    for source in SOURCES_6:
        async with case.client(dialer=connectx.Dialer([SOURCES[0], source])) as client:
            assert (await asked(client, server)).host == source


async def rotates(case: Case) -> None:
    """Connections to one server come from each of the sources."""
    server = case.server()
    for rotate in ("most-free", "round-robin"):
        dialer = connectx.Dialer(SOURCES, rotate=rotate)
        async with contextlib.AsyncExitStack() as stack:
            hosts = []
            for _ in range(4):
                client = await stack.enter_async_context(case.client(dialer=dialer))
                hosts.append((await asked(client, server)).host)
            assert sorted(hosts) == [SOURCES[0], SOURCES[0], SOURCES[1], SOURCES[1]]


async def exceeds_the_range(case: Case) -> None:
    """More connections are open than the range has ports, to several servers."""
    places = [case.server(host) for host in HOSTS]
    dialer = connectx.Dialer([SOURCES[0]], ports=(PORT, PORT + 1))
    async with contextlib.AsyncExitStack() as stack:
        seen = []
        for server in places * 2:
            client = await stack.enter_async_context(case.client(dialer=dialer))
            seen.append((server, (await asked(client, server)).port))
    assert len(set(seen)) == 6


async def verifies_tls(case: Case) -> None:
    """TLS works with a certificate that is to be trusted, and fails with another."""
    server = case.server(tls=True)
    dialer = connectx.Dialer([SOURCES[0]])
    async with case.client(dialer=dialer, ca=case.ca()) as client:
        assert (await asked(client, server)).host == SOURCES[0]
    async with case.client(dialer=dialer, ca=case.ca(trustme.CA())) as client:
        with pytest.raises(case.adapter.tls_errors):
            await client.ask(server)


async def goes_through_a_proxy(case: Case) -> None:
    """An HTTP proxy is reached from the source, for plain requests and for TLS."""
    proxy = case.proxy()
    dialer = connectx.Dialer([SOURCES[1]])
    for server in (case.server(), case.server(HOSTS[1], tls=True)):
        async with case.client(dialer=dialer, ca=case.ca(), proxy=proxy.url) as client:
            assert (await asked(client, server)).host == SOURCES[1]
    assert dialer.stats().opened == 2


async def fails_at_once(case: Case) -> None:
    """Exhaustion is the library's own error, ours its cause, and nothing is tried again."""
    server = case.server()
    dialer = connectx.Dialer(ports=(PORT, PORT))
    async with case.client(dialer=dialer) as first, case.client(dialer=dialer) as second:
        await asked(first, server)
        with pytest.raises(case.adapter.errors) as raised:
            await second.ask(server)
        try:
            raise raised.value
        except case.adapter.errors:
            # Another error, while that one is being handled, does not come from it.
            async with case.client(dialer=dialer, retries=False) as third:
                with pytest.raises(case.adapter.errors) as other:
                    await third.ask(case.nobody())
    found = cause(raised.value)
    assert isinstance(found, PortsExhausted)
    assert found.errno == errno.EADDRNOTAVAIL
    if isinstance(raised.value, OSError):
        assert raised.value.errno == errno.EADDRNOTAVAIL
    assert cause(other.value) is None
    assert dialer.stats().attempts == 2 + 1


async def waits(case: Case) -> None:
    """A request waits for a port, as long as the dialer has it wait."""
    server = case.server()
    held: list[socket.socket] = []

    def give_back(_: object) -> None:
        sock = held.pop()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, http_server.ABORT)
        sock.close()

    dialer = connectx.Dialer(ports=(PORT, PORT), wait=60.0, on_wait=give_back)
    held.append(dialer.create_connection(server.address))
    async with case.client(dialer=dialer) as client:
        assert (await asked(client, server)).port == PORT
    assert dialer.stats().waits == 1


async def waits_no_longer(case: Case) -> None:
    """The library's timeout ends the wait for a port."""
    server = case.server()
    dialer = connectx.Dialer(ports=(PORT, PORT), wait=3600.0)
    with dialer.create_connection(server.address):
        async with case.client(dialer=dialer, timeout=0.2, retries=False) as client:
            with pytest.raises(case.adapter.errors):
                await client.ask(server)
        assert dialer.stats().waits == 1
        assert dialer.stats().waiting == 0


async def leaves_nothing(case: Case) -> None:
    """A connection that is refused, reset or too late leaves no descriptor, port or slot."""
    places = (case.nobody(), case.resetting(), case.silent())
    dialer = connectx.Dialer([SOURCES[0]], limit=1)
    before = descriptors()
    for server in places:
        async with case.client(dialer=dialer, timeout=0.2, retries=False) as client:
            with pytest.raises(case.adapter.errors):
                await client.ask(server)
        nothing_is_left(dialer, server, before)


async def is_cancelled(case: Case) -> None:
    """A request that is cancelled leaves no descriptor, port or slot."""
    server = case.silent()
    dialer = connectx.Dialer([SOURCES[0]], limit=1)
    before = descriptors()
    async with case.client(dialer=dialer, timeout=None) as client:
        with anyio.move_on_after(0.1) as scope:
            await client.ask(server)
        assert scope.cancelled_caught
    nothing_is_left(dialer, server, before)


async def keeps_sources_apart(case: Case) -> None:
    """Where sources take turns, so do requests; each source's connection is kept for it."""
    server = case.server()
    dialer = connectx.Dialer(SOURCES, rotate="round-robin")
    async with case.client(dialer=dialer, pool=4) as client:
        seen = [await asked(client, server) for _ in range(8)]
    assert {each.host for each in seen} == set(SOURCES)
    assert all(one.host != other.host for one, other in itertools.pairwise(seen))
    assert len({each.number for each in seen}) == 2


async def dials_as_often(case: Case) -> None:
    """Requests over connections that are kept make as many as with the library alone."""
    numbers = []
    for plain in (True, False):
        server = case.server()
        given = {} if plain else {"dialer": connectx.Dialer(SOURCES)}
        async with case.client(plain=plain, pool=4, **given) as client:
            numbers.append([(await asked(client, server)).number for _ in range(20)])
    assert numbers[0] == numbers[1]


async def is_copied(case: Case) -> None:
    """Copies of a client have its source: copy, deepcopy and pickle, as the library allows."""
    server = case.server()
    async with contextlib.AsyncExitStack() as stack:
        dialer = connectx.Dialer([SOURCES[1]])
        client = await stack.enter_async_context(case.client(dialer=dialer))
        copies = case.adapter.copies(client)
        assert copies
        for each in copies:
            copied = await stack.enter_async_context(each)
            assert (await asked(copied, server)).host == SOURCES[1]


#: The columns, by their headings.
CHECKS: Final[dict[str, Check]] = {
    "shared port": shares_a_port,
    "source": has_the_source,
    "IPv6": has_an_ipv6_source,
    "rotation": rotates,
    "beyond the range": exceeds_the_range,
    "TLS": verifies_tls,
    "proxy": goes_through_a_proxy,
    "exhaustion": fails_at_once,
    "wait": waits,
    "timeout": waits_no_longer,
    "no leaks": leaves_nothing,
    "cancelled": is_cancelled,
    "turns": keeps_sources_apart,
    "keep-alive": dials_as_often,
    "copies": is_copied,
}


def reason(row: Row, column: str) -> str:
    """Why a check makes no sense for a row; "" if it does."""
    if column == "cancelled" and row.backend == BLOCKING:
        return "only what is awaited can be cancelled"
    return row.adapter.lacks.get(column, "")
