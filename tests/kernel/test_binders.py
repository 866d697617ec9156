"""Who may bind one port together: addresses that overlap, options, users.

It is the binders that connectx meets on a port that a caller asks for, and its own explicit binds.
"""

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Iterator
from typing import Final, NamedTuple

import pytest

from connectx.linux import uapi
from connectx.sandbox.networks import Network
from tests.kernel.raw import TCP, TCP6, UDP, UDP6, Transport, kernel_release

PORT: Final = 20001
EVERY: Final = "every address"


class Place(NamedTuple):
    """What a socket is bound to, and which addresses of which IP versions that takes up."""

    host: str
    taken: frozenset[tuple[int, str]]
    v6only: bool = False

    def __str__(self) -> str:
        return f"{self.host}{' alone' if self.v6only else ''}"

    def overlaps(self, other: "Place") -> bool:
        return any(
            version == another and (host == one or EVERY in (host, one))
            for version, host in self.taken
            for another, one in other.taken
        )


PLACES: Final = [
    Place("0.0.0.0", frozenset({(4, EVERY)})),
    Place("127.0.0.1", frozenset({(4, "127.0.0.1")})),
    Place("127.0.0.2", frozenset({(4, "127.0.0.2")})),
    Place("::", frozenset({(4, EVERY), (6, EVERY)})),
    Place("::", frozenset({(6, EVERY)}), v6only=True),
    Place("::1", frozenset({(6, "::1")})),
    Place("2001:db8::7", frozenset({(6, "2001:db8::7")})),
    Place("::ffff:127.0.0.1", frozenset({(4, "127.0.0.1")})),
]
# Linux 6.1 does not see that ::ffff:127.0.0.1 is one of these. Since 6.8, the buckets have IPv4
# addresses in mapped form (inet_bind2_bucket).
if kernel_release() >= (6, 8):
    PLACES.append(Place("::ffff:0.0.0.0", frozenset({(4, EVERY)})))


class Binder:
    """Binds sockets of one protocol, and keeps them until the test ends."""

    def __init__(self, protocol: int, stack: contextlib.ExitStack) -> None:
        self._transports = {
            each.family: each for each in (TCP, TCP6, UDP, UDP6) if each.protocol == protocol
        }
        self._stack = stack

    def bind(self, place: Place, *options: int, port: int = PORT) -> socket.socket:
        with contextlib.ExitStack() as on_error:
            family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
            sock = on_error.enter_context(self._transports[family].socket())
            for option in options:
                sock.setsockopt(socket.SOL_SOCKET, option, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, place.v6only)
            sock.bind((place.host, port))
            self._stack.push(on_error.pop_all())
        return sock

    def is_refused(self, place: Place, *options: int, port: int = PORT) -> bool:
        try:
            self.bind(place, *options, port=port).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return True
        return False

    def refused(self, *options: int) -> list[Place]:
        return [each for each in PLACES if self.is_refused(each, *options)]


def overlapping(place: Place) -> list[Place]:
    return [each for each in PLACES if each.overlaps(place)]


@pytest.fixture(params=[TCP, UDP], ids=str)
def protocol(request: pytest.FixtureRequest) -> int:
    transport: Transport = request.param
    return transport.protocol


@pytest.fixture
def binder(protocol: int, network: Network, closing: contextlib.ExitStack) -> Binder:
    network.add_address("2001:db8::7")
    return Binder(protocol, closing)


@pytest.mark.parametrize("held", PLACES, ids=str)
class TestAddressesThatOverlap:
    def test_are_refused_without_options(self, binder: Binder, held: Place) -> None:
        binder.bind(held)
        assert binder.refused() == overlapping(held)

    @pytest.mark.parametrize("options", [(), (uapi.SO_REUSEPORT,)])
    def test_are_refused_where_one_alone_shares(
        self, binder: Binder, held: Place, options: tuple[int, ...]
    ) -> None:
        refused = []
        for wanted in PLACES:
            # Bound anew each time: with SO_REUSEPORT a bucket remembers who came by.
            with binder.bind(held, uapi.SO_REUSEADDR):
                if binder.is_refused(wanted, *options):
                    refused.append(wanted)
        assert refused == overlapping(held)

    @pytest.mark.parametrize("option", [uapi.SO_REUSEADDR, uapi.SO_REUSEPORT])
    def test_are_shared_where_both_do(self, binder: Binder, held: Place, option: int) -> None:
        binder.bind(held, option)
        assert binder.refused(option) == []


@pytest.mark.parametrize("protocol", [TCP], ids=str, indirect=True)
@pytest.mark.parametrize("listening", PLACES, ids=str)
@pytest.mark.parametrize("visitor", PLACES, ids=str)
def test_a_listener_keeps_its_addresses_whoever_comes_and_goes(
    binder: Binder, listening: Place, visitor: Place
) -> None:
    """A binder elsewhere does not change what the port's bucket knows of the listener."""
    binder.bind(listening, uapi.SO_REUSEADDR).listen()
    assert binder.refused(uapi.SO_REUSEADDR) == overlapping(listening)
    if not visitor.overlaps(listening):
        sock = binder.bind(visitor, uapi.SO_REUSEADDR)
        assert binder.refused(uapi.SO_REUSEADDR) == overlapping(listening)
        sock.close()
        assert binder.refused(uapi.SO_REUSEADDR) == overlapping(listening)


#: SO_REUSEADDR, SO_REUSEPORT, both, or neither.
OPTIONS: Final = [
    options
    for number in range(3)
    for options in itertools.combinations((uapi.SO_REUSEADDR, uapi.SO_REUSEPORT), number)
]
NAMES: Final = {uapi.SO_REUSEADDR: "SO_REUSEADDR", uapi.SO_REUSEPORT: "SO_REUSEPORT"}


@contextlib.contextmanager
def user(uid: int) -> Iterator[None]:
    """Have the block's sockets belong to another user."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("protocol", [TCP], ids=str, indirect=True)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("second", OPTIONS, ids=lambda each: "+".join(NAMES[o] for o in each))
@pytest.mark.parametrize("first", OPTIONS, ids=lambda each: "+".join(NAMES[o] for o in each))
class TestBindToPort0:
    """The range has one port. net.ipv4.ip_autobind_reuse decides whether bind() gives it again."""

    @pytest.fixture(autouse=True)
    def _one_port(self, network: Network) -> None:
        network.port_range(PORT, PORT)

    @pytest.mark.parametrize("uids", [(0, 0), (10, 20)], ids=["same user", "two users"])
    @pytest.mark.parametrize("reuse", [0, 1])
    def test_a_port_is_given_twice(
        self,
        binder: Binder,
        network: Network,
        host: str,
        reuse: int,
        first: tuple[int, ...],
        second: tuple[int, ...],
        uids: tuple[int, int],
    ) -> None:
        network.sysctl("net.ipv4.ip_autobind_reuse", reuse)
        (place,) = (each for each in PLACES if each.host == host)
        with user(uids[0]):
            held = binder.bind(place, *first, port=0)
        assert held.getsockname()[1] == PORT
        both = set(first) & set(second)
        # Of one user's sockets with SO_REUSEPORT, both could listen.
        could_listen = uapi.SO_REUSEPORT in both and uids[0] == uids[1]
        given = bool(reuse) and uapi.SO_REUSEADDR in both and not could_listen
        with user(uids[1]):
            assert binder.is_refused(place, *second, port=0) == (not given)
            if given:
                other = binder.bind(place, *second, port=0)
                held.listen()
                with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
                    other.listen()
