"""Options that a socket's owner may no longer set: the call needs no other socket that has them."""

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from typing import Final

import pytest

import connectx
from connectx import TupleInUse
from connectx.addresses import Address
from connectx.linux import sockopts
from connectx.sandbox.networks import Network
from tests.api.calls import CAP_NET_ADMIN, CAP_NET_RAW, ip, port_of, without_capability
from tests.api.owner import LOW, Owner
from tests.kernel.raw import FIRST, SECOND, UDP, UDP6, UDPLITE

Prepare = Callable[[socket.socket], None]

#: Where only what has this mark may go to.
MARK: Final = 7
MARKED: Final = {UDP: "198.51.100.9", UDPLITE: "198.51.100.9", UDP6: "2001:db8:100::9"}
SOURCE: Final = {UDP: "10.0.1.1", UDPLITE: "10.0.1.1", UDP6: "fd00:1::1"}
FOREIGN: Final = {UDP: "192.0.2.77", UDPLITE: "192.0.2.77", UDP6: "2001:db8::77"}

every_port = pytest.mark.parametrize("port", [LOW, 30001], ids=["in the range", "outside"])
datagrams = pytest.mark.parametrize("transport", [UDP, UDP6, UDPLITE], ids=str)


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    with without_capability(CAP_NET_ADMIN), without_capability(CAP_NET_RAW):
        yield


def mark(sock: socket.socket) -> None:
    sockopts.set_so_mark(sock, MARK)


def broadcast(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)


def transparent(sock: socket.socket) -> None:
    sockopts.set_ip_transparent(sock, on=True)


def connected(owner: Owner, prepare: Prepare, source: Address | None, to: Address) -> socket.socket:
    """Connect a socket that was set up with more privileges than there are now."""
    sock = owner.stack.enter_context(owner.transport.socket())
    prepare(sock)
    with without_privileges():
        connectx.connectx(sock, source, to)
    return sock


@pytest.fixture
def marked(owner: Owner, network: Network, devices: tuple[int, int]) -> Owner:  # noqa: ARG001
    """A host that only marked packets have a route from."""
    family = "-6" if owner.transport.family == socket.AF_INET6 else "-4"
    gateway = "fd00:1::ff" if family == "-6" else "10.0.1.254"
    ip(family, "route", "add", "default", "via", gateway, "table", "77")
    ip(family, "rule", "add", "fwmark", str(MARK), "table", "77")
    return owner


@every_port
@pytest.mark.parametrize("with_host", [True, False], ids=["source address", "no source"])
@datagrams
def test_a_mark_without_which_there_is_no_route(
    marked: Owner, port: int, *, with_host: bool
) -> None:
    host = SOURCE[marked.transport] if with_host else ""
    away = MARKED[marked.transport]
    first = connected(marked, mark, (host, port), (away, FIRST))
    assert first.getsockname()[:2] == (SOURCE[marked.transport], port)
    assert sockopts.get_so_mark(first) == MARK
    # Beside the first, on the same port.
    second = connected(marked, mark, (host, port), (away, SECOND))
    assert port_of(second) == port
    with pytest.raises(TupleInUse):
        connected(marked, mark, (host, port), (away, FIRST))


@every_port
@datagrams
def test_a_refused_socket_can_be_used_again(marked: Owner, port: int) -> None:
    away, source = MARKED[marked.transport], (SOURCE[marked.transport], port)
    connected(marked, mark, source, (away, FIRST))
    sock = marked.stack.enter_context(marked.transport.socket())
    mark(sock)
    with without_privileges():
        with pytest.raises(TupleInUse):
            connectx.connectx(sock, source, (away, FIRST))
        assert port_of(sock) == 0
        connectx.connectx(sock, source, (away, SECOND))
    assert port_of(sock) == port


@every_port
@pytest.mark.parametrize("transport", [UDP, UDPLITE], ids=str)
def test_broadcast(owner: Owner, devices: tuple[int, int], port: int) -> None:  # noqa: ARG001
    ip("address", "add", "10.9.0.1/24", "broadcast", "10.9.0.255", "dev", "one")
    for number in (FIRST, SECOND):
        sock = connected(owner, broadcast, ("10.9.0.1", port), ("10.9.0.255", number))
        assert port_of(sock) == port
    with pytest.raises(TupleInUse):
        connected(owner, broadcast, ("10.9.0.1", port), ("10.9.0.255", FIRST))
    with pytest.raises(PermissionError) as caught:
        connected(owner, lambda _: None, ("10.9.0.1", port), ("10.9.0.255", 9005))
    assert caught.value.errno == errno.EACCES


@every_port
@datagrams
def test_a_source_that_is_not_local(owner: Owner, devices: tuple[int, int], port: int) -> None:  # noqa: ARG001
    away = "10.0.1.9" if owner.transport.family == socket.AF_INET else "fd00:1::9"
    source = (FOREIGN[owner.transport], port)
    for number in (FIRST, SECOND):
        sock = connected(owner, transparent, source, (away, number))
        assert sock.getsockname()[:2] == source


@every_port
@datagrams
def test_a_device(owner: Owner, devices: tuple[int, int], port: int) -> None:
    def bind(sock: socket.socket) -> None:
        sockopts.set_so_bindtoifindex(sock, devices[0])

    away = "10.0.1.9" if owner.transport.family == socket.AF_INET else "fd00:1::9"
    for number in (FIRST, SECOND):
        sock = connected(owner, bind, (SOURCE[owner.transport], port), (away, number))
        assert sockopts.get_so_bindtoifindex(sock) == devices[0]
    with pytest.raises(TupleInUse):
        connected(owner, bind, (SOURCE[owner.transport], port), (away, FIRST))
