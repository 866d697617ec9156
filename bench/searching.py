"""What connect()'s search for a port costs, and that it is what the model's probes say.

The findings of "connect() - why are you so slow?" (2024), by time. The ports themselves, and the
order in which they come, are in tests/lab/test_latency.py and tests/kernel/test_port_search.py.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import random
import resource
import socket
import statistics
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.harness import (
    ABORT,
    DESTINATION,
    Findings,
    Table,
    in_network,
    listen_at_destination,
)
from connectx.addresses import PortRange
from connectx.lab import latency, simulate
from connectx.lab.summary import summarise
from connectx.linux import features
from connectx.linux.uapi import IP_LOCAL_PORT_RANGE
from connectx.sandbox.workers import in_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.harness import Settings
    from connectx.lab.latency import Latency

#: Enough to tell searches by time.
_PORTS: Final = PortRange(9024, 17023)
_ODD_PORTS: Final = PortRange(9025, 17024)
_WINDOWS: Final = (70, 2800)

#: As many as most kernels and users allow descriptors, and enough to tell searches by time.
_MODELLED: Final = PortRange(40000, 42047)
#: Connections whose median is taken, so that interruptions do not count.
_BIN: Final = 32
_WINDOW: Final = "window:256"

_MOST_ROUNDS: Final = 5


class _Attempt(NamedTuple):
    """connect()'s CPU time in nanoseconds, and its port; 0 for none."""

    nanoseconds: int
    port: int


def measure(settings: Settings) -> Findings:
    """Measure each several times, and take the median."""
    findings = Findings()
    rounds = min(settings.rounds, _MOST_ROUNDS)
    rows = []
    for name, (ratio, needs) in _MEASUREMENTS.items():
        settings.progress(f"search: {name}")
        if reason := _lacking(needs):
            findings.lack(f"search: {name}", reason)
            continue
        found = [ratio() for _ in range(rounds)]
        findings.add(f"search: {name}", statistics.median(found))
        rows.append((name, *(round(extreme, 2) for extreme in (min(found), max(found)))))
    findings.tables.append(Table("Search: what each round found", ("what", "least", "most"), rows))
    return findings


def _lacking(needs: Sequence[features.Feature]) -> str:
    missing = [
        feature.name for feature in needs if features.probe(feature) is not features.Probe.YES
    ]
    return f"this kernel has no {' and no '.join(missing)}" if missing else ""


def _fill(way: str, ports: PortRange = _PORTS) -> Latency:
    return in_worker(lambda: latency.run(latency.Settings(way, ports=ports), lambda *_: None))


def _odd_to_even(way: str, ports: PortRange = _PORTS) -> float:
    """The median time of connections on odd ports, that on even ones being 1."""
    summary = summarise(_fill(way, ports))
    return summary.odd.half / summary.even.half


def _even_to_odd(way: str, ports: PortRange) -> float:
    return 1 / _odd_to_even(way, ports)


def _apart(way: str) -> float:
    """How far apart both are, whichever takes longer."""
    return _either_way(_odd_to_even(way))


def _either_way(ratio: float) -> float:
    return max(ratio, 1 / ratio)


def _refusals() -> float:
    """What the quickest refusal by a large window takes, by a small one being 1."""
    small, large = (
        min(spent for spent, port in zip(fill.nanoseconds, fill.port, strict=True) if not port)
        for fill in (_fill(f"one-window:{size}").fill for size in _WINDOWS)
    )
    return large / small


def _slope() -> float:
    """Nanoseconds that a plain connect() took more than the one before it."""
    return summarise(_fill("kernel")).slope * 1000


def _correlation(predicted: str) -> float:
    """Of the time of plain connects, in order, with the probes of a search."""
    times = [each.nanoseconds for each in _connect_all(simulate.PLAIN)]
    probes = [each.probes for each in simulate.run(_modelled(predicted)).connections]
    return statistics.correlation(_medians(times), _medians(probes))


def _probe_cost(search: str) -> float:
    """How long another search takes in the range's second half: measured to predicted."""
    early, late = _halves([each.nanoseconds for each in _connect_all(simulate.PLAIN) if each.port])
    per_probe = (late - early) / _probes_in_second_half(simulate.PLAIN)
    # Those that fail have no handshake, and so another base.
    base, measured = _halves([each.nanoseconds for each in _connect_all(search) if each.port])
    return _either_way(measured / (base + per_probe * _probes_in_second_half(search)))


def _halves(times: Sequence[int]) -> tuple[float, float]:
    middle = len(times) // 2
    return statistics.median(times[:middle]), statistics.median(times[middle:])


def _probes_in_second_half(search: str) -> float:
    connections = simulate.run(_modelled(search)).connections
    return _halves([each.probes for each in connections if each.port])[1]


def _medians(values: Sequence[int]) -> list[float]:
    return [
        statistics.median(values[start : start + _BIN]) for start in range(0, len(values), _BIN)
    ]


def _modelled(search: str) -> simulate.Settings:
    return simulate.Settings(
        search=simulate.parse_search(search),
        ports=_MODELLED,
        step_of_one=features.probe(features.STEP_OF_ONE) is features.Probe.YES,
    )


def _connect_all(search: str) -> list[_Attempt]:
    return in_network(functools.partial(_connect_each, _modelled(search)), _MODELLED)


def _connect_each(settings: simulate.Settings) -> list[_Attempt]:
    """Do with sockets what simulate.run() does with the model."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    windows = random.Random(0)  # noqa: S311 - any windows will do
    with contextlib.ExitStack() as stack:
        stack.enter_context(listen_at_destination())
        return [_connect(settings, windows, stack) for _ in range(settings.attempts)]


def _connect(
    settings: simulate.Settings, windows: random.Random, stack: contextlib.ExitStack
) -> _Attempt:
    sock = stack.enter_context(socket.socket())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    low, high = settings.ports
    if settings.search.kind == simulate.WINDOW:
        low = windows.randint(low, high - settings.search.size + 1)
        high = low + settings.search.size - 1
    if settings.search.kind != simulate.PLAIN:
        window = struct.pack("=I", high << 16 | low)
        sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, window)
    # The CPU time of this thread: others' is not in it.
    before = time.thread_time_ns()
    code = sock.connect_ex(DESTINATION)
    spent = time.thread_time_ns() - before
    if code not in {0, errno.EADDRNOTAVAIL}:
        raise OSError(code, "connect() fails for another reason")
    return _Attempt(spent, 0 if code else sock.getsockname()[1])


_OPTION: Final = (features.IP_LOCAL_PORT_RANGE,)
_STEP_OF_ONE: Final = (features.IP_LOCAL_PORT_RANGE, features.STEP_OF_ONE)

#: By what a figure is called: the figure of one round, and what the kernel needs for it.
_MEASUREMENTS: Final[dict[str, tuple[Callable[[], float], Sequence[features.Feature]]]] = {
    "odd ports": (functools.partial(_odd_to_even, "kernel"), ()),
    "even ports of an odd range": (functools.partial(_even_to_odd, "kernel", _ODD_PORTS), ()),
    "slope": (_slope, ()),
    "full-range parity": (functools.partial(_apart, "full-range"), _STEP_OF_ONE),
    "auto parity": (functools.partial(_apart, "auto"), _OPTION),
    "refusals": (_refusals, _OPTION),
    "plain by its probes": (functools.partial(_correlation, simulate.PLAIN), ()),
    "plain by the option's": (functools.partial(_correlation, simulate.OPTION), _STEP_OF_ONE),
    "plain by a window's": (functools.partial(_correlation, _WINDOW), _OPTION),
    "a probe with the option": (functools.partial(_probe_cost, simulate.OPTION), _OPTION),
    "a probe in a window": (functools.partial(_probe_cost, _WINDOW), _OPTION),
}
