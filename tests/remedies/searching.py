"""Remedies against searches in random steps, and against steps that do not do what they are for."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

import pytest

import connectx
from connectx._diagnosis import causes
from tests.api.calls import reset_on_close
from tests.kernel.raw import fresh_hosts
from tests.observe.helpers import HERE, HIGH, LOW, PORT
from tests.remedies.world import TO, World, follows

NAME: Final = "net.ipv4.ip_local_port_step_width"

#: Half of the range, and the port behind it.
BLOCK: Final = f"{LOW + 2}-{LOW + 11}"
BEHIND: Final = LOW + 12
LEFT: Final = HIGH - LOW + 1 - 10


def searching(world: World, width: int) -> None:
    """The block is reserved, and nine of the ten other ports are in use toward a destination."""
    if not Path("/proc/sys", *NAME.split(".")).exists():
        pytest.skip(f"kernel: no {NAME} before 7.1")
    world.network.reserved_ports(BLOCK)
    world.network.sysctl(NAME, width)
    world.servers.listen("0.0.0.0", PORT, backlog=4096)


def filled(world: World) -> None:
    searching(world, 64)
    for _ in range(LEFT - 1):
        world.connect()


def share_behind(world: World) -> float:
    """How many of the connections to other destinations get the port behind the block."""
    ports = []
    for host in fresh_hosts(300):
        with world.connect((host, PORT)) as sock:
            ports.append(sock.getsockname()[1])
    return ports.count(BEHIND) / len(ports)


@follows(causes.RANDOM_STEPS, "open the connections with connectx")
def with_connectx(world: World) -> None:
    filled(world)
    world.read(*TO)
    last = world.closing.enter_context(connectx.create_connection(HERE))
    reset_on_close(last)
    with pytest.raises(connectx.PortsExhausted):
        connectx.create_connection(HERE)
    world.fails(errno.EADDRNOTAVAIL, world.connect)


@follows(causes.RANDOM_STEPS, "have connect() search port by port")
def port_by_port(world: World) -> None:
    """More searches end behind the block then."""
    filled(world)
    assert share_behind(world) < 0.4
    world.follow()
    assert world.network.namespace.get_sysctl(NAME) == "0"
    assert share_behind(world) > 0.45
    world.connect()
    assert causes.RANDOM_STEPS.name not in world.ask("--json")


@follows(causes.NARROW_STEPS, "allow wider steps")
def wider_steps(world: World) -> None:
    """Fewer searches end behind the block. Where most ports are in use, a warning follows."""
    searching(world, 2)
    assert share_behind(world) > 0.45
    world.follow()
    assert share_behind(world) < 0.4
    assert causes.NARROW_STEPS.name not in world.ask("--json")
    for _ in range(LEFT - 1):
        world.connect()
    assert causes.RANDOM_STEPS.name in world.ask("--json")
