import contextlib
import os
import signal
import socket
import subprocess
import sys

import pytest

from connectx.linux import uapi
from connectx.sandbox.servers import EchoServer, Servers, listen
from tests import limits


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_streams_come_back_and_peers_are_seen(servers: Servers, host: str) -> None:
    listener = servers.listen(host)
    address = listener.getsockname()[:2]
    server = servers.echo(listener)
    with socket.create_connection(address) as first, socket.create_connection(address) as second:
        for client in (second, first):
            client.sendall(b"hello")
            assert limits.receive(client, 100) == b"hello"
        assert server.peers() == [first.getsockname()[:2], second.getsockname()[:2]]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_datagrams_come_back_and_senders_are_seen_once(
    servers: Servers, closing: contextlib.ExitStack, host: str
) -> None:
    receiver = servers.receive(host)
    client = closing.enter_context(socket.socket(receiver.family, socket.SOCK_DGRAM))
    server = servers.echo(receiver)
    client.connect((host, 9000))
    for _ in range(2):
        client.send(b"hello")
        assert limits.receive(client, 100) == b"hello"
    assert server.peers() == [client.getsockname()[:2]]


def test_one_server_takes_several_sockets(servers: Servers) -> None:
    sockets = [servers.listen("127.0.0.1"), servers.listen("127.0.0.2"), servers.receive()]
    server = servers.echo(*sockets)
    with (
        socket.create_connection(("127.0.0.1", 9000)) as first,
        socket.create_connection(("127.0.0.2", 9000)) as second,
    ):
        assert set(server.peers()) == {first.getsockname(), second.getsockname()}


def test_peers_stay_listed_when_they_have_gone(servers: Servers) -> None:
    server = servers.echo(servers.listen())
    with socket.create_connection(("127.0.0.1", 9000)) as client:
        name = client.getsockname()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    assert server.peers() == [name]


def test_the_child_holds_no_socket_of_the_test(servers: Servers) -> None:
    with socket.create_server(("127.0.0.1", 7)):
        servers.echo(servers.listen())
    with socket.create_server(("127.0.0.1", 7)):
        pass


def test_closing_frees_the_port_and_leaves_no_process(servers: Servers) -> None:
    with EchoServer([servers.listen()]) as server:
        pass
    server.close()
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    servers.listen().close()


@pytest.mark.usefixtures("network")
def test_a_server_that_has_died_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="the echo server failed"):  # noqa: SIM117
        # Not a listener: accept() fails in the child.
        with EchoServer([socket.socket()]) as server, pytest.raises(ChildProcessError):
            server.peers()
    assert "accept" in capfd.readouterr().err


@pytest.mark.usefixtures("network")
def test_the_server_ends_with_a_parent_that_was_killed() -> None:
    program = """
import os, signal, sys
from connectx.sandbox.servers import EchoServer, listen
server = EchoServer([listen()])
server.peers()
os.kill(os.getpid(), signal.SIGKILL)
"""
    # The server inherits standard output, which is closed only when the server ends too.
    parent = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        check=False,
        timeout=limits.COMMAND_LIMIT,
    )
    assert parent.returncode == -signal.SIGKILL
    listen().close()


@pytest.mark.parametrize("protocol", [uapi.IPPROTO_TCP, uapi.IPPROTO_MPTCP])
def test_connections_wait_in_the_accept_queue(servers: Servers, protocol: int) -> None:
    try:
        listener = servers.listen(protocol=protocol)
    except OSError as error:
        pytest.skip(f"kernel: {error}")
    with contextlib.ExitStack() as clients:
        for _ in range(500):
            clients.enter_context(socket.create_connection(listener.getsockname()))
