"""Programs that gevent has patched: before they import connectx, or after."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from connectx.sandbox.networks import Network
from tests import limits

pytest.importorskip("gevent")

ROOT: Final = Path(__file__).parents[2]

#: Tests of calls, of waiting and of accounting that run under gevent as they are. Not those of
#: forks and of gevent's own connect(), which after a refusal fails once more (ECONNABORTED).
SUITES: Final = {
    "calls": (
        [
            "api/test_blocking_and_timeouts.py",
            "api/test_fast_open.py",
            "api/test_after_an_error.py",
        ],
        "not test_timed_out and not test_after_connect_was_refused_as_well",
    ),
    "accounting": (
        ["_connect/test_ledger_of_sockets.py", "dialer/test_detached.py"],
        "(blocking or ledger) and not child",
    ),
    "waiting": (
        ["dialer/test_waiting.py", "dialer/test_turns.py", "dialer/test_cancelling.py"],
        "blocking and not child",
    ),
}

SCENARIOS: Final = """
import gevent.monkey
if {early}:
    gevent.monkey.patch_all()
import connectx
connectx.Dialer, connectx.create_connection
gevent.monkey.patch_all()
import os, socket, struct, sys, threading, time
import gevent
from connectx import Dialer, PortsExhausted

HERE = "127.0.0.1", 443
listener = socket.create_server(HERE, backlog=100)

def close(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()

def raises(kind, call, *words, **more):
    try:
        call(*words, **more)
    except kind as error:
        return error
    raise AssertionError(f"no {{kind}}")
"""

TRUE_ERRORS: Final = """
for call in (connectx.create_connection, Dialer(["127.0.0.1"]).create_connection):
    assert raises(ConnectionRefusedError, call, ("127.0.0.1", 81), timeout=5).errno == 111
    sock = call(HERE, timeout=5)
    assert isinstance(sock, socket.socket), type(sock)
    assert sock.gettimeout() == 5
    close(sock)
    sock.close()
    sock = socket.socket()
    sock.settimeout(5)
    raises(ConnectionRefusedError, connectx.connectx, sock, None, ("127.0.0.1", 81))
    connectx.connectx(sock, None, HERE)
    assert sock.gettimeout() == 5
    close(sock)
"""

NO_PORT_LEFT: Final = """
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    for strategy in ("auto", "kernel"):
        socks = []
        error = raises(PortsExhausted, lambda: [
            socks.append(connectx.create_connection(HERE, 5, type=kind, strategy=strategy))
            for _ in range(5)
        ])
        assert len(socks) == 4, socks
        for sock in socks:
            close(sock)
"""

#: A greenlet that waits must leave the others their turns, and is woken by one of them.
OTHERS_RUN: Final = """
turns, served = [], []
silent = socket.create_server(("127.0.0.1", 444), backlog=1)

def count():
    while not served:
        turns.append(1)
        gevent.sleep(0.001)

dialer = Dialer(["127.0.0.1"], wait=40)
socks = [dialer.create_connection(HERE, timeout=5) for _ in range(4)]

def wait():
    served.append(dialer.create_connection(HERE, timeout=5))

counter, waiter = gevent.spawn(count), gevent.spawn(wait)
while dialer.stats().waiting != 1:
    gevent.sleep(0.001)
seen = len(turns)
while len(turns) < seen + 10:
    gevent.sleep(0.001)
assert not served
close(socks.pop())
gevent.joinall([counter, waiter], timeout=40, raise_error=True)
assert len(served) == 1
assert dialer.stats().waits == 1
"""

#: Netlink sockets belong to threads, of which there is one: for sockets, routes and devices.
MANY_GREENLETS: Final = """
receiver = socket.socket(type=socket.SOCK_DGRAM)
receiver.bind(HERE)
other = socket.socket(type=socket.SOCK_DGRAM)
other.bind(("127.0.0.1", 444))
socks = []
def call(port):
    socks.append(connectx.create_connection(("127.0.0.1", port), 5, type=socket.SOCK_DGRAM))
    gevent.sleep(0)
greenlets = [gevent.spawn(call, port) for port in (443, 444) for _ in range(4)]
gevent.joinall(greenlets, timeout=40, raise_error=True)
assert len({(sock.getsockname(), sock.getpeername()) for sock in socks}) == 8
links = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")
         if os.path.exists(f"/proc/self/fd/{number}")]
def is_netlink(number):
    try:
        return socket.socket(fileno=os.dup(number)).family == 16
    except OSError:
        return False
netlink = [number for number in map(int, os.listdir("/proc/self/fd")) if is_netlink(number)]
assert len(netlink) <= 3, netlink
"""


@pytest.mark.parametrize("early", [True, False], ids=["patched first", "imported first"])
@pytest.mark.parametrize(
    "scenario",
    [TRUE_ERRORS, NO_PORT_LEFT, OTHERS_RUN, MANY_GREENLETS],
    ids=["true errors", "no port left", "others run", "many greenlets"],
)
def test_a_patched_program(network: Network, scenario: str, *, early: bool) -> None:
    network.port_range(40000, 40003)
    done = subprocess.run(
        [sys.executable, "-c", SCENARIOS.format(early=early) + scenario],
        check=False,
        capture_output=True,
        text=True,
        timeout=limits.COMMAND_LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("suite", SUITES)
def test_the_tests_pass_in_a_patched_program(when: str, suite: str) -> None:
    """when: whether it is patched before connectx is imported, or after."""
    files, chosen = SUITES[suite]
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "tests.patched.run", when, "-q", "-p", "no:cacheprovider", "-k", chosen),
            *(f"tests/{file}" for file in files),
        ],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=limits.COMMAND_LIMIT,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
