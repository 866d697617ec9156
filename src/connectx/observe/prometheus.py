"""Metrics for Prometheus: the ports in use in a network namespace, and what dialers did.

>>> from connectx import Dialer
>>> from connectx.observe.prometheus import DialerCollector, SocketCollector
>>> from prometheus_client import CollectorRegistry
>>> registry = CollectorRegistry()
>>> registry.register(SocketCollector())
>>> registry.register(DialerCollector({"api": Dialer(wait=2.0)}))
>>> registry.get_sample_value("connectx_up")
1

Needs prometheus-client, from the extra `tools`. Ports are limited per source and destination,
so a source is as full as its fullest destination, whatever the sum of its connections. There
are no series for processes or local ports, and none for destinations except the fullest of
each source, unless you ask for more.
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

#: How many sources have series of their own, the fullest first: a dialer that draws its
#: sources from an IPv6 prefix has as many as it has connections.
MOST_SOURCES: Final = 1000

#: Seconds between two tries of all ports in use, each of which takes about 10 microseconds.
_TRY_EVERY: Final = 60.0

_SOURCE: Final = ("protocol", "source")
_PAIR: Final = ("protocol", "source", "destination")

_Definitions: TypeAlias = dict[str, tuple[str, tuple[str, ...]]]

#: The metrics of sockets by name, each with its description and its labels.
SOCKET_METRICS: Final[_Definitions] = {
    "connectx_up": (
        "1 if the sockets could be counted. 0 if not: then all counts are missing.",
        (),
    ),
    "connectx_snapshot_failures_total": ("Counts of the sockets that failed.", ()),
    "connectx_snapshot_duration_seconds": ("The time that the last count of the sockets took.", ()),
    "connectx_range_ports": ("Source ports in net.ipv4.ip_local_port_range.", ()),
    "connectx_range_reserved_ports": (
        "Ports of the range that net.ipv4.ip_local_reserved_ports excludes.",
        (),
    ),
    "connectx_range_held_ports": (
        "Ports of the range that listeners and sockets that are only bound hold.",
        ("protocol",),
    ),
    "connectx_range_locked_ports": (
        "Ports of the range that sockets which were bound before they connected lock.",
        ("protocol",),
    ),
    "connectx_range_unshared_free_ports": (
        "Ports of the range that no socket has, which sockets without SO_REUSEADDR need.",
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
        "Source ports that a source has toward each single destination.",
        _SOURCE,
    ),
    "connectx_source_connections": (
        "Connections from a source to all destinations. The capacity is for each of them.",
        _SOURCE,
    ),
    "connectx_source_destinations": ("Destinations to which a source is connected.", _SOURCE),
    "connectx_source_utilisation_ratio": (
        "The share of a source's ports that are taken toward its fullest destination.",
        _SOURCE,
    ),
    "connectx_fullest_ports_in_use": (
        "Ports in use from a source toward its fullest destination.",
        _PAIR,
    ),
    "connectx_fullest_reusable_ports": (
        "How many of these ports are TIME_WAITs that a connect() may take over now.",
        _PAIR,
    ),
    "connectx_fullest_capacity_ports": (
        "Ports that a source has toward its fullest destination.",
        _PAIR,
    ),
    "connectx_fullest_utilisation_ratio": (
        "The share of the ports that are taken from a source toward its fullest destination.",
        _PAIR,
    ),
    "connectx_top_ports_in_use": (
        "Ports in use by the fullest pairs of a source and a destination.",
        _PAIR,
    ),
    "connectx_top_utilisation_ratio": (
        "The share of the ports that the fullest pairs have taken.",
        _PAIR,
    ),
    "connectx_conntrack_entries": ("Entries in the conntrack table.", ()),
    "connectx_conntrack_entries_limit": (
        "net.netfilter.nf_conntrack_max; 0 for no limit.",
        (),
    ),
    "connectx_time_wait_sockets": ("TCP sockets in TIME_WAIT.", ()),
    "connectx_time_wait_sockets_limit": (
        "net.ipv4.tcp_max_tw_buckets, beyond which connections end without TIME_WAIT.",
        (),
    ),
}

_DIALER: Final = ("dialer",)

#: The metrics of dialers by name, each with its description and its labels.
DIALER_METRICS: Final[_Definitions] = {
    "connectx_dialer_attempts_total": (
        "Attempts to connect, one for each source and range of ports.",
        _DIALER,
    ),
    "connectx_dialer_opened_total": ("Attempts that made a connection.", _DIALER),
    "connectx_dialer_retries_total": ("Ports that were refused within attempts.", _DIALER),
    "connectx_dialer_failures_total": (
        "Attempts that failed, by the name of the errno.",
        ("dialer", "errno"),
    ),
    "connectx_dialer_search_seconds_total": (
        "Time spent in attempts that found no port.",
        _DIALER,
    ),
    "connectx_dialer_waits_total": ("Calls that had to wait for a port.", _DIALER),
    "connectx_dialer_waiting": ("Calls that wait for a port now.", _DIALER),
}

#: The errnos of exhaustion. Their counters are there from the start, at 0: Prometheus sees no
#: increase of a counter that appears with its first event.
_EXHAUSTED: Final = tuple(
    errno.errorcode[each] for each in (errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EAGAIN)
)


class HasStats(Protocol):
    """What the metrics need of a connectx.Dialer or connectx.aio.Dialer."""

    def stats(self) -> Stats:
        """Return what the dialer has done."""


class SocketCollector(Collector):
    """Collects the ports in use in a network namespace: `SOCKET_METRICS`.

    Each scrape counts the sockets. A scrape that arrives while another one counts waits for
    it and returns the same. Which TCP ports are locked is tried at most once a minute: a
    socket of ours is bound to each port in use for some microseconds, and sends nothing.

    Args:
        protocols: Some of "tcp", "udp" and "udplite".
        netns: Another network namespace, as for `connectx.observe.snapshot`.
        top: How many of the fullest pairs of a source and a destination to include, at most
            1,000.
        report: Called with the reason when the sockets cannot be counted, once for each
            reason; by default the reason is logged as a warning.

    Raises:
        ValueError: A protocol is unknown, or `top` is out of range.
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
        """Yield the metrics of `collect` without values, and without counting anything."""
        yield from _families(SOCKET_METRICS).values()

    def collect(self) -> list[Metric]:
        """Count the sockets, and return the metrics; few of them if counting has failed."""
        outcome = self._count_or_share()
        families = _families(SOCKET_METRICS)
        _add(families, "connectx_up", 0 if outcome.reason else 1)
        _add(families, "connectx_snapshot_failures_total", outcome.failures)
        if outcome.look is not None:
            self._fill_in(families, outcome.look)
        return [family for family in families.values() if family.samples]

    def look(self) -> Look:
        """Count the sockets once.

        Raises:
            OSError: As `connectx.observe.snapshot` does.
            ValueError: As `connectx.observe.snapshot` does.
        """
        with visiting(self._netns):
            begun = time.perf_counter()
            taken = snapshot(protocols=self._protocols)
            seconds = time.perf_counter() - begun
            if "tcp" in self._protocols:
                self._try_locked()
            return Look(taken, seconds, proc_net.time_wait(), proc_net.conntrack(), self._locked)

    def _try_locked(self) -> None:
        """Count the locked ports, unless that was done less than a minute ago."""
        now = time.monotonic()
        if now < self._try_again:
            return
        self._try_again = now + _TRY_EVERY
        former, self._locked, self._untried = self._untried, None, ""
        try:
            self._locked = count_locked()
        except OSError as error:
            # The loopback device is down, for example. Everything else can still be counted.
            self._untried = str(error)
            if self._untried != former:
                self._report(f"cannot try which ports are locked: {error}")

    def _count_or_share(self) -> _Outcome:
        before = self._counted
        with self._lock:
            # Otherwise another thread has counted while we waited for the lock, and its count
            # is recent enough for every thread that was waiting.
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
    """Collects what dialers have done since they were made: `DIALER_METRICS`.

    Reads the dialers' own counters. It makes no system call and looks at no socket.

    Args:
        dialers: Each connectx.Dialer or connectx.aio.Dialer by a name, which becomes the label
            "dialer". Dialers that are added to the mapping later are included.
    """

    def __init__(self, dialers: Mapping[str, HasStats]) -> None:
        self._dialers = dialers

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics of `collect` without values."""
        yield from _families(DIALER_METRICS).values()

    def collect(self) -> list[Metric]:
        """Return the metrics of each dialer."""
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

    Attributes:
        taken: The count of the sockets.
        seconds: The time that it took.
        time_wait: The table of TIME_WAITs.
        conntrack: The table of tracked connections; None if it is not loaded.
        locked: The number of TCP ports that are locked, at most a minute old; None where
            this kernel does not let us find out.
    """

    taken: Snapshot
    seconds: float
    time_wait: Table
    conntrack: Table | None
    locked: int | None


class _Outcome(NamedTuple):
    """The outcome of counting: a look, or why there is none, and the failures so far."""

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
