"""Every remedy that `connectx doctor` and explain() print is executed, and helps."""

import contextlib
import errno
from pathlib import Path

import pytest

import tests.remedies.addresses
import tests.remedies.firewall
import tests.remedies.ports
import tests.remedies.searching
import tests.remedies.shared_ports
import tests.remedies.tables  # noqa: F401 -- all six register their cases
from connectx._diagnosis import causes
from connectx._diagnosis.causes import Cause, Remedy
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.observe.helpers import HERE
from tests.remedies.world import EXECUTED, TO, World

RANGE = "net.ipv4.ip_local_port_range"
TIMESTAMPS = causes.TIMESTAMPS_OFF.remedies[0]

REMEDIES = [
    pytest.param((cause, remedy), id=f"{name.lower()}-{number}")
    for name, cause in vars(causes).items()
    if isinstance(cause, Cause)
    for number, remedy in enumerate(cause.remedies)
]


@pytest.mark.parametrize("of", REMEDIES)
def test_it_helps(
    of: tuple[Cause, Remedy], network: Network, servers: Servers, closing: contextlib.ExitStack
) -> None:
    """A new remedy fails here until there is a case that executes it."""
    assert of in EXECUTED, f"no case in tests/remedies executes: {of[1].text}"
    EXECUTED[of](World(network, servers, closing, of))


@pytest.mark.parametrize("of", REMEDIES)
def test_a_command_says_what_it_breaks(of: tuple[Cause, Remedy]) -> None:
    _, remedy = of
    assert bool(remedy.command) == bool(remedy.breaks)


def test_a_command_for_another_namespace_changes_that_one(
    network: Network, servers: Servers, closing: contextlib.ExitStack
) -> None:
    """As an operator runs it who looks into a container from outside."""
    widen = causes.CONNECTED.remedies[-1]
    world = World(network, servers, closing, (causes.CONNECTED, widen))
    own = network.namespace.get_sysctl(RANGE)
    with world.another_host("192.0.2.7/24", "192.0.2.9/24") as container:
        with container.entered():
            servers.listen(*HERE)
            world.run(f"sysctl -w {RANGE}='40000 40009'")
            for _ in range(10):
                world.connect()
            world.fails(errno.EADDRNOTAVAIL, world.connect)
        world.follow("--errno", "99", *TO, "--netns", container.path)
        assert network.namespace.get_sysctl(RANGE) == own
        with container.entered():
            world.connect()


def test_settings_last_as_the_doctor_says(
    network: Network, servers: Servers, closing: contextlib.ExitStack, tmp_path: Path
) -> None:
    """What it prints as a command does the same in the form that it gives for a file."""
    world = World(network, servers, closing, (causes.TIMESTAMPS_OFF, TIMESTAMPS))
    network.sysctl("net.ipv4.tcp_timestamps", 0)
    assert causes.LASTING in " ".join(world.ask().split())
    name, _, value = world.read().removeprefix("sysctl -w ").partition("=")
    line = causes.LASTING.split("`")[1].replace("name", name).replace("value", value)
    file = tmp_path / "ports.conf"
    file.write_text(f"{line}\n")
    world.run(f"sysctl -p {file}")
    assert network.namespace.get_sysctl("net.ipv4.tcp_timestamps") == "1"
