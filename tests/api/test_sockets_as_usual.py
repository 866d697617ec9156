"""What create_connection() returns behaves as the standard library's sockets do."""

import contextlib
import copy
import gc
import multiprocessing
import pickle
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final

import pytest

import connectx
from connectx import Dialer, PortsExhausted
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits

PORT: Final = 443
HERE: Final = ("127.0.0.1", PORT)

Create = Callable[..., socket.socket]

CALLS: Final[dict[str, Callable[[], Create]]] = {
    "socket": lambda: socket.create_connection,
    "connectx": lambda: connectx.create_connection,
    "Dialer": lambda: Dialer(["127.0.0.1"]).create_connection,
}


@pytest.fixture
def listener(network: Network, servers: Servers) -> socket.socket:
    del network
    return servers.listen("127.0.0.1", PORT)


@pytest.fixture(params=CALLS)
def create(request: pytest.FixtureRequest, listener: socket.socket) -> Create:
    del listener
    return CALLS[request.param]()


def answer(pipe: Connection) -> None:
    """Receive a socket, and say where it goes; in a process of its own."""
    with pipe.recv()["sock"] as sock:
        pipe.send((sock.getsockname(), sock.getpeername(), type(sock).__name__))


@contextlib.contextmanager
def worker() -> Any:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=answer, args=(there,))
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join(limits.LIMIT)
        process.kill()
        process.join(limits.LIMIT)
        process.close()


def given_to(pipe: Connection, sock: socket.socket) -> Any:
    pipe.send({"sock": sock})
    assert pipe.poll(limits.LIMIT)
    return pipe.recv()


@pytest.fixture(autouse=True)
def _no_sharer_left(listener: socket.socket) -> Any:
    """End multiprocessing's thread that hands descriptors over, and its listener."""
    del listener
    yield
    from multiprocessing import resource_sharer

    resource_sharer.stop(limits.LIMIT)
    gc.collect()


class TestMultiprocessing:
    def test_sends_it(self, create: Create) -> None:
        with worker() as pipe, create(HERE) as sock:
            name, peer, kind = given_to(pipe, sock)
            assert (name, peer, kind) == (sock.getsockname(), HERE, "socket")
            # It is still ours as well.
            assert sock.getpeername() == HERE

    def test_its_place_in_a_dialer_ends_with_the_last_copy(self) -> None:
        dialer = Dialer(["127.0.0.1"], limit=1)
        context = multiprocessing.get_context("fork")
        mine, theirs = context.Pipe()
        with mine, theirs:
            sock = dialer.create_connection(HERE)
            mine.send(sock)
            sock.close()
            # Nobody has received it yet; the copy that multiprocessing has made is open.
            with pytest.raises(PortsExhausted, match="limit of 1 "):
                dialer.create_connection(HERE)
            assert theirs.poll(limits.LIMIT)
            copied = theirs.recv()
            with pytest.raises(PortsExhausted, match="limit of 1 "):
                dialer.create_connection(HERE)
            copied.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            copied.close()
            dialer.create_connection(HERE).close()

    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_no_other_pickler_takes_it(self, create: Create, protocol: int) -> None:
        with create(HERE) as sock, pytest.raises(TypeError, match="cannot pickle"):
            pickle.dumps(sock, protocol)

    def test_nor_is_it_copied(self, create: Create) -> None:
        with create(HERE) as sock:
            for way in (copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match="cannot pickle"):
                    way(sock)


class TestSemantics:
    def test_it_says_whose_protocol_it_is(self, create: Create) -> None:
        """asyncio looks there, and has the socket wait with little data otherwise."""
        with create(HERE) as sock:
            assert sock.proto == socket.IPPROTO_TCP
            assert sock.family == socket.AF_INET
            assert sock.type == socket.SOCK_STREAM

    def test_a_file_keeps_it_open(self, create: Create, listener: socket.socket) -> None:
        sock = create(HERE)
        with limits.accept(listener)[0] as peer:
            with sock.makefile("rwb", buffering=0) as file:
                sock.close()
                assert sock.fileno() >= 0
                file.write(b"x")
                assert limits.receive(peer) == b"x"
            assert sock.fileno() == -1
            assert limits.receive(peer) == b""

    def test_a_copy_goes_on(self, create: Create, listener: socket.socket) -> None:
        sock = create(HERE, timeout=7)
        with limits.accept(listener)[0] as peer, sock.dup() as copied:
            assert type(copied) is type(sock)
            assert copied.gettimeout() == 7
            assert copied.get_inheritable() is False
            sock.close()
            copied.sendall(b"x")
            assert limits.receive(peer) == b"x"

    def test_a_detached_descriptor_is_somebody_elses(self, create: Create) -> None:
        sock = create(HERE)
        descriptor = sock.detach()
        assert sock.fileno() == -1
        sock.close()
        with socket.socket(fileno=descriptor) as other:
            assert other.getpeername() == HERE
        # As often as one likes, and always this.
        assert sock.detach() == -1

    def test_it_has_what_the_standard_ones_have(self, create: Create) -> None:
        with create(HERE) as sock, socket.create_connection(HERE) as usual:
            assert set(dir(usual)) <= set(dir(sock))
            assert (sock.family, sock.type) == (usual.family, usual.type)
            assert isinstance(sock.family, socket.AddressFamily)
            assert hasattr(sock, "share") is hasattr(usual, "share")
            with contextlib.closing(socket.fromfd(sock.fileno(), sock.family, sock.type)) as other:
                assert other.getpeername() == HERE

    def test_close_may_come_twice(self, create: Create) -> None:
        sock = create(HERE)
        sock.close()
        sock.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            sock.getpeername()
