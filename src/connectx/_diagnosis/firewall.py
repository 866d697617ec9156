"""Rules about firewall rules: those that translate addresses or ports may take source ports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from connectx._diagnosis import causes, commands
from connectx._diagnosis.finding import SHOWN, Finding, Severity
from connectx.addresses import ports_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from connectx._diagnosis.facts import Facts
    from connectx.linux.nat_rules import Rule


def translated(facts: Facts) -> Iterator[Finding]:
    """A firewall rule translates to fewer ports than the host has."""
    for each in facts.rules.translations:
        if each.ports.size < facts.ports.size:
            yield Finding(
                Severity.WARNING if _applies(facts, each.rule) else Severity.NOTE,
                causes.TRANSLATED,
                f"a rule translates to {each.ports.size:,} ports, fewer than the "
                f"{facts.ports.size:,} of the range",
                (each.rule.text,),
                fields={"ports": each.ports, "range": facts.ports, "rules": (each.rule.text,)},
            )


def random_translation(facts: Facts) -> Iterator[Finding]:
    """A rule gives a 4-tuple to another port's connection, whose timestamps may be behind."""
    if not facts.offset_by_port or not facts.tcp_timestamps:
        return
    for rule in facts.rules.random:
        yield Finding(
            Severity.WARNING if _applies(facts, rule) else Severity.NOTE,
            causes.RANDOM_TRANSLATION,
            "a rule translates to random ports, and TCP timestamps start anew with each port",
            (rule.text,),
            fields={"rules": (rule.text,)},
        )


def _applies(facts: Facts, rule: Rule) -> bool:
    """Whether a rule may be about the call, or without a call, about this host's connections.

    A condition on the source is what rules for containers, or a network behind us, have.
    """
    call = facts.call
    if call is None or not (call.destination or call.source.host):
        return rule.sources is None
    source = call.source.host or call.census_source
    return (rule.sources is None or bool(source)) and rule.may_concern(
        call.protocol.replace("mptcp", "tcp"), source, call.destination
    )


def swallowed(facts: Facts) -> Iterator[Finding]:
    """Rules that translate destinations take packets that arrive at source ports."""
    own = (*facts.addresses, "127.0.0.1")
    rules = [each for each in facts.rules.redirections if each.takes_any_of(own)]
    open_ports = set(range(facts.ports.low, facts.ports.high + 1)) - ports_in(facts.reserved)
    concerned = [each for each in rules if open_ports & ports_in(each.ports or ())]
    ports = {port for each in concerned for port in open_ports & ports_in(each.ports or ())}
    if ports:
        yield Finding(
            Severity.WARNING,
            causes.SWALLOWED,
            f"{len(ports):,} of {facts.ports.size:,} source ports are translated to other "
            "destinations when packets arrive there",
            tuple(each.text for each in concerned[:SHOWN]),
            commands.reserving(facts, ports | commands.listening(facts)),
            fields={
                "count": len(ports),
                "range": facts.ports,
                "rules": tuple(each.text for each in concerned),
            },
        )


RULES: Final[tuple[Callable[[Facts], Iterable[Finding]], ...]] = (
    translated,
    swallowed,
    random_translation,
)
