"""What another user of the machine can do to a connected UDP socket: docs/security.md rests on it.

The kernel compares users only where both sockets have SO_REUSEPORT. Where both have SO_REUSEADDR,
it lets anybody join (udp_lib_lport_inuse2() in net/ipv4/udp.c).
"""

import contextlib
import errno
import functools
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

import connectx
from connectx.linux import uapi
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.kernel.raw import TCP, UDP, UDP6, Transport, cookie, find
from tests.race.processes import Barrier, Child, children, shared

OTHER_USER: Final = 65534
PORT, PEER = 40000, 9000

#: Whoever has this address's port bound may bind that port of any other address, and nobody else:
#: a lock for each port. Addresses that nothing else uses (100::/64 is for discarding, RFC 6666).
LOCKS: Final = {socket.AF_INET: "127.239.17.3", socket.AF_INET6: "100::ef11:3"}
IPV6_FREEBIND: Final = 78  # linux/in6.h, 4.15

transports = pytest.mark.parametrize("transport", [UDP, UDP6], ids=str)
#: SO_REUSEADDR and SO_REUSEPORT.
every_option = pytest.mark.parametrize(
    "options", list(itertools.product([False, True], repeat=2)), ids=str
)

Task = Callable[[Callable[[bytes], None]], None]


@pytest.fixture(autouse=True)
def _range(network: Network) -> None:
    network.port_range(PORT, PORT + 9)


@pytest.fixture
def start() -> Iterator[Callable[[Task], Child]]:
    with children() as start:
        yield start


@pytest.fixture
def other_user(start: Callable[[Task], Child]) -> Callable[[Task], Child]:
    """Start a process of another user."""
    # Where an ordinary user has a user namespace of its own, it is root, and has no other user.
    if os.geteuid() != 0 or Path("/proc/self/uid_map").read_text().split()[2] == "1":
        pytest.skip("kernel: an ordinary user cannot become another")

    def begin(task: Task) -> Child:
        def as_the_other(send: Callable[[bytes], None]) -> None:
            os.setgid(OTHER_USER)
            os.setuid(OTHER_USER)
            task(send)

        return start(as_the_other)

    return begin


@pytest.fixture
def peer(servers: Servers) -> Callable[[Transport], socket.socket]:
    return lambda transport: servers.receive(transport.source, PEER)


@pytest.fixture(params=[False, True], ids=["the same address", "every address"])
def host(request: pytest.FixtureRequest, transport: Transport) -> str:
    """What another user binds."""
    return transport.wildcard if request.param else transport.source


def datagrams(
    transport: Transport, *, reuseaddr: bool = False, reuseport: bool = False
) -> socket.socket:
    sock = transport.socket()
    sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, reuseaddr)
    sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEPORT, reuseport)
    return sock


def joining(
    transport: Transport,
    options: tuple[bool, bool],
    *,
    host: str = "",
    talk: Callable[[socket.socket], bytes] = lambda _: b"",
) -> Task:
    """Bind the port, connect to the peer, and report that or the errno; then talk and report."""

    def join(send: Callable[[bytes], None]) -> None:
        with datagrams(transport, reuseaddr=options[0], reuseport=options[1]) as sock:
            try:
                sock.bind((host or transport.source, PORT))
                sock.connect((transport.source, PEER))
            except OSError as error:
                send(errno.errorcode[error.errno or 0].encode())
            else:
                send(b"ok")
                send(talk(sock))

    return join


def by_connectx(transport: Transport, port: int = PEER) -> socket.socket:
    return connectx.create_connection(
        (transport.source, port), source_address=(transport.source, PORT), type=socket.SOCK_DGRAM
    )


@transports
class TestBesideOurs:
    """SO_REUSEADDR is on, so that the port serves other destinations as well."""

    def test_receives_what_is_for_us(
        self,
        transport: Transport,
        other_user: Callable[[Task], Child],
        peer: Callable[[Transport], socket.socket],
    ) -> None:
        server = peer(transport)
        with by_connectx(transport) as sock:
            ours = sock.getsockname()
            other = other_user(
                joining(transport, (True, False), talk=lambda sock: limits.receive(sock, 99))
            )
            assert other.receive(2) == b"ok"
            server.sendto(b"secret", ours)
            assert other.receive(99) == b"secret"
            other.finish()
            # It has gone, and what comes now is ours again; the first has never arrived here.
            server.sendto(b"later", ours)
            assert limits.receive(sock, 99) == b"later"

    def test_sends_in_our_name(
        self,
        transport: Transport,
        other_user: Callable[[Task], Child],
        peer: Callable[[Transport], socket.socket],
    ) -> None:
        server = peer(transport)

        def forge(sock: socket.socket) -> bytes:
            sock.send(b"forged")
            return b"."

        with by_connectx(transport) as sock:
            other = other_user(joining(transport, (True, False), talk=forge))
            assert other.receive(3) == b"ok."
            other.finish()
            assert limits.receive_from(server, 99) == (b"forged", sock.getsockname())

    @every_option
    def test_is_refused_once_one_socket_shares_no_more(
        self,
        transport: Transport,
        options: tuple[bool, bool],
        other_user: Callable[[Task], Child],
        host: str,
    ) -> None:
        with by_connectx(transport), by_connectx(transport, PEER + 1) as second:
            second.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, 0)
            other = other_user(joining(transport, options, host=host))
            assert other.receive(99) == b"EADDRINUSE"
            other.finish()
            # The price.
            with pytest.raises(connectx.PortHeld):
                by_connectx(transport, PEER + 2)


@transports
class TestBesideAPlainSocket:
    @every_option
    def test_is_refused(
        self,
        transport: Transport,
        options: tuple[bool, bool],
        other_user: Callable[[Task], Child],
    ) -> None:
        with datagrams(transport) as sock:
            sock.bind((transport.source, PORT))
            sock.connect((transport.source, PEER))
            other = other_user(joining(transport, options))
            assert other.receive(99) == b"EADDRINUSE"
            other.finish()


class TestStreams:
    def test_no_4_tuple_has_two_owners_whoever_they_are(
        self, servers: Servers, other_user: Callable[[Task], Child]
    ) -> None:
        servers.listen(TCP.source, PEER)

        def join(send: Callable[[bytes], None]) -> None:
            with TCP.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, 1)
                sock.bind((TCP.source, PORT))
                send(errno.errorcode[sock.connect_ex((TCP.source, PEER))].encode())

        with connectx.create_connection(
            (TCP.source, PEER), source_address=(TCP.source, PORT)
        ) as sock:
            other = other_user(join)
            assert other.receive(99) == b"EADDRNOTAVAIL"
            other.finish()
            sock.sendall(b"still ours")


class Claims:
    """How SO_REUSEPORT could protect a finished connection, with a lock that is not that option."""

    def __init__(self, transport: Transport, port: int = PORT) -> None:
        self._transport = transport
        self._port = port

    def lock(self) -> socket.socket:
        """Take the port's lock, or raise EADDRINUSE; closing the socket gives it back."""
        sock = datagrams(self._transport)
        try:
            if self._transport.family == socket.AF_INET:
                sock.setsockopt(uapi.IPPROTO_IP, uapi.IP_FREEBIND, 1)
            else:
                sock.setsockopt(uapi.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            sock.bind((LOCKS[self._transport.family], self._port))
        except BaseException:
            sock.close()
            raise
        return sock

    def claim(self, destination: int) -> socket.socket | None:
        """Connect to the destination from the port, or give nothing if that cannot be."""
        with contextlib.ExitStack() as on_error:
            try:
                with self.lock():
                    sock = on_error.enter_context(datagrams(self._transport, reuseport=True))
                    sock.bind((self._transport.source, self._port))
                    if find(self._transport, self._port, destination) != cookie(sock):
                        return None
                    sock.connect((self._transport.source, destination))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                return None
            on_error.pop_all()
        return sock


@transports
class TestReuseport:
    """Sockets that end with SO_REUSEPORT on and SO_REUSEADDR off: the kernel compares users."""

    @every_option
    def test_another_user_is_refused(
        self,
        transport: Transport,
        options: tuple[bool, bool],
        other_user: Callable[[Task], Child],
        host: str,
    ) -> None:
        claims = Claims(transport)
        with contextlib.ExitStack() as stack:
            for destination in (PEER, PEER + 1):
                sock = claims.claim(destination)
                assert sock is not None
                stack.enter_context(sock)
            other = other_user(joining(transport, options, host=host))
            assert other.receive(99) == b"EADDRINUSE"
            other.finish()
            # Nor is a 4-tuple given to two of the same user.
            assert claims.claim(PEER) is None

    def test_cannot_be_the_lock_itself(self, transport: Transport) -> None:
        """Among sockets with the option on, a lookup chooses by a hash, not the newest one.

        So one of two that bind at the same moment may find itself. Then the other one turns its
        option off, and finds itself too. Each destination has a hash of its own. Which one has
        to be first depends on the family: the kernel files IPv6 sockets with the option behind
        older ones (udp_lib_get_port()), and IPv4 sockets before them.
        """
        both = 0
        with datagrams(transport, reuseport=True) as connected:
            connected.bind((transport.source, PORT))
            connected.connect((transport.source, PEER - 1))
            for destination in range(PEER, PEER + 64):
                with (
                    datagrams(transport, reuseport=True) as first,
                    datagrams(transport, reuseport=True) as second,
                ):
                    found = []
                    for sock in (first, second):
                        sock.bind((transport.source, PORT))
                    order = (first, second) if transport == UDP else (second, first)
                    for sock in order:
                        sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEPORT, 0)
                        found.append(find(transport, PORT, destination) == cookie(sock))
                    both += all(found)
        assert both > 0

    def test_with_a_lock_of_its_own_one_is_inside(self, transport: Transport) -> None:
        claims = Claims(transport)
        with claims.lock():
            with pytest.raises(OSError, match="in use") as caught:
                claims.lock()
            assert caught.value.errno == errno.EADDRINUSE
            # A lock for each port.
            Claims(transport, PORT + 1).lock().close()
        claims.lock().close()

    def test_with_a_lock_of_its_own_no_4_tuple_has_two_owners(
        self, transport: Transport, start: Callable[[Task], Child]
    ) -> None:
        parties, rounds = 4, 300
        won = shared(parties * rounds)
        barrier = Barrier(parties)
        claims = Claims(transport)

        def contend(party: int, _: object) -> None:
            for turn in range(rounds):
                barrier.wait(party, 3 * turn)
                sock = claims.claim(PEER)
                won[parties * turn + party] = sock is not None
                barrier.wait(party, 3 * turn + 1)
                if sock is not None:
                    sock.close()
                barrier.wait(party, 3 * turn + 2)

        for child in [start(functools.partial(contend, party)) for party in range(parties)]:
            child.receive()
            child.finish()
        winners = [sum(won[parties * turn : parties * (turn + 1)]) for turn in range(rounds)]
        assert max(winners) == 1
        # Whoever has the lock connects, unless it loses the processor meanwhile.
        assert sum(winners) > rounds // 2

    def test_never_meets_a_socket_that_shares_by_reuseaddr(self, transport: Transport) -> None:
        claims = Claims(transport)
        with by_connectx(transport):
            assert claims.claim(PEER + 1) is None
        sock = claims.claim(PEER)
        assert sock is not None
        with sock, pytest.raises(connectx.PortHeld):
            by_connectx(transport, PEER + 1)
