"""Arguments that several experiments take, and the types of their values.

A type turns what was typed into a value. Otherwise it raises ArgumentTypeError, whose message
argparse prints beside the name of the argument.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from connectx.cli.arguments import unprivileged_port_range

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx.addresses import PortRange


def add_ports(parser: argparse.ArgumentParser, default: PortRange) -> None:
    """Add --ports, a range of ports that any user may bind to."""
    parser.add_argument(
        "--ports",
        type=unprivileged_port_range,
        default=default,
        metavar="LOW-HIGH",
        help="the range of source ports (default: %(default)s)",
    )


def parsed_by(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a type for what a function parses; argparse hides the message of a ValueError."""

    def checked(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def percent(text: str) -> float:
    """Return a percentage as a share, above 0 and up to 1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    # Not the other way around, which would let NaN pass.
    if not 0 < number <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage above 0 and up to 100")
    return number / 100
