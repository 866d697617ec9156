"""``connectx lab simulate``: shows what the simulation in connectx.lab.simulate finds."""

from __future__ import annotations

import argparse
import dataclasses
import json
import secrets
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn

from connectx.addresses import PortRange
from connectx.cli.arguments import unprivileged_port_range
from connectx.cli.lab.strip import Segment, Strips
from connectx.cli.progress import progress_bars
from connectx.lab import simulate
from connectx.linux.sysctl import parse_reserved_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from connectx.lab.simulate import Group, Settings, Simulation

NAME: Final = "simulate"
HELP: Final = "Show which ports connect() looks at until it has one, by a model of the kernel."
EXAMPLE: Final = "connectx lab simulate --ports 40000-40007 --animate"

DEFAULT_PORTS: Final = PortRange(40000, 40007)

#: With more ports than this JSON has no paths: a quarter of a million probes for 1,000 ports.
JSON_PATHS: Final = 64

#: Seconds: of an animation by default, and of a probe in it at most.
ANIMATION: Final = 8.0
SLOWEST_PROBE: Final = 0.25

_DESCRIPTION: Final = f"""\
{HELP}

TCP connections are opened from one source address, in a model: a line for each shows the
ports, those in use and, in order, those that the search looked at; then come the probes
by occupancy and by parity. A range that is too wide for the terminal has the totals alone.

searches (--search):
  plain         connect() unaided: all ports of the range's first parity, from a random
                one on, before any of the other
  option        IP_LOCAL_PORT_RANGE set to the whole range: every port in turn (Linux 6.8)
  window:SIZE   IP_LOCAL_PORT_RANGE set to so many ports, placed at random for each
                connection; it fails where they are all in use

keys of --json:
  settings      what was simulated; the seed repeats it
  connections   a list, in order:
    number, destination   counted from one
    window                the ports it was to search, [low, high]
    port                  null if it failed
    errno                 name of the error, null if there was none
    probes                how many ports it looked at
    path                  those ports in order (with up to {JSON_PATHS} ports in the range):
      port, finding       finding is "in use" (the 4-tuple is taken), "bound" (another
                          socket is bound to the port) or "chosen"
  totals        "all", and lists by "occupancy" (share of all 4-tuples that was in use
                before) and "parity" (of the port that it got):
    name, connections, failed
    probes, mean, most    of all, of one on average (null for none), and of the worst
"""

_SEARCHES: Final = {
    simulate.PLAIN: "connect() unaided",
    simulate.OPTION: "IP_LOCAL_PORT_RANGE over the whole range",
    simulate.WINDOW: "random windows of {size:,} ports",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = _DESCRIPTION
    parser.set_defaults(refuse=parser.error)
    parser.add_argument(
        "--ports",
        type=unprivileged_port_range,
        default=DEFAULT_PORTS,
        metavar="LOW-HIGH",
        help="the range of source ports (default: %(default)s)",
    )
    parser.add_argument(
        "--search",
        type=_argument(simulate.parse_search),
        default=simulate.Search(simulate.PLAIN),
        metavar="SEARCH",
        help="plain, option or window:SIZE (default: %(default)s)",
    )
    parser.add_argument(
        "--before-6.8",
        dest="step_of_one",
        action="store_false",
        help="search windows as older kernels do: one parity first",
    )
    parser.add_argument(
        "--connections",
        type=_argument(_count),
        default=0,
        metavar="N",
        help="how many to attempt (default: all there can be)",
    )
    parser.add_argument(
        "--destinations",
        type=_argument(_count),
        default=1,
        metavar="N",
        help="spread them over so many, which share source ports (default: %(default)s)",
    )
    for option, meaning in (
        ("--reserved", "as net.ipv4.ip_local_reserved_ports: never looked at"),
        ("--bound", "other sockets are bound to them, exclusively"),
    ):
        parser.add_argument(
            option,
            type=_argument(_ports),
            default=frozenset(),
            metavar="PORT,LOW-HIGH,...",
            help=meaning,
        )
    parser.add_argument(
        "--seed",
        type=_argument(int),
        metavar="N",
        help="repeat the simulation that printed this seed (default: a random one)",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON instead")
    output.add_argument(
        "--animate", action="store_true", help="on a terminal, show one probe after the other"
    )
    parser.add_argument(
        "--delay",
        type=_argument(_seconds),
        metavar="SECONDS",
        help=f"for a probe of --animate (default: {ANIMATION:.0f} s for all, "
        f"at most {SLOWEST_PROBE} for each)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Simulate and show it; always 0."""
    from rich.console import Console  # noqa: PLC0415 -- from the tools extra

    console = Console(highlight=False)
    settings = _settings(arguments, console.width)
    with progress_bars() as watch:
        result = simulate.run(settings, watch)
    if arguments.json:
        print(json.dumps(simulate.as_json(result), indent=2))
        return 0
    strips = Strips(settings, console.width)
    console.print(_title(settings))
    if strips.fit:
        animated = arguments.animate and console.is_terminal
        _print_strips(console, strips, result, _delay(arguments, result) if animated else None)
    else:
        console.print(f"Too many ports for a line of {console.width} columns each: totals only.")
    console.print()
    console.print(_table(result))
    console.print(f"seed {settings.seed}", style="dim")
    return 0


def _settings(arguments: argparse.Namespace, width: int) -> Settings:
    refuse: Callable[[str], NoReturn] = arguments.refuse
    if arguments.delay is not None and not arguments.animate:
        refuse("--delay is for --animate")
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
        refuse(f"more than {simulate.MOST_CONNECTIONS:,} connections: {smaller}")
    if settings.expected_probes > simulate.MOST_PROBES:
        refuse(f"some {settings.expected_probes:,} probes would take minutes: {smaller}")
    small = settings.ports.size <= JSON_PATHS if arguments.json else Strips(settings, width).fit
    return dataclasses.replace(settings, paths=small)


def _print_strips(
    console: Console, strips: Strips, result: Simulation, delay: float | None
) -> None:
    from rich.live import Live  # noqa: PLC0415

    for line in strips.legend():
        console.print(_line(line))
    console.print()
    console.print(_line(strips.head()), no_wrap=True)
    if delay is None:
        for connection in result.connections:
            console.print(_line(strips.line(connection)), no_wrap=True)
            strips.note(connection)
        return
    # Live hides the cursor, and shows it again however the block is left.
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for connection in result.connections:
            for shown in range(1, connection.probes + 1):
                live.update(_line(strips.line(connection, shown)), refresh=True)
                time.sleep(delay)
            live.update("")
            live.console.print(_line(strips.line(connection)), no_wrap=True)
            strips.note(connection)


def _delay(arguments: argparse.Namespace, result: Simulation) -> float:
    if arguments.delay is not None:
        delay: float = arguments.delay
        return delay
    return min(SLOWEST_PROBE, ANIMATION / max(1, result.total().probes))


def _title(settings: Settings) -> str:
    search = _SEARCHES[settings.search.kind].format(size=settings.search.size)
    destinations = "1 destination"
    if settings.destinations > 1:
        destinations = f"{settings.destinations:,} destinations"
    older = "" if settings.step_of_one else ", before Linux 6.8"
    return (
        f"{settings.attempts:,} connections to {destinations}, {settings.ports.size:,} ports "
        f"({settings.ports}): {search}{older}"
    )


def _line(segments: Iterable[Segment]) -> Text:
    from rich.text import Text  # noqa: PLC0415

    return Text.assemble(*segments)


def _table(result: Simulation) -> Table:
    from rich import box  # noqa: PLC0415 -- from the tools extra
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "connections", "failed", "probes", "mean", "most"):
        table.add_column(name, justify="right" if name else "left")
    _add_rows(table, result.by_occupancy())
    _add_rows(table, result.by_parity())
    _add_rows(table, [result.total()])
    return table


def _add_rows(table: Table, groups: Iterable[Group]) -> None:
    for group in groups:
        if group.connections:
            table.add_row(
                group.name,
                f"{group.connections:,}",
                f"{group.failed:,}",
                f"{group.probes:,}",
                f"{group.mean:,.1f}",
                f"{group.most:,}",
            )
    table.add_section()


def _argument(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let what `parse` says of a wrong value be seen: argparse hides a ValueError's message."""

    def checked(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise ValueError(f"not a number from one on: {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 60:
        raise ValueError(f"not a number of seconds up to 60: {text!r}")
    return seconds


def _ports(text: str) -> frozenset[int]:
    ranges = parse_reserved_ports(text)
    return frozenset(port for ports in ranges for port in range(ports.low, ports.high + 1))
