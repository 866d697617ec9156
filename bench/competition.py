"""Fill the range with TCP and UDP connections: connectx beside the other ways."""

from __future__ import annotations

import functools
import itertools
import math
import socket
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bench.filling import BLOCK, Result, run, timed
from bench.harness import (
    DESTINATION,
    SECOND_DESTINATION,
    SOURCES,
    Findings,
    Table,
    in_network,
    listen_at_destination,
    mean,
    quiet,
    typical,
)
from bench.native import compiler, native_fill
from bench.ways import Fill, bare_tcp, bare_udp, linear_probing, plain_connect, with_connectx

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.filling import Start
    from bench.harness import Address, Settings
    from bench.ways import Way

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

    Attributes:
        name: The protocol.
        kind: socket.SOCK_STREAM or socket.SOCK_DGRAM.
        destinations: They take turns.
        bare: The way that issues connectx's system calls and does nothing else.
        slow_name: What the figures call the way that is much slower.
        slow: That way.
        slow_rounds: In how many rounds it takes part; it needs seconds.
    """

    name: str
    kind: socket.SocketKind
    destinations: Sequence[Address]
    bare: Way
    slow_name: str
    slow: Way
    slow_rounds: int

    def fill(self, settings: Settings, source: str | None) -> Fill:
        """Return as many connections as there are, the destinations taking turns."""
        destinations = itertools.chain.from_iterable([self.destinations] * settings.ports.size)
        return Fill(self.kind, source, list(destinations), settings.ports)

    def equals(self) -> Mapping[str, Start]:
        """Return the ways that are about as fast, connectx first; C only with a compiler."""
        ways: dict[str, Start] = {
            "connectx": functools.partial(timed, with_connectx),
            "bare loop": functools.partial(timed, self.bare),
        }
        if compiler() is not None:
            ways["C"] = native_fill
        return ways

    def ways(self) -> Mapping[str, Start]:
        """Return all the ways."""
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
COMPETITIONS: Final = {competition.name: competition for competition in (TCP, UDP)}


def measure(competition: Competition, settings: Settings) -> Findings:
    """Measure one protocol."""
    results = in_network(functools.partial(_all_rounds, competition, settings), settings.ports)
    findings = Findings()
    for source in SOURCES:
        _compare(findings, competition, source, results)
    count = len(competition.destinations)
    findings.tables.append(
        Table(
            f"{competition.name.upper()}: {count * settings.ports.size:,} connections "
            f"to {count} destination{'s' * (count > 1)}",
            _COLUMNS,
            [_row(name, rounds) for name, rounds in results.items()],
        )
    )
    return findings


def _all_rounds(competition: Competition, settings: Settings) -> dict[str, list[Result]]:
    """Run every way alone, one after the other, again and again.

    They do not alternate in smaller steps, although the machine's speed changes from one second
    to the next: fills that are open at the same time crowd each other out of the caches, and C
    and connectx look more alike than they are. Instead typical() sorts out the slow moments.

    All run in the same network: the kernel takes a dead one apart in the background, and would
    do so while the next way is measured.
    """
    listen = listen_at_destination if competition.kind is socket.SOCK_STREAM else None
    equals = [
        (f"{way}, {source}", start, competition.fill(settings, address))
        for source, address in SOURCES.items()
        for way, start in competition.equals().items()
    ]
    slow = functools.partial(timed, competition.slow)
    results: dict[str, list[Result]] = {}
    slow_rounds = min(competition.slow_rounds, settings.rounds)
    slow_turns = {turn * settings.rounds // slow_rounds for turn in range(slow_rounds)}
    for turn in range(settings.rounds):
        # There and back, so that none is always the one after a rest.
        order = equals[:: -1 if turn % 2 else 1]
        if turn in slow_turns:
            order.append((competition.slow_name, slow, competition.fill(settings, None)))
        for name, start, fill in order:
            settings.progress(f"{competition.name}: round {turn + 1} of {settings.rounds}, {name}")
            results.setdefault(name, []).append(run(fill, start, listen, _TIME_LIMIT))
    return results


def _compare(
    findings: Findings,
    competition: Competition,
    source: str,
    results: Mapping[str, Sequence[Result]],
) -> None:
    ours = results[f"connectx, {source}"]
    worst = min(ours, key=lambda result: len(result.times))
    opened = len(worst.times)
    prefix = f"{competition.name}, {source}: "
    findings.add(f"{prefix}opened", opened / worst.asked, f"{opened:,} of {worst.asked:,}")
    duplicates = max(len(result.times) - result.distinct for result in ours)
    findings.add(f"{prefix}duplicates", duplicates)
    slow = results[competition.slow_name]
    shortest = min(len(result.times) for result in slow)
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
        both = min(len(result.times) for result in (*ours, *theirs))
        findings.add(f"{prefix}{way}", typical_time(theirs, both) / typical_time(ours, both))
    findings.add(f"{prefix}last 1 %", statistics.median(tail(result.times) for result in ours))


def typical_time(rounds: Sequence[Result], count: int) -> float:
    """Return the nanoseconds that a way takes for its first connections on a quiet machine."""
    return typical([result.times[:count] for result in rounds], BLOCK)


def mean_time(rounds: Sequence[Result], count: int) -> float:
    """Return the nanoseconds that a way takes for its first connections, interruptions included.

    For the slow ways: most of their calls, which take milliseconds, are interrupted.
    """
    return statistics.fmean(sum(map(abs, result.times[:count])) for result in rounds)


def tail(times: Sequence[int]) -> float:
    """Return how long a connection takes in the last 1 % of a fill, the first half being 1."""
    return _last_percent(times) / _first_half(times)


def _first_half(times: Sequence[int]) -> float:
    return mean(times[: len(times) // 2])


def _last_percent(times: Sequence[int]) -> float:
    return mean(times[-max(1, len(times) // 100) :])


def _row(name: str, rounds: Sequence[Result]) -> Sequence[Any]:
    """Give of each number the median of the rounds; times in µs."""
    worst = min(rounds, key=lambda result: len(result.times))
    columns: tuple[Callable[[Sequence[int]], float], ...] = (
        mean,
        _first_half,
        _last_percent,
        lambda times: sorted(quiet(times))[len(quiet(times)) * 99 // 100],
        lambda times: max(quiet(times)),
    )
    opened = len(worst.times)
    times = [
        statistics.median(column(result.times) for result in rounds) / 1000 if opened else math.nan
        for column in columns
    ]
    return (
        name,
        opened,
        worst.asked,
        round(1e6 / times[0]) if opened else 0,
        *(round(time, 1) for time in times),
        worst.error or ("" if opened == worst.asked else "time limit"),
    )
