"""pytest plugin: each test runs in a private network, and leaves nothing behind.

Enable it with ``pytest_plugins = ["connectx.testing.fixtures"]`` in the top-level conftest.py.
The pytest process, and each pytest-xdist worker, then lives in a private network namespace.
A test asks for what it needs beyond that:

- ``network``: a fresh network of its own, with sysctls, addresses and devices to set;
- ``servers``: listeners, receivers and echo servers in it;
- ``closing``: a contextlib.ExitStack for the test's own sockets.

Every test is checked for descriptors and child processes that it left behind.

Threads that a test starts are in the test's namespace, since a new thread starts in its
creator's. A thread or process from before the test is not.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from connectx.linux import netns
from connectx.sandbox.networks import Network, experiment_network
from connectx.sandbox.servers import Servers

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

#: connectx keeps netlink sockets open between calls, for each thread and namespace, and
#: drops them later. If more than this many are open, it has failed to drop them.
_KEPT_NETLINK_SOCKETS = 32

#: Where getpass.getuser() looks for the user's name first.
_USER_VARIABLES = {"LOGNAME", "USER", "LNAME", "USERNAME"}

_WORKER_INPUT = "connectx_machine_namespace"


@dataclass(frozen=True, slots=True)
class Isolation:
    """How a pytest process is kept off the machine's network.

    Attributes:
        machine: The namespace in which the whole test run was started.
        refusal: Why no private namespace could be made; "" when one was.
    """

    machine: netns.Identity
    refusal: str


_ISOLATION = pytest.StashKey[Isolation]()
_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Leave the machine's own network before anything is collected.

    The controller of pytest-xdist does so as well, although it runs no test: an ordinary
    user's process can enter a user namespace only while it has a single thread. A worker
    always has several, and inherits the controller's namespace.
    """
    worker_input: dict[str, Any] = getattr(config, "workerinput", {})
    machine = netns.Identity(*worker_input.get(_WORKER_INPUT, netns.current()))
    refusal, user = "", os.geteuid()
    try:
        rootless = netns.unshare_network().rootless
        # pytest names its temporary directory after the user. From now on that is root,
        # whose directory belongs to another user, unless the environment names one.
        if rootless and not _USER_VARIABLES & os.environ.keys():
            os.environ["LOGNAME"] = str(user)
    except OSError as error:
        # Not fatal here: tests that touch no network can still run. Those that ask for one
        # are skipped with this reason.
        refusal = str(error)
    config.stash[_ISOLATION] = Isolation(machine, refusal)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a pytest-xdist worker which namespace is the machine's own."""
    node.workerinput[_WORKER_INPUT] = tuple(node.config.stash[_ISOLATION].machine)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note a failed test: its traceback keeps its sockets alive, and that is no leak."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a descriptor or a child process, or runs on the machine's network."""
    isolation = request.config.stash[_ISOLATION]
    descriptors, children = _descriptors(), _children()
    home = netns.current()
    _require_isolation(isolation)
    yield
    if netns.current() != home:
        pytest.fail("the test has not returned to the namespace it started in", pytrace=False)
    if left := _children() - children:
        pytest.fail(f"the test left child processes: {_describe(left)}", pytrace=False)
    if request.node.stash.get(_FAILED, False):
        return
    leaked, kept = _leaked(descriptors)
    # Not after every test: it takes longer than many a test does.
    if leaked or kept > _KEPT_NETLINK_SOCKETS:
        gc.collect()
        leaked, kept = _leaked(descriptors)
    if leaked:
        pytest.fail(f"the test left descriptors open: {leaked}", pytrace=False)
    if kept > _KEPT_NETLINK_SOCKETS:
        pytest.fail(f"netlink sockets pile up: {kept} are open", pytrace=False)


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    """Give the test a fresh private network of its own, with the loopback up."""
    isolation = request.config.stash[_ISOLATION]
    if isolation.refusal:
        pytest.skip(isolation.refusal)
    with experiment_network() as fresh:
        _require_isolation(isolation)
        yield fresh


@pytest.fixture
def servers(network: Network) -> Iterator[Servers]:  # noqa: ARG001 -- the servers are in it
    """Make listeners, receivers and echo servers in the test's network; close them after it."""
    with Servers() as started:
        yield started


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    """Close what the test enters into this stack, in reverse order."""
    with contextlib.ExitStack() as stack:
        yield stack


def _require_isolation(isolation: Isolation) -> None:
    if not isolation.refusal and netns.current() == isolation.machine:
        pytest.fail("the test would run on the machine's own network", pytrace=False)


def _leaked(before: dict[int, str]) -> tuple[dict[int, str], int]:
    """The descriptors opened since, netlink sockets apart, and how many of those are open."""
    found = _descriptors()
    netlink = {
        number
        for number, target in found.items()
        if target.startswith("socket:") and _is_netlink(number)
    }
    added = dict(found.items() - before.items())
    return {number: added[number] for number in added.keys() - netlink}, len(netlink)


def _descriptors() -> dict[int, str]:
    # Not by pathlib: twice a test, that would be a third of what a quick one takes.
    targets = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 -- as above
        # The listing's own descriptor is in it, and closed by now.
        with contextlib.suppress(FileNotFoundError):
            targets[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 -- as above
    return targets


def _is_netlink(descriptor: int) -> bool:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        return False
    family = sock.family
    sock.detach()
    return family == socket.AF_NETLINK


def _children() -> set[int]:
    children: set[int] = set()
    for thread in os.listdir("/proc/self/task"):  # noqa: PTH208 -- as in _descriptors()
        # A thread may end meanwhile; its children go to another one.
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError),
            open(f"/proc/self/task/{thread}/children", "rb") as file,  # noqa: PTH123 -- as above
        ):
            children.update(map(int, file.read().split()))
    return children


def _describe(processes: set[int]) -> str:
    lines = []
    for process in sorted(processes):
        command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ")
        lines.append(f"{process} ({command.decode(errors='replace').strip()})")
    return ", ".join(lines)
