"""Threads, children, and code that takes the place of the standard library's."""

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

import connectx
from connectx import PortsExhausted
from connectx.addresses import Address
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.api.calls import (
    TCP_MAPPED,
    UDP_MAPPED,
    Call,
    Client,
    is_stream,
    port_of,
    reset_on_close,
)
from tests.kernel.raw import FIRST, MPTCP, SECOND, TCP, TCP6, THIRD, UDP, UDP6, Transport

LOW, HIGH = 20001, 20256
SIZE: Final = HIGH - LOW + 1
PORTS: Final = list(range(LOW, HIGH + 1))

every_transport = pytest.mark.parametrize(
    "transport", [TCP, TCP6, TCP_MAPPED, MPTCP, UDP, UDP6, UDP_MAPPED], ids=str
)
with_or_without_source = pytest.mark.parametrize(
    "has_source", [False, True], ids=["no source", "source address"]
)


@pytest.fixture(autouse=True)
def _range(network: Network) -> None:
    network.port_range(LOW, HIGH)


def source_of(transport: Transport, *, has_source: bool) -> Address | None:
    return (transport.source, 0) if has_source else None


def open_until_exhausted(
    call: Call,
    transport: Transport,
    source: Address | None,
    destination: int,
    stack: contextlib.ExitStack,
) -> list[socket.socket]:
    opened: list[socket.socket] = []
    while len(opened) <= SIZE:
        try:
            sock = call(transport, source, (transport.source, destination), "auto")
        except PortsExhausted:
            return opened
        opened.append(stack.enter_context(sock))
    raise AssertionError("more connections than ports")


class TestThreads:
    @with_or_without_source
    @every_transport
    def test_they_fill_one_range_together(
        self, client: Client, call: Call, closing: contextlib.ExitStack, *, has_source: bool
    ) -> None:
        transport = client.transport
        source = source_of(transport, has_source=has_source)
        start = threading.Barrier(8)

        def fill(_: int) -> list[socket.socket]:
            start.wait(limits.LIMIT)
            return open_until_exhausted(call, transport, source, FIRST, closing)

        with quick_switches(), ThreadPoolExecutor(8) as pool:
            opened = [sock for socks in pool.map(fill, range(8)) for sock in socks]
        assert sorted(map(port_of, opened)) == PORTS

    @pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
    def test_they_open_and_close(self, client: Client, call: Call, network: Network) -> None:
        """More threads than ports, and every one of them gets its turn, for they give back."""
        transport = client.transport
        network.port_range(LOW, LOW + 3)
        limit = threading.Semaphore(4)

        def churn(_: int) -> int:
            for _ in range(40):
                with limit, call(transport, None, (transport.source, FIRST), "auto") as sock:
                    if is_stream(transport):
                        reset_on_close(sock)
            return 40

        with quick_switches(), ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(churn, range(8))) == 320
        # Nothing is left in anybody's books.
        client.fill(FIRST)
        assert client.ports(FIRST) == PORTS[:4]

    def test_netlink_sockets_end_with_their_threads(self, network: Network) -> None:
        del network
        before = descriptors()
        for _ in range(4):
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(open_and_close_datagram, range(64)))
        connectx.create_connection(("127.0.0.1", FIRST), type=socket.SOCK_DGRAM).close()
        # What this thread holds is one for each netlink protocol.
        assert len(descriptors() - before) <= 2


def open_and_close_datagram(_: int) -> None:
    connectx.create_connection(("127.0.0.1", FIRST), type=socket.SOCK_DGRAM).close()


@contextlib.contextmanager
def quick_switches() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def descriptors() -> set[str]:
    """What the process has open: sockets by their inodes."""
    targets = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            targets.add(str(link.readlink()))
    return targets


def in_child(work: Callable[[], Any]) -> Any:
    """What a function returns in a forked child, where it raises nothing."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Of threads, of which pytest-xdist has some: the child calls nothing of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            os.write(writer, json.dumps(work()).encode())
            status = 0
        except BaseException:  # noqa: BLE001 -- told on standard error, and by the status
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    assert limits.status_of(pid) == 0
    return json.loads(answer)


class TestFork:
    @every_transport
    def test_a_child_begins_with_nothing_known(
        self, client: Client, call: Call, closing: contextlib.ExitStack, network: Network
    ) -> None:
        transport = client.transport
        network.port_range(LOW, LOW + 7)
        client.fill(FIRST)

        def fill() -> list[int]:
            with pytest.raises(PortsExhausted):
                call(transport, None, (transport.source, FIRST), "auto")
            opened = open_until_exhausted(call, transport, None, SECOND, closing)
            ports = sorted(map(port_of, opened))
            for sock in opened:
                reset_on_close(sock)
                sock.close()
            return ports

        assert in_child(fill) == PORTS[:8]
        client.fill(SECOND)
        assert client.ports(SECOND) == PORTS[:8]

    @pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
    def test_parent_and_child_fill_one_range_together(
        self, client: Client, call: Call, closing: contextlib.ExitStack
    ) -> None:
        transport = client.transport
        client.open(FIRST)
        reader, writer = os.pipe()
        hold, release = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                opened = open_until_exhausted(call, transport, None, FIRST, closing)
                os.write(writer, struct.pack(f"@{len(opened)}H", *map(port_of, opened)))
                os.close(writer)
                os.close(release)
                # Until the parent has counted.
                os.read(hold, 1)
            finally:
                os._exit(0)
        os.close(writer)
        os.close(hold)
        opened = open_until_exhausted(call, transport, None, FIRST, closing)
        with os.fdopen(reader, "rb") as stream:
            data = stream.read()
        os.close(release)
        limits.status_of(pid)
        others = struct.unpack(f"@{len(data) // 2}H", data)
        assert sorted([*others, *map(port_of, [*opened, *client.opened])]) == PORTS
        assert len(set(others)) == len(others)

    @pytest.mark.parametrize("transport", [UDP], ids=str)
    def test_netlink_sockets_are_not_shared(
        self, client: Client, call: Call, network: Network
    ) -> None:
        transport = client.transport
        # One port is all there is: it is shared, which takes a lookup.
        network.port_range(LOW, LOW)
        client.open(FIRST)
        client.open(SECOND)
        parent = netlink_sockets()
        assert parent

        def look() -> list[int]:
            left = netlink_sockets()
            call(transport, None, (transport.source, THIRD), "auto")
            return [len(left & parent), len(netlink_sockets() & parent), len(netlink_sockets())]

        inherited, shared, own = in_child(look)
        assert (inherited, shared) == (0, 0)
        assert own >= 1
        assert netlink_sockets() == parent
        client.open(THIRD)

    @pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
    def test_a_child_that_closes_what_it_inherited_frees_nothing(
        self, client: Client, network: Network
    ) -> None:
        network.port_range(LOW, LOW + 3)
        client.fill(FIRST)

        def close() -> int:
            for sock in client.opened:
                sock.close()
            with pytest.raises(PortsExhausted):
                client.open(FIRST)
            return 0

        assert in_child(close) == 0
        with pytest.raises(PortsExhausted):
            client.open(FIRST)

    @pytest.mark.parametrize("transport", [UDP, TCP], ids=str)
    def test_fork_in_the_middle_of_other_threads_calls(self, client: Client, call: Call) -> None:
        """What they hold at that moment must not stop the child."""
        transport = client.transport
        stop = threading.Event()

        def churn() -> None:
            # Nobody accepts them, so they stay in the queue of the listener, which has an end.
            for _ in range(1200):
                if stop.is_set():
                    break
                with call(transport, None, (transport.source, FIRST), "auto") as sock:
                    if is_stream(transport):
                        reset_on_close(sock)

        threads = [threading.Thread(target=churn) for _ in range(3)]
        with quick_switches():
            for thread in threads:
                thread.start()
            try:
                for _ in range(10):

                    def connect() -> int:
                        with call(transport, None, (transport.source, SECOND), "auto") as sock:
                            if is_stream(transport):
                                reset_on_close(sock)
                            return port_of(sock)

                    assert in_child(connect) in PORTS
            finally:
                stop.set()
                for thread in threads:
                    limits.join(thread)


def netlink_sockets() -> set[str]:
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            sock = socket.socket(fileno=int(link.name))
            family, target = sock.family, str(link.readlink())
            sock.detach()
        except OSError:
            continue  # The listing's own descriptor, or no socket.
        if family == socket.AF_NETLINK:
            found.add(target)
    return found


class TestPatching:
    """Whoever replaces socket.socket before a call, as gevent does, gets sockets of that class."""

    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
    @pytest.mark.parametrize("source", [None, ("127.0.0.1", 0), ("127.0.0.1", 30001)])
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_the_class_at_the_time_of_the_call(
        self,
        servers: Servers,
        closing: contextlib.ExitStack,
        monkeypatch: pytest.MonkeyPatch,
        kind: int,
        source: Address | None,
        host: str,
    ) -> None:
        servers.listen("127.0.0.1", FIRST)
        resolve = socket.getaddrinfo

        def getaddrinfo(name: str, *rest: Any) -> Any:
            # Wherever it is that a machine has its localhost.
            return resolve("127.0.0.1" if name == "localhost" else name, *rest)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        connects: list[Address] = []

        class Patched(socket.socket):
            def connect(self, address: Any) -> None:
                connects.append(address)
                super().connect(address)

        monkeypatch.setattr(socket, "socket", Patched)
        sock = closing.enter_context(
            connectx.create_connection((host, FIRST), None, source, type=kind)
        )
        assert type(sock) is Patched
        # Waiting is what such a class changes, so it must be asked to connect.
        assert connects[-1] == ("127.0.0.1", FIRST)
        monkeypatch.undo()
        sock = closing.enter_context(
            connectx.create_connection(("127.0.0.1", FIRST), None, None, type=kind)
        )
        assert not isinstance(sock, Patched)

    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
    def test_ports_run_out_for_it_too(
        self,
        network: Network,
        servers: Servers,
        closing: contextlib.ExitStack,
        monkeypatch: pytest.MonkeyPatch,
        kind: int,
    ) -> None:
        network.port_range(LOW, LOW + 3)
        servers.listen("127.0.0.1", FIRST)

        class Patched(socket.socket):
            pass

        monkeypatch.setattr(socket, "socket", Patched)
        socks = [
            closing.enter_context(connectx.create_connection(("127.0.0.1", FIRST), type=kind))
            for _ in range(4)
        ]
        assert sorted(map(port_of, socks)) == PORTS[:4]
        with pytest.raises(PortsExhausted):
            connectx.create_connection(("127.0.0.1", FIRST), type=kind)
        if kind == socket.SOCK_STREAM:
            reset_on_close(socks[1])
        closed = port_of(socks[1])
        socks[1].close()
        sock = closing.enter_context(connectx.create_connection(("127.0.0.1", FIRST), type=kind))
        assert port_of(sock) == closed

    def test_a_class_that_waits_by_itself(
        self, servers: Servers, closing: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """gevent's sockets are never blocking underneath, whatever gettimeout() says."""
        servers.listen("127.0.0.1", FIRST)

        class Cooperative(socket.socket):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
                super().settimeout(0)

            def gettimeout(self) -> float | None:
                return None

            def connect(self, address: Any) -> None:
                try:
                    super().connect(address)
                except BlockingIOError:
                    assert select.select([], [self], [], limits.LIMIT)[1]

        monkeypatch.setattr(socket, "socket", Cooperative)
        sock = closing.enter_context(connectx.create_connection(("127.0.0.1", FIRST)))
        assert type(sock) is Cooperative
        assert sock.getpeername() == ("127.0.0.1", FIRST)


def test_importing_makes_no_socket_and_starts_nothing(network: Network) -> None:
    """In a fresh interpreter, since here it has long been imported."""
    del network
    code = """
import sys, threading
events = []
sys.addaudithook(lambda name, _: events.append(name))
import connectx
touched = [name for name in events if name.startswith(("socket.", "ctypes.dlopen"))]
assert not touched, touched
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=limits.COMMAND_LIMIT)
