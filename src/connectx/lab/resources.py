"""What an experiment needs from the machine, checked before it begins."""

from __future__ import annotations

import contextlib
import math
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from connectx.addresses import PortRange
from connectx.sandbox import workers
from connectx.sandbox.networks import experiment_network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectx.sandbox.networks import Network

#: What the kernel gives a new namespace.
DEFAULT_PORTS: Final = PortRange(32768, 60999)

#: Both ends of a TCP connection and the Python objects around them, as measured, and half as
#: much again.
BYTES_PER_CONNECTION: Final = 10_000
BYTES_PER_WORKER: Final = 2_000_000


class CannotStartError(Exception):
    """This machine lacks something that the experiment needs; the message says what."""


def require(connections: int, *, both_ends: bool) -> None:
    """Check that this machine can hold so many connections at a time.

    Args:
        connections: How many.
        both_ends: Whether the server's end takes a descriptor as well.

    Raises:
        CannotStartError: There are too few descriptors, or there is too little memory.
    """
    limit = workers.descriptor_limit()
    share = limit - 2 * workers.SPARE_DESCRIPTORS
    # This process has a pipe to each of the workers.
    needed = (1 + both_ends) * math.ceil(connections / share) if share > 0 else 0
    if needed >= share:
        raise CannotStartError(
            f"a process may have {limit:,} descriptors here (ulimit -H -n), too few to spread "
            f"{connections:,} connections over processes; try a smaller range with --ports"
        )
    memory = connections * BYTES_PER_CONNECTION + needed * BYTES_PER_WORKER
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].removesuffix("kB")) * 1024
    if available < memory:
        raise CannotStartError(
            f"{connections:,} connections and their server need {memory >> 20:,} MiB of memory, "
            f"and {available >> 20:,} MiB are available; try a smaller range with --ports"
        )


def accept_queue() -> int:
    """Return how many unaccepted connections a listener in this thread's network can hold."""
    somaxconn = Path("/proc/sys/net/core/somaxconn")
    # Older kernels (6.1) hide it from a namespace that an ordinary user owns; the queues then
    # have the default length.
    return int(somaxconn.read_text()) if somaxconn.exists() else socket.SOMAXCONN


@contextlib.contextmanager
def in_first_network() -> Iterator[Network]:
    """Run experiments inside a private network, each with networks of its own.

    An ordinary user's process can leave every network but its first. Inside that one it can
    give each experiment a network of its own.

    Raises:
        CannotStartError: The machine allows no private network.
    """
    with contextlib.ExitStack() as stack:
        try:
            network = stack.enter_context(experiment_network())
        except OSError as error:
            raise CannotStartError(error.strerror or str(error)) from error
        yield network
