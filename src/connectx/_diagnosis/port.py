"""What holds the source port that a call asked for, from facts about the sockets on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from connectx._diagnosis import causes, commands
from connectx._diagnosis.finding import SHOWN, Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectx._diagnosis.causes import Cause
    from connectx._diagnosis.facts import Call, Facts


def taken(facts: Facts) -> Iterator[Finding]:
    """Other sockets are on the source port that was asked for."""
    call = facts.call
    if call is None or not call.on_port:
        return
    number = call.source.port
    title = f"{call.protocol} port {number} is in use"
    if call.on_tuple:
        title = f"{title} toward {call.destination}"
    elif call.by_chance:
        title = f"{title} by an outgoing connection"
    reservable = facts.ports.contains(number) and not call.on_tuple
    shown = call.on_port[: 2 * SHOWN]
    yield Finding(
        Severity.CRITICAL if call.number else Severity.NOTE,
        _cause(call),
        title,
        (
            shown[0].in_full(),
            *_about_itself(call),
            *(each.in_full() for each in shown[1:]),
        ),
        {
            "port": str(number),
            **(commands.reserving(facts, {number}) if reservable else {}),
            **_killing(call),
        },
        fields={
            "protocol": call.protocol,
            "port": number,
            "destination": call.destination,
            "sockets": call.on_port,
        },
    )


def _cause(call: Call) -> Cause:
    if call.on_tuple:
        return causes.TUPLE_IN_USE
    if all(each.state == "TIME-WAIT" for each in call.on_port):
        return causes.PORT_LEFT
    return causes.PORT_BY_CHANCE if call.by_chance else causes.PORT_HELD


def _killing(call: Call) -> dict[str, str]:
    """The values that close an outgoing connection; none where `connectx kill` cannot."""
    first = call.on_port[0]
    protocol = call.protocol.replace("mptcp", "tcp")
    if first.state == "TIME-WAIT" or protocol not in ("tcp", "udp"):
        return {}
    return {"protocol": protocol, "state": first.state, "holder": first.address}


def _about_itself(call: Call) -> Iterator[str]:
    """A connection whose two ends are one socket's."""
    for each in call.on_port[:1]:
        to = each.destination
        if to is not None and (to.host, to.port) == (each.address, each.port):
            yield "it is connected to itself: connect() chose the very port that it went to"
