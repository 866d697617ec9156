"""Sockets whose end nobody tells the dialer: SSL's, detached ones, and those made elsewhere."""

import asyncio
import contextlib
import errno
import gc
import socket
import ssl
import threading
import weakref
from typing import Any, cast

import pytest
import trustme

import connectx
from connectx import Dialer, PortsExhausted, aio
from connectx._connect.namespace import windows_work
from connectx._dial import endings
from connectx._dial.policy import Policy
from connectx.addresses import Endpoint
from connectx.linux import uapi
from connectx.linux.sockopts import get_ip_freebind
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import (
    TCP_MAPPED,
    UDP_MAPPED,
    is_stream,
    port_of,
    protocol_name,
    reset_on_close,
)
from tests.dialer.drivers import (
    DRIVERS,
    FOREVER,
    LOW,
    PORTS,
    SIZE,
    Driver,
    Waits,
    close,
    every_transport,
    kind_of,
    start,
)
from tests.dialer.waiting import listeners, never_look, nobody_tells, silent
from tests.kernel.raw import FIRST, TCP, TCP6, UDP, UDP6, Transport

HERE = ("127.0.0.1", FIRST)


@every_transport
def test_keep_their_place_until_the_descriptor_is_closed(
    driver: Driver, serving: Transport, closing: contextlib.ExitStack
) -> None:
    kind = kind_of(serving)
    address = (serving.source, FIRST)

    async def scenario() -> None:
        to = driver.dialer(limit=1)
        for _ in range(3):
            sock = await to.create_connection(address, **kind)
            with socket.socket(fileno=sock.detach()) as other:
                del sock
                gc.collect()
                for _ in range(2):
                    with pytest.raises(PortsExhausted):
                        await to.create_connection(address, **kind)
                if is_stream(serving):
                    reset_on_close(other)
        closing.enter_context(await to.create_connection(address, **kind))

    driver.run(scenario)


def test_their_end_wakes_who_waits(
    driver: Driver, listening: Network, closing: contextlib.ExitStack
) -> None:
    del listening

    async def scenario() -> None:
        to = driver.dialer(limit=1, wait=FOREVER)
        sock = await to.create_connection(HERE)
        other = closing.enter_context(socket.socket(fileno=sock.detach()))
        call = await start(to.create_connection(HERE))
        close(other)
        closing.enter_context(await call)

    driver.run(scenario)


def test_that_are_connected_no_longer_when_they_are_detached(
    driver: Driver, network: Network, servers: Servers, closing: contextlib.ExitStack
) -> None:
    """Then they have no peer to be looked for by; their place is free."""
    network.port_range(LOW, LOW + 7)
    listener = servers.listen("127.0.0.1", FIRST)

    async def scenario() -> None:
        to = driver.dialer(limit=1)
        for _ in range(3):
            sock = await to.create_connection(HERE)
            accepted, _ = limits.accept(listener)
            reset_on_close(accepted)
            accepted.close()
            sock.settimeout(limits.LIMIT)
            with pytest.raises(ConnectionResetError):
                limits.receive(sock)
            closing.enter_context(socket.socket(fileno=sock.detach()))
        assert to.stats().opened == 3

    driver.run(scenario)


def test_that_were_closed_behind_our_back(driver: Driver, listening: Network) -> None:
    """uvloop closes the descriptor first, and detaches the socket then."""
    del listening

    async def scenario() -> None:
        to = driver.dialer(limit=1)
        for _ in range(3):
            sock = await to.create_connection(HERE)
            reset_on_close(sock)
            descriptor = sock.fileno()
            socket.close(descriptor)
            assert sock.detach() == descriptor
            assert sock.fileno() == -1

    driver.run(scenario)


def test_tls_over_a_blocking_socket(
    network: Network, servers: Servers, closing: contextlib.ExitStack
) -> None:
    network.port_range(LOW, LOW + 7)
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A client that closes with tickets unread resets the connection.
    server.num_tickets = 0
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    listener = servers.listen("127.0.0.1", FIRST)

    def serve() -> None:
        for _ in range(2):
            accepted, _ = limits.accept(listener)
            accepted.settimeout(limits.LIMIT)
            with server.wrap_socket(accepted, server_side=True) as secured:
                limits.receive(secured)

    closing.enter_context(limits.in_background(serve, listener))
    to = Dialer(limit=1, wait=FOREVER)
    with client.wrap_socket(to.create_connection(HERE), server_hostname="127.0.0.1") as secured:
        assert isinstance(secured, ssl.SSLSocket)
        hasty = Dialer(limit=1)
        hasty._policy = to._policy
        to._policy.open.terms.wait = 0
        with pytest.raises(PortsExhausted):
            hasty.create_connection(HERE)
        to._policy.open.terms.wait = FOREVER
    with client.wrap_socket(to.create_connection(HERE), server_hostname="127.0.0.1"):
        pass


def test_those_that_are_closed_are_forgotten_by_later_calls(listening: Network) -> None:
    """Each call looks at some, whether or not it needs a second thought."""
    del listening
    to = Dialer(["127.0.0.2"])
    for _ in range(100):
        with socket.socket(fileno=to.create_connection(HERE).detach()) as sock:
            reset_on_close(sock)
    assert len(to._policy.unreported.sockets) <= 2
    assert sum(to._policy.destinations.open_to(("tcp", Endpoint(*HERE))).values()) <= 2


class TestMany:
    """So many of them that a call looks at a part only."""

    COUNT = 600

    @pytest.fixture
    def many(
        self, listening: Network, closing: contextlib.ExitStack
    ) -> tuple[Dialer, list[socket.socket]]:
        listening.port_range(LOW, LOW + 999)
        to = Dialer(limit=self.COUNT, wait=FOREVER)
        socks = []
        for _ in range(self.COUNT):
            sock = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            to.connectx(sock, HERE)
            socks.append(sock)
        return to, socks

    def test_the_one_that_ends_is_found_before_a_call_is_refused(
        self, many: tuple[Dialer, list[socket.socket]], closing: contextlib.ExitStack
    ) -> None:
        to, socks = many
        to._policy.open.terms.wait = 0
        socks[400].close()
        closing.enter_context(to.create_connection(HERE, type=socket.SOCK_DGRAM))
        with pytest.raises(PortsExhausted):
            to.create_connection(HERE, type=socket.SOCK_DGRAM)

    @pytest.mark.parametrize("told", [True, False])
    def test_its_end_wakes_who_waits(
        self,
        many: tuple[Dialer, list[socket.socket]],
        closing: contextlib.ExitStack,
        monkeypatch: pytest.MonkeyPatch,
        *,
        told: bool,
    ) -> None:
        """The kernel tells whose it was; without that it is looked for."""
        to, socks = many
        if told:
            never_look(monkeypatch)
            monkeypatch.setattr(to._policy.unreported, "look", lambda: None)
        else:
            nobody_tells(monkeypatch)
        driver = DRIVERS["blocking"]

        async def scenario() -> None:
            one = driver.dialer()
            waits = Waits()
            cast("Any", one).plain = to
            to._policy.open.terms.on_wait = waits
            hearing = listeners(monkeypatch) if told else waits
            call = await start(one.create_connection(HERE, type=socket.SOCK_DGRAM))
            await hearing.reach(1)
            socks[500].close()
            async with asyncio.timeout(FOREVER / 2):
                closing.enter_context(await call)

        driver.run(scenario)


def test_two_threads_look_at_once(
    listening: Network, closing: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    del listening
    to = Dialer(limit=4)
    held = [
        closing.enter_context(socket.socket(fileno=to.create_connection(HERE).detach()))
        for _ in range(4)
    ]
    for sock in held:
        close(sock)
    original = endings._Watched.ended
    others: list[threading.Thread] = []

    def ended(watched: endings._Watched, network: Any) -> bool:
        if not others:
            # In the middle of the first one's look, another looks at all the rest.
            others.append(threading.Thread(target=to._policy.unreported.sweep, args=(1000,)))
            others[0].start()
            limits.join(others[0])
        return original(watched, network)

    monkeypatch.setattr(endings._Watched, "ended", ended)
    for _ in range(4):
        closing.enter_context(to.create_connection(HERE))
    with pytest.raises(PortsExhausted):
        to.create_connection(HERE)


def test_a_look_that_fails_forgets_none(
    listening: Network, closing: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    del listening
    to = Dialer(limit=1)
    held = closing.enter_context(socket.socket(fileno=to.create_connection(HERE).detach()))
    with monkeypatch.context() as patch:

        def fail(*_: object) -> bool:
            raise OSError(errno.ENOBUFS, "no memory")

        patch.setattr(endings._Watched, "ended", fail)
        with pytest.raises(OSError, match="no memory"):
            to.create_connection(HERE)
    gc.collect()
    with pytest.raises(PortsExhausted):
        to.create_connection(HERE)
    close(held)
    closing.enter_context(to.create_connection(HERE))


@pytest.mark.parametrize(
    "first, thrown_away", [(0, False), (1, False), (2, False), (1, True), (2, True)]
)
def test_of_duplicates_the_last_one_gives_the_place_back(
    driver: Driver, listening: Network, first: int, *, thrown_away: bool
) -> None:
    del listening

    async def scenario() -> None:
        to = driver.dialer(limit=1)
        sock = await to.create_connection(HERE)
        reset_on_close(sock)
        sockets = [sock, sock.dup(), sock.dup()]
        del sock
        if thrown_away:
            with pytest.warns(ResourceWarning):
                del sockets[first]
        else:
            sockets.pop(first).close()
        for _ in range(2):
            with pytest.raises(PortsExhausted):
                await to.create_connection(HERE)
            sockets.pop().close()
        (await to.create_connection(HERE)).close()

    driver.run(scenario)


class TestMadeElsewhere:
    """Dialer.connectx()."""

    @every_transport
    def test_fill_two_sources_together_with_its_own(
        self, serving: Transport, closing: contextlib.ExitStack
    ) -> None:
        if protocol_name(serving) == "mptcp" and not windows_work("mptcp"):
            pytest.skip("kernel: before 6.8 MPTCP cannot share the ports of a source address")
        sources = ["::1", "::2"] if ":" in serving.source else ["127.0.0.2", "127.0.0.3"]
        address = (serving.source, FIRST)
        to = Dialer(sources)
        found = []
        for number in range(2 * SIZE):
            if number % 2:
                sock = closing.enter_context(serving.socket())
                assert to.connectx(sock, address) == 0
            else:
                sock = closing.enter_context(to.create_connection(address, **kind_of(serving)))
            found.append(sock)
        for source in sources:
            mine = [sock for sock in found if sock.getsockname()[0] == source]
            assert sorted(map(port_of, mine)) == PORTS
        with closing.enter_context(serving.socket()) as sock, pytest.raises(PortsExhausted):
            to.connectx(sock, address)
        # Closed without a word, and found out.
        freed = close(found[1])
        sock = closing.enter_context(serving.socket())
        to.connectx(sock, address)
        assert port_of(sock) == freed

    @every_transport
    def test_take_a_place_under_the_limit_until_closed(
        self, serving: Transport, closing: contextlib.ExitStack
    ) -> None:
        address = (serving.source, FIRST)
        to = Dialer(limit=1)
        for _ in range(3):
            with serving.socket() as sock:
                to.connectx(sock, address)
                with pytest.raises(PortsExhausted):
                    to.create_connection(address, **kind_of(serving))
                if is_stream(serving):
                    reset_on_close(sock)
        closing.enter_context(to.create_connection(address, **kind_of(serving)))

    @pytest.mark.parametrize("answers", [True, False])
    def test_that_do_not_block(
        self, listening: Network, closing: contextlib.ExitStack, *, answers: bool
    ) -> None:
        """As connect(): "in progress"; the place is taken whether the server answers or not."""
        del listening
        address = HERE if answers else (silent(closing), 9998)
        to = Dialer(["127.0.0.2"], limit=1)
        sock = closing.enter_context(socket.socket())
        sock.settimeout(0)
        with pytest.raises(BlockingIOError) as caught:
            to.connectx(sock, address)
        assert caught.value.errno == errno.EINPROGRESS
        assert sock.getsockname()[0] == "127.0.0.2"
        with pytest.raises(PortsExhausted):
            to.create_connection(address, 0.1)
        close(sock)
        if answers:
            closing.enter_context(to.create_connection(address))
        assert to.stats().opened == (2 if answers else 1)

    def test_that_do_not_block_have_no_peer_to_be_asked_for_yet(
        self, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        """With the 32nd, others' connections are counted, which takes the destination."""
        listening.port_range(LOW, LOW + 99)
        address = (silent(closing), 9998)
        to = Dialer(["127.0.0.2", "127.0.0.3"])
        for _ in range(33):
            sock = closing.enter_context(socket.socket())
            sock.settimeout(0)
            with pytest.raises(BlockingIOError):
                to.connectx(sock, address)
        assert to.stats().opened == 33

    def test_exhaustion_is_never_in_progress(
        self, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening
        to = Dialer()
        for transport in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            for _ in PORTS:
                closing.enter_context(connectx.create_connection(HERE, type=transport))
            sock = closing.enter_context(socket.socket(socket.AF_INET, transport))
            sock.settimeout(0)
            with pytest.raises(PortsExhausted) as caught:
                to.connectx(sock, HERE)
            assert not isinstance(caught.value, BlockingIOError)
            assert sock.getsockname()[1] == 0

    def test_data_goes_with_it(self, servers: Servers, closing: contextlib.ExitStack) -> None:
        listener = servers.listen("127.0.0.1", 9100)
        sock = closing.enter_context(socket.socket())
        assert Dialer(["127.0.0.2"]).connectx(sock, ("127.0.0.1", 9100), data=b"hello") == 5
        accepted, peer = limits.accept(listener)
        with accepted:
            assert limits.receive(accepted, 5) == b"hello"
            assert peer[0] == "127.0.0.2"

    def test_freebind_is_set_on_them(
        self, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening
        sock = closing.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        Dialer(["2001:db8:1::/64"], freebind=True).connectx(sock, ("::1", FIRST))
        assert sock.getsockname()[0].startswith("2001:db8:1:")
        assert get_ip_freebind(sock)

    def test_a_name_is_refused_and_a_bound_one(
        self, listening: Network, closing: contextlib.ExitStack
    ) -> None:
        del listening
        to = Dialer()
        sock = closing.enter_context(UDP.socket())
        with pytest.raises(ValueError, match="IP address"):
            to.connectx(sock, ("localhost", FIRST))
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ValueError, match="bound"):
            to.connectx(sock, HERE)
        with pytest.raises(TypeError):
            to.connectx(7, HERE)  # type: ignore[arg-type]

    @pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED, UDP, UDP6, UDP_MAPPED], ids=str)
    def test_that_are_bound_to_an_address_keep_it(
        self, listening: Network, closing: contextlib.ExitStack, transport: Transport
    ) -> None:
        prefix, _, _ = transport.source.rpartition("127.0.0.1")
        one, other = ("::1", "::2") if transport.source == "::1" else ("127.0.0.5", "127.0.0.6")
        address = (transport.source, FIRST)
        del listening

        def bound() -> socket.socket:
            sock = closing.enter_context(transport.socket())
            sock.setsockopt(socket.IPPROTO_IP, uapi.IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((f"{prefix}{one}", 0))
            return sock

        for sources in (None, [other, one], ["127.0.0.0/29", "::/126"][":" in one :][:1]):
            to = Dialer(sources, freebind=bool(sources))
            socks = [bound() for _ in range(2)]
            for sock in socks:
                to.connectx(sock, address)
                assert sock.getsockname()[0] == f"{prefix}{one}"
            (known,) = to._policy.destinations.everything()
            assert known.open == {one: 2}
            for sock in socks:
                close(sock)
        with pytest.raises(ValueError, match=f"bound to {one}, which is none"):
            Dialer([other]).connectx(bound(), address)
        to = Dialer([one, other], rotate="sticky")
        keys = [str(number) for number in range(20)]
        version = 6 if one == "::1" else 4
        (wrong, *_) = [
            key for key in keys if to._policy.settings.sources.only(version, key) == other
        ]
        with pytest.raises(ValueError, match=f"bound to {one}, but its key to {other}"):
            to.connectx(bound(), address, key=wrong)

    def test_are_not_kept_alive(self, listening: Network) -> None:
        del listening
        to = Dialer()
        gc.disable()
        try:
            for blocking in (True, False):
                sock = socket.socket()
                sock.settimeout(None if blocking else 0)
                with contextlib.suppress(BlockingIOError):
                    to.connectx(sock, HERE)
                alive = weakref.ref(sock)
                reset_on_close(sock)
                sock.close()
                del sock
                assert alive() is None
        finally:
            gc.enable()


@pytest.mark.parametrize("kind", [Dialer, aio.Dialer])
def test_there_is_nothing_to_close(kind: type[Dialer | aio.Dialer]) -> None:
    alive = weakref.ref(kind(["127.0.0.2"], limit=1)._policy)
    assert isinstance(alive(), Policy | None)
    gc.collect()
    assert alive() is None
