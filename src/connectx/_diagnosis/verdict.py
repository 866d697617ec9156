"""What an errno means here: exhaustion or not, in one or two plain sentences.

The verdict on a call comes from the findings about it, so the two cannot disagree.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from connectx._diagnosis import causes
from connectx._diagnosis.finding import Severity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectx._diagnosis.facts import Call, Census, Facts
    from connectx._diagnosis.finding import Finding

#: The errnos that exhaustion has.
OF_EXHAUSTION: Final = (errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EAGAIN)

#: What other errnos come from, if it is found.
_ELSEWHERE: Final = {
    errno.EINVAL: causes.NOT_HONOURED,
    errno.EMFILE: causes.DESCRIPTORS,
    errno.ETIMEDOUT: causes.CONNTRACK,
}

#: What keeps ports from a call, after their number.
_KEPT: Final = {
    causes.CONNECTED: "connections to it",
    causes.TIME_WAIT: "TIME_WAITs that this host left by closing first",
    causes.HELD: "ports that listeners and binds before connect() hold",
    causes.HELD_DATAGRAM: "ports that sockets without SO_REUSEADDR hold",
    causes.RESERVED: "reserved ports",
}

_TAKES: Final = "which takes Linux 6.3 and TCP Fast Open for clients to find out"


def verdict(facts: Facts, findings: Sequence[Finding]) -> str:
    """Return what the call that was asked about failed from; "" if none was."""
    call = facts.call
    if call is None:
        return ""
    if not call.number:
        return _of_destination(call)
    # A note has too small a share in anything to be the reason.
    serious = [each for each in findings if each.severity is not Severity.NOTE]
    return f"{_named(call.number)} {_of_number(call, facts, serious)}"


def _of_number(call: Call, facts: Facts, findings: Sequence[Finding]) -> str:
    found = {each.cause: each for each in reversed(findings)}
    if call.number not in OF_EXHAUSTION:
        cause = _ELSEWHERE.get(call.number)
        if cause in found:
            return f"may well come from this: {_inside(cause.summary)}"
        return f"is not exhaustion, which gives {', '.join(map(_named, OF_EXHAUSTION))}."
    for cause in (causes.NOT_LOCAL, causes.NOT_YET_LOCAL, causes.IPV6_OFF):
        if cause in found and (call.needs_ipv6 or cause is not causes.IPV6_OFF):
            return f"here means that {_inside(cause.summary)}"
    if call.on_port and (
        call.number == errno.EADDRINUSE or (call.number == errno.EADDRNOTAVAIL and call.stream)
    ):
        taken = next(found[cause] for cause in causes.OF_A_PORT if cause in found)
        return f"here means that {taken.title}: {taken.evidence[0]}."
    if call.unreachable:
        return f"does not look like exhaustion: {call.unreachable}."
    of_errno = {
        errno.EADDRNOTAVAIL: _not_available,
        errno.EADDRINUSE: _in_use,
        errno.EAGAIN: _again,
    }
    return of_errno[call.number](call, facts, findings)


def _named(number: int) -> str:
    return f"{number} ({errno.errorcode.get(number, 'unknown')})"


def _of_destination(call: Call) -> str:
    if call.census is None:
        return ""
    if call.census.free:
        return f"{_free(call, call.census)}: this is not exhaustion."
    if call.census.untold:
        return _untold(call, call.census)
    return f"No source port is free {_way(call)}: this is exhaustion."


def _way(call: Call) -> str:
    return f"from {call.census_source} to {call.destination}"


def _free(call: Call, census: Census) -> str:
    return f"{census.free:,} of {census.ports.size:,} source ports are free {_way(call)}"


def _untold(call: Call, census: Census) -> str:
    return (
        f"No source port is certainly free {_way(call)}. {census.untold:,} ports have sockets "
        f"toward other destinations, which may have locked them with bind(), {_TAKES}."
    )


def _exhausted(call: Call, census: Census) -> str:
    cause, number = census.by_cause(stream=call.stream)[0]
    return (
        f"here means exhaustion: no source port of {census.ports} is free {_way(call)} "
        f"({call.protocol}), because of {number:,} {_KEPT[cause]}."
    )


def _not_available(call: Call, facts: Facts, findings: Sequence[Finding]) -> str:
    ipv6 = "" if facts.ipv6 else ", or the address is an IPv6 one, and IPv6 is off here"
    if not call.stream:
        return (
            "from UDP is not exhaustion, which gives 11 (EAGAIN) there: the source address is not "
            f"one of this host's (name it with --source){ipv6}."
        )
    census = call.census
    if census is None:
        return _of_machine(
            facts,
            findings,
            "Exhaustion is per destination: name it with --destination, and the source address "
            f"with --source. Perhaps that is not one of this host's{ipv6}.",
        )
    if census.free:
        locked = (
            ""
            if facts.tells_binds_apart
            else " Or sockets that were bound before they connected have locked these ports, "
            f"{_TAKES}."
        )
        return (
            f"is not exhaustion here and now: {_free(call, census)}. It may be over, or the call "
            "asked for a source address that is not this host's, or for a port that is taken: "
            f"name them with --source ADDRESS:PORT.{_elsewhere(call, facts)}{locked}"
        )
    if census.untold:
        return f"may be exhaustion: {_inside(_untold(call, census))}"
    return _exhausted(call, census)


def _elsewhere(call: Call, facts: Facts) -> str:
    """Another source that is full toward the same destination."""
    for row in (pair.row for pair in facts.pairs):
        if (
            row.protocol == "tcp"
            and row.destination == call.destination
            and row.source != call.census_source
            and not row.free
        ):
            return f" It is exhaustion from {row.source}, which has no free port."
    return ""


def _in_use(call: Call, facts: Facts, findings: Sequence[Finding]) -> str:
    text = (
        "comes from bind(), not from connect(): another socket has the port that was asked for "
        "(name it with --source ADDRESS:PORT), or, for bind((address, 0)), every port of the "
        "range has a socket."
    )
    if not call.stream:
        text = f"{text} {facts.udp_unused:,} ports have no UDP socket at all."
    if _closed(findings):
        return (
            f"{text} Sockets that are bound before they connect lock their ports here, as listed "
            "below: IP_BIND_ADDRESS_NO_PORT ends that."
        )
    return f"{text} {_fullness(facts)}"


def _again(call: Call, facts: Facts, findings: Sequence[Finding]) -> str:
    if call.stream:
        return (
            "from a TCP connect() is not exhaustion: the call was non-blocking, or the socket is a "
            "Unix one whose listener's queue is full. For UDP it is exhaustion: say --protocol udp."
        )
    census = call.census
    if census is not None and not census.free:
        return _exhausted(call, census)
    sharing = "" if census is None else f" {_free(call, census)} for sockets that share ports."
    if not facts.udp_unused:
        return (
            "here means exhaustion for sockets that do not share ports: a plain UDP connect() or "
            "sendto() needs a port that no other UDP socket has, and there is none."
            f"{sharing}"
        )
    unused = f"{facts.udp_unused:,} ports have no UDP socket at all."
    if census is not None:
        return f"is not exhaustion here and now: {unused}{sharing}"
    return _of_machine(
        facts, findings, f"{unused} Name the destination with --destination to be sure."
    )


def _of_machine(facts: Facts, findings: Sequence[Finding], hint: str) -> str:
    for finding in findings:
        if finding.severity is Severity.CRITICAL and finding.cause in causes.OF_A_DESTINATION:
            return f"may well come from exhaustion: {finding.title}. {hint}"
    if _closed(findings):
        return f"may come from ports that are closed to connect(), as listed below. {hint}"
    return f"does not look like exhaustion: {_inside(_fullness(facts))} {hint}"


def _closed(findings: Sequence[Finding]) -> bool:
    """Whether ports are closed to connect(), which only a look at the machine shows."""
    return any(each.cause in (causes.BOUND_FIRST, causes.POLLUTED) for each in findings)


def _fullness(facts: Facts) -> str:
    if not facts.pairs:
        return "No source port of the range is in use."
    row = facts.pairs[0].row
    return (
        f"The fullest pair, {row.source} to {row.destination}, has {row.taken:,} of "
        f"{row.capacity:,} ports in use."
    )


def _inside(sentence: str) -> str:
    """A sentence after a colon, which begins in lower case but for names such as IPv6."""
    first, _, rest = sentence.partition(" ")
    return f"{first.lower() if first.istitle() else first} {rest}"
