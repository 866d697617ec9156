"""What an errno means here: exhaustion or not, in one or two plain sentences.

The verdict on a call comes from the findings about it, so the two cannot disagree.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, NamedTuple

from connectx._diagnosis import causes
from connectx._diagnosis.finding import FULL, Severity, about
from connectx.addresses import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectx._diagnosis.causes import Cause
    from connectx._diagnosis.facts import Call, Census, Facts
    from connectx._diagnosis.finding import Finding

#: The errnos that exhaustion has.
OF_EXHAUSTION: Final = (errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EAGAIN)

#: What other errnos come from, if it is found.
_ELSEWHERE: Final = {
    errno.EINVAL: (causes.LINK_LOCAL, causes.NOT_HONOURED),
    errno.EMFILE: (causes.DESCRIPTORS,),
    errno.ENETUNREACH: (causes.IPV6_OFF,),
    errno.ETIMEDOUT: (
        causes.CONNTRACK,
        causes.TRANSLATED,
        causes.SWALLOWED,
        causes.RANDOM_TRANSLATION,
    ),
    # send() says so for UDP. For TCP, whose SYN is sent again, this is ETIMEDOUT.
    errno.EPERM: (causes.CONNTRACK, causes.TRANSLATED),
    # A peer resets a SYN whose timestamp is older than the last one's.
    errno.ECONNREFUSED: (causes.RANDOM_TRANSLATION,),
    errno.ECONNRESET: (causes.RANDOM_TRANSLATION,),
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


class Answer(NamedTuple):
    """What a call failed from.

    Attributes:
        text: One or two sentences, the first of which is the verdict; "" where nobody asked.
        because: The causes that the verdict rests on; none where nothing was found.
        doubtful: Whether it is exhaustion only in some cases, or only perhaps.
        beside: The answer in one sentence, for its place below the answer about another
            source or destination.
    """

    text: str
    because: tuple[Cause, ...] = ()
    doubtful: bool = False
    beside: str = ""

    @property
    def rank(self) -> int:
        """Where it belongs among the answers about several addresses: lower is earlier."""
        return 1 if self.doubtful else 0 if self.because else 2


def verdict(facts: Facts, findings: Sequence[Finding]) -> Answer:
    """Return what the call that was asked about failed from."""
    call = facts.call
    if call is None:
        return Answer("")
    if not call.number:
        answer = _of_question(call, facts, findings)
    else:
        # A note has too small a share in anything to be the reason.
        serious = [each for each in findings if each.severity is not Severity.NOTE]
        answer = _of_number(call, facts, serious)
        answer = answer._replace(text=f"{_named(call.number)} {answer.text}")
    return answer._replace(beside=_beside(call, answer))


def together(answers: Sequence[Answer], calls: Sequence[Call]) -> str:
    """Return the answers about several addresses as one, a line each, the verdict first.

    Args:
        answers: The answers, the one to begin with first.
        calls: The calls that they are about.
    """
    lines = [answers[0].text, *(each.beside for each in answers[1:])]
    several = len({call.destination for call in calls}) > 1
    if several and calls[0].destination and str(calls[0].destination) not in lines[0]:
        lines[0] = f"{calls[0].destination}: {lines[0]}"
    return "\n".join(line for line in lines if line)


def _beside(call: Call, answer: Answer) -> str:
    census = call.census
    if census is None or census.untold:
        return f"{call.destination}: {answer.text}" if call.destination else answer.text
    if not census.free:
        return f"No source port is free {_way(call)}, either."
    if not call.source.host:
        return (
            f"Without a source address, connect() uses {call.census_source} toward "
            f"{call.destination}: {census.free:,} of {census.ports.size:,} source ports are free "
            "from there."
        )
    return f"{_free(call, census)}."


def _of_number(call: Call, facts: Facts, findings: Sequence[Finding]) -> Answer:
    found = {each.cause: each for each in reversed(findings)}
    if call.number not in OF_EXHAUSTION:
        for cause in _ELSEWHERE.get(call.number, ()):
            if cause in found and (call.number != errno.EPERM or not call.stream):
                shown = "".join(f" ({line})" for line in found[cause].evidence[:1])
                return Answer(f"may well come from this: {found[cause].title}{shown}.", (cause,))
        return Answer(f"is not exhaustion, which gives {', '.join(map(_named, OF_EXHAUSTION))}.")
    for cause in causes.OF_A_SOURCE:
        if cause in found and (call.needs_ipv6 or cause is not causes.IPV6_OFF):
            return Answer(f"here means that {_inside(cause.summary)}", (cause,))
    if call.on_port and (
        call.number == errno.EADDRINUSE or (call.number == errno.EADDRNOTAVAIL and call.stream)
    ):
        cause = next(cause for cause in causes.OF_A_PORT if cause in found)
        return Answer(f"here means that {found[cause].title}: {call.on_port[0]}.", (cause,))
    if call.unreachable:
        return Answer(f"does not look like exhaustion: {call.unreachable}.")
    of_errno = {
        errno.EADDRNOTAVAIL: _not_available,
        errno.EADDRINUSE: _in_use,
        errno.EAGAIN: _again,
    }
    return of_errno[call.number](call, facts, findings)


def _named(number: int) -> str:
    return f"{number} ({errno.errorcode.get(number, 'unknown')})"


def _of_question(call: Call, facts: Facts, findings: Sequence[Finding]) -> Answer:
    """About a call that nobody has an errno of."""
    for each in findings:
        if each.cause in causes.OF_A_SOURCE:
            return Answer(f"{each.title}: {each.evidence[0]}.", (each.cause,))
        if each.cause in causes.OF_A_PORT:
            return Answer(f"{each.title}: {call.on_port[0]}.", (each.cause,))
    census = call.census
    if census is None:
        port = call.source.port
        unused = f"{call.protocol} port {port} has no socket." if port else ""
        there = f"The destination cannot be reached: {call.unreachable}."
        return Answer(there if call.unreachable else unused)
    if census.free:
        return _not_exhausted(call, census, facts, findings)
    if census.untold:
        return Answer(_untold(call, census), doubtful=True)
    return Answer(
        f"No source port of {census.ports} is free {_way(call)} ({call.protocol}): this is "
        "exhaustion.",
        _because(call, findings),
    )


def _not_exhausted(call: Call, census: Census, facts: Facts, findings: Sequence[Finding]) -> Answer:
    free = _free(call, census)
    if not call.stream and not facts.unused:
        return Answer(
            f"{free}, but only for sockets that share ports: a plain UDP connect() or sendto() "
            "finds none.",
            (causes.UNSHARED,),
            doubtful=True,
        )
    if census.free < (1 - FULL) * census.ports.size:
        found = tuple(each.cause for each in findings if each.cause in causes.OF_A_DESTINATION)
        return Answer(f"{free}: this is not exhaustion yet, but nearly.", found[:1], doubtful=True)
    return Answer(f"{free}: this is not exhaustion.")


def _way(call: Call) -> str:
    return f"from {call.census_source} to {call.destination}"


def _free(call: Call, census: Census) -> str:
    return f"{census.free:,} of {census.ports.size:,} source ports are free {_way(call)}"


def _untold(call: Call, census: Census) -> str:
    return (
        f"No source port is certainly free {_way(call)}. {census.untold:,} ports have sockets "
        f"toward other destinations, which may have locked them with bind(), {_TAKES}."
    )


def _exhausted(call: Call, census: Census, findings: Sequence[Finding]) -> Answer:
    cause, number = census.by_cause(stream=call.stream)[0]
    return Answer(
        f"here means exhaustion: no source port of {census.ports} is free {_way(call)} "
        f"({call.protocol}), because of {number:,} {_KEPT[cause]}.",
        _because(call, findings),
    )


def _because(call: Call, findings: Sequence[Finding]) -> tuple[Cause, ...]:
    """The cause of the finding about the exhaustion, which may be one of several of its cause."""
    subject = about(call.protocol, call.census_source, call.destination)
    for each in findings:
        if any(one.about == subject for one in (each, *each.also)):
            return (each.cause,)
    return ()


def _not_available(call: Call, facts: Facts, findings: Sequence[Finding]) -> Answer:
    ipv6 = "" if facts.ipv6 else ", or the address is an IPv6 one, and IPv6 is off here"
    if not call.stream:
        return Answer(
            "from UDP is not exhaustion, which gives 11 (EAGAIN) there: the source address is not "
            f"one of this host's (name it with --source){ipv6}."
        )
    census = call.census
    if census is None:
        return _of_machine(
            call,
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
        return Answer(
            f"is not exhaustion here and now: {_free(call, census)}. It may be over, or the call "
            "asked for a source address that is not this host's, or for a port that is taken: "
            f"name them with --source ADDRESS:PORT.{locked}"
        )
    if census.untold:
        return Answer(f"may be exhaustion: {_inside(_untold(call, census))}", doubtful=True)
    return _exhausted(call, census, findings)


def _in_use(call: Call, facts: Facts, findings: Sequence[Finding]) -> Answer:
    if call.source.port:
        at = f" at {call.source.host}" if call.source.host else ""
        return Answer(
            f"comes from bind(), not from connect(): another socket was on {call.protocol} port "
            f"{call.source.port}{at}, and none is in the way now. Try again, and ask again if it "
            "fails."
        )
    text = (
        "comes from bind(), not from connect(): another socket has the port that was asked for "
        "(name it with --source ADDRESS:PORT), or, for bind((address, 0)), every port of the "
        "range has a socket."
    )
    if not call.stream:
        text = f"{text} {facts.unused:,} ports have no UDP socket at all."
    if closed := _closed(call, findings):
        return Answer(
            f"{text} Sockets that are bound before they connect lock their ports here, as listed "
            "below: IP_BIND_ADDRESS_NO_PORT ends that.",
            closed,
        )
    return Answer(f"{text} {_fullness(call, facts)}")


def _again(call: Call, facts: Facts, findings: Sequence[Finding]) -> Answer:
    if call.stream:
        for finding in findings:
            if finding.cause is causes.UNSHARED:
                return Answer(
                    "comes from a resolver here, which asks over UDP, and UDP is out of ports: "
                    f"{finding.title}. getaddrinfo() then says EAI_AGAIN, temporary failure in "
                    "name resolution.",
                    (finding.cause,),
                )
        return Answer(
            "from a TCP connect() is not exhaustion: the call was non-blocking, or the socket is a "
            "Unix one whose listener's queue is full. For UDP it is exhaustion: say --protocol udp."
        )
    census = call.census
    if census is not None and not census.free:
        return _exhausted(call, census, findings)
    sharing = "" if census is None else f" {_free(call, census)} for sockets that share ports."
    if not facts.unused:
        return Answer(
            "here means exhaustion for sockets that do not share ports: each port of the range has "
            f"a UDP socket.{sharing}",
            (causes.UNSHARED,),
        )
    unused = f"{facts.unused:,} ports have no UDP socket at all."
    if census is not None:
        return Answer(f"is not exhaustion here and now: {unused}{sharing}")
    return _of_machine(
        call, facts, findings, f"{unused} Name the destination with --destination to be sure."
    )


def _of_machine(call: Call, facts: Facts, findings: Sequence[Finding], hint: str) -> Answer:
    """About a call whose destination is not known: what the machine's sockets make likely."""
    table = PROTOCOLS[call.protocol].table
    for finding in (one for each in findings for one in (each, *each.also)):
        if (
            finding.severity is Severity.CRITICAL
            and finding.cause in (*causes.OF_A_DESTINATION, causes.UNSHARED)
            and finding.about.startswith(f"{table} ")
        ):
            return Answer(
                f"may well come from exhaustion: {finding.title}. {hint}", (finding.cause,)
            )
    if closed := _closed(call, findings):
        return Answer(
            f"may come from ports that are closed to connect(), as listed below. {hint}", closed
        )
    return Answer(f"does not look like exhaustion: {_inside(_fullness(call, facts))} {hint}")


def _closed(call: Call, findings: Sequence[Finding]) -> tuple[Cause, ...]:
    """The causes for which TCP ports are closed to connect(), which only a look at all shows."""
    if not call.stream:
        return ()
    return tuple(
        each.cause for each in findings if each.cause in (causes.BOUND_FIRST, causes.POLLUTED)
    )


def _fullness(call: Call, facts: Facts) -> str:
    table = PROTOCOLS[call.protocol].table
    row = next((row for row, *_ in facts.pairs if PROTOCOLS[row.protocol].table == table), None)
    if row is None:
        return f"No {PROTOCOLS[call.protocol].title} source port of the range is in use."
    return (
        f"The fullest pair, {row.source} to {row.destination}, has {row.taken:,} of "
        f"{row.capacity:,} ports in use."
    )


def _inside(sentence: str) -> str:
    """A sentence after a colon, which begins in lower case but for names such as IPv6."""
    first, _, rest = sentence.partition(" ")
    return f"{first.lower() if first.istitle() else first} {rest}"
