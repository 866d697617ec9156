"""What is wrong with the source ports of this machine, or was with a call that failed."""

from __future__ import annotations

import datetime as dt
import os
from ipaddress import ip_address
from typing import Final, NamedTuple

from connectx.addresses import Endpoint, PortRange
from connectx.core.finding import Finding, Severity
from connectx.core.findings import find
from connectx.core.verdict import verdict
from connectx.errors import ConnectxError
from connectx.observe.look import SOCKETS, Question, look
from connectx.observe.namespace import visiting
from connectx.observe.scopes import index_of

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
    destination: Endpoint | None = None,
    ports: PortRange | None = None,
    netns: str | None = None,
    seconds: float = SECONDS,
    idle_after: float = IDLE_AFTER,
) -> Diagnosis:
    """Look for everything that is wrong, and at a call that failed, if one is described.

    protocol: "tcp", "mptcp", "udp" or "udplite". number: the call's errno, 0 for none.
    source: the address that it asked for, or address and port. destination: where it was to go.
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
    if protocol not in SOCKETS:
        raise ValueError(f"a protocol is one of {', '.join(map(repr, SOCKETS))}, not {protocol!r}")
    source = Endpoint(source, 0) if isinstance(source, str) else source
    if source.host:
        ip_address(source.host)
    if destination is not None:
        ip_address(destination.host)
        if not destination.port:
            raise ValueError(f"a destination has a port, too: {destination.host}:443, say")
    asked = bool(number or source.host or source.port or destination or ports)
    question = Question(protocol, number, source, destination, ports) if asked else None
    with visiting(netns):
        if question is not None:
            question = question._replace(
                source=_with_scope(source),
                destination=destination and _with_scope(destination),
            )
        taken_at = dt.datetime.now(dt.UTC)
        facts = look(question, seconds=seconds, idle_after=idle_after)
        where = os.readlink("/proc/thread-self/ns/net")  # noqa: PTH115 - the text itself
    findings = find(facts)
    return Diagnosis(taken_at, where, verdict(facts, findings), tuple(findings), facts.unseen)


def _with_scope(endpoint: Endpoint) -> Endpoint:
    """With the scope as a number, which a host such as "fe80::9%eth0" has by name."""
    host, _, _ = endpoint.host.partition("%")
    return endpoint._replace(host=host, scope_id=index_of(endpoint.host, endpoint.scope_id))


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
