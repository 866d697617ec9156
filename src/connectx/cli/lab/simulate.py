"""``connectx lab simulate``: prints what the simulation in connectx.lab.simulate finds."""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import time
from typing import TYPE_CHECKING, Final, NoReturn

from connectx.addresses import PortRange
from connectx.cli.arguments import seconds, whole_number
from connectx.cli.command import OK
from connectx.cli.lab.arguments import add_ports, parsed_by
from connectx.cli.lab.strip import Strips
from connectx.cli.output import plural
from connectx.cli.page import Column, Page, Piece, Table
from connectx.cli.progress import progress_bars
from connectx.cli.schemas import add_json, print_json
from connectx.lab import simulate
from connectx.linux.sysctl import parse_reserved_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from connectx.lab.simulate import Group, Settings, Simulation

NAME: Final = "simulate"
HELP: Final = "Show which ports connect() looks at until it finds a free one."
EXAMPLE: Final = "connectx lab simulate --ports 40000-40007 --animate"

DEFAULT_PORTS: Final = PortRange(40000, 40007)

#: With more ports than this, JSON has no paths: 1,000 ports take a quarter of a million probes.
JSON_PATHS: Final = 64

#: Seconds of an animation by default, and of each probe in it at most.
ANIMATION: Final = 8.0
SLOWEST_PROBE: Final = 0.25

_DESCRIPTION: Final = f"""\
{HELP}

A model of the kernel opens TCP connections from one source address. Each connection is a
line that shows all ports: those in use and, in order, those that the search looked at. Then
come totals by occupancy and by parity. If the range is too wide for the terminal, there are
only totals.

searches (--search):
  plain         connect() by itself: all ports of the range's first parity, from a random
                one on, before any port of the other
  option        IP_LOCAL_PORT_RANGE set to the whole range: every port in turn (Linux 6.8)
  window:SIZE   IP_LOCAL_PORT_RANGE set to so many ports, placed at random for each
                connection, which fails if they are all in use
"""

_SEARCHES: Final = {
    simulate.PLAIN: "connect() by itself",
    simulate.OPTION: "IP_LOCAL_PORT_RANGE over the whole range",
    simulate.WINDOW: "random windows of {size}",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = _DESCRIPTION
    parser.set_defaults(refuse=parser.error)
    add_ports(parser, DEFAULT_PORTS)
    parser.add_argument(
        "--search",
        type=parsed_by(simulate.parse_search),
        default=simulate.Search(simulate.PLAIN),
        metavar="SEARCH",
        help="plain, option or window:SIZE (default: %(default)s)",
    )
    parser.add_argument(
        "--before-6.8",
        dest="step_of_one",
        action="store_false",
        help="search windows as kernels before 6.8 do: one parity first",
    )
    parser.add_argument(
        "--connections",
        type=whole_number(),
        default=0,
        metavar="N",
        help="how many to attempt (default: as many as there can be)",
    )
    parser.add_argument(
        "--destinations",
        type=whole_number(),
        default=1,
        metavar="N",
        help="spread them over so many destinations, which share ports (default: %(default)s)",
    )
    for option, meaning in (
        ("--reserved", "ports in net.ipv4.ip_local_reserved_ports, which are never looked at"),
        ("--bound", "ports that other sockets are bound to, exclusively"),
    ):
        parser.add_argument(
            option,
            type=parsed_by(_ports),
            default=frozenset(),
            metavar="PORT,LOW-HIGH,...",
            help=meaning,
        )
    parser.add_argument(
        "--seed",
        type=_seed,
        metavar="N",
        help="repeat the simulation that printed this seed (default: a random seed)",
    )
    output = parser.add_mutually_exclusive_group()
    add_json(output, "lab-simulate", "print JSON instead of text")
    output.add_argument(
        "--animate", action="store_true", help="on a terminal, show the probes one by one"
    )
    parser.add_argument(
        "--delay",
        type=seconds(0),
        metavar="SECONDS",
        help=f"how long --animate shows a probe (default: at most {SLOWEST_PROBE} s, and "
        f"{ANIMATION:.0f} s for all)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Simulate, and print what came of it."""
    page = Page()
    settings = _settings(arguments, page.width)
    with progress_bars() as watch:
        result = simulate.run(settings, watch)
    if arguments.json:
        print_json("lab-simulate", simulate.as_json(result))
        return OK
    strips = Strips(settings, page.width)
    page.paragraph(_title(settings))
    if strips.fit:
        animated = arguments.animate and page.is_terminal
        _print_strips(page, strips, result, _delay(arguments, result) if animated else None)
    else:
        page.paragraph(f"{page.width} columns are too few for so many ports: totals only.")
    page.line()
    page.table(_table(result))
    page.line(Piece(f"seed {settings.seed}", "dim"))
    return OK


def _settings(arguments: argparse.Namespace, width: int) -> Settings:
    refuse: Callable[[str], NoReturn] = arguments.refuse
    if arguments.delay is not None and not arguments.animate:
        refuse("--delay needs --animate")
    values = {
        name: getattr(arguments, name)
        for name in (
            "ports",
            "search",
            "step_of_one",
            "connections",
            "destinations",
            "reserved",
            "bound",
        )
    }
    seed = secrets.randbelow(1 << 32) if arguments.seed is None else arguments.seed
    try:
        settings = simulate.Settings(**values, seed=seed)
    except ValueError as error:
        refuse(str(error))
    smaller = "try a smaller range with --ports, or fewer --connections"
    if settings.attempts > simulate.MOST_CONNECTIONS:
        refuse(f"more than {simulate.MOST_CONNECTIONS:,} connections take too long: {smaller}")
    if settings.expected_probes > simulate.MOST_PROBES:
        refuse(f"about {settings.expected_probes:,} probes would take minutes: {smaller}")
    small = settings.ports.size <= JSON_PATHS if arguments.json else Strips(settings, width).fit
    return dataclasses.replace(settings, paths=small)


def _print_strips(page: Page, strips: Strips, result: Simulation, delay: float | None) -> None:
    page.lines(strips.legend())
    page.line()
    page.line(*strips.head())
    with page.animation() as show:
        for connection in result.connections:
            for shown in range(1, connection.probes + 1 if delay is not None else 1):
                show(strips.line(connection, shown))
                time.sleep(delay or 0)
            show([])
            page.line(*strips.line(connection))
            strips.note(connection)


def _delay(arguments: argparse.Namespace, result: Simulation) -> float:
    if arguments.delay is not None:
        delay: float = arguments.delay
        return delay
    return min(SLOWEST_PROBE, ANIMATION / max(1, result.total().probes))


def _title(settings: Settings) -> str:
    size = plural(settings.search.size, "port")
    search = _SEARCHES[settings.search.kind].format(size=size)
    older = "" if settings.step_of_one else ", before Linux 6.8"
    return (
        f"{plural(settings.attempts, 'connection')} to "
        f"{plural(settings.destinations, 'destination')}, {plural(settings.ports.size, 'port')} "
        f"({settings.ports}): {search}{older}"
    )


def _table(result: Simulation) -> Table:
    names = ("", "connections", "failed", "probes", "mean", "most")
    drawn = Table([Column(name, right=bool(name)) for name in names], rule=True, gap=3)
    for groups in (result.by_occupancy(), result.by_parity(), [result.total()]):
        _add_rows(drawn, groups)
    return drawn


def _add_rows(drawn: Table, groups: Iterable[Group]) -> None:
    for group in groups:
        if group.connections:
            drawn.add(
                group.name,
                f"{group.connections:,}",
                f"{group.failed:,}",
                f"{group.probes:,}",
                f"{group.mean:,.1f}",
                f"{group.most:,}",
            )
    drawn.add_section()


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _ports(text: str) -> frozenset[int]:
    ranges = parse_reserved_ports(text)
    return frozenset(port for ports in ranges for port in range(ports.low, ports.high + 1))
