"""Threads that move between network namespaces, and sockets that belong to another one."""

import contextlib
import errno
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import pytest

import connectx
from connectx import ConnectxError, NotSupported, PortsExhausted
from connectx.addresses import Address
from connectx.linux import netns, sockopts
from connectx.observe.namespace import visiting
from connectx.sandbox.networks import Network, experiment_network
from connectx.sandbox.servers import listen
from tests import limits
from tests.api.calls import TCP_MAPPED, UDP_MAPPED, Call, is_stream, port_of, reset_on_close
from tests.api.test_concurrency import netlink_sockets
from tests.kernel.raw import FIRST, TCP, TCP6, UDP, UDP6, Transport

every_transport = pytest.mark.parametrize(
    "transport", [TCP, TCP6, TCP_MAPPED, UDP, UDP6, UDP_MAPPED], ids=str
)


@dataclass(frozen=True)
class Place:
    """A network namespace with a server in it, and the ports that its range has."""

    descriptor: int
    ports: list[int]

    def visit(self) -> contextlib.AbstractContextManager[None]:
        """Move the calling thread there for a block, telling nobody."""
        return visiting(f"/proc/self/fd/{self.descriptor}")


@pytest.fixture
def places(transport: Transport, network: Network, closing: contextlib.ExitStack) -> list[Place]:
    """Three of them; the test begins in the first."""

    def furnish(where: Network, low: int) -> Place:
        where.port_range(low, low + 3)
        where.reserved_ports(str(low + 1))
        if is_stream(transport):
            closing.enter_context(listen(transport.source, FIRST))
        descriptor = netns.open_namespace()
        closing.callback(os.close, descriptor)
        return Place(descriptor, [low, low + 2, low + 3])

    made = [furnish(network, 20001)]
    for low in (30001, 40001):
        with experiment_network() as other:
            made.append(furnish(other, low))
    return made


@pytest.fixture(params=[False, True], ids=["no source", "source address"])
def source(request: pytest.FixtureRequest, transport: Transport) -> Address | None:
    return (transport.source, 0) if request.param else None


@every_transport
class TestMoving:
    def test_each_namespace_has_its_own_ports(
        self,
        transport: Transport,
        call: Call,
        places: list[Place],
        closing: contextlib.ExitStack,
        source: Address | None,
    ) -> None:
        destination = (transport.source, FIRST)
        taken: list[list[int]] = [[], [], []]
        # In turns, so that what is known of one would be wrong for the next.
        for _ in range(3):
            for place, ports in zip(places, taken, strict=True):
                with place.visit():
                    sock = closing.enter_context(call(transport, source, destination, "auto"))
                    ports.append(port_of(sock))
        assert [sorted(ports) for ports in taken] == [place.ports for place in places]
        for place in places:
            with place.visit(), pytest.raises(PortsExhausted):
                call(transport, source, destination, "auto")

    def test_what_a_call_from_outside_could_not_know(
        self,
        transport: Transport,
        call: Call,
        places: list[Place],
        closing: contextlib.ExitStack,
        source: Address | None,
    ) -> None:
        """The range can be read from inside only, which a thread may be a moment later."""
        destination = (transport.source, FIRST)
        place = places[1]
        with place.visit():
            sock = closing.enter_context(transport.socket())
        # Of UDP it is refused, since nothing can be looked up.
        with contextlib.suppress(NotSupported):
            connectx.connectx(sock, None, destination)
        with place.visit():
            taken = []
            with contextlib.suppress(PortsExhausted):
                for _ in range(2 * len(place.ports)):
                    one = closing.enter_context(call(transport, source, destination, "auto"))
                    taken.append(port_of(one))
        assert {*taken, *{port_of(sock)}.intersection(place.ports)} == set(place.ports)

    def test_threads_in_several_at_once(
        self,
        transport: Transport,
        call: Call,
        places: list[Place],
        closing: contextlib.ExitStack,
        source: Address | None,
    ) -> None:
        start = threading.Barrier(6)

        def fill(place: Place) -> list[int]:
            netns.enter(place.descriptor)
            start.wait(limits.LIMIT)
            ports: list[int] = []
            with contextlib.suppress(PortsExhausted):
                for _ in range(8):
                    sock = call(transport, source, (transport.source, FIRST), "auto")
                    ports.append(port_of(closing.enter_context(sock)))
            return ports

        with ThreadPoolExecutor(6) as pool:
            filled = list(pool.map(fill, places * 2))
        for index, place in enumerate(places):
            assert sorted(filled[index] + filled[index + 3]) == place.ports


@pytest.mark.parametrize("transport", [UDP], ids=str)
def test_a_thread_keeps_netlink_sockets_into_one_namespace(
    transport: Transport, call: Call, places: list[Place], closing: contextlib.ExitStack
) -> None:
    """Each would keep its namespace alive, with all devices and memory."""
    before = netlink_sockets()
    for place in places:
        with place.visit():
            closing.enter_context(call(transport, None, (transport.source, FIRST), "auto"))
            assert len(netlink_sockets() - before) <= 2


known = pytest.mark.parametrize("known", ["not at all", "to this thread", "to another thread"])


@known
class TestSocketFromElsewhere:
    """The calling thread is in one namespace, and the socket in another."""

    @staticmethod
    def socket_from(
        place: Place, transport: Transport, known: str, closing: contextlib.ExitStack
    ) -> socket.socket:
        def learn() -> None:
            with place.visit(), transport.socket() as sock:
                # A datagram, which takes netlink sockets.
                connectx.create_connection((transport.source, 9100), type=socket.SOCK_DGRAM).close()
                sockopts.set_so_reuseaddr(sock, on=True)

        if known == "to this thread":
            learn()
        elif known == "to another thread":
            with ThreadPoolExecutor(1) as pool:
                pool.submit(learn).result(limits.LIMIT)
        with place.visit():
            return closing.enter_context(transport.socket())

    @pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED], ids=str)
    def test_a_stream_with_any_port_is_served(
        self,
        transport: Transport,
        places: list[Place],
        closing: contextlib.ExitStack,
        known: str,
        source: Address | None,
    ) -> None:
        ports = []
        for _ in places[1].ports:
            sock = self.socket_from(places[1], transport, known, closing)
            connectx.connectx(sock, source, (transport.source, FIRST))
            ports.append(port_of(sock))
        assert sorted(ports) == places[1].ports
        sock = self.socket_from(places[1], transport, known, closing)
        with pytest.raises(PortsExhausted) as caught:
            connectx.connectx(sock, source, (transport.source, FIRST))
        # It cannot count there and says so, unless it has a netlink socket left from before.
        text = caught.value.explain()
        assert "another network namespace" in text or (
            known == "to this thread" and "3 connected" in text
        )
        with places[1].visit():
            assert "3 connected" in caught.value.explain()

    @pytest.mark.parametrize("port", [0, 30003, 20003, 50000])
    @pytest.mark.parametrize("transport", [UDP, UDP6, UDP_MAPPED, TCP, TCP6], ids=str)
    def test_what_cannot_be_looked_up_is_not_supported(
        self,
        transport: Transport,
        places: list[Place],
        closing: contextlib.ExitStack,
        known: str,
        port: int,
    ) -> None:
        """Whatever is known from before: a look into the wrong namespace would tell nothing."""
        # Held here, where it does not matter.
        closing.enter_context(transport.socket()).bind((transport.source, port or 30003))
        for source in (("", port), (transport.source, port)):
            if is_stream(transport) and not port:
                continue
            sock = self.socket_from(places[1], transport, known, closing)
            refusal = refused(sock, source, (transport.source, FIRST))
            if refusal is None:
                # What this thread knows it may look up still, and a port that nobody has
                # there needs no look.
                assert known == "to this thread" or is_stream(transport) or port in (0, 30003)
                assert port_of(sock) == port or not port
                if is_stream(transport):
                    reset_on_close(sock)
                sock.close()
                continue
            assert type(refusal) is NotSupported
            assert refusal.errno == errno.EOPNOTSUPP
            assert "another network namespace" in str(refusal)
            assert port_of(sock) == 0
            # Nothing of it is left there: a plain bind would be refused.
            with places[1].visit(), transport.socket() as plain:
                plain.bind((transport.source, port or 30003))

    @pytest.mark.parametrize("transport", [TCP], ids=str)
    def test_an_owners_window(
        self, transport: Transport, places: list[Place], closing: contextlib.ExitStack, known: str
    ) -> None:
        """Whether the kernel honours it cannot be told, unless the range is known from before."""
        sock = self.socket_from(places[1], transport, known, closing)
        sockopts.set_ip_local_port_range(sock, 30003, 30003)
        if known == "not at all":
            with pytest.raises(NotSupported):
                connectx.connectx(sock, None, (transport.source, FIRST))
        else:
            connectx.connectx(sock, None, (transport.source, FIRST))
            assert port_of(sock) == 30003


def refused(sock: socket.socket, source: Address, destination: Address) -> ConnectxError | None:
    try:
        connectx.connectx(sock, source, destination)
    except ConnectxError as error:
        return error
    return None


@pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
def test_a_namespace_that_ended(
    transport: Transport, call: Call, places: list[Place], closing: contextlib.ExitStack
) -> None:
    """Its successors, which the kernel may give the same inode, are others."""
    for low in (20001, 30001, 40001):
        with experiment_network() as other:
            other.port_range(low, low)
            with contextlib.ExitStack() as stack:
                if is_stream(transport):
                    stack.enter_context(listen(transport.source, FIRST))
                sock = stack.enter_context(call(transport, None, (transport.source, FIRST), "auto"))
                assert port_of(sock) == low
    with places[0].visit():
        sock = closing.enter_context(call(transport, None, (transport.source, FIRST), "auto"))
        assert port_of(sock) in places[0].ports


KINDS: Final = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}


@pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
def test_explain_in_another_namespace(
    transport: Transport, call: Call, places: list[Place], closing: contextlib.ExitStack
) -> None:
    destination = (transport.source, FIRST)
    for _ in places[0].ports:
        closing.enter_context(call(transport, None, destination, "auto"))
    with pytest.raises(PortsExhausted) as caught:
        call(transport, None, destination, "auto")
    with ThreadPoolExecutor(1) as pool:

        def explain() -> str:
            netns.enter(places[1].descriptor)
            return caught.value.explain()

        text = pool.submit(explain).result(limits.LIMIT)
    assert "could not be counted" in text
    assert "another network namespace" in text
    assert "3 connected" in caught.value.explain()
