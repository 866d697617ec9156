"""What all measurements share: settings, networks of their own, and what they find."""

from __future__ import annotations

import contextlib
import functools
import math
import resource
import socket
import statistics
import struct
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar

from connectx.linux import netns
from connectx.sandbox.networks import experiment_network
from connectx.sandbox.servers import SERVER_PORT, listen
from connectx.sandbox.workers import in_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from connectx.addresses import PortRange

T = TypeVar("T")
#: Everything here is IPv4.
Address: TypeAlias = tuple[str, int]

LOOPBACK: Final = "127.0.0.1"

#: Where everything connects to. UDP needs nobody to be there.
DESTINATION: Final[Address] = (LOOPBACK, SERVER_PORT)
SECOND_DESTINATION: Final[Address] = (LOOPBACK, SERVER_PORT + 1)

KINDS: Final[Mapping[str, socket.SocketKind]] = {
    "tcp": socket.SOCK_STREAM,
    "udp": socket.SOCK_DGRAM,
}

#: Which source is asked for, by what figures and tables call it.
SOURCES: Final[Mapping[str, str | None]] = {"any source": None, "source address": LOOPBACK}

#: SO_LINGER on, for zero seconds: close() resets the connection, and leaves no TIME_WAIT on
#: either side.
ABORT: Final = struct.pack("@ii", 1, 0)

listen_at_destination: Final = functools.partial(listen, *DESTINATION)


@dataclass(frozen=True)
class Settings:
    """What the command line asks for.

    Attributes:
        rounds: How often each comparison is repeated.
        ports: The range of source ports in the private networks.
        progress: Called with what is being measured.
    """

    rounds: int
    ports: PortRange
    progress: Callable[[str], None]


class Table(NamedTuple):
    """Measurements for the reader, beside the figures that have targets."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass
class Findings:
    """What a measurement found.

    Attributes:
        figures: By name; targets.py says how high or low they should be.
        details: By the same names, what a reader should know about them.
        tables: In the order of printing.
    """

    figures: dict[str, float] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)

    def add(self, name: str, value: float, detail: str = "") -> None:
        """Record a figure."""
        self.figures[name] = value
        self.details[name] = detail

    def lack(self, name: str, reason: str) -> None:
        """Record why a figure is missing."""
        self.details[name] = reason

    def merge(self, other: Findings) -> None:
        """Add what another measurement found."""
        self.figures |= other.figures
        self.details |= other.details
        self.tables += other.tables


def interruptions() -> int:
    """Return how often this thread has lost the CPU to another one."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def marked(nanoseconds: int, before: int) -> int:
    """Return a time, negative if it is of a call that was interrupted.

    On a busy machine another process takes the CPU for milliseconds, in the middle of a call
    that takes microseconds. Such calls count as opened, and not in any time.

    Args:
        nanoseconds: What the call took.
        before: What interruptions() was before it.
    """
    return nanoseconds if interruptions() == before else -nanoseconds


def quiet(times: Sequence[int]) -> Sequence[int]:
    """Return the times of the calls that were not interrupted; if all were, of all."""
    return [time for time in times if time > 0] or [-time for time in times]


def mean(times: Sequence[int]) -> float:
    """Return the mean of the times of the calls that were not interrupted."""
    return statistics.fmean(quiet(times)) if times else math.nan


def typical(rounds: Sequence[Sequence[int]], block: int) -> float:
    """Return the nanoseconds that a sequence of calls takes on a quiet machine.

    It takes the median of all rounds for each block of calls: what belongs to a way comes back
    in every round, at the same place, and a slow moment of the machine does not.

    Args:
        rounds: The time of each call, as marked() returns it, as many in every round.
        block: How many calls to take together.
    """
    blocks = range(0, len(rounds[0]), block)
    return sum(
        statistics.median(mean(times[start : start + block]) for times in rounds)
        * len(rounds[0][start : start + block])
        for start in blocks
    )


def refusal() -> str:
    """Return why this machine allows no private network; "" where it does."""

    def attempt() -> str:
        try:
            netns.unshare_network()
        except OSError as error:
            return str(error)
        return ""

    return in_worker(attempt)


def in_networks(function: Callable[[Sequence[int]], T], count: int, ports: PortRange) -> T:
    """Call a function in a process of its own that has several private networks.

    Args:
        function: Called in the first network with a descriptor of each; netns.enter() leads
            from one to another.
        count: How many networks it gets.
        ports: Their range of source ports.
    """

    def inside() -> T:
        # An ordinary user's first network comes with the user namespace in which the others
        # can be made and entered. It cannot be left and entered again, so it is not used.
        netns.unshare_network()
        with contextlib.ExitStack() as stack:
            networks = []
            for _ in range(count):
                network = stack.enter_context(experiment_network())
                network.port_range(*ports)
                networks.append(netns.open_namespace())
            netns.enter(networks[0])
            return function(networks)

    return in_worker(inside)


def in_network(function: Callable[[], T], ports: PortRange) -> T:
    """Call a function in a process of its own in a private network."""
    return in_networks(lambda _: function(), 1, ports)


def progress_line(message: str) -> None:
    """Show on a terminal what is being measured; an empty message clears it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{message}")
        sys.stderr.flush()
