"""Ranges of source ports, addresses and numbers, as typed on the command line."""

from __future__ import annotations

import argparse
from ipaddress import ip_address

from connectx.addresses import HIGHEST_PORT, Endpoint, PortRange


def port_range(text: str) -> PortRange:
    """The range in LOW-HIGH, for an experiment; ArgumentTypeError says what is wrong."""
    # Here, since the lab takes longer to import than other commands to run.
    from connectx.lab.resources import LOWEST_PORT  # noqa: PLC0415

    return _range(text, LOWEST_PORT)


def any_port_range(text: str) -> PortRange:
    """The same, from port 1 on."""
    return _range(text, 1)


def address(text: str) -> str:
    """An IP address as the kernel prints it; ArgumentTypeError for what is none."""
    try:
        return str(ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"not an address such as 192.0.2.7 or 2001:db8::7: {text!r}"
        ) from None


def count(text: str) -> int:
    """How many of something, at least 1; ArgumentTypeError for anything else."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a number from 1 on: {text!r}")
    return int(text)


def endpoint(text: str) -> Endpoint:
    """HOST, HOST:PORT, [IPV6]:PORT or :PORT; ArgumentTypeError for what is none of them."""
    host, port = text, "0"
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if rest else "0"
        if not bracket or (rest and not rest.startswith(":")):
            host = text
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        host = str(ip_address(host)) if host else ""
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"not an address such as 192.0.2.7:443, [2001:db8::7]:443 or :443: {text!r}; "
            "`getent ahosts NAME` lists a name's addresses"
        ) from None
    if not (port.isascii() and port.isdecimal()) or int(port) > HIGHEST_PORT:
        raise argparse.ArgumentTypeError(f"not a port in {text!r}")
    return Endpoint(host, int(port))


def _range(text: str, lowest: int) -> PortRange:
    low, dash, high = text.partition("-")
    if not (dash and text.isascii() and low.isdecimal() and high.isdecimal()):
        raise argparse.ArgumentTypeError(f"not a range of ports such as 40000-40999: {text!r}")
    ports = PortRange(int(low), int(high))
    if not lowest <= ports.low <= ports.high <= HIGHEST_PORT:
        raise argparse.ArgumentTypeError(
            f"a range must lie within {lowest}-{HIGHEST_PORT}, the lower port first"
        )
    return ports
