"""Metrics for Prometheus: the ports in use in a network namespace, and what dialers did.

>>> from connectx import Dialer
>>> from connectx.observe.prometheus import DialerCollector, SocketCollector
>>> from prometheus_client import CollectorRegistry
>>> registry = CollectorRegistry()
>>> registry.register(SocketCollector())
>>> registry.register(DialerCollector({"api": Dialer(wait=2.0)}))
>>> registry.get_sample_value("connectx_up")
1

Needs prometheus-client, of the extra `tools`. A budget of ports is per source and
destination, so a source is as full as its fullest destination, whatever the sum of its
connections is. No series is made for a process or a local port, and none for a
destination but the fullest of each source, unless more are asked for.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from connectx._diagnosis.census import count_locked
from connectx.linux import proc_net
from connectx.observe.namespace import visiting
from connectx.observe.usage import COUNTED, group, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client import Metric

    from connectx._dial.policy import Stats
    from connectx.linux.proc_net import Table
    from connectx.observe.usage import Snapshot

#: How many pairs of a source and a destination can be asked for.
MOST_PAIRS: Final = 1000

#: How many sources get series of their own, the fullest first: a dialer that takes its
#: sources from an IPv6 prefix has as many as it has connections.
MOST_SOURCES: Final = 1000

#: Seconds between two tries of all ports in use: it takes some 10 microseconds for each.
_TRY_EVERY: Final = 60.0

_SOURCE: Final = ("protocol", "source")
_PAIR: Final = ("protocol", "source", "destination")

_Definitions: TypeAlias = dict[str, tuple[str, tuple[str, ...]]]

#: By name: what it is, and its labels.
SOCKET_METRICS: Final[_Definitions] = {
    "connectx_up": (
        "1 if the sockets could be counted, 0 if not: then all that is counted is missing.",
        (),
    ),
    "connectx_snapshot_failures_total": ("How often the sockets could not be counted.", ()),
    "connectx_snapshot_duration_seconds": ("The time that the last count of them took.", ()),
    "connectx_range_ports": ("Source ports in net.ipv4.ip_local_port_range.", ()),
    "connectx_range_reserved_ports": (
        "How many of the range net.ipv4.ip_local_reserved_ports keeps out.",
        (),
    ),
    "connectx_range_held_ports": (
        "How many of the range listeners and merely bound sockets have for themselves.",
        ("protocol",),
    ),
    "connectx_range_locked_ports": (
        "How many of the range are locked by sockets that were bound before they connected.",
        ("protocol",),
    ),
    "connectx_range_unshared_free_ports": (
        "How many of the range no socket has at all, as one without SO_REUSEADDR needs it.",
        ("protocol",),
    ),
    "connectx_connections": (
        "Connections from source ports of the range, by state.",
        ("protocol", "state"),
    ),
    "connectx_sources": (
        f"Source addresses with connections; the {MOST_SOURCES} fullest have series.",
        ("protocol",),
    ),
    "connectx_source_capacity_ports": (
        "Source ports that there are from a source toward each destination by itself.",
        _SOURCE,
    ),
    "connectx_source_connections": (
        "Connections from a source to all destinations; the capacity is for each of them.",
        _SOURCE,
    ),
    "connectx_source_destinations": ("Destinations that a source is connected to.", _SOURCE),
    "connectx_source_utilisation_ratio": (
        "The share of a source's ports that cannot be had toward its fullest destination.",
        _SOURCE,
    ),
    "connectx_fullest_ports_in_use": (
        "Ports in use from a source toward its fullest destination.",
        _PAIR,
    ),
    "connectx_fullest_reusable_ports": (
        "How many of these are TIME_WAITs that a connect() may take over now.",
        _PAIR,
    ),
    "connectx_fullest_capacity_ports": (
        "Ports that there are from a source toward its fullest destination.",
        _PAIR,
    ),
    "connectx_fullest_utilisation_ratio": (
        "The share of the ports that cannot be had from a source toward its fullest destination.",
        _PAIR,
    ),
    "connectx_top_ports_in_use": (
        "Ports in use of the fullest pairs of a source and a destination.",
        _PAIR,
    ),
    "connectx_top_utilisation_ratio": (
        "The share of the ports that cannot be had of the fullest pairs.",
        _PAIR,
    ),
    "connectx_conntrack_entries": ("Connections in conntrack's table.", ()),
    "connectx_conntrack_entries_limit": ("net.netfilter.nf_conntrack_max; 0 is no limit.", ()),
    "connectx_time_wait_sockets": ("TCP sockets in TIME_WAIT.", ()),
    "connectx_time_wait_sockets_limit": (
        "net.ipv4.tcp_max_tw_buckets, beyond which closes skip TIME_WAIT.",
        (),
    ),
}

_DIALER: Final = ("dialer",)

#: The same, of dialers.
DIALER_METRICS: Final[_Definitions] = {
    "connectx_dialer_attempts_total": (
        "Tries to connect, one for each source and range of ports.",
        _DIALER,
    ),
    "connectx_dialer_opened_total": ("Tries that got a connection.", _DIALER),
    "connectx_dialer_retries_total": ("Ports that were refused within tries.", _DIALER),
    "connectx_dialer_failures_total": (
        "Tries that failed, by the name of the errno.",
        ("dialer", "errno"),
    ),
    "connectx_dialer_search_seconds_total": (
        "Time spent in tries that found no port.",
        _DIALER,
    ),
    "connectx_dialer_waits_total": ("Calls that had to wait for a port.", _DIALER),
    "connectx_dialer_waiting": ("Calls that wait for a port now.", _DIALER),
}

#: What a lack of ports ends in. These are there from the start, at 0: of a counter that
#: appears with its first event Prometheus sees no increase.
_EXHAUSTED: Final = tuple(
    errno.errorcode[each] for each in (errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EAGAIN)
)


class HasStats(Protocol):
    """connectx.Dialer and connectx.aio.Dialer, as far as metrics go."""

    def stats(self) -> Stats:
        """What it has done."""


class SocketCollector(Collector):
    """The ports in use in a network namespace: `SOCKET_METRICS`.

    protocols: of "tcp", "udp", "udplite".
    netns: another network namespace, as for `connectx.observe.snapshot`.
    top: how many of the fullest pairs of a source and a destination to give, 1000 at most.
    report: is told why the sockets cannot be counted, once until that changes; by
        default the log is.

    Each scrape counts anew; one that comes while another one counts waits for that and
    gives the same. Which TCP ports are locked is tried out once a minute at most: a socket of
    ours is bound to each port in use for some microseconds, and sends nothing.

    Raises ValueError for an unknown protocol and for a number out of range.
    """

    def __init__(
        self,
        *,
        protocols: Iterable[str] = ("tcp", "udp"),
        netns: str | None = None,
        top: int = 0,
        report: Callable[[str], object] | None = None,
    ) -> None:
        self._protocols = tuple(dict.fromkeys(protocols))
        if unknown := set(self._protocols) - set(COUNTED):
            raise ValueError(f"protocols are of {', '.join(COUNTED)}, not {sorted(unknown)}")
        if not 0 <= top <= MOST_PAIRS:
            raise ValueError(f"top is a number from 0 to {MOST_PAIRS}, not {top!r}")
        self._netns = netns
        self._top = top
        self._report = report or logging.getLogger(__name__).warning
        self._lock = threading.Lock()
        self._counted = 0
        self._last = _Outcome(None, "", 0)
        self._locked: int | None = None
        self._untried = ""
        self._try_again = 0.0

    def describe(self) -> Iterator[Metric]:
        """What `collect` gives, without values and without a look at anything."""
        yield from _families(SOCKET_METRICS).values()

    def collect(self) -> list[Metric]:
        """Count, and say what there is, or that it could not be found out."""
        outcome = self._count_or_share()
        families = _families(SOCKET_METRICS)
        _add(families, "connectx_up", 0 if outcome.reason else 1)
        _add(families, "connectx_snapshot_failures_total", outcome.failures)
        if outcome.look is not None:
            self._fill_in(families, outcome.look)
        return [family for family in families.values() if family.samples]

    def look(self) -> Look:
        """Count once.

        Raises OSError and ValueError as `connectx.observe.snapshot` does.
        """
        with visiting(self._netns):
            begun = time.perf_counter()
            taken = snapshot(protocols=self._protocols)
            seconds = time.perf_counter() - begun
            if "tcp" in self._protocols:
                self._try_locked()
            return Look(taken, seconds, proc_net.time_wait(), proc_net.conntrack(), self._locked)

    def _try_locked(self) -> None:
        """Find out how many ports are locked, unless that was done not long ago."""
        now = time.monotonic()
        if now < self._try_again:
            return
        self._try_again = now + _TRY_EVERY
        former, self._locked, self._untried = self._untried, None, ""
        try:
            self._locked = count_locked()
        except OSError as error:
            # The loopback is down, say. All the rest is known none the less.
            self._untried = str(error)
            if self._untried != former:
                self._report(f"cannot try which ports are locked: {error}")

    def _count_or_share(self) -> _Outcome:
        before = self._counted
        with self._lock:
            # Otherwise somebody has counted while we waited for the lock: so did
            # everybody who waits behind us, and none of them will be later than this.
            if self._counted == before:
                self._last = self._count()
                self._counted += 1
            return self._last

    def _count(self) -> _Outcome:
        former = self._last
        try:
            look = self.look()
        except (OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            if reason != former.reason:
                self._report(f"cannot count the sockets: {reason}")
            return _Outcome(None, reason, former.failures + 1)
        if former.reason:
            self._report("the sockets can be counted again")
        return _Outcome(look, "", former.failures)

    def _fill_in(self, families: _Families, look: Look) -> None:
        taken = look.taken
        _add(families, "connectx_snapshot_duration_seconds", look.seconds)
        _add(families, "connectx_range_ports", taken.ports.size)
        _add(families, "connectx_range_reserved_ports", taken.reserved)
        for protocol, held in taken.held.items():
            _add(families, "connectx_range_held_ports", held, protocol)
        if look.locked is not None:
            _add(families, "connectx_range_locked_ports", look.locked, "tcp")
        for protocol, free in taken.unshared.items():
            _add(families, "connectx_range_unshared_free_ports", free, protocol)
        for each in group(taken.rows, "state"):
            _add(families, "connectx_connections", each.in_use, each.protocol, each.name)
        self._fill_in_sources(families, taken)
        for row in taken.rows[: self._top]:
            pair = row.protocol, row.source, str(row.destination)
            _add(families, "connectx_top_ports_in_use", row.in_use, *pair)
            _add(families, "connectx_top_utilisation_ratio", row.utilisation, *pair)
        _add(families, "connectx_time_wait_sockets", look.time_wait.entries)
        _add(families, "connectx_time_wait_sockets_limit", look.time_wait.limit)
        if look.conntrack is not None:
            _add(families, "connectx_conntrack_entries", look.conntrack.entries)
            _add(families, "connectx_conntrack_entries_limit", look.conntrack.limit)

    def _fill_in_sources(self, families: _Families, taken: Snapshot) -> None:
        sources = group(taken.rows, "source")
        sources.sort(key=lambda each: -each.fullest.utilisation)
        for protocol in self._protocols:
            number = sum(each.protocol == protocol for each in sources)
            _add(families, "connectx_sources", number, protocol)
        for each in sources[:MOST_SOURCES]:
            row = each.fullest
            source = row.protocol, row.source
            _add(families, "connectx_source_capacity_ports", row.capacity, *source)
            _add(families, "connectx_source_connections", each.in_use, *source)
            _add(families, "connectx_source_destinations", each.pairs, *source)
            _add(families, "connectx_source_utilisation_ratio", row.utilisation, *source)
            pair = *source, str(row.destination)
            _add(families, "connectx_fullest_ports_in_use", row.in_use, *pair)
            _add(families, "connectx_fullest_reusable_ports", row.reusable, *pair)
            _add(families, "connectx_fullest_capacity_ports", row.capacity, *pair)
            _add(families, "connectx_fullest_utilisation_ratio", row.utilisation, *pair)


class DialerCollector(Collector):
    """What dialers did since they were made: `DIALER_METRICS`.

    dialers: connectx.Dialer or connectx.aio.Dialer, by a name for each, which becomes the
        label "dialer". What is added to the mapping later counts as well.

    Reads the dialers' own counters: no system call, and no socket is looked at.
    """

    def __init__(self, dialers: Mapping[str, HasStats]) -> None:
        self._dialers = dialers

    def describe(self) -> Iterator[Metric]:
        """What `collect` gives, without values."""
        yield from _families(DIALER_METRICS).values()

    def collect(self) -> list[Metric]:
        """What each of the dialers did."""
        families = _families(DIALER_METRICS)
        for name, dialer in dict(self._dialers).items():
            stats = dialer.stats()
            _add(families, "connectx_dialer_attempts_total", stats.attempts, name)
            _add(families, "connectx_dialer_opened_total", stats.opened, name)
            _add(families, "connectx_dialer_retries_total", stats.retries, name)
            for number, count in {**dict.fromkeys(_EXHAUSTED, 0), **stats.failures}.items():
                _add(families, "connectx_dialer_failures_total", count, name, number)
            _add(families, "connectx_dialer_search_seconds_total", stats.search_seconds, name)
            _add(families, "connectx_dialer_waits_total", stats.waits, name)
            _add(families, "connectx_dialer_waiting", stats.waiting, name)
        return list(families.values())


class Look(NamedTuple):
    """What was found in a network namespace.

    seconds: how long counting the sockets took. conntrack: None where it is not loaded.
    locked: TCP ports that are locked, as of a minute before at most; None where nobody can
    tell.
    """

    taken: Snapshot
    seconds: float
    time_wait: Table
    conntrack: Table | None
    locked: int | None


class _Outcome(NamedTuple):
    """What came of counting: a look, or the reason why there is none; failures so far."""

    look: Look | None
    reason: str
    failures: int


_Families: TypeAlias = dict[str, CounterMetricFamily | GaugeMetricFamily]


def _families(definitions: _Definitions) -> _Families:
    return {
        name: (CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily)(
            name, documentation, labels=labels
        )
        for name, (documentation, labels) in definitions.items()
    }


def _add(families: _Families, name: str, value: float, *labels: str) -> None:
    families[name].add_metric(labels, value)
