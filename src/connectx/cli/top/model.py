"""The latest results, and which of them to show. It knows no terminal, no thread and no clock."""

from __future__ import annotations

import enum
import socket
from typing import TYPE_CHECKING, NamedTuple

from connectx._diagnosis.finding import FILLING
from connectx.cli.output import error_text, percent
from connectx.cli.page import Piece
from connectx.cli.top.drawing import SOON, colour, duration, time_left
from connectx.cli.top.watcher import Counted, Failed, Looked
from connectx.observe.history import History, Pair
from connectx.observe.namespace import path_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from connectx.cli.top.watcher import Outcome
    from connectx.observe.history import Trend
    from connectx.observe.usage import Detail, Row, Snapshot


class Sort(enum.Enum):
    """The order of the table; the value is its description on the screen."""

    UTILISATION = "the fullest first"
    IN_USE = "the most in use first"
    RATE = "the fastest growing first"
    NAME = "by source and destination"

    def next(self) -> Sort:
        """Return the order after this one, and after the last the first."""
        every = list(Sort)
        return every[(every.index(self) + 1) % len(every)]


class Entry(NamedTuple):
    """A pair in the table.

    Attributes:
        pair: Its protocol, source and destination.
        row: What the last snapshot counted.
        trend: Where it is going; None before there are two samples.
        destination: The destination as text.
    """

    pair: Pair
    row: Row
    trend: Trend | None
    destination: str


class Model:
    """The last snapshot, the history of the fullest pairs, and the user's filter and order.

    Args:
        protocols: The protocols that are counted; the filter steps through them.
        netns: The name of the namespace on show; None for this process's own.

    Attributes:
        history: How many ports each of the fullest pairs had taken, over time.
        counted: The last snapshot; None before the first.
        failed: The error since then; None without one.
        looked: The details of the pair that was looked at last.
        sort: The order of the entries.
        protocol: Show only this protocol; "" for all.
        text: Show only pairs that contain each of these words.
    """

    def __init__(self, protocols: Sequence[str], netns: str | None = None) -> None:
        self._protocols = protocols
        self._netns = netns
        self.history = History()
        self.counted: Counted | None = None
        self.failed: Failed | None = None
        self.looked: Looked | None = None
        self.sort = Sort.UTILISATION
        self.protocol = ""
        self.text = ""
        self._every: list[Entry] = []

    def take(self, outcome: Outcome, shown: Collection[Pair] = ()) -> None:
        """Record a result of the watcher. Follow the pairs in `shown` even when they are empty."""
        if isinstance(outcome, Failed):
            self.failed = outcome
        elif isinstance(outcome, Looked):
            self.looked = outcome
        else:
            if self.snapshot is not None and self.snapshot.netns != outcome.snapshot.netns:
                # The name now means another namespace: a container was restarted, say.
                self.history.clear()
            self.counted = outcome
            self.failed = None
            rows = outcome.snapshot.rows
            self.history.record(outcome.seconds, rows, frozenset(shown))
            self._every = [
                Entry(Pair.of(row), row, self.history.trend(row), str(row.destination))
                for row in rows
            ]

    @property
    def snapshot(self) -> Snapshot | None:
        """The last snapshot."""
        return self.counted.snapshot if self.counted else None

    def next_protocol(self) -> None:
        """Filter by the next protocol, and after the last by none."""
        every = ["", *self._protocols]
        self.protocol = every[(every.index(self.protocol) + 1) % len(every)]

    def entries(self) -> list[Entry]:
        """Return the entries that match the filter, in order."""
        entries = self._matching()
        if self.sort is Sort.IN_USE:
            entries.sort(key=lambda entry: -entry.row.in_use)
        elif self.sort is Sort.RATE:
            # Those without a history last: they are the emptiest.
            entries.sort(key=lambda entry: -entry.trend.rate if entry.trend else float("inf"))
        elif self.sort is Sort.NAME:
            entries.sort(key=_by_name)
        return entries

    def _matching(self) -> list[Entry]:
        """Return the entries that match the filter, the fullest first."""
        words = self.text.lower().split()
        return [
            entry
            for entry in self._every
            if (not self.protocol or entry.row.protocol == self.protocol)
            and all(word in f"{entry.row.protocol} {entry.row.source} {entry.destination}"
                    for word in words)
        ]  # fmt: skip

    def entry(self, pair: Pair) -> Entry | None:
        """Return a pair's entry; None if it has no port in use."""
        return next((entry for entry in self._every if entry.pair == pair), None)

    def samples(self, pair: Pair) -> list[int]:
        """Return how many ports of a pair were taken, the latest last."""
        return [used for _, used in self.history.samples(pair)]

    def detail(self, pair: Pair) -> Detail | None:
        """Return a pair's details; None if they are not known."""
        return self.looked.detail if self.looked and self.looked.pair == pair else None

    def verdict(self) -> list[list[Piece]]:
        """Return two lines on the pairs in the table: what is full, and what will be next."""
        if self.failed is not None:
            return self._problem(self.failed)
        shown = self._matching()
        if not shown:
            return [self._hidden(shown), []]
        full = [entry for entry in shown if not entry.row.free]
        fullest = shown[0]
        if full:
            more = f", and {len(full) - 1:,} more" if len(full) > 1 else ""
            now = [Piece(" FULL ", "bold red reverse"), Piece(f" {full[0].pair}{more}", "bold")]
        elif fullest.row.utilisation >= FILLING:
            now = [
                Piece(" FILLING ", f"{colour(fullest.row.utilisation)} reverse"),
                Piece(f" {fullest.pair}: {percent(fullest.row.utilisation)}"),
            ]
        else:
            now = [
                Piece(" OK ", "green reverse"),
                Piece(f" the fullest is at {percent(fullest.row.utilisation)}: {fullest.pair}"),
            ]
        return [[*now, *self._hidden(shown)], _next(shown)]

    def _hidden(self, shown: Sequence[Entry]) -> list[Piece]:
        """Return how many full pairs the filter hides."""
        hidden = sum(not entry.row.free for entry in self._every)
        hidden -= sum(not entry.row.free for entry in shown)
        if not hidden:
            return []
        verb = "is" if hidden == 1 else "are"
        return [Piece(f" ({hidden:,} not shown {verb} full)", "bold red")]

    def _problem(self, failed: Failed) -> list[list[Piece]]:
        error = failed.error
        text = error_text(error)
        if isinstance(error, PermissionError):
            text = f"{text}; it may need root"
        elif (
            self._netns is not None
            and self.counted is not None
            and isinstance(error, FileNotFoundError)
            and error.filename == path_of(self._netns)
        ):
            text = f"the network namespace {self._netns} no longer exists"
        head = [Piece(" NOT COUNTED ", "bold red reverse"), Piece(f" {text}", "bold")]
        if self.counted is None:
            return [head, [Piece("trying again", "dim")]]
        age = duration(failed.seconds - self.counted.seconds)
        return [head, [Piece(f"these numbers are {age} old; trying again", "dim")]]


def _next(shown: Sequence[Entry]) -> list[Piece]:
    """Return which of the pairs will be full next."""
    free = [entry for entry in shown if entry.row.free]
    if not any(entry.trend for entry in free):
        return []
    filling = [
        (entry.trend.seconds_left, entry)
        for entry in free
        if entry.trend and entry.trend.seconds_left is not None
    ]
    left, soonest = min(filling, key=lambda each: each[0], default=(float("inf"), None))
    if soonest is None or left >= SOON:
        other = "none" if len(free) == len(shown) else "no other"
        return [Piece(f"at this rate, {other} will be full within an hour", "dim")]
    style = time_left(soonest.row.free, left).style
    return [Piece(f"full in {duration(left)}", style), Piece(f" at this rate: {soonest.pair}")]


def _by_name(entry: Entry) -> tuple[object, ...]:
    row = entry.row
    source, host = _octets(row.source), _octets(row.destination.host)
    return len(source), source, host, row.source, row.destination, row.protocol


def _octets(address: str) -> bytes:
    host, _, _ = address.partition("%")
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
