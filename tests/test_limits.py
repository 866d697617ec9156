"""tests/limits.py, and that no test waits without a limit."""

import ast
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests import limits

TESTS: Final = Path(__file__).parent

#: A wait of these names, without an argument, has no limit.
BARE: Final = {"accept", "acquire", "get", "join", "result", "wait"}

#: Neither has one of these; tests.limits has them with one, by the same or a similar name.
SOCKET_CALLS: Final = {"recv", "recv_into", "recvfrom", "recvmsg", "readline", "waitpid"}

#: These have one where the call names it.
WITH_TIMEOUT: Final = {"call", "check_call", "check_output", "communicate", "run"}

#: In files of which name what else is meant, and why it ends.
EXCEPTIONS: Final = {
    # The limits themselves, and what they are tried on.
    ("limits.py", "*"),
    ("test_limits.py", "*"),
    # A method of the test's own, which has a limit.
    ("test_fast_open.py", "self.accept()"),
    ("test_fast_open.py", "peers.accept()"),
    # A thread that ends with the process, and is let go by the test.
    ("udp_claims.py", "self._go.acquire()"),
    ("udp_claims.py", "self.wait()"),
    ("udp_claims.py", "self._process.wait()"),
    # What a worker answers comes by a pipe, which ends with the worker.
    ("test_holders.py", ".result()"),
    ("test_workers.py", ".result()"),
    ("test_reuse_across_processes.py", "crew.fork(self).start(call).result()"),
    # Polled with a limit; and a worker's, which ends with the test's end of the pipe.
    ("internals.py", "there.recv()"),
    ("test_sockets_as_usual.py", "pipe.recv()"),
    ("test_sockets_as_usual.py", "theirs.recv()"),
    # The library's own, which raises what its thread did.
    ("test_watcher.py", "watcher.join()"),
    # A server in a process of its own, which the test kills.
    ("http_server.py", "*"),
    ("websocket_server.py", "*"),
    # A WebSocket with a limit of its own: an argument, or websocket-client's timeout.
    ("test_websockets.py", "connection.recv(limits.LIMIT)"),
    ("websockets_sync.py", "connection.recv(limits.LIMIT)"),
    ("test_websocket.py", "connection.recv()"),
    ("websocket.py", ".recv()"),
    # It does not wait: WNOHANG.
    ("processes.py", "os.waitpid(self.pid, os.WUNTRACED | os.WNOHANG)"),
}


def waits(source: str) -> Iterator[str]:
    """The calls that wait, and have no limit."""
    tree = ast.parse(source)
    passed_over = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Await)}
    for block in ast.walk(tree):
        # Who expects this error does not wait.
        if isinstance(block, ast.With) and "BlockingIOError" in ast.dump(block.items[0]):
            passed_over |= {id(node) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and id(node) not in passed_over and waits_on(node):
            yield ast.unparse(node)


def waits_on(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Attribute):
        return False
    name, owner = call.func.attr, ast.unparse(call.func.value)
    if owner == "limits":
        return False
    if name in BARE:
        return not call.args and not call.keywords
    if name in WITH_TIMEOUT:
        named = {keyword.arg for keyword in call.keywords}
        return (owner == "subprocess" or name == "communicate") and "timeout" not in named
    if name == "select":
        return owner == "select" and len(call.args) < 4
    return name in SOCKET_CALLS and "MSG_DONTWAIT" not in ast.unparse(call)


def is_excepted(path: Path, call: str) -> bool:
    return any(
        path.name == where and (call.endswith(what) or what == "*") for where, what in EXCEPTIONS
    )


def test_no_wait_of_a_test_is_without_a_limit() -> None:
    found = [
        f"{path}: {call}"
        for path in sorted(TESTS.rglob("*.py"))
        for call in waits(path.read_text())
        if not is_excepted(path, call)
    ]
    assert found == []


@pytest.mark.parametrize(
    "call",
    [
        "thread.join()",
        "future.result()",
        "sock.recv(1)",
        "listener.accept()",
        "process.communicate()",
        "subprocess.run(['ip'])",
        "select.select([sock], [], [])",
    ],
)
def test_which_are_found(call: str) -> None:
    assert list(waits(call)) == [call]


def test_which_are_not() -> None:
    source = """
with pytest.raises(BlockingIOError):
    sock.recv(1)
", ".join(names)
thread.join(10)
limits.accept(listener)
sock.recv(1, socket.MSG_DONTWAIT)
await event.wait()
numbers.get(7)
"""
    assert list(waits(source)) == []


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LIMIT", 0.01)


@pytest.mark.usefixtures("hasty")
class TestLimits:
    def test_of_a_socket(self) -> None:
        with (
            socket.socket(type=socket.SOCK_DGRAM) as sock,
            pytest.raises(TimeoutError, match="nothing to be read from <socket"),
        ):
            limits.receive(sock)

    def test_of_a_thread_says_where_it_is(self) -> None:
        end = threading.Event()

        def linger() -> None:
            end.wait()

        thread = threading.Thread(target=linger)
        thread.start()
        with pytest.raises(TimeoutError, match=r"in linger\n *end.wait\(\)"):
            limits.join(thread)
        end.set()
        thread.join()

    def test_of_a_line(self) -> None:
        with (
            subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
            pytest.raises(AssertionError, match=r"cat.* has said nothing"),
        ):
            limits.line_from(process)

    def test_of_a_look(self) -> None:
        with pytest.raises(TimeoutError, match="it comes: not within"):
            limits.until(lambda: 0, "it comes")
        assert limits.until(lambda: 7, "it comes") == 7


def test_the_status_of_a_child() -> None:
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    assert limits.status_of(child.pid) == 3
    child.returncode = 3


def test_an_error_in_the_background_is_raised_and_ends_what_waits_for_it() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    near, far = socket.socketpair()
    with near:
        with pytest.raises(ZeroDivisionError), limits.in_background(fail, far):
            assert limits.receive(near) == b""
        assert far.fileno() == -1
