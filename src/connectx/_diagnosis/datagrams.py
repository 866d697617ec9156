"""What is wrong with the UDP sockets of a machine, from facts about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from connectx._diagnosis import causes, commands
from connectx._diagnosis.finding import FULL, SHOWN, Finding, Severity, owners
from connectx.addresses import PROTOCOLS, ports_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from connectx._diagnosis.facts import Facts, SharedPort


def unshared(facts: Facts) -> Iterator[Finding]:
    """Hardly any port is left for UDP sockets that do not share theirs."""
    usable = set(range(facts.ports.low, facts.ports.high + 1)) - ports_in(facts.reserved)
    if facts.unused / max(1, len(usable)) < 1 - FULL:
        yield Finding(
            Severity.WARNING if facts.unused else Severity.CRITICAL,
            causes.UNSHARED,
            f"{facts.unused:,} of {facts.ports.size:,} ports are free for UDP sockets that "
            "do not share",
            (
                "every other port of the range has a UDP socket on some address, or is reserved",
                *owners(facts.udp_owners, "UDP sockets in the range"),
            ),
            commands.against_exhaustion(facts),
            fields={"free": facts.udp_unused, "range": facts.ports},
        )


def overshadowed(facts: Facts) -> Iterator[Finding]:
    """Several UDP sockets have one 4-tuple, and only the newest receives anything."""
    if facts.overshadowed:
        yield Finding(
            Severity.CRITICAL,
            causes.OVERSHADOWED,
            f"{len(facts.overshadowed):,} UDP 4-tuples have more than one socket",
            tuple(
                f"{each.source} -> {each.destination}{_which(each.protocol)}: "
                f"{'; '.join(each.owners)}"
                for each in facts.overshadowed[: 2 * SHOWN]
            ),
            fields={"count": len(facts.overshadowed), "tuples": facts.overshadowed},
        )


def deaf(facts: Facts) -> Iterator[Finding]:
    """Unconnected UDP sockets share a port, and only the newest receives anything."""
    for certain in (True, False):
        found = [each for each in facts.deaf if each.certain is certain]
        if not found:
            continue
        number = sum(each.sockets - 1 for each in found)
        several = f"{number:,} UDP sockets receive" if number > 1 else "a UDP socket receives"
        doubt = "" if certain else ", unless it is multicast, or they have SO_REUSEPORT"
        yield Finding(
            Severity.WARNING if certain else Severity.NOTE,
            causes.DEAF,
            f"{several} nothing, because newer ones share the port{doubt}",
            (
                *map(_in_words, found[:SHOWN]),
                *([f"and {len(found) - SHOWN:,} more ports"] if len(found) > SHOWN else ()),
            ),
            details=tuple(map(_in_words, found[SHOWN:])),
            fields={"count": number, "shared": tuple(found)},
        )


def _in_words(shared: SharedPort) -> str:
    address = f"{shared.address}{_which(shared.protocol)}"
    more = "; ..." if len(shared.owners) > SHOWN else ""
    return f"{address}, {shared.sockets:,} sockets: {'; '.join(shared.owners[:SHOWN])}{more}"


def _which(protocol: str) -> str:
    """The protocol, where it is not UDP itself."""
    return "" if protocol == "udp" else f" ({PROTOCOLS[protocol].title})"


RULES: Final[tuple[Callable[[Facts], Iterable[Finding]], ...]] = (unshared, overshadowed, deaf)
