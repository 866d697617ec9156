"""What the UDP lock makes of what its lookup shows."""

import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import pytest

from connectx._connect.udp_connect import Contested, NotVisible, claim
from connectx.linux import uapi
from connectx.sandbox.networks import Network
from tests.kernel.raw import cookie

HOST: Final = "127.0.0.1"
PORT: Final = 20003
SOURCE: Final = (HOST, PORT)
DESTINATION: Final = (HOST, 9000)

OWN: Final = "own"
CONNECTED: Final = uapi.TCP_ESTABLISHED
UNCONNECTED: Final = uapi.TCP_CLOSE


class ScriptedLookup:
    """Shows what it is told, one look after the other; the last of it for good.

    None for nothing, OWN for the socket itself, a state for another socket.
    """

    def __init__(
        self, sock: socket.socket, *shows: str | int | None, service: bool = False
    ) -> None:
        self._sock = sock
        self._service = service
        self._shows: Sequence[str | int | None] = shows

    def shows(self, _: None, port: int, cookie: bytes) -> bool:
        record = self.find_record(None, port)
        return record is not None and record.cookie == cookie

    def is_service(self, _: None, port: int) -> bool:
        assert port == PORT
        return self._service

    def find_record(self, _: None, port: int, device: bytes | None = None) -> "Record | None":
        assert device is None
        assert port == PORT
        shown, *rest = self._shows
        if rest:
            self._shows = rest
        if shown is None:
            return None
        if isinstance(shown, str):
            return Record(cookie(self._sock), UNCONNECTED)
        return Record(b"another!", shown)


class Record:
    def __init__(self, cookie: bytes, state: int) -> None:
        self.cookie = cookie
        self.state = state


@pytest.fixture
def sock(network: Network) -> Iterator[socket.socket]:
    network.port_range(20000, 20007)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        yield made


@pytest.fixture(params=[False, True], ids=["bound", "from a window"])
def claims(request: pytest.FixtureRequest) -> Callable[..., None]:
    return partial(claim, releasable=request.param)


def test_who_finds_itself_connects_and_shares_the_port(
    sock: socket.socket, claims: Callable[..., None]
) -> None:
    claims(sock, ScriptedLookup(sock, OWN), None, SOURCE, DESTINATION)
    assert sock.getpeername() == DESTINATION
    assert sock.getsockname() == SOURCE
    assert sock.getsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR) == 1


@pytest.mark.parametrize(
    "shows, connected",
    [
        ([CONNECTED], True),
        ([UNCONNECTED], False),
        # The rival has closed, or connected, since the first look.
        ([CONNECTED, OWN], False),
        ([UNCONNECTED, CONNECTED], True),
        ([UNCONNECTED, OWN], False),
    ],
)
def test_who_finds_another_does_not(
    sock: socket.socket, claims: Callable[..., None], shows: list[str | int], *, connected: bool
) -> None:
    with pytest.raises(Contested) as contest:
        claims(sock, ScriptedLookup(sock, *shows), None, SOURCE, DESTINATION)
    assert contest.value.connected is connected
    # Still bound and still the lock's holder, as is said there.
    assert sock.getsockname() == SOURCE
    assert sock.getsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR) == 0
    with pytest.raises(OSError, match="not connected"):
        sock.getpeername()


@pytest.mark.parametrize("shows", [[None, OWN], [CONNECTED, None, OWN], [None, None, CONNECTED]])
def test_nothing_seen_once_is_a_rival_that_is_just_closing(
    sock: socket.socket, claims: Callable[..., None], shows: list[str | int | None]
) -> None:
    # udp_dump_one() says ENOENT, too, when the socket it has found is about to go
    # (refcount_inc_not_zero() fails).
    with pytest.raises(Contested):
        claims(sock, ScriptedLookup(sock, *shows), None, SOURCE, DESTINATION)


def test_nothing_seen_again_and_again_is_a_lookup_that_does_not_see_us(
    sock: socket.socket, claims: Callable[..., None]
) -> None:
    with pytest.raises(NotVisible):
        claims(sock, ScriptedLookup(sock, None), None, SOURCE, DESTINATION)


@pytest.mark.parametrize("releasable", [False, True])
def test_a_port_that_was_not_asked_for_is_not_taken_beside_a_service(
    sock: socket.socket, *, releasable: bool
) -> None:
    lookup = ScriptedLookup(sock, OWN, service=True)
    claims: Callable[..., None] = claim
    with pytest.raises(OSError, match="in use") as refused:
        claims(sock, lookup, None, SOURCE, DESTINATION, releasable=releasable)
    assert refused.value.errno == errno.EADDRINUSE
    assert sock.getsockname()[1] == 0
