"""What is wrong with the source ports of this machine, or was with a call that failed."""

from __future__ import annotations

import datetime as dt
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx._diagnosis.finding import Finding, Severity
from connectx._diagnosis.look import Question, look
from connectx._diagnosis.rules import find, worst_first
from connectx._diagnosis.verdict import verdict
from connectx.addresses import PROTOCOLS, Endpoint, PortRange, packed, resolve_scope, text, unmapped
from connectx.errors import ConnectxError
from connectx.observe.namespace import visiting

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Seconds between the two counts that rates come from.
SECONDS: Final = 1.0

#: Seconds without data that make a connection idle.
IDLE_AFTER: Final = 300.0


class Diagnosis(NamedTuple):
    """What a look at a network namespace has shown.

    verdict: what the failure that was asked about comes from; "" if none was.
    findings: worst first. unseen: what could not be looked at, and why.
    """

    taken_at: dt.datetime
    netns: str
    verdict: str
    findings: tuple[Finding, ...]
    unseen: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is nothing to do: no findings but notes."""
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
) -> Diagnosis:
    """Look for everything that is wrong, and at a call that failed, if one is described.

    protocol: "tcp", "mptcp", "udp" or "udplite". number: the call's errno, 0 for none.
    source: the address that it asked for, or address and port. destination: where it was to go;
    several, where that was a name, of which those count that the source can go to.
    ports: a window that it was to keep to.
    netns: another network namespace, by name, path or pid; CAP_SYS_ADMIN in it.
    seconds: how long to watch, for rates. idle_after: seconds without data that make a
    connection idle.

    Takes no more than reading: sockets of its own are bound for some microseconds each, to
    find out which ports refuse to be shared, and send nothing. Owners are seen of one's own
    processes, or by root.

    Raises ValueError for what is no address, port or protocol, and OSError where the sockets
    cannot be read.
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
        source = _plain(source)
        towards = [_plain(each) for each in several]
        # A name has addresses of both families, a source is of one.
        towards = [each for each in towards if _fit(source, each)] or towards
        about: list[Endpoint | None] = [*towards] or [None] * asked
        questions = [Question(protocol, number, source, each, ports) for each in about]
        taken_at = dt.datetime.now(dt.UTC)
        facts, answers = look(questions, seconds=seconds, idle_after=idle_after)
        where = os.readlink("/proc/thread-self/ns/net")  # noqa: PTH115 - the text itself
    findings: dict[tuple[str, str], Finding] = {}
    verdicts = []
    for view in [replace(facts, asked=answer) for answer in answers] or [facts]:
        found = find(view)
        findings.update({(each.cause.name, each.title): each for each in found})
        said = verdict(view, found)
        named = view.asked is not None and len(answers) > 1
        verdicts.append(f"{view.asked.destination}: {said}" if named and view.asked else said)
    return Diagnosis(
        taken_at, where, "\n".join(verdicts), tuple(worst_first(findings.values())), facts.unseen
    )


def _plain(endpoint: Endpoint) -> Endpoint:
    """An address as the kernel has it: with a scope by number, and not IPv4-mapped."""
    if not endpoint.host:
        return endpoint
    host, scope = resolve_scope(endpoint.host, endpoint.scope_id)
    octets = packed(host)
    if octets is None:
        raise ValueError(f"not an IP address: {host!r}")
    return endpoint._replace(host=text(unmapped(octets)), scope_id=scope)


def _fit(source: Endpoint, destination: Endpoint) -> bool:
    return not source.host or (":" in source.host) == (":" in destination.host)


def diagnose(
    error: OSError,
    *,
    protocol: str = "tcp",
    source: str = "",
    destination: Endpoint | None = None,
    seconds: float = 0.0,
) -> Diagnosis:
    """What an error comes from that was just caught; the sockets are looked at as they are now.

    error: an error of connectx tells protocol, source and destination itself; of any other
    OSError name what you know.

    Raises as `examine` does.
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
