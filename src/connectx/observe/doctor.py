"""What is wrong with the source ports of this machine, or was with a call that failed.

This module checks the question and puts the answer together. Facts, rules and verdicts are in
`connectx._diagnosis`.
"""

from __future__ import annotations

import datetime as dt
import os
import shlex
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx._diagnosis.doctor_rules import find
from connectx._diagnosis.facts import Call
from connectx._diagnosis.finding import Finding, Severity, one_per_cause
from connectx._diagnosis.machine import look
from connectx._diagnosis.verdict import together, verdict
from connectx.addresses import (
    PROTOCOLS,
    Endpoint,
    PortRange,
    packed,
    resolve_scope,
    text,
    unmapped,
)
from connectx.errors import ConnectxError
from connectx.observe.namespace import path_of, visiting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Seconds between the two counts that rates come from.
SECONDS: Final = 1.0

#: Seconds without data after which a connection is idle.
IDLE_AFTER: Final = 300.0


class Diagnosis(NamedTuple):
    """What a look at a network namespace has shown.

    Attributes:
        taken_at: When, in UTC.
        netns: The name that the namespace's file links to, such as "net:[4026531833]".
        verdict: What the call that was asked about failed from; "" if none was. The first
            line is the answer; further lines are about other sources and destinations.
        findings: What is wrong, one finding for each cause. The one that the verdict rests on
            comes first, then the worst.
        unseen: What could not be looked at, and why.
        because: The findings that the verdict rests on; none where nothing was found.
        calls: The call that was asked about, with what was found out about it: one for each
            source and destination that it may mean.
    """

    taken_at: dt.datetime
    netns: str
    verdict: str
    findings: tuple[Finding, ...]
    unseen: tuple[str, ...]
    because: tuple[Finding, ...] = ()
    calls: tuple[Call, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether there is nothing to do: no findings, or notes only."""
        return all(finding.severity is Severity.NOTE for finding in self.findings)


def examine(
    *,
    protocol: str = "tcp",
    number: int = 0,
    source: Endpoint | str = "",
    destination: Endpoint | Sequence[Endpoint] | None = None,
    ports: PortRange | None = None,
    netns: str | None = None,
    seconds: float = SECONDS,
    idle_after: float = IDLE_AFTER,
    progress: Callable[[str], object] = str,
) -> Diagnosis:
    """Look for everything that is wrong, and at a call that failed, if one is described.

    Nothing is changed. To find out which ports refuse to be shared, sockets of our own are
    bound to them for some microseconds each; they send nothing. Owners are seen of one's own
    processes, or by root of all.

    Args:
        protocol: "tcp", "mptcp", "udp" or "udplite".
        number: The errno of the call; 0 for none.
        source: The address that the call asked for, or address and port.
        destination: Where the call was to go. Of several, as a name has them, those of the
            source's IP version count.
        ports: The source ports that the call asked for; None for any.
        netns: Another network namespace, by name, path or pid, which takes CAP_SYS_ADMIN.
        seconds: How long to watch, in seconds, for rates.
        idle_after: The time without data, in seconds, after which a connection is idle.
        progress: Called with what is being done, whenever that changes.

    Raises:
        ValueError: The protocol is unknown, or an address or a port is none.
        OSError: The namespace cannot be entered, or its sockets cannot be read.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"a protocol is one of {', '.join(map(repr, PROTOCOLS))}, not {protocol!r}"
        )
    source = Endpoint(source, 0) if isinstance(source, str) else source
    several = [destination] if isinstance(destination, Endpoint) else list(destination or ())
    for each in several:
        if not (each.host and each.port):
            raise ValueError(f"a destination has an address and a port, not {each}")
    asked = bool(number or source.host or source.port or several or ports)
    with visiting(netns):
        source = _canonical(source)
        destinations = [_canonical(each) for each in several]
        # A name has addresses of both IP versions, and a source is of one.
        fitting = [each for each in destinations if _fit(source, each)] or destinations
        about: list[Endpoint | None] = [*fitting] or [None] * asked
        calls = [Call(protocol, number, source, each, ports) for each in about]
        taken_at = dt.datetime.now(dt.UTC)
        facts, calls_answered = look(
            calls, seconds=seconds, idle_after=idle_after, progress=progress
        )
        where = os.readlink("/proc/thread-self/ns/net")  # noqa: PTH115 - the text itself
    facts = facts._replace(within=_within(netns))
    views = [facts._replace(call=call) for call in calls_answered] or [facts]
    found = [find(view) for view in views]
    answers = [verdict(view, some) for view, some in zip(views, found, strict=True)]
    order = sorted(range(len(views)), key=lambda number: answers[number].rank)
    findings = one_per_cause(each for number in order for each in found[number])
    because = answers[order[0]].because
    findings.sort(key=lambda each: each.cause not in because)
    return Diagnosis(
        taken_at,
        where,
        together(
            [answers[number] for number in order], [calls_answered[number] for number in order]
        )
        if calls_answered
        else "",
        tuple(findings),
        facts.unseen,
        tuple(each for each in findings if each.cause in because),
        tuple(calls_answered[number] for number in order) if calls_answered else (),
    )


def diagnose(
    error: OSError,
    *,
    protocol: str = "tcp",
    source: str = "",
    destination: Endpoint | None = None,
    seconds: float = 0.0,
) -> Diagnosis:
    """Explain an error that was just caught; the sockets are looked at as they are now.

    Args:
        error: The error. One of connectx's carries protocol, source and destination itself.
        protocol: The protocol of the call, for any other error.
        source: The source address that the call asked for, for any other error.
        destination: The destination of the call, for any other error, if you know it.
        seconds: How long to watch, in seconds, for rates.

    Raises:
        ValueError: As `examine` does.
        OSError: As `examine` does.
    """
    ports = None
    asked: Endpoint | str = source
    if isinstance(error, ConnectxError):
        protocol = error.protocol
        asked = error.source
        destination = error.destination
        ports = error.ports
    return examine(
        protocol=protocol,
        number=error.errno or 0,
        source=asked,
        destination=destination,
        ports=ports,
        seconds=seconds,
    )


def _within(netns: str | None) -> str:
    """What a shell command has to begin with to run in a namespace; "" to stay."""
    return "" if netns is None else f"nsenter --net={shlex.quote(path_of(netns))} "


def _canonical(endpoint: Endpoint) -> Endpoint:
    """An endpoint as the kernel has it: the scope by number, and no IPv4-mapped address."""
    if not endpoint.host:
        return endpoint
    host, scope = resolve_scope(endpoint.host, endpoint.scope_id)
    octets = packed(host)
    if octets is None:
        raise ValueError(f"not an IP address: {host!r}")
    return endpoint._replace(host=text(unmapped(octets)), scope_id=scope)


def _fit(source: Endpoint, destination: Endpoint) -> bool:
    return not source.host or (":" in source.host) == (":" in destination.host)
