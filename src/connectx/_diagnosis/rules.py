"""From facts about a machine to findings: what is wrong, how one can tell, and what helps.

A rule is a function from `Facts` to findings, all of them are in `RULES`. Each is silent
on a healthy machine.
"""

from __future__ import annotations

import errno
import math
from collections import Counter
from typing import TYPE_CHECKING, Final

from connectx._diagnosis import causes, surroundings
from connectx._diagnosis.census import describe, of_exhaustion
from connectx._diagnosis.finding import (
    FILLING,
    FULL,
    SHOWN,
    Finding,
    Severity,
    duration,
    list_of,
    numbers,
    owners,
    reserve,
)
from connectx.addresses import Endpoint, FourTuple, PortRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from connectx._diagnosis.causes import Cause
    from connectx._diagnosis.facts import Facts, Holder, Pair

#: Seconds to exhaustion from which on a lower share is filling as well, and the least
#: share for that: a few connections more in a second say nothing about the next hour.
_SOON: Final = 600.0
_SOON_SHARE: Final = 0.3

#: Seconds between two counts from which on their difference is a rate.
_A_RATE_TAKES: Final = 0.1

#: A range that leaves the ports of most services out.
_WIDE: Final = PortRange(10240, 65535)

#: Shares of the range from which on held ports are serious, and more than a note.
_MANY: Final = 0.3
_SOME: Final = 0.01
#: TIME_WAITs toward one destination, as a share of its capacity.
_CHURN: Final = 0.2
#: Connections in CLOSE-WAIT: a few are on their way to being closed.
_LEAKED: Final = 10
#: As a share of the range. Fewer may be a pool's, whose other side closes what is idle.
_LEAKED_SHARE: Final = 0.05
_IDLE: Final = 0.5


def find(facts: Facts) -> list[Finding]:
    """All findings, worst first."""
    return worst_first(finding for rule in RULES for finding in rule(facts))


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """In the order of their severity, and else as they are."""
    return sorted(findings, key=lambda finding: list(Severity).index(finding.severity))


def not_local(facts: Facts) -> Iterator[Finding]:
    """The source address that was asked for is somebody else's, or not one's own yet."""
    asked = facts.asked
    if asked is None or asked.source_is_local is not False:
        return
    host = asked.source.host
    if asked.is_tentative:
        yield Finding(
            Severity.CRITICAL,
            causes.NOT_YET_LOCAL,
            f"{host} may not be used yet",
            ("`ip -6 address` shows it as tentative or dadfailed",),
        )
        return
    yield Finding(
        Severity.CRITICAL,
        causes.NOT_LOCAL,
        f"{host} is not an address of this host",
        (f"no device of this network namespace has {host}",),
        {"source": host},
    )


def ipv6_off(facts: Facts) -> Iterator[Finding]:
    """No IPv6, where somebody asks about an address of it, or may have meant one."""
    asked = facts.asked
    if facts.ipv6 or asked is None:
        return
    unknown = asked.number == errno.EADDRNOTAVAIL and asked.destination is None
    if asked.needs_ipv6 or unknown:
        yield Finding(
            Severity.CRITICAL if asked.needs_ipv6 else Severity.WARNING,
            causes.IPV6_OFF,
            "IPv6 is off in this network namespace",
            ("no device has an IPv6 address, not even the loopback's ::1",),
        )


def port_taken(facts: Facts) -> Iterator[Finding]:
    """The source port that was asked for has sockets on it."""
    asked = facts.asked
    if asked is None or not asked.on_port:
        return
    port = asked.source.port
    left = all(each.state == "TIME-WAIT" for each in asked.on_port)
    cause = causes.PORT_LEFT if left else causes.PORT_HELD
    yield Finding(
        Severity.CRITICAL if asked.number else Severity.NOTE,
        causes.TUPLE_IN_USE if asked.on_tuple else cause,
        f"{asked.protocol} port {port} is in use",
        tuple(
            f"{each.address}:{each.port} {each.state} {each.owner}".rstrip()
            for each in asked.on_port[: 2 * SHOWN]
        ),
    )


def exhausted(facts: Facts) -> Iterator[Finding]:
    """The ports that were asked about: none of them is free."""
    asked = facts.asked
    if asked is None or asked.census is None or asked.census.free > 0 or asked.census.untold:
        return
    census = asked.census
    destination = asked.destination or Endpoint("", 0)
    subject = FourTuple(asked.protocol, Endpoint(asked.census_source, 0), destination)
    stream = asked.protocol in ("tcp", "mptcp")
    for cause in of_exhaustion(census, stream=stream)[:1]:
        yield Finding(
            Severity.CRITICAL,
            cause,
            f"no source port of {census.ports} is free from {asked.census_source} to "
            f"{asked.destination} ({asked.protocol})",
            (
                describe(census, subject),
                *(
                    line
                    for pair in facts.pairs
                    if _is_asked(facts, pair)
                    for line in _told(facts, pair)
                ),
            ),
            _values(facts),
        )


def full(facts: Facts) -> Iterator[Finding]:
    """Destinations toward which all ports are taken, or soon will be."""
    told = any(True for _ in exhausted(facts))
    filling = [
        pair
        for pair in facts.pairs
        if _is_filling(pair, facts.seconds) and not (told and _is_asked(facts, pair))
    ]
    for pair in filling[:SHOWN]:
        share = pair.taken / max(1, pair.capacity)
        time_wait = pair.states.get("TIME-WAIT", 0) - pair.reusable
        yield Finding(
            Severity.CRITICAL if share >= FULL else Severity.WARNING,
            causes.TIME_WAIT if time_wait > pair.taken / 2 else causes.CONNECTED,
            f"{pair.taken:,} of {pair.capacity:,} source ports ({int(100 * share)} %) are in use "
            f"from {pair.source} to {pair.destination} ({pair.protocol})",
            _told(facts, pair),
            _values(facts),
        )
    if len(filling) > SHOWN:
        yield Finding(
            Severity.WARNING,
            causes.CONNECTED,
            f"{len(filling) - SHOWN} more pairs of a source and a destination are as full",
            ("`connectx usage` lists them all",),
        )


def bound_first(facts: Facts) -> Iterator[Finding]:
    """Connected sockets that were bound before."""
    yield from _held(
        facts,
        causes.BOUND_FIRST,
        [each for each in facts.holders if each.state == "connected"],
        "locked by sockets that were bound before they connected",
    )


def polluted(facts: Facts) -> Iterator[Finding]:
    """Ports that explicit binds keep, and their TIME_WAITs."""
    yield from _held(
        facts,
        causes.POLLUTED,
        [each for each in facts.holders if each.state in ("bound", "accepted", "TIME-WAIT")],
        "shut to connect() by sockets that were bound to them",
    )


def _held(facts: Facts, cause: Cause, held: list[Holder], what: str) -> Iterator[Finding]:
    if not held:
        return
    ports = {each.port for each in held}
    share = len(ports) / facts.ports.size
    states = Counter(each.state for each in held)
    severity = (
        Severity.CRITICAL
        if share >= _MANY
        else Severity.WARNING
        if share >= _SOME
        else Severity.NOTE
    )
    yield Finding(
        severity,
        cause,
        f"{len(ports):,} of {facts.ports.size:,} source ports are {what} ({held[0].protocol})",
        (
            f"{numbers(states)}; {owners(Counter(each.owner for each in held))}",
            f"ports {list_of(ports)}",
        ),
    )


def unshared(facts: Facts) -> Iterator[Finding]:
    """Hardly a port for UDP sockets that do not share theirs."""
    holes = sum(hole.contains(port) for hole in facts.reserved for port in _all(facts.ports))
    share = facts.udp_unused / max(1, facts.ports.size - holes)
    if share < 1 - FULL:
        yield Finding(
            Severity.WARNING if facts.udp_unused else Severity.CRITICAL,
            causes.UNSHARED,
            f"{facts.udp_unused:,} of {facts.ports.size:,} ports are free for UDP sockets that "
            "do not share",
            ("every other port of the range has a UDP socket on some address, or is reserved",),
        )


def listeners(facts: Facts) -> Iterator[Finding]:
    """Services in the range of ephemeral ports, unless their ports are reserved.

    A note: whether a listener's port was asked for by number or given by bind((host, 0)),
    in which case nothing is wrong, is not to be seen.
    """
    reserved = {port for hole in facts.reserved for port in range(hole.low, hole.high + 1)}
    found = [each for each in facts.holders if each.state == "LISTEN" and each.port not in reserved]
    ports = {each.port for each in found}
    if ports:
        yield Finding(
            Severity.NOTE,
            causes.LISTENERS,
            f"{len(ports):,} listeners' ports lie in the range {facts.ports}",
            tuple(
                f"{each.address}:{each.port} {each.owner}".rstrip() for each in found[: 2 * SHOWN]
            ),
            {"reserve": reserve(facts, ports)},
        )


def time_wait(facts: Facts) -> Iterator[Finding]:
    """Ports that rest in TIME_WAIT, since this host closes first."""
    churned = [
        pair
        for pair in facts.pairs
        if pair.states.get("TIME-WAIT", 0) - pair.reusable > _CHURN * pair.capacity
    ]
    if not churned:
        return
    total = sum(pair.states["TIME-WAIT"] - pair.reusable for pair in churned)
    worst = max(churned, key=lambda pair: pair.taken / max(1, pair.capacity))
    yield Finding(
        Severity.WARNING,
        causes.TIME_WAIT,
        f"{total:,} source ports rest in TIME_WAIT",
        (
            (
                f"{worst.states['TIME-WAIT']:,} of {worst.capacity:,} from {worst.source} to "
                f"{worst.destination}"
            ),
            "this host closes first, or the TIME_WAITs would be the other side's",
            _reuse(facts),
        ),
        _values(facts),
    )


def _reuse(facts: Facts) -> str:
    """Whether tcp_tw_reuse would help."""
    if not facts.tcp_timestamps:
        return "tcp_tw_reuse would not help: TCP timestamps are off"
    if facts.tcp_tw_reuse == 1:
        return "net.ipv4.tcp_tw_reuse is 1 already: after a second connect() may take one over"
    now = "which is for loopback addresses only" if facts.tcp_tw_reuse == 2 else "so none is"
    return f"net.ipv4.tcp_tw_reuse is {facts.tcp_tw_reuse}, {now}: 1 would help"


def leaks(facts: Facts) -> Iterator[Finding]:
    """Connections that nobody closes, or nobody uses."""
    waiting = sum(facts.close_wait.values())
    if waiting >= _LEAKED:
        serious = facts.close_wait_gain > 0 or waiting >= _LEAKED_SHARE * facts.ports.size
        yield Finding(
            Severity.WARNING if serious else Severity.NOTE,
            causes.CLOSE_WAIT,
            f"{waiting:,} connections are in CLOSE-WAIT",
            (
                owners(facts.close_wait),
                f"{facts.close_wait_gain:+} in {facts.seconds:.1f} s",
            ),
        )
    for pair in facts.pairs:
        if pair.idle > _IDLE * pair.capacity:
            yield Finding(
                Severity.WARNING,
                causes.IDLE,
                f"{pair.idle:,} connections from {pair.source} to {pair.destination} are idle",
                (owners(pair.owners), f"of {pair.capacity:,} ports"),
            )


def overshadowed(facts: Facts) -> Iterator[Finding]:
    """UDP sockets of which only the newest hears anything."""
    if facts.overshadowed:
        yield Finding(
            Severity.CRITICAL,
            causes.OVERSHADOWED,
            f"{len(facts.overshadowed):,} UDP 4-tuples have more than one socket",
            tuple(
                f"{each.source} -> {each.destination}: {', '.join(each.owners)}"
                for each in facts.overshadowed[: 2 * SHOWN]
            ),
        )


def not_honoured(facts: Facts) -> Iterator[Finding]:
    """Ports that were asked for and that the kernel would not keep to."""
    asked = facts.asked
    # EADDRINUSE is bind()'s, which honours every port.
    ports = asked.ports if asked is not None and asked.number != errno.EADDRINUSE else None
    if ports and not facts.ports.low <= ports.low <= ports.high <= facts.ports.high:
        wider = PortRange(min(ports.low, facts.ports.low), max(ports.high, facts.ports.high))
        possible = wider.low >= facts.unprivileged_port_start
        yield Finding(
            Severity.CRITICAL,
            causes.NOT_HONOURED,
            f"the ports {ports} are not all within the range in force, {facts.ports}",
            (f"net.ipv4.ip_local_port_range is {facts.ports}",),
            {"wider": f"{wider.low} {wider.high}"} if possible else {},
        )


RULES: Final[tuple[Callable[[Facts], Iterable[Finding]], ...]] = (
    not_local,
    ipv6_off,
    port_taken,
    exhausted,
    full,
    bound_first,
    polluted,
    unshared,
    overshadowed,
    not_honoured,
    time_wait,
    leaks,
    surroundings.descriptors,
    surroundings.conntrack,
    surroundings.translated,
    surroundings.time_wait_overflow,
    listeners,
    surroundings.timestamps_off,
    surroundings.old_kernel,
)


def _all(ports: PortRange) -> range:
    return range(ports.low, ports.high + 1)


def _is_asked(facts: Facts, pair: Pair) -> bool:
    """Whether a pair goes where the call that was asked about was to go."""
    asked = facts.asked
    return (
        asked is not None
        and asked.destination == pair.destination
        and pair.source == asked.census_source
        and pair.protocol == {"mptcp": "tcp"}.get(asked.protocol, asked.protocol)
    )


def _told(facts: Facts, pair: Pair) -> tuple[str, ...]:
    """Whose the connections of a pair are, and where they are going."""
    lines = [f"{numbers(pair.states)}; {owners(pair.owners)}"]
    if facts.seconds >= _A_RATE_TAKES:
        lines.append(f"{pair.rate:+.1f} ports a second over {facts.seconds:.1f} s")
        left = pair.capacity - pair.taken
        if left > 0 and pair.rate > 0:
            lines[1] += f": none is left in {duration(left / pair.rate)}"
    return tuple(lines)


def _values(facts: Facts) -> dict[str, str]:
    """What remedies against exhaustion have in braces."""
    values = {}
    if facts.tcp_timestamps and facts.tcp_tw_reuse != 1:
        values["reuse"] = "1"
    # The kernel lets the range not reach into the privileged ports.
    low = max(_WIDE.low, facts.unprivileged_port_start)
    wider = PortRange(min(low, facts.ports.low), _WIDE.high)
    if wider.size > facts.ports.size:
        values["wider"] = f"{wider.low} {wider.high}"
    ports = {each.port for each in facts.holders if each.state == "LISTEN"}
    if ports:
        values["reserve"] = reserve(facts, ports)
    return values


def _is_filling(pair: Pair, seconds: float) -> bool:
    share = pair.taken / max(1, pair.capacity)
    left = pair.capacity - pair.taken
    # Connections come and go by chance: three standard deviations are more than that.
    grows = pair.rate * seconds > 3 * math.sqrt(pair.in_use)
    soon = grows and left < _SOON * pair.rate and share >= _SOON_SHARE
    return share >= FILLING or soon
