"""On macOS and Windows: importing works, calls say what is missing, or connect plainly."""

import json
import pkgutil
import subprocess
import sys
from typing import Any, Final

import pytest

import connectx
from connectx.sandbox.networks import Network
from tests import limits
from tests.linux.test_other_platforms import PROGRAM

#: What pretends to be another platform, and a server. The socket module keeps what all
#: platforms have.
PREPARED: Final = (
    """
import asyncio, selectors, socket
LOOP = asyncio.SelectorEventLoop(selectors.SelectSelector())
KEPT = {name: getattr(socket, name) for name in ("SOMAXCONN", "AI_PASSIVE", "TCP_NODELAY")
        if hasattr(socket, name)}
"""
    + PROGRAM.replace("for module in sys.argv[1:]:\n    importlib.import_module(module)\n", "")
    + """
import asyncio, json
for name, value in KEPT.items():
    setattr(socket, name, value)
sys.platform = sys.argv[1]
import connectx
from connectx import Dialer, NotSupported, aio

listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(64)
HERE = listener.getsockname()
NODELAY = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
found = {}

def names(sock):
    with sock:
        return [sock.getsockname()[0], sock.getpeername()[1] == HERE[1], type(sock).__name__]

def outcome(call):
    try:
        made = call()
        if asyncio.iscoroutine(made):
            made = LOOP.run_until_complete(made)
        return names(made) if isinstance(made, socket.socket) else made
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""
)


def elsewhere(platform: str, program: str) -> Any:
    """Run a program that fills in `found` on another platform; returns that."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{PREPARED}\n{program}\nLOOP.close(); print(json.dumps(found))",
            platform,
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=limits.COMMAND_LIMIT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


every_platform = pytest.mark.parametrize(
    "platform, name",
    [
        ("darwin", "macOS (darwin)"),
        ("win32", "Windows (win32)"),
        ("freebsd14", "another platform (freebsd14)"),
    ],
)


def test_here() -> None:
    assert connectx.supported()


@every_platform
def test_each_call_says_what_is_missing(network: Network, platform: str, name: str) -> None:
    del network
    found = elsewhere(
        platform,
        """
dialer, adialer = Dialer(["127.0.0.1"], limit=3, exclude=[5]), aio.Dialer()
found["supported"] = connectx.supported()
found["calls"] = [outcome(call) for call in (
    lambda: connectx.create_connection(HERE),
    lambda: connectx.create_connection(("localhost", HERE[1])),
    lambda: connectx.create_connection(HERE, type=socket.SOCK_DGRAM),
    lambda: connectx.create_connection(HERE, socket_options=NODELAY),
    lambda: connectx.connectx(socket.socket(), None, HERE),
    lambda: dialer.create_connection(HERE),
    lambda: dialer.create_connection(HERE, None, ("127.0.0.1", 0)),
    lambda: dialer.connectx(socket.socket(), HERE),
    lambda: dialer.capacity(HERE),
    lambda: aio.create_connection(HERE),
    lambda: aio.open_connection(*HERE),
    lambda: aio.create_datagram_endpoint(asyncio.DatagramProtocol, HERE),
    lambda: adialer.create_connection(HERE),
    lambda: adialer.capacity(HERE),
)]
found["wrong"] = [outcome(call) for call in (
    lambda: connectx.create_connection("127.0.0.1:443"),
    lambda: Dialer([]),
)]
found["stats"] = dialer.stats().opened
""",
    )
    assert found["supported"] is False
    for told in found["calls"]:
        assert told.startswith("NotSupported: ")
        assert (
            f"needs Linux, and this is {'' if '(' in name else 'another platform ('}{name}" in told
        )
    # What is wrong anywhere is wrong there, too.
    assert found["wrong"][0].startswith("TypeError: ")
    assert found["wrong"][1].startswith("ValueError: ")
    assert found["stats"] == 0


@every_platform
def test_plain_connections_where_that_is_asked_for(
    network: Network, platform: str, name: str
) -> None:
    del network, name
    found = elsewhere(
        platform,
        """
dialer = Dialer(["127.0.0.2"], ports=(20000, 20009), limit=2, fallback="plain")
adialer = aio.Dialer(["127.0.0.2"], fallback="plain")
def elsewhere(dialer):
    with socket.socket() as sock:
        dialer.connectx(sock, HERE, data=b"x")
        return [sock.getsockname()[0], sock.getpeername()[1] == HERE[1], type(sock).__name__]
found["calls"] = [outcome(call) for call in (
    lambda: connectx.create_connection(HERE, fallback="plain"),
    lambda: connectx.create_connection(("localhost", HERE[1]), 5, fallback="plain"),
    lambda: connectx.create_connection(HERE, 5, ("127.0.0.2", 0), fallback="plain"),
    lambda: connectx.create_connection(HERE, type=socket.SOCK_DGRAM, fallback="plain"),
    lambda: connectx.create_connection(HERE, socket_options=NODELAY, fallback="plain"),
    lambda: aio.create_connection(HERE, fallback="plain"),
    lambda: dialer.create_connection(HERE, timeout=5),
    lambda: dialer.create_connection(HERE, None, ("127.0.0.2", 0), socket_options=NODELAY),
    lambda: elsewhere(dialer),
    lambda: adialer.create_connection(HERE),
)]
with connectx.create_connection(HERE, 5, fallback="plain") as sock:
    found["timeout"] = sock.gettimeout()
listener_closed = socket.socket()
listener_closed.bind(("127.0.0.1", 0))
GONE = listener_closed.getsockname()
found["refused"] = [outcome(call) for call in (
    lambda: connectx.create_connection(GONE, fallback="plain"),
    lambda: dialer.create_connection(GONE),
)]
""",
    )
    calls = found["calls"]
    assert [call[1] for call in calls] == [True] * len(calls), calls
    assert [call[0] for call in calls] == (
        ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.1", "127.0.0.1"]
        + ["127.0.0.2"] * 4
    )
    assert found["timeout"] == 5
    for told in found["refused"]:
        assert told.startswith("ConnectionRefusedError: ")


def test_every_module_is_imported() -> None:
    """What the tools need that only Linux has is imported where they need it."""
    modules = [
        name
        for _, name, _ in pkgutil.walk_packages(connectx.__path__, "connectx.")
        if name.split(".")[1] in {"_connect", "_dial", "aio", "blocking", "dialer", "errors"}
        # trio itself uses what only Linux has.
        and name != "connectx.aio.trio_waiting"
    ]
    assert len(modules) > 30
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *modules],
        check=False,
        capture_output=True,
        text=True,
        timeout=limits.COMMAND_LIMIT,
    )
    assert done.returncode == 0, done.stderr
