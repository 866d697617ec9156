"""Fill the range with TCP and UDP connections: connectx beside the other ways."""

from __future__ import annotations

import functools
import itertools
import math
import socket
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from bench.filling import BLOCK, Result, run, timed
from bench.harness import (
    DESTINATION,
    SECOND_DESTINATION,
    SOURCES,
    Findings,
    Table,
    in_network,
    listen_at_destination,
)
from bench.native import compiler, native_fill
from bench.processes import in_process
from bench.ways import Fill, bare_tcp, bare_udp, linear_probing, plain_connect, with_connectx

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.filling import BlockOpener
    from bench.harness import Settings
    from bench.ways import Address, Way

Start: TypeAlias = "Callable[[Fill], BlockOpener]"

#: Seconds after which a fill is too slow to wait for.
_TIME_LIMIT: Final = 60.0

_COLUMNS: Final = (
    "way",
    "opened",
    "of",
    "per second",
    "mean µs",
    "first half",
    "last 1 %",
    "99 in 100",
    "longest",
    "stopped by",
)


@dataclass(frozen=True)
class Competition:
    """What is compared for one protocol.

    bare: the way that issues connectx's system calls and does nothing else.
    slow: the way that is much slower, and what it is called.
    slow_rounds: in how many rounds it takes part; it needs seconds.
    """

    name: str
    kind: socket.SocketKind
    destinations: Sequence[Address]
    bare: Way
    slow_name: str
    slow: Way
    slow_rounds: int

    def fill(self, settings: Settings, source: str | None) -> Fill:
        """As many connections as there are, the destinations taking turns."""
        destinations = itertools.chain.from_iterable([self.destinations] * settings.ports.size)
        return Fill(self.kind, source, list(destinations), settings.ports)

    def equals(self) -> Mapping[str, Start]:
        """The ways that are about as fast, connectx first; without C where no compiler is."""
        ways: dict[str, Start] = {
            "connectx": functools.partial(timed, with_connectx),
            "bare loop": functools.partial(timed, self.bare),
        }
        if compiler() is not None:
            ways["C"] = native_fill
        return ways

    def ways(self) -> Mapping[str, Start]:
        """All the ways."""
        return {**self.equals(), self.slow_name: functools.partial(timed, self.slow)}


TCP: Final = Competition(
    "tcp", socket.SOCK_STREAM, (DESTINATION,), bare_tcp, "plain connect()", plain_connect, 3
)
UDP: Final = Competition(
    "udp",
    socket.SOCK_DGRAM,
    (DESTINATION, SECOND_DESTINATION),
    bare_udp,
    "linear probing",
    linear_probing,
    2,
)


class Runner(NamedTuple):
    """A way, with what it has to do."""

    start: Start
    fill: Fill


def measure(competition: Competition, settings: Settings) -> Findings:
    """Measure one protocol."""
    equals = {
        f"{way}, {source}": Runner(start, competition.fill(settings, address))
        for source, address in SOURCES.items()
        for way, start in competition.equals().items()
    }
    slow = Runner(functools.partial(timed, competition.slow), competition.fill(settings, None))
    results = in_network(
        functools.partial(_all_rounds, competition, settings, equals, slow), settings.ports
    )
    findings = Findings()
    for source in SOURCES:
        _compare(findings, competition, source, results)
    count = len(competition.destinations)
    title = (
        f"{competition.name.upper()}: {len(slow.fill.destinations):,} connections "
        f"to {count} destination{'s' * (count > 1)}"
    )
    rows = [_row(name, rounds) for name, rounds in results.items()]
    findings.tables.append(Table(title, _COLUMNS, rows))
    return findings


def _all_rounds(
    competition: Competition, settings: Settings, equals: Mapping[str, Runner], slow: Runner
) -> dict[str, list[Result]]:
    """Every runner alone, one after the other, again and again.

    Not alternating in smaller steps, although the machine's speed changes from
    one second to the next: fills that are open at the same time crowd each other
    out of the caches, and C and connectx look more alike than they are. Instead
    `typical` below sorts out the slow moments.

    All in the same network: the kernel takes a dead one apart in the background,
    and would do so while the next way is measured.
    """
    listen = listen_at_destination if competition.kind is socket.SOCK_STREAM else None
    results: dict[str, list[Result]] = {name: [] for name in (*equals, competition.slow_name)}
    slow_rounds = min(competition.slow_rounds, settings.rounds)
    slow_turns = {turn * settings.rounds // slow_rounds for turn in range(slow_rounds)}
    for turn in range(settings.rounds):
        order = list(equals.items())
        # There and back, so that none is always the one after a rest.
        if turn % 2:
            order.reverse()
        if turn in slow_turns:
            order.append((competition.slow_name, slow))
        for name, runner in order:
            settings.progress(f"{competition.name}: round {turn + 1} of {settings.rounds}, {name}")
            results[name].append(
                in_process(functools.partial(run, runner.fill, runner.start, listen, _TIME_LIMIT))
            )
    return results


def _compare(
    findings: Findings,
    competition: Competition,
    source: str,
    results: Mapping[str, Sequence[Result]],
) -> None:
    ours = results[f"connectx, {source}"]
    worst = min(ours, key=lambda result: len(result.nanoseconds))
    opened = len(worst.nanoseconds)
    prefix = f"{competition.name}, {source}: "
    findings.add(f"{prefix}opened", opened / worst.asked, f"{opened:,} of {worst.asked:,}")
    duplicates = max(len(result.nanoseconds) - result.distinct for result in ours)
    findings.add(f"{prefix}duplicates", duplicates, "")
    slow = results[competition.slow_name]
    shortest = min(len(result.nanoseconds) for result in slow)
    findings.add(
        f"{prefix}{competition.slow_name}",
        mean_time(slow, shortest) / mean_time(ours, shortest),
        "" if shortest == worst.asked else f"over the first {shortest:,} only",
    )
    for way in ("bare loop", "C"):
        theirs = results.get(f"{way}, {source}")
        if theirs is None:
            findings.lack(f"{prefix}{way}", "no C compiler: install gcc")
            continue
        both = min(len(result.nanoseconds) for result in (*ours, *theirs))
        findings.add(f"{prefix}{way}", typical_time(theirs, both) / typical_time(ours, both))
    findings.add(f"{prefix}last 1 %", statistics.median(map(_tail, ours)))


def typical_time(rounds: Sequence[Result], count: int) -> float:
    """Nanoseconds that a way takes for its first `count` connections on a quiet machine.

    Of each stretch of the fill, the median of all rounds: what belongs to the
    way comes back in every round, at the same place, and a slow moment does not.
    """
    return sum(
        statistics.median(
            sum(result.nanoseconds[start : min(start + BLOCK, count)]) for result in rounds
        )
        for start in range(0, count, BLOCK)
    )


def mean_time(rounds: Sequence[Result], count: int) -> float:
    """Nanoseconds that a way takes for its first `count` connections, slow moments included.

    For the slow ways: their few, long rounds have had the average of the
    machine's moments, and so must what they are compared with.
    """
    return statistics.fmean(sum(result.nanoseconds[:count]) for result in rounds)


def _tail(result: Result) -> float:
    return _last_percent(result) / _first_half(result)


def _first_half(result: Result) -> float:
    return _mean(result.nanoseconds[: len(result.nanoseconds) // 2])


def _last_percent(result: Result) -> float:
    return _mean(result.nanoseconds[-max(1, len(result.nanoseconds) // 100) :])


def _mean(nanoseconds: Sequence[int]) -> float:
    return statistics.fmean(nanoseconds) if nanoseconds else math.nan


def _row(name: str, rounds: Sequence[Result]) -> Sequence[Any]:
    """Of each number the median of the rounds; times in µs."""
    worst = min(rounds, key=lambda result: len(result.nanoseconds))
    columns: tuple[Callable[[Result], float], ...] = (
        lambda result: _mean(result.nanoseconds),
        _first_half,
        _last_percent,
        lambda result: sorted(result.nanoseconds)[len(result.nanoseconds) * 99 // 100],
        lambda result: max(result.nanoseconds),
    )
    opened = len(worst.nanoseconds)
    times = [
        statistics.median(map(column, rounds)) / 1000 if opened else math.nan for column in columns
    ]
    return (
        name,
        opened,
        worst.asked,
        round(1e6 / times[0]) if opened else 0,
        *(round(time, 1) for time in times),
        worst.error or ("" if opened == worst.asked else "time limit"),
    )
