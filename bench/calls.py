"""Which system calls a connection takes, as strace sees them."""

from __future__ import annotations

import functools
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import traced
from bench.harness import KINDS, SOURCES, Findings, Table, in_network
from connectx.linux import uapi

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.harness import Settings

    #: The system calls of one connection, in order.
    Trace = tuple[str, ...]

#: One line of strace -X raw, which prints all constants as numbers: older straces do not know
#: the newer options.
_CALL: Final = re.compile(r"(?P<name>\w+)\((?:\d+, (?P<level>0x\w+|\d+), (?P<option>0x\w+|\d+))?")

_OPTIONS: Final = {
    (uapi.SOL_SOCKET, uapi.SO_REUSEADDR): "SO_REUSEADDR",
    (uapi.SOL_SOCKET, uapi.SO_MARK): "SO_MARK",
    (uapi.SOL_SOCKET, uapi.SO_PROTOCOL): "SO_PROTOCOL",
    (uapi.SOL_SOCKET, uapi.SO_COOKIE): "SO_COOKIE",
    (uapi.SOL_SOCKET, uapi.SO_NETNS_COOKIE): "SO_NETNS_COOKIE",
    (uapi.SOL_SOCKET, uapi.SO_BINDTOIFINDEX): "SO_BINDTOIFINDEX",
    (uapi.IPPROTO_IP, uapi.IP_FREEBIND): "IP_FREEBIND",
    (uapi.IPPROTO_IP, uapi.IP_LOCAL_PORT_RANGE): "IP_LOCAL_PORT_RANGE",
    (uapi.IPPROTO_IP, uapi.IP_BIND_ADDRESS_NO_PORT): "IP_BIND_ADDRESS_NO_PORT",
}
_WITH_OPTION: Final = ("getsockopt", "setsockopt")

#: What the interpreter's memory needs now and then is not a connection's.
_FILTER: Final = "trace=!%memory"


def measure(settings: Settings) -> Findings:
    """Trace each way on a small range."""
    findings = Findings()
    for protocol in KINDS:
        for source in SOURCES:
            figure = f"system calls, {protocol}, {source}"
            settings.progress(figure)
            strace = shutil.which("strace")
            if strace is None:
                traces: Mapping[str, list[Trace]] = {}
            else:
                traces = {
                    way: in_network(
                        functools.partial(_trace, strace, protocol, source, way), traced.PORTS
                    )
                    for way in traced.ways(protocol)
                }
                findings.tables.append(_table(protocol, source, traces))
            _compare(findings, figure, traces)
            if protocol == "udp":
                _compare(findings, f"{figure}: new destinations", traces, traced.NEW)
    return findings


def _compare(
    findings: Findings, figure: str, traces: Mapping[str, list[Trace]], suffix: str = ""
) -> None:
    """Count the system calls that connectx issues and the bare loop does not, or the reverse."""
    if not traces:
        findings.lack(figure, "no strace: install it")
        return
    ours, bare = (Counter(_usual(traces[f"{way}{suffix}"])) for way in ("connectx", "bare loop"))
    more, fewer = ours - bare, bare - ours
    findings.add(
        figure,
        (more + fewer).total(),
        ", ".join([*(f"+{name}" for name in more), *(f"-{name}" for name in fewer)]),
    )


def _table(protocol: str, source: str, traces: Mapping[str, list[Trace]]) -> Table:
    return Table(
        f"System calls per connection: {protocol.upper()}, {source}",
        ("way", "mean", "usually", "which"),
        [
            (
                way,
                round(statistics.fmean(map(len, trace)), 2),
                len(_usual(trace)),
                ", ".join(_usual(trace)),
            )
            for way, trace in traces.items()
        ],
    )


def _trace(strace: str, protocol: str, source: str, way: str) -> list[Trace]:
    """Return the system calls of each connection but the last, which is cut off somewhere."""
    with tempfile.NamedTemporaryFile("r", prefix="connectx-bench-") as output:
        command = (strace, "-qq", "-X", "raw", "-e", "signal=none", "-e", _FILTER)
        program = (sys.executable, "-m", "bench.traced", protocol, source, way)
        subprocess.run(
            [*command, "-o", output.name, *program], check=True, cwd=Path(__file__).parents[1]
        )
        _, between, _ = re.split(rf".*{traced.MARK.decode()}.*\n", output.read())
    connections: list[Trace] = [()]
    for name in map(_label, between.splitlines()):
        # The first socket after a connect() is the next connection's.
        if name == "socket" and "connect" in connections[-1]:
            connections.append(())
        connections[-1] = (*connections[-1], name)
    return connections[:-1]


def _label(line: str) -> str:
    call = _CALL.match(line)
    if call is None:
        raise ValueError(f"strace printed {line!r}, which is not a system call")
    name = call["name"]
    if name not in _WITH_OPTION:
        return name
    option = int(call["level"], 0), int(call["option"], 0)
    return f"{name} {_OPTIONS.get(option, option)}"


def _usual(traces: list[Trace]) -> Trace:
    ((usual, _),) = Counter(traces).most_common(1)
    return usual
