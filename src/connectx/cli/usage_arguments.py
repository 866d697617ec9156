"""Arguments of the commands that count source ports, and what they say alike."""

from __future__ import annotations

import argparse
import math
from typing import Final

from connectx.cli.ports import any_port_range

#: Protocols that are counted where none is asked for.
DEFAULT_PROTOCOLS: Final = ("tcp", "udp")


def add_protocol(parser: argparse.ArgumentParser) -> None:
    """Add --protocol, a list; None for `DEFAULT_PROTOCOLS`."""
    parser.add_argument(
        "--protocol",
        action="append",
        choices=["tcp", "udp", "udplite"],
        help="count these only; may be given several times (tcp and udp)",
    )


def add_port_range(parser: argparse.ArgumentParser) -> None:
    """Add --port-range, a PortRange; None for the range in force."""
    parser.add_argument(
        "--port-range",
        type=any_port_range,
        metavar="LOW-HIGH",
        help="the source ports to count (net.ipv4.ip_local_port_range)",
    )


def add_netns(parser: argparse.ArgumentParser) -> None:
    """Add --netns, as for `connectx.observe.namespace.path_of`; None for our own."""
    parser.add_argument(
        "--netns", metavar="NAME", help="look at another network namespace: a name, path or pid"
    )


def seconds(text: str) -> float:
    """Seconds from one count to the next; ArgumentTypeError says what is wrong."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.1 <= number <= 86400:
        raise argparse.ArgumentTypeError(f"not a number of seconds from 0.1 to 86400: {text!r}")
    return number


def percent(share: float) -> str:
    """A share as text, such as "97.3 %"."""
    # Down, not up: 100 % is full.
    return f"{int(share * 1000) / 10:.1f} %"
