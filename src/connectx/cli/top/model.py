"""What the view knows and what of it is to be shown: no terminal, no thread, no clock."""

from __future__ import annotations

import enum
import socket
from typing import TYPE_CHECKING, NamedTuple

from connectx._diagnosis.finding import FILLING
from connectx.cli.output import percent
from connectx.cli.top.drawing import SOON, Piece, duration, time_left
from connectx.cli.top.watcher import Counted, Failed, Looked
from connectx.observe.history import History, Pair
from connectx.observe.namespace import path_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from connectx.cli.top.watcher import Outcome
    from connectx.observe.pair import Detail
    from connectx.observe.trend import Trend
    from connectx.observe.usage import Row, Snapshot


class Sort(enum.Enum):
    """What comes first; the value says it in words."""

    UTILISATION = "the fullest first"
    IN_USE = "the most in use first"
    RATE = "the fastest growing first"
    NAME = "by source and destination"

    def next(self) -> Sort:
        """The one after it, and at the end the first."""
        every = list(Sort)
        return every[(every.index(self) + 1) % len(every)]


class Line(NamedTuple):
    """A pair as the table shows it; trend: None where nothing is known of it yet."""

    pair: Pair
    row: Row
    trend: Trend | None
    source: str
    destination: str


class Model:
    """All that was counted last, the history of the fullest pairs, and what is asked for.

    protocols: those that are counted, for the filter to choose from.
    netns: the name of the namespace that is looked at; None for our own.
    """

    def __init__(self, protocols: Sequence[str], netns: str | None = None) -> None:
        self._protocols = protocols
        self._netns = netns
        self.history = History()
        self.counted: Counted | None = None
        self.failed: Failed | None = None
        #: Of the pair that was looked at last.
        self.looked: Looked | None = None
        self.sort = Sort.UTILISATION
        #: "" for all of them.
        self.protocol = ""
        #: Words that a pair must all have in it.
        self.text = ""
        self._every: list[Line] = []

    def take(self, outcome: Outcome, shown: Collection[Pair] = ()) -> None:
        """Take in what the watcher tells; shown: pairs to follow even if they are not full."""
        if isinstance(outcome, Failed):
            self.failed = outcome
        elif isinstance(outcome, Looked):
            self.looked = outcome
        else:
            if self.snapshot is not None and self.snapshot.netns != outcome.snapshot.netns:
                # Another one of that name: a container that was started anew, say.
                self.history.clear()
            self.counted = outcome
            self.failed = None
            rows = outcome.snapshot.rows
            self.history.record(outcome.seconds, rows, frozenset(shown))
            self._every = [self._line(row) for row in rows]

    @property
    def snapshot(self) -> Snapshot | None:
        """What was counted last."""
        return self.counted.snapshot if self.counted else None

    def next_protocol(self) -> None:
        """Filter by the protocol after this one, and after the last one by none."""
        every = ["", *self._protocols]
        self.protocol = every[(every.index(self.protocol) + 1) % len(every)]

    def lines(self) -> list[Line]:
        """What the filter lets pass, in order."""
        words = self.text.lower().split()
        lines = [
            line
            for line in self._every
            if (not self.protocol or line.row.protocol == self.protocol)
            and all(word in f"{line.pair.protocol} {line.source} {line.destination}"
                    for word in words)
        ]  # fmt: skip
        if self.sort is Sort.IN_USE:
            lines.sort(key=lambda line: -line.row.in_use)
        elif self.sort is Sort.RATE:
            # Those that are not followed last: they are the emptiest.
            lines.sort(key=lambda line: -line.trend.rate if line.trend else float("inf"))
        elif self.sort is Sort.NAME:
            lines.sort(key=_by_name)
        return lines

    def line(self, pair: Pair) -> Line | None:
        """A pair, if it has a port in use."""
        return next((line for line in self._every if line.pair == pair), None)

    def samples(self, pair: Pair) -> list[int]:
        """Ports of a pair that were taken, the newest last."""
        return [used for _, used in self.history.samples(pair)]

    def detail(self, pair: Pair) -> Detail | None:
        """What was found out about a pair, if it was looked at."""
        return self.looked.detail if self.looked and self.looked.pair == pair else None

    def verdict(self) -> list[list[Piece]]:
        """Two lines: what is full, and what will be next."""
        if self.failed is not None:
            return self._problem(self.failed)
        if not self._every:
            return [[], []]
        full = [line for line in self._every if not line.row.free]
        filling = [
            (line.trend.seconds_left, line)
            for line in self._every
            if line.trend and line.trend.seconds_left is not None and line.row.free
        ]
        left, soonest = min(filling, key=lambda each: each[0], default=(float("inf"), None))
        fullest = self._every[0]
        if full:
            more = f", and {len(full) - 1:,} more" if len(full) > 1 else ""
            now = [Piece(" FULL ", "bold red reverse"), Piece(f" {full[0].pair}{more}", "bold")]
        elif fullest.row.utilisation >= FILLING:
            now = [
                Piece(" FILLING ", "yellow reverse"),
                Piece(f" {fullest.pair}: {percent(fullest.row.utilisation)}"),
            ]
        else:
            now = [
                Piece(" OK ", "green reverse"),
                Piece(f" the fullest is at {percent(fullest.row.utilisation)}: {fullest.pair}"),
            ]
        if soonest is None or left >= SOON:
            return [now, [Piece("none will be full within the hour, as it goes", "dim")]]
        style = time_left(soonest.row.free, left).style
        return [
            now,
            [Piece(f"full in {duration(left)}", style), Piece(f", as it goes: {soonest.pair}")],
        ]

    def _problem(self, failed: Failed) -> list[list[Piece]]:
        error = failed.error
        text = str(error)
        if isinstance(error, PermissionError):
            text = f"{error}; it may need root"
        elif (
            self._netns is not None
            and self.counted is not None
            and isinstance(error, FileNotFoundError)
            and error.filename == path_of(self._netns)
        ):
            text = f"the network namespace {self._netns} has gone"
        head = [Piece(" NOT COUNTED ", "bold red reverse"), Piece(f" {text}", "bold")]
        if self.counted is None:
            return [head, [Piece("trying again", "dim")]]
        ago = duration(failed.seconds - self.counted.seconds)
        return [head, [Piece(f"this is from {ago} before; trying again", "dim")]]

    def _line(self, row: Row) -> Line:
        return Line(Pair.of(row), row, self.history.trend(row), row.source, str(row.destination))


def _by_name(line: Line) -> tuple[object, ...]:
    row = line.row
    source, host = _octets(row.source), _octets(row.destination.host)
    return len(source), source, host, row.source, row.destination, row.protocol


def _octets(address: str) -> bytes:
    host, _, _ = address.partition("%")
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
