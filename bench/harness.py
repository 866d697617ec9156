"""What all measurements share: settings, networks of their own, and what they find."""

from __future__ import annotations

import contextlib
import functools
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bench.processes import in_process
from connectx.linux import netns
from connectx.sandbox.networks import experiment_network
from connectx.sandbox.servers import SERVER_PORT, listen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.processes import T
    from bench.ways import Address
    from connectx.addresses import PortRange

LOOPBACK: Final = "127.0.0.1"

#: Where everything connects to. UDP needs nobody to be there.
DESTINATION: Final[Address] = (LOOPBACK, SERVER_PORT)
SECOND_DESTINATION: Final[Address] = (LOOPBACK, SERVER_PORT + 1)

#: What is asked for as a source, and what figures and tables call that.
SOURCES: Final[Mapping[str, str | None]] = {"any source": None, "source address": LOOPBACK}

listen_at_destination: Final = functools.partial(listen, *DESTINATION)


@dataclass(frozen=True)
class Settings:
    """What the command line asks for.

    rounds: how often each comparison is repeated.
    ports: the range of source ports in the private networks.
    progress: told what is being measured.
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

    figures: by name; targets.py says how high or low they should be.
    details: by the same names, what a reader should know of them.
    tables: in the order of printing.
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


def refusal() -> str:
    """Why this machine lets us have no private network, "" where it does."""

    def attempt() -> str:
        try:
            netns.unshare_network()
        except OSError as error:
            return str(error)
        return ""

    return in_process(attempt)


def in_networks(function: Callable[[Sequence[int]], T], count: int, ports: PortRange) -> T:
    """Run a function in a process of its own that has `count` private networks.

    It is called in the first of them with a descriptor of each; netns.enter()
    leads from one to another.
    """

    def inside() -> T:
        # An ordinary user's first network comes with the user namespace in which
        # the others can be made and entered, and cannot itself be left and
        # entered again: it is not used.
        netns.unshare_network()
        with contextlib.ExitStack() as stack:
            networks = []
            for _ in range(count):
                network = stack.enter_context(experiment_network())
                network.port_range(*ports)
                networks.append(netns.open_namespace())
            netns.enter(networks[0])
            return function(networks)

    return in_process(inside)


def in_network(function: Callable[[], T], ports: PortRange) -> T:
    """Run a function in a process of its own in a private network."""
    return in_networks(lambda _: function(), 1, ports)


def progress_line(message: str) -> None:
    """Show on a terminal what is going on; an empty message clears it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{message}")
        sys.stderr.flush()
