"""What an errno means here: exhaustion or not, in one or two plain sentences."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from connectx._diagnosis import causes
from connectx._diagnosis.finding import FULL, Severity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectx._diagnosis.causes import Cause
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
    found = {each.cause for each in findings if each.severity is not Severity.NOTE}
    return f"{_named(call.number)} {_of_number(call, facts, found)}"


def _of_number(call: Call, facts: Facts, found: set[Cause]) -> str:
    if call.number not in OF_EXHAUSTION:
        cause = _ELSEWHERE.get(call.number)
        if cause in found:
            return f"may well come from this: {_inside(cause.summary)}"
        return f"is not exhaustion, which gives {', '.join(map(_named, OF_EXHAUSTION))}."
    for cause in (causes.NOT_LOCAL, causes.NOT_YET_LOCAL, causes.IPV6_OFF):
        if cause in found and (call.needs_ipv6 or cause is not causes.IPV6_OFF):
            return f"here means: {_inside(cause.summary)}"
    if call.on_port and (
        call.number == errno.EADDRINUSE or (call.number == errno.EADDRNOTAVAIL and call.stream)
    ):
        return f"here means: {_of_port(call)}"
    if call.unreachable:
        return f"does not look like exhaustion: {call.unreachable}."
    of_errno = {
        errno.EADDRNOTAVAIL: _not_available,
        errno.EADDRINUSE: _in_use,
        errno.EAGAIN: _again,
    }
    return of_errno[call.number](call, facts, found)


def _named(number: int) -> str:
    return f"{number} ({errno.errorcode.get(number, 'unknown')})"


def _of_port(call: Call) -> str:
    holder = call.on_port[0]
    of = f" of {holder.owner}" if holder.owner else ""
    port = f"{call.protocol} port {call.source.port}"
    if call.on_tuple:
        return f"another socket{of} has exactly this 4-tuple, {port} to {call.destination}."
    return f"{port} has a socket{of} on it ({holder.state})."


def _of_destination(call: Call) -> str:
    census = call.census
    if census is None:
        return ""
    if census.free:
        return f"{_free(call, census)}: this is not exhaustion."
    if census.untold:
        return f"No source port is certainly free {_way(call)}.{_untold(census)}"
    return f"No source port is free {_way(call)}: this is exhaustion."


def _way(call: Call) -> str:
    return f"from {call.census_source} to {call.destination}"


def _free(call: Call, census: Census) -> str:
    return f"{census.free:,} of {census.ports.size:,} source ports are free {_way(call)}"


def _untold(census: Census) -> str:
    return (
        f" {census.untold:,} of them have sockets toward other destinations, which may have locked "
        f"them with bind(), {_TAKES}."
    )


def _not_available(call: Call, facts: Facts, found: set[Cause]) -> str:
    if not call.stream:
        return (
            "from UDP is not exhaustion, which gives 11 (EAGAIN) there: the source address is not "
            f"one of this host's (name it with --source){_or_ipv6(facts)}."
        )
    census = call.census
    if census is None:
        return _of_machine(
            facts,
            found,
            "Exhaustion is per destination: name it with --destination, and the source address "
            f"with --source. Perhaps that is not one of this host's{_or_ipv6(facts)}.",
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
        return f"may be exhaustion: no source port is certainly free {_way(call)}.{_untold(census)}"
    cause, number = census.by_cause(stream=True)[0]
    return (
        f"here means exhaustion: no source port of {census.ports} is free {_way(call)}, because of "
        f"{number:,} {_KEPT[cause]}."
    )


def _elsewhere(call: Call, facts: Facts) -> str:
    """Another source that is full toward the same destination."""
    for row in (pair.row for pair in facts.pairs):
        if (
            row.protocol == "tcp"
            and row.destination == call.destination
            and row.source != call.census_source
            and row.taken >= row.capacity
        ):
            return f" It is exhaustion from {row.source}, which has no free port."
    return ""


def _or_ipv6(facts: Facts) -> str:
    return "" if facts.ipv6 else ", or the address is an IPv6 one, and IPv6 is off here"


def _in_use(call: Call, facts: Facts, found: set[Cause]) -> str:
    if call.stream:
        text = (
            "comes from bind(), not from connect(): the port that was asked for is held (name it "
            "with --source ADDRESS:PORT), or, for bind((address, 0)), every port of the range has "
            "a socket."
        )
    else:
        text = (
            "comes from bind(): another socket has the port and does not share it (name it with "
            "--source ADDRESS:PORT), or, for bind((address, 0)), every port has a socket on that "
            f"address. {facts.udp_unused:,} ports have no UDP socket at all."
        )
    if causes.BOUND_FIRST in found or causes.POLLUTED in found:
        return (
            f"{text} Sockets that are bound before they connect lock their ports here, as listed "
            "below: IP_BIND_ADDRESS_NO_PORT ends that."
        )
    return f"{text} {_fullness(facts)}"


def _again(call: Call, facts: Facts, found: set[Cause]) -> str:
    if call.stream:
        return (
            "from a TCP connect() is not exhaustion: the call was non-blocking, or the socket is a "
            "Unix one whose listener's queue is full. For UDP it is exhaustion: say --protocol udp."
        )
    census = call.census
    if census is not None and not census.free:
        return (
            f"here means exhaustion: no UDP source port of {census.ports} is free {_way(call)}, "
            "not even for sockets that share ports."
        )
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
        facts, found, f"{unused} Name the destination with --destination to be sure."
    )


def _of_machine(facts: Facts, found: set[Cause], hint: str) -> str:
    for row in (pair.row for pair in facts.pairs):
        if row.taken >= FULL * row.capacity:
            return (
                f"means exhaustion for connections from {row.source} to {row.destination}, where "
                f"{row.taken:,} of {row.capacity:,} ports are in use. {hint}"
            )
    if causes.BOUND_FIRST in found or causes.POLLUTED in found:
        return f"may come from ports that are closed to connect(), as listed below. {hint}"
    return f"does not look like exhaustion: {_inside(_fullness(facts))} {hint}"


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
