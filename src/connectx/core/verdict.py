"""What an errno means here: exhaustion or not, said plainly."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from connectx.core import causes
from connectx.core.findings import FULL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectx.core.facts import Asked, Facts
    from connectx.core.findings import Finding

#: The errnos that exhaustion has.
OF_EXHAUSTION: Final = (errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EAGAIN)

#: What other errnos come from, where that is found.
_ELSEWHERE: Final = {
    errno.EINVAL: causes.NOT_HONOURED,
    errno.EMFILE: causes.DESCRIPTORS,
    errno.ETIMEDOUT: causes.CONNTRACK,
}

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
    found = {finding.cause for finding in findings}
    return f"{_named(asked.number)} {_of_number(asked, facts, found)}"


def _of_number(asked: Asked, facts: Facts, found: set[causes.Cause]) -> str:
    if asked.number not in OF_EXHAUSTION:
        cause = _ELSEWHERE.get(asked.number)
        if cause in found:
            return f"may well come from this. {cause.summary}"
        return f"is not what exhaustion gives: {', '.join(map(_named, OF_EXHAUSTION))} are."
    for cause in (causes.NOT_LOCAL, causes.IPV6_OFF):
        if cause in found:
            return f"means here: {_begun(cause.summary)}"
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


def _of_destination(asked: Asked) -> str:
    census = asked.census
    if census is None:
        return ""
    if not census.free:
        return f"No source port is free toward {asked.destination}: this is exhaustion."
    return (
        f"{census.free:,} of {census.ports.size:,} source ports are free toward "
        f"{asked.destination}: this is not exhaustion."
    )


def _not_available(asked: Asked, facts: Facts, found: set[causes.Cause]) -> str:
    census = asked.census
    if census is not None and not census.free:
        shares = {
            f"{census.connected:,} connections to it": census.connected,
            f"{census.time_wait:,} TIME_WAITs that this host left by closing first": (
                census.time_wait
            ),
            f"{census.held:,} ports that listeners and binds before connect() hold": census.held,
            f"{census.reserved:,} reserved ports": census.reserved,
        }
        worst = max(shares, key=lambda share: shares[share])
        return (
            f"means here: exhaustion. No source port of {census.ports} is free toward "
            f"{asked.destination}, because of {worst}."
        )
    if census is not None:
        return (
            f"is not exhaustion here and now: {census.free:,} of {census.ports.size:,} source "
            f"ports are free toward {asked.destination}. It may be over; or a port was asked for "
            "that somebody has, or a source address that is not this host's: name it with --source."
            f"{_LOCKED * (not facts.tells_binds_apart)}"
        )
    return _of_machine(
        facts, found, "Exhaustion is per destination: name it with --destination, --source too."
    )


def _in_use(asked: Asked, facts: Facts, found: set[causes.Cause]) -> str:
    if asked.protocol in ("tcp", "mptcp"):
        text = (
            "comes from bind(), not from connect(): the port that was asked for is held, or, with "
            "bind((address, 0)), no port of the range is unused by every other socket."
        )
    else:
        text = "comes from bind(): another socket has the port and does not share it."
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
            f"means here: exhaustion. No UDP source port of {census.ports} is free toward "
            f"{asked.destination}: a UDP connect() without SO_REUSEADDR takes a port for itself."
        )
    if census is not None:
        return (
            f"is not exhaustion here and now: {census.free:,} of {census.ports.size:,} ports are "
            f"free toward {asked.destination}, for those that share them."
        )
    return _of_machine(facts, found, "Name the destination with --destination to be sure.")


def _of_machine(facts: Facts, found: set[causes.Cause], hint: str) -> str:
    for pair in facts.pairs:
        if pair.in_use >= FULL * pair.capacity:
            return (
                f"means exhaustion for connections from {pair.source} to {pair.destination}, "
                f"where {pair.in_use:,} of {pair.capacity:,} ports are in use. {hint}"
            )
    if causes.BOUND_FIRST in found or causes.POLLUTED in found:
        return f"may come from ports that are shut to connect(), as listed below. {hint}"
    return f"does not look like exhaustion: {_fullness(facts)} {hint}"


def _fullness(facts: Facts) -> str:
    if not facts.pairs:
        return "no source port of the range is in use."
    pair = facts.pairs[0]
    return (
        f"the fullest pair, {pair.source} to {pair.destination}, has {pair.in_use:,} of "
        f"{pair.capacity:,} ports in use."
    )


def _begun(summary: str) -> str:
    """A sentence after a colon: "IPv6 is …" keeps its capitals."""
    first, _, rest = summary.partition(" ")
    return f"{first.lower() if first.istitle() else first} {rest}"
