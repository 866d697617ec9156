"""A range of source ports, as typed on the command line."""

from __future__ import annotations

import argparse

from connectx.addresses import HIGHEST_PORT, PortRange
from connectx.lab.resources import LOWEST_PORT


def port_range(text: str) -> PortRange:
    """The range in LOW-HIGH; raises argparse.ArgumentTypeError saying what is wrong."""
    low, dash, high = text.partition("-")
    if not (dash and text.isascii() and low.isdecimal() and high.isdecimal()):
        raise argparse.ArgumentTypeError(f"not a range of ports such as 40000-40999: {text!r}")
    ports = PortRange(int(low), int(high))
    if not LOWEST_PORT <= ports.low <= ports.high <= HIGHEST_PORT:
        raise argparse.ArgumentTypeError(
            f"a range must lie within {LOWEST_PORT}-{HIGHEST_PORT}, the lower port first"
        )
    return ports
