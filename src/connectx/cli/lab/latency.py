"""``connectx lab latency``: prints what the experiment in connectx.lab.latency finds."""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING, Any, Final

from connectx._connect.strategies import STRATEGIES
from connectx.addresses import PROTOCOLS
from connectx.cli.arguments import whole_number
from connectx.cli.command import FAILED, OK
from connectx.cli.lab.arguments import add_ports, parsed_by, percent
from connectx.cli.lab.output import changes_text
from connectx.cli.output import plural
from connectx.cli.page import Column, Page, Table
from connectx.cli.progress import progress_bars
from connectx.cli.schemas import add_json, print_json
from connectx.errors import NotSupported
from connectx.lab import latency
from connectx.lab.explanations import explain
from connectx.lab.machine import describe
from connectx.lab.opening import ONE_WINDOW, check_way
from connectx.lab.resources import DEFAULT_PORTS, in_first_network
from connectx.lab.summary import Percentiles, Summary, as_json, summarise
from connectx.lab.transports import FAMILIES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

NAME: Final = "latency"
HELP: Final = "Time every connection of a fill, from an empty port range to a full one."
EXAMPLE: Final = "connectx lab latency --way kernel,full-range --ports 9024-65535"

OPERATIONS: Final = 5000

_WIDEST: Final = 100

_DESCRIPTION: Final = f"""\
{HELP}

In private network namespaces, one process opens connections over the loopback, as many as
there are source ports. The time of a connection includes socket(), the options, bind(),
connect(), and every retry. Each way gets a range that is not in use.

ways:
  {", ".join(STRATEGIES)}
                  the strategies of connectx.create_connection()
  shifting-window:SIZE, {ONE_WINDOW}:SIZE
                  windows of random position; {ONE_WINDOW} tries one for each
                  connection, and counts a refusal as an error

columns of --csv: way, phase (fill or churn), number, port, nanoseconds, retries, errno
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = _DESCRIPTION
    # For mistakes that only several arguments together show.
    parser.set_defaults(refuse=parser.error)
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--way",
        "--strategy",
        type=parsed_by(_ways),
        default="kernel,auto",
        metavar="WAY[,WAY...]",
        help="ways to open connections (default: %(default)s)",
    )
    ways.add_argument(
        "--windows",
        action="store_true",
        help=f"compare {ONE_WINDOW} of {', '.join(map(str, latency.WINDOWS))} ports",
    )
    parser.add_argument(
        "--protocol",
        choices=list(PROTOCOLS),
        default="tcp",
        help="the protocol of the connections (default: %(default)s)",
    )
    parser.add_argument(
        "--family",
        type=int,
        choices=FAMILIES,
        default=4,
        help="IPv4 or IPv6 (default: %(default)s)",
    )
    add_ports(parser, DEFAULT_PORTS)
    for option, meaning in (
        ("--sources", "use so many source addresses in turn"),
        ("--destinations", "use so many destinations in turn"),
    ):
        parser.add_argument(
            option,
            type=whole_number(latency.MOST_ADDRESSES),
            default=1,
            metavar="N",
            help=f"{meaning} (default: %(default)s)",
        )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--connections",
        type=whole_number(10_000_000),
        default=0,
        metavar="N",
        help="how many to try (default: as many as there are 4-tuples)",
    )
    amount.add_argument(
        "--churn",
        type=percent,
        metavar="PERCENT",
        help="fill only so far; then close one at random and open another, again and again",
    )
    parser.add_argument(
        "--operations",
        type=whole_number(1_000_000),
        metavar="N",
        help=f"with --churn, how many times (default: {OPERATIONS})",
    )
    parser.add_argument(
        "--time-limit",
        type=whole_number(3600),
        default=int(latency.TIME_LIMIT),
        metavar="SECONDS",
        help="for the fill of each way (default: %(default)s)",
    )
    output = parser.add_mutually_exclusive_group()
    add_json(output, "lab-latency", "print JSON with every sample")
    output.add_argument("--csv", action="store_true", help="print CSV with every sample")


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; it fails if a way is not possible, or exceeds the time limit."""
    if arguments.operations and not arguments.churn:
        arguments.refuse("--operations needs --churn")
    ways = (
        [f"{ONE_WINDOW}:{size}" for size in latency.WINDOWS] if arguments.windows else arguments.way
    )
    for way in ways:
        _settings(arguments, way)
    results = []
    failed = False
    machine = describe()
    with in_first_network(), progress_bars() as watch:
        for way in ways:
            try:
                results.append(latency.run(_settings(arguments, way), watch, machine))
            except NotSupported as error:
                print(f"connectx lab latency: {way}: {error.strerror}", file=sys.stderr)
                failed = True
    if arguments.json:
        print_json("lab-latency", _as_json(results), None)
    elif arguments.csv:
        _print_csv(results)
    else:
        _print_tables(results, each=not arguments.windows)
    return FAILED if failed or not all(result.finished for result in results) else OK


def _settings(arguments: argparse.Namespace, way: str) -> latency.Settings:
    settings = latency.Settings(
        way,
        arguments.protocol,
        arguments.family,
        arguments.ports,
        arguments.sources,
        arguments.destinations,
        arguments.connections,
        arguments.churn or 1.0,
        (arguments.operations or OPERATIONS) if arguments.churn else 0,
        arguments.time_limit,
    )
    try:
        settings.check()
    except ValueError as error:
        arguments.refuse(str(error))
    return settings


def _ways(text: str) -> list[str]:
    ways = text.split(",")
    for way in ways:
        check_way(way)
    return ways


def _as_json(results: Sequence[latency.Latency]) -> dict[str, Any]:
    return {
        "machine": results[0].machine._asdict() if results else None,
        "changes": _changes(results),
        "ways": [as_json(result) for result in results],
    }


def _changes(results: Sequence[latency.Latency]) -> list[str]:
    return list(dict.fromkeys(change for result in results for change in result.changes))


def _print_csv(results: Sequence[latency.Latency]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("way", "phase", "number", *latency.Samples._fields))
    for result in results:
        for phase, samples in (("fill", result.fill), ("churn", result.churn)):
            for number, row in enumerate(zip(*samples, strict=True)):
                writer.writerow((result.settings.way, phase, number, *row))


def _print_tables(results: Sequence[latency.Latency], *, each: bool) -> None:
    """Print what the samples show.

    Args:
        results: What came of each way.
        each: Whether to print a table for each way, and not only the comparison.
    """
    page = Page(_WIDEST)
    summaries = [summarise(result) for result in results]
    # Which ways each remark is about.
    remarks: dict[str, list[str]] = {}
    for result, summary in zip(results, summaries, strict=True):
        if each:
            page.table(_table(result, summary))
            page.line()
        for remark in _remarks(result, summary):
            remarks.setdefault(remark, []).append(result.settings.way)
    if len(results) > 1:
        page.table(_comparison(results, summaries))
        page.line()
    lines = [f"{', '.join(ways)}: {remark}" for remark, ways in remarks.items()]
    if results:
        machine = results[0].machine
        lines.append(
            f"Linux {machine.kernel}, {machine.processors}, Python {machine.python}. "
            f"{changes_text(_changes(results))}"
        )
    for line in lines:
        page.paragraph(line, style="dim")


def _table(result: latency.Latency, summary: Summary) -> Table:
    settings = result.settings
    drawn = _columns(
        f"{settings.way}: {summary.opened:,} of "
        f"{plural(summary.tried, f'{settings.transport.protocol.title} connection')}, "
        f"{summary.per_second:,.0f} per second",
        (
            "range in use",
            "opened",
            "mean µs",
            "half",
            "90 %",
            "99 %",
            "longest",
            "errors",
            "retries",
        ),
    )
    for stage, microseconds, errors, retries in summary.occupied:
        drawn.add(str(stage), *_cells(microseconds), *_counts(errors, retries))
    if result.churn.port:
        errors, retries = summary.churn_errors, summary.churn_retries
        drawn.add("churn", *_cells(summary.churn), *_counts(errors, retries))
    drawn.add_section()
    drawn.add("even ports", *_cells(summary.even))
    drawn.add("odd ports", *_cells(summary.odd))
    return drawn


def _comparison(results: Sequence[latency.Latency], summaries: Sequence[Summary]) -> Table:
    settings = results[0].settings
    drawn = _columns(
        f"{plural(summaries[0].tried, f'{settings.transport.protocol.title} connection')}, "
        f"source ports {settings.ports}",
        ("way", "opened", "errors", "seconds", "per second", "even: mean µs", "odd: mean µs"),
    )
    for result, summary in zip(results, summaries, strict=True):
        drawn.add(
            result.settings.way,
            *_counts(summary.opened, summary.errors),
            f"{summary.seconds:.1f}",
            f"{summary.per_second:,.0f}",
            f"{summary.even.mean:,.1f}",
            f"{summary.odd.mean:,.1f}",
        )
    return drawn


def _columns(title: str, headings: Sequence[str]) -> Table:
    columns = [Column(heading, right=number > 0) for number, heading in enumerate(headings)]
    return Table(columns, title, rule=True)


def _cells(times: Percentiles) -> list[str]:
    if not times.connections:
        return ["0", *[""] * 5]
    return [f"{times.connections:,}", *(f"{microseconds:,.1f}" for microseconds in times[1:])]


def _counts(*numbers: int) -> Iterator[str]:
    return (f"{number:,}" for number in numbers)


def _remarks(result: latency.Latency, summary: Summary) -> Iterator[str]:
    if not result.finished:
        yield f"gave up at the time limit of {result.settings.time_limit:.0f} s."
    if summary.even.connections and summary.odd.connections:
        # The median: a moment in which the machine was busy changes the mean.
        yield (
            "by the median, connections from odd ports take "
            f"{summary.odd.half / summary.even.half:.1f} times as long as those from even ports."
        )
    yield explain(result.settings, result.machine)
