"""What an errno means here: exhaustion or not, said plainly."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from connectx._diagnosis import causes
from connectx._diagnosis.finding import FULL, Severity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectx._diagnosis.census import Census
    from connectx._diagnosis.facts import Asked, Facts
    from connectx._diagnosis.finding import Finding

#: The errnos that exhaustion has.
OF_EXHAUSTION: Final = (errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EAGAIN)

#: What other errnos come from, where that is found.
_ELSEWHERE: Final = {
    errno.EINVAL: causes.NOT_HONOURED,
    errno.EMFILE: causes.DESCRIPTORS,
    errno.ETIMEDOUT: causes.CONNTRACK,
}

_UNTOLD: Final = (
    " The others have sockets toward other destinations, and this kernel does not tell whether "
    "these have locked them by bind(): it takes Linux 6.3, and clients' TCP Fast Open."
)

_LOCKED: Final = (
    " Or sockets that were bound before they connected have locked these ports, which this kernel "
    "does not tell: it takes Linux 6.3, and clients' TCP Fast Open."
)


def verdict(facts: Facts, findings: Sequence[Finding]) -> str:
    """One or two sentences: what the failure that was asked about comes from; "" for none."""
    asked = facts.asked
    if asked is None:
        return ""
    if not asked.number:
        return _of_destination(asked)
    # A note has too small a share in anything to be the reason for it.
    found = {each.cause for each in findings if each.severity is not Severity.NOTE}
    return f"{_named(asked.number)} {_of_number(asked, facts, found)}"


def _of_number(asked: Asked, facts: Facts, found: set[causes.Cause]) -> str:
    if asked.number not in OF_EXHAUSTION:
        cause = _ELSEWHERE.get(asked.number)
        if cause in found:
            return f"may well come from this. {cause.summary}"
        return f"is not what exhaustion gives: {', '.join(map(_named, OF_EXHAUSTION))} are."
    for cause in (causes.NOT_LOCAL, causes.NOT_YET_LOCAL, causes.IPV6_OFF):
        if cause in found and not (cause is causes.IPV6_OFF and not asked.needs_ipv6):
            return f"means here: {_begun(cause.summary)}"
    stream = asked.protocol in ("tcp", "mptcp")
    if asked.on_port and (
        asked.number == errno.EADDRINUSE or (asked.number == errno.EADDRNOTAVAIL and stream)
    ):
        return f"means here: {_of_port(asked)}"
    if asked.unreachable:
        return f"is not exhaustion, as far as one can see: {asked.unreachable}."
    of_this = {
        errno.EADDRNOTAVAIL: _not_available,
        errno.EADDRINUSE: _in_use,
        errno.EAGAIN: _again,
    }
    return of_this[asked.number](asked, facts, found)


def _named(number: int) -> str:
    return f"{number} ({errno.errorcode.get(number, 'unknown')})"


def _of_port(asked: Asked) -> str:
    holder = asked.on_port[0]
    of = f" of {holder.owner}" if holder.owner else ""
    port = f"{asked.protocol} port {asked.source.port}"
    if asked.on_tuple:
        return f"another socket{of} is on exactly this 4-tuple, {port} to {asked.destination}."
    return f"{port} has a socket{of} already ({holder.state})."


def _of_destination(asked: Asked) -> str:
    census = asked.census
    if census is None:
        return ""
    if census.free:
        return f"{_free(asked, census)}: this is not exhaustion."
    if census.untold:
        return f"No source port is surely free {_way(asked)}.{_UNTOLD}"
    return f"No source port is free {_way(asked)}: this is exhaustion."


def _way(asked: Asked) -> str:
    return f"from {asked.census_source} to {asked.destination}"


def _free(asked: Asked, census: Census) -> str:
    return f"{census.free:,} of {census.ports.size:,} source ports are free {_way(asked)}"


def _not_available(asked: Asked, facts: Facts, found: set[causes.Cause]) -> str:
    if asked.protocol in ("udp", "udplite"):
        return (
            "from UDP is not exhaustion, which gives 11 (EAGAIN) there: the source address is not "
            f"this host's (name it with --source){_ipv6(facts)}."
        )
    census = asked.census
    if census is None:
        return _of_machine(
            facts,
            found,
            "Exhaustion is per destination: name it with --destination, and the source address "
            f"with --source, which may not be this host's{_ipv6(facts)}.",
        )
    if census.free:
        return (
            f"is not exhaustion here and now: {_free(asked, census)}. It may be over; or the call "
            "asked for a source address that is not this host's, or for a port that somebody has: "
            "name them with --source ADDRESS:PORT."
            f"{_elsewhere(asked, facts)}{_LOCKED * (not facts.tells_binds_apart)}"
        )
    if census.untold:
        return f"may be exhaustion: no source port is surely free {_way(asked)}.{_UNTOLD}"
    shares = {
        f"{census.connected:,} connections to it": census.connected,
        f"{census.time_wait - census.reusable:,} TIME_WAITs that this host left by closing "
        "first": census.time_wait - census.reusable,
        f"{census.held:,} ports that listeners and binds before connect() hold": census.held,
        f"{census.reserved:,} reserved ports": census.reserved,
    }
    worst = max(shares, key=lambda share: shares[share])
    return (
        f"means here: exhaustion. No source port of {census.ports} is free {_way(asked)}, because "
        f"of {worst}."
    )


def _elsewhere(asked: Asked, facts: Facts) -> str:
    """Other sources that are full toward the same destination."""
    for pair in facts.pairs:
        if (
            pair.protocol == "tcp"
            and pair.destination == asked.destination
            and pair.source != asked.census_source
            and pair.taken >= pair.capacity
        ):
            return f" From {pair.source} it is: none is free."
    return ""


def _ipv6(facts: Facts) -> str:
    return "" if facts.ipv6 else ", or the address is of IPv6, which is off here"


def _in_use(asked: Asked, facts: Facts, found: set[causes.Cause]) -> str:
    if asked.protocol in ("tcp", "mptcp"):
        text = (
            "comes from bind(), not from connect(): the port that was asked for is held (name it "
            "with --source ADDRESS:PORT), or, with bind((address, 0)), no port of the range is "
            "unused by every other socket."
        )
    else:
        text = (
            "comes from bind(): another socket has the port and does not share it (name it with "
            "--source ADDRESS:PORT), or, with bind((address, 0)), every port has one on that "
            f"address. {facts.udp_unused:,} ports have no UDP socket at all."
        )
    if causes.BOUND_FIRST in found or causes.POLLUTED in found:
        return (
            f"{text} Sockets that are bound before they connect lock their ports here, as listed "
            "below: IP_BIND_ADDRESS_NO_PORT ends that."
        )
    return f"{text} {_fullness(facts)}"


def _again(asked: Asked, facts: Facts, found: set[causes.Cause]) -> str:
    if asked.protocol in ("tcp", "mptcp"):
        return (
            "from a TCP connect() is not exhaustion: a Unix socket whose listener's queue is full, "
            "or a non-blocking call. With UDP, it is: say --protocol udp."
        )
    census = asked.census
    if census is not None and not census.free:
        return (
            f"means here: exhaustion. No UDP source port of {census.ports} is free {_way(asked)}, "
            "not even for sockets that share them."
        )
    sharing = "" if census is None else f" {_free(asked, census)} for sockets that share them."
    if not facts.udp_unused:
        return (
            "means here: exhaustion for sockets that do not share their ports: a plain UDP "
            "connect() or sendto() needs a port that no other UDP socket has, and there is none."
            f"{sharing}"
        )
    unused = f"{facts.udp_unused:,} ports have no UDP socket at all."
    if census is not None:
        return f"is not exhaustion here and now: {unused}{sharing}"
    return _of_machine(
        facts, found, f"{unused} Name the destination with --destination to be sure."
    )


def _of_machine(facts: Facts, found: set[causes.Cause], hint: str) -> str:
    for pair in facts.pairs:
        if pair.taken >= FULL * pair.capacity:
            return (
                f"means exhaustion for connections from {pair.source} to {pair.destination}, "
                f"where {pair.taken:,} of {pair.capacity:,} ports are in use. {hint}"
            )
    if causes.BOUND_FIRST in found or causes.POLLUTED in found:
        return f"may come from ports that are shut to connect(), as listed below. {hint}"
    return f"does not look like exhaustion: {_begun(_fullness(facts))} {hint}"


def _fullness(facts: Facts) -> str:
    if not facts.pairs:
        return "No source port of the range is in use."
    pair = facts.pairs[0]
    return (
        f"The fullest pair, {pair.source} to {pair.destination}, has {pair.taken:,} of "
        f"{pair.capacity:,} ports in use."
    )


def _begun(summary: str) -> str:
    """A sentence after a colon: "IPv6 is …" keeps its capitals."""
    first, _, rest = summary.partition(" ")
    return f"{first.lower() if first.istitle() else first} {rest}"
