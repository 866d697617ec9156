"""Arguments that more than one command takes, and the types of their values.

A type turns what was typed into a value. Otherwise it raises ArgumentTypeError, whose message
argparse prints beside the name of the argument.
"""

from __future__ import annotations

import argparse
import math
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from connectx.addresses import HIGHEST_PORT, Endpoint, PortRange

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Ports below need a privilege by default (net.ipv4.ip_unprivileged_port_start).
_LOWEST_UNPRIVILEGED: Final = 1024

_LONGEST_SECONDS: Final = 86_400


# Types.


def address(text: str) -> str:
    """Return an IP address as the kernel prints it."""
    try:
        return str(ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an IP address, such as 192.0.2.7 or 2001:db8::7"
        ) from None


def endpoint(text: str) -> Endpoint:
    """Return the end in HOST, HOST:PORT, [IPV6]:PORT or :PORT; what is missing is "" or 0."""
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
            f"{text!r} is not an address, such as 192.0.2.7:443, [2001:db8::7]:443 or :443; "
            "`getent ahosts NAME` lists the addresses of a name"
        ) from None
    if not (port.isascii() and port.isdecimal()) or int(port) > HIGHEST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} has no port from 0 to {HIGHEST_PORT}")
    return Endpoint(host, int(port))


def port_range(text: str, lowest: int = 1) -> PortRange:
    """Return the range in LOW-HIGH, both ends included."""
    low, dash, high = text.partition("-")
    if not (dash and text.isascii() and low.isdecimal() and high.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port range, such as 40000-40999")
    ports = PortRange(int(low), int(high))
    if not lowest <= ports.low <= ports.high <= HIGHEST_PORT:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a port range within {lowest}-{HIGHEST_PORT}, the lower port first"
        )
    return ports


def unprivileged_port_range(text: str) -> PortRange:
    """Return a range of ports that any user may bind to, for an experiment."""
    return port_range(text, _LOWEST_UNPRIVILEGED)


def whole_number(most: int | None = None) -> Callable[[str], int]:
    """Return a type for a number from 1, up to and including `most` if that is given."""

    def parse(text: str) -> int:
        number = int(text) if text.isascii() and text.isdecimal() else 0
        if number < 1 or (most is not None and number > most):
            limits = "of at least 1" if most is None else f"from 1 to {most:,}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {limits}")
        return number

    return parse


def seconds(least: float) -> Callable[[str], float]:
    """Return a type for a number of seconds from `least` to a day."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        # Not the other way around, which would let NaN pass.
        if not least <= number <= _LONGEST_SECONDS:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a number of seconds from {least:g} to {_LONGEST_SECONDS:,}"
            )
        return number

    return parse


# Arguments.


def add_protocols(parser: argparse.ArgumentParser) -> None:
    """Add --protocol, which may be given several times: see `protocols`."""
    parser.add_argument(
        "--protocol",
        action="append",
        choices=["tcp", "udp", "udplite"],
        help="count only this protocol; may be given several times (default: tcp and udp)",
    )


def protocols(arguments: argparse.Namespace) -> Sequence[str]:
    """Return the protocols to count, each once."""
    # Not argparse's default, to which action="append" would add.
    return list(dict.fromkeys(arguments.protocol or ("tcp", "udp")))


def add_addresses(parser: argparse.ArgumentParser, verb: str) -> None:
    """Add --source and --destination; `verb` says what becomes of the connections they match."""
    parser.add_argument(
        "--source",
        type=address,
        metavar="ADDRESS",
        help=f"{verb} only what has this source address",
    )
    parser.add_argument(
        "--destination",
        type=endpoint,
        default=Endpoint("", 0),
        metavar="HOST[:PORT]",
        help=f"{verb} only what is connected to this address and port; :PORT for any address",
    )


def add_port_range(parser: argparse.ArgumentParser) -> None:
    """Add --port-range, None by default."""
    parser.add_argument(
        "--port-range",
        type=port_range,
        metavar="LOW-HIGH",
        help="count these source ports (default: net.ipv4.ip_local_port_range)",
    )


def add_netns(parser: argparse.ArgumentParser) -> None:
    """Add --netns: a namespace as `connectx.observe.namespace.path_of` takes it, or None."""
    parser.add_argument(
        "--netns",
        metavar="NAME",
        help="look at another network namespace: its name, its path, or the pid of a process in it",
    )
