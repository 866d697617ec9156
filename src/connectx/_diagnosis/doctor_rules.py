"""From facts about a machine to findings: what is wrong, what shows it, and what helps.

A rule is a function that takes `Facts` and yields findings. All rules are in `RULES`, and
each is silent on a healthy machine. A new rule draws on a field of `Facts`, which
`connectx._diagnosis.machine` fills in, and on a cause in `connectx._diagnosis.causes`.
"""

from __future__ import annotations

import errno
import math
from collections import Counter
from typing import TYPE_CHECKING, Final

from connectx._diagnosis import causes, commands, datagrams, firewall, port, searching
from connectx._diagnosis.finding import (
    FILLING,
    FULL,
    NOBODY,
    SHOWN,
    Finding,
    Severity,
    about,
    duration,
    numbers,
    one_per_cause,
    owners,
)
from connectx.addresses import PROTOCOLS, Endpoint, FourTuple, PortRange, ports_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from connectx._diagnosis.causes import Cause
    from connectx._diagnosis.facts import Call, Census, Facts, Holder, Row, WatchedPair

#: Seconds to exhaustion from which on a pair is filling at a lower share, and the least
#: share for that: a few connections more in a second say nothing about the next hour.
_SOON: Final = 600.0
_SOON_SHARE: Final = 0.3

#: Seconds between two counts from which on their difference is a rate.
_A_RATE_TAKES: Final = 0.1

#: Shares of the range from which on held ports are critical, and more than a note.
_MANY: Final = 0.3
_SOME: Final = 0.01

#: TIME_WAITs toward one destination, as a share of its capacity.
_CHURN: Final = 0.2

#: Connections in CLOSE-WAIT from which on there is a finding: a few are about to be closed.
#: From this share of the range on it is a warning: fewer may belong to a pool.
_LEAKED: Final = 10
_LEAKED_SHARE: Final = 0.05

#: Idle connections, as a share of the capacity.
_IDLE: Final = 0.5

#: Shares of a limit from which on there is a warning, and from which on it is critical.
_NEARLY: Final = 0.8
_LAST: Final = 0.95


def find(facts: Facts) -> list[Finding]:
    """Return all findings, one for each cause, the worst first."""
    found = [
        finding._replace(values={**finding.values, "within": facts.within})
        for rule in RULES
        for finding in rule(facts)
    ]
    if causes.HELD_DATAGRAM in (finding.cause for finding in found):
        # The same sockets, for which the call's finding has the better remedies.
        found = [finding for finding in found if finding.cause is not causes.UNSHARED]
    return one_per_cause(found)


# The call that was asked about.


def not_local(facts: Facts) -> Iterator[Finding]:
    """The source address does not belong to this host, or may not be used yet."""
    call = facts.call
    if call is None or call.source_is_local is not False:
        return
    host = call.source.host
    if call.is_tentative:
        yield Finding(
            Severity.CRITICAL,
            causes.NOT_YET_LOCAL,
            f"{host} may not be used yet",
            ("`ip -6 address` shows it as tentative or dadfailed",),
            fields={"source": host},
        )
    else:
        yield Finding(
            Severity.CRITICAL,
            causes.NOT_LOCAL,
            f"{host} is not an address of this host",
            (f"no device of this network namespace has {host}", _own(facts, host)),
            # It lets a service bind the address. A client would get no answers.
            {} if call.destination else {"nonlocal": f"net.{_version(host)}.ip_nonlocal_bind"},
            fields={"source": host},
        )


def _own(facts: Facts, host: str) -> str:
    """The namespace's own addresses of an IP version, in words."""
    own = [each for each in facts.addresses if (":" in each) == (":" in host)]
    shown = ", ".join(own[:SHOWN])
    if len(own) > SHOWN:
        shown = f"{shown} and {len(own) - SHOWN:,} more"
    if not own:
        return f"it has no {'IPv6' if ':' in host else 'IPv4'} address but those of the loopback"
    return f"its own are {shown}"


def _version(host: str) -> str:
    return "ipv6" if ":" in host else "ipv4"


def ipv6_off(facts: Facts) -> Iterator[Finding]:
    """There is no IPv6, and the call needs it, or may need it."""
    call = facts.call
    if call is None:
        return
    unknown = call.number == errno.EADDRNOTAVAIL and call.destination is None
    if call.without_ipv6 or (unknown and not facts.ipv6):
        device = call.without_ipv6 or "all"
        everywhere = device == "all"
        # A dot separates names, and is in those of VLAN devices: sysctl(8) takes slashes as well.
        switch = f"net.ipv6.conf.{device.replace('.', '/')}.disable_ipv6"
        yield Finding(
            Severity.CRITICAL if call.without_ipv6 else Severity.WARNING,
            causes.IPV6_OFF,
            f"IPv6 is off {'in this network namespace' if everywhere else f'on device {device}'}",
            (
                "no device has an IPv6 address, not even ::1 on the loopback"
                if everywhere
                else f"{switch} is 1",
            ),
            {"ipv6_switch": switch} if facts.has_ipv6_switch else {},
            fields={"device": None if everywhere else device},
        )


def link_local(facts: Facts) -> Iterator[Finding]:
    """A link-local address comes without its device, or two come with different ones."""
    call = facts.call
    if call is None:
        return
    for host, device in call.devices:
        if not device:
            possible = ", ".join(f"{host}%{each}" for each in facts.link_local[:SHOWN])
            yield Finding(
                Severity.CRITICAL,
                causes.LINK_LOCAL,
                f"{host} is link-local, and its device (the scope) is missing",
                (f"it is one of {possible}",) if possible else (),
                fields={"address": host, "devices": facts.link_local},
            )
    names = {device for _, device in call.devices if device}
    if len(names) > 1:
        yield Finding(
            Severity.CRITICAL,
            causes.LINK_LOCAL,
            f"{' and '.join(f'{host}%{device}' for host, device in call.devices)} are on different "
            "devices",
            ("a link-local address reaches only its own link",),
            fields={"devices": tuple(sorted(names))},
        )


def exhausted(facts: Facts) -> Iterator[Finding]:
    """No source port is free for the call."""
    call = facts.call
    if call is None or call.census is None or call.census.free > 0 or call.census.untold:
        return
    source, destination = Endpoint(call.census_source, 0), call.destination or Endpoint("", 0)
    asked = [pair for pair in facts.pairs if _is_asked(facts, pair)]
    cause = _main_cause(facts, call, call.census, asked)
    counted = call.census.describe(FourTuple(call.protocol, source, destination))
    seen = [line for pair in asked for line in _told(facts, pair)] + list(_keepers(facts, cause))
    yield Finding(
        Severity.CRITICAL,
        cause,
        f"no source port of {call.census.ports} is free from {source.host} to {destination} "
        f"({call.protocol})",
        (*(seen or [counted]), *_of_time_wait(facts, cause)),
        commands.against_exhaustion(facts),
        (counted,) if seen else (),
        about(call.protocol, source.host, destination),
        fields={
            "protocol": call.protocol,
            "source": source.host,
            "destination": destination,
            "census": call.census,
        },
    )


def _main_cause(facts: Facts, call: Call, census: Census, asked: list[WatchedPair]) -> Cause:
    """What keeps most of the ports of an exhausted destination."""
    cause, _ = census.by_cause(stream=call.stream)[0]
    if cause is causes.HELD:
        return facts.of_holders
    if cause is causes.CONNECTED and not all(pair.shared for pair in asked):
        return causes.UNSHARED
    return cause


def _keepers(facts: Facts, cause: Cause) -> tuple[str, ...]:
    """Who keeps ports from every destination, if that is the cause."""
    if cause in (causes.HELD, causes.BOUND_FIRST, causes.POLLUTED) and facts.holders:
        return owners(
            Counter(each.described or each.owner for each in facts.holders),
            numbers(Counter(each.state for each in facts.holders)),
        )
    if cause is causes.HELD_DATAGRAM:
        return owners(facts.udp_owners, "UDP sockets in the range")
    if cause is causes.RESERVED:
        ranges = commands.listed(ports_in(facts.reserved))
        more = f" and {len(ranges) - SHOWN:,} more ranges" if len(ranges) > SHOWN else ""
        return (f"reserved: {', '.join(ranges[:SHOWN])}{more}",)
    return ()


def not_honoured(facts: Facts) -> Iterator[Finding]:
    """The kernel ignores the ports that were asked for."""
    call = facts.call
    # EADDRINUSE comes from bind(), for which the range does not matter.
    ports = call.ports if call is not None and call.number != errno.EADDRINUSE else None
    if ports and not facts.ports.covers(ports):
        wider = PortRange(min(ports.low, facts.ports.low), max(ports.high, facts.ports.high))
        yield Finding(
            Severity.CRITICAL,
            causes.NOT_HONOURED,
            f"the ports {ports} do not all lie within the range in force, {facts.ports}",
            (f"net.ipv4.ip_local_port_range is {facts.ports}",),
            commands.widening(facts, wider),
            fields={"ports": ports, "range": facts.ports},
        )


# The ports of the range.


def full(facts: Facts) -> Iterator[Finding]:
    """A source has no port left toward a destination, or soon will have none."""
    for pair in facts.pairs:
        if not _is_filling(pair, facts.seconds):
            continue
        row = pair.row
        cause = causes.TIME_WAIT if _resting(row) > row.taken / 2 else causes.CONNECTED
        if not pair.shared:
            cause = causes.UNSHARED
        yield Finding(
            Severity.CRITICAL if _share(row) >= FULL else Severity.WARNING,
            cause,
            f"{row.taken:,} of {row.capacity:,} source ports ({int(100 * _share(row))} %) are in "
            f"use from {row.source} to {row.destination} ({row.protocol})",
            (*_told(facts, pair), *_of_time_wait(facts, cause)),
            commands.against_exhaustion(facts),
            about=about(row.protocol, row.source, row.destination),
            fields={"pairs": (pair,)},
        )


def bound_first(facts: Facts) -> Iterator[Finding]:
    """Connected sockets lock ports, because they were bound first."""
    yield from _held(
        facts,
        causes.BOUND_FIRST,
        [each for each in facts.holders if each.state == "connected"],
        "locked by sockets that were bound before they connected",
    )


def polluted(facts: Facts) -> Iterator[Finding]:
    """Explicit binds, and the TIME_WAITs they leave, close ports to connect()."""
    yield from _held(
        facts,
        causes.POLLUTED,
        [each for each in facts.holders if each.state in ("bound", "accepted", "TIME-WAIT")],
        "closed to connect() by sockets that were bound to them",
    )


def _held(facts: Facts, cause: Cause, held: list[Holder], what: str) -> Iterator[Finding]:
    if not held:
        return
    ports = {each.port for each in held}
    ranges = commands.listed(ports)
    yield Finding(
        _graded(len(ports) / facts.ports.size, _SOME, _MANY),
        cause,
        f"{len(ports):,} of {facts.ports.size:,} source ports are {what} ({held[0].protocol})",
        owners(
            Counter(each.described or each.owner for each in held),
            numbers(Counter(each.state for each in held)),
        ),
        {},
        (f"ports {', '.join(ranges[: 2 * SHOWN])}{', …' * (len(ranges) > 2 * SHOWN)}",),
        fields={
            "protocol": held[0].protocol,
            "count": len(ports),
            "range": facts.ports,
            "sockets": tuple(held),
        },
    )


def listeners(facts: Facts) -> Iterator[Finding]:
    """The port of a service lies in the range of ephemeral ports and is not reserved.

    A note: nothing is wrong if bind((host, 0)) gave the listener its port, and nothing tells
    such a listener from one that asked for its port by number.
    """
    reserved = ports_in(facts.reserved)
    found = [each for each in facts.holders if each.state == "LISTEN" and each.port not in reserved]
    if found:
        number = len({each.port for each in found})
        lie = "a listener's port lies" if number == 1 else f"{number:,} listeners' ports lie"
        yield Finding(
            Severity.NOTE,
            causes.LISTENERS,
            f"{lie} in the range {facts.ports}",
            tuple(
                f"{Endpoint(each.address, each.port)} {each.described or each.owner}".rstrip()
                for each in found[: 2 * SHOWN]
            ),
            commands.against_exhaustion(facts),
            fields={"range": facts.ports, "sockets": tuple(found)},
        )


def time_wait(facts: Facts) -> Iterator[Finding]:
    """Ports rest in TIME_WAIT, because this host closes first."""
    pairs = [pair for pair in facts.pairs if _resting(pair.row) > _CHURN * pair.row.capacity]
    churned = [pair.row for pair in pairs]
    if not churned:
        return
    worst = max(churned, key=_share)
    yield Finding(
        Severity.WARNING,
        causes.TIME_WAIT,
        f"{sum(map(_resting, churned)):,} source ports rest in TIME_WAIT",
        (
            (
                f"{worst.states['TIME-WAIT']:,} of {worst.capacity:,} from {worst.source} to "
                f"{worst.destination}"
            ),
            *_of_time_wait(facts, causes.TIME_WAIT),
        ),
        commands.against_exhaustion(facts),
        fields={"count": sum(map(_resting, churned)), "pairs": tuple(pairs)},
    )


def _of_time_wait(facts: Facts, cause: Cause) -> tuple[str, ...]:
    """What is known of every TIME_WAIT here; nothing for another cause."""
    if cause is not causes.TIME_WAIT:
        return ()
    return "this host closes first: otherwise the peer would keep the TIME_WAITs", _reuse(facts)


def _reuse(facts: Facts) -> str:
    """Whether net.ipv4.tcp_tw_reuse would help."""
    if not facts.tcp_timestamps:
        return "tcp_tw_reuse would not help: TCP timestamps are off"
    if facts.tcp_tw_reuse == 1:
        return (
            "net.ipv4.tcp_tw_reuse is 1 already: connect() may take over a TIME_WAIT that is "
            "older than one second"
        )
    now = "which covers loopback addresses only" if facts.tcp_tw_reuse == 2 else "which is off"
    return f"net.ipv4.tcp_tw_reuse is {facts.tcp_tw_reuse}, {now}: 1 would help"


def leaks(facts: Facts) -> Iterator[Finding]:
    """Connections stay open that nobody closes, or nobody uses."""
    waiting = sum(facts.close_wait.values())
    if waiting >= _LEAKED:
        serious = facts.close_wait_gain > 0 or waiting >= _LEAKED_SHARE * facts.ports.size
        yield Finding(
            Severity.WARNING if serious else Severity.NOTE,
            causes.CLOSE_WAIT,
            f"{waiting:,} connections are in CLOSE-WAIT",
            (
                *owners(facts.close_wait),
                f"{facts.close_wait_gain:+,} in {facts.seconds:.1f} s",
            ),
            commands.closing_leaks(facts),
            fields={
                "count": waiting,
                "gained": facts.close_wait_gain,
                "owners": facts.close_wait,
            },
        )
    for pair in facts.pairs:
        if pair.idle > _IDLE * pair.row.capacity:
            yield Finding(
                Severity.WARNING,
                causes.IDLE,
                f"{pair.idle:,} connections from {pair.row.source} to {pair.row.destination} "
                "are idle",
                (*_owners_of(pair.row, facts.unseen_owner), f"of {pair.row.capacity:,} ports"),
                fields={"count": pair.idle, "pairs": (pair,)},
            )


# Settings, tables and limits.


def timestamps_off(facts: Facts) -> Iterator[Finding]:
    """No TIME_WAIT can be taken over."""
    if not facts.tcp_timestamps:
        yield Finding(
            Severity.WARNING,
            causes.TIMESTAMPS_OFF,
            "TCP timestamps are off",
            ("net.ipv4.tcp_timestamps is 0",),
        )


def time_wait_overflow(facts: Facts) -> Iterator[Finding]:
    """There are as many TIME_WAITs as a sysctl allows."""
    if facts.time_wait is None:
        return
    count, limit = facts.time_wait
    # A limit of 0 is how one switches TIME_WAIT off.
    near = bool(limit) and count >= _NEARLY * limit
    if near or facts.time_wait_overflows:
        yield Finding(
            Severity.WARNING if near or facts.overflows_gain else Severity.NOTE,
            causes.TIME_WAIT_OVERFLOW,
            f"{count:,} TIME_WAITs of the {limit:,} that are allowed",
            (
                (
                    f"{facts.time_wait_overflows:,} connections ended without one "
                    "(TCPTimeWaitOverflow)"
                ),
                f"{facts.overflows_gain:,} of them in the last {facts.seconds:.1f} s",
            ),
            {"more": str(max(262144, 4 * limit))},
            fields={
                "count": count,
                "limit": limit,
                "overflows": facts.time_wait_overflows,
                "gained": facts.overflows_gain,
            },
        )


def descriptors(facts: Facts) -> Iterator[Finding]:
    """A process is about to run out of descriptors, before it runs out of ports."""
    for process, (used, limit, hard) in facts.descriptors.items():
        if used >= _NEARLY * limit:
            yield Finding(
                _graded(used / max(1, limit), _NEARLY, _LAST),
                causes.DESCRIPTORS,
                f"{process} has {used:,} of {limit:,} descriptors open",
                (f"/proc/{process.pid}/limits: Max open files {limit}, at most {hard}",),
                {"pid": str(process.pid), "more": commands.more_descriptors(limit, hard)}
                if limit < commands.NR_OPEN
                else {},
                fields={"process": process, "count": used, "limit": limit},
            )


def conntrack(facts: Facts) -> Iterator[Finding]:
    """The table of tracked connections is nearly full."""
    if facts.conntrack is None:
        return
    count, limit = facts.conntrack
    # 0 stands for no limit.
    if limit and count >= _NEARLY * limit:
        where = "" if facts.conntrack_is_ours else ", set only on the machine itself"
        yield Finding(
            _graded(count / limit, _NEARLY, _LAST),
            causes.CONNTRACK,
            f"conntrack has {count:,} entries of {limit:,}",
            (f"net.netfilter.nf_conntrack_max is {limit}{where}",),
            {"more": str(2 * limit)} if facts.conntrack_is_ours else {},
            fields={"count": count, "limit": limit},
        )


def old_kernel(facts: Facts) -> Iterator[Finding]:
    """A newer kernel would help."""
    if facts.lacking:
        yield Finding(
            Severity.NOTE,
            causes.OLD_KERNEL,
            f"Linux {facts.kernel} lacks something that helps",
            facts.lacking,
            fields={"kernel": facts.kernel, "lacking": facts.lacking},
        )


RULES: Final[tuple[Callable[[Facts], Iterable[Finding]], ...]] = (
    not_local,
    ipv6_off,
    link_local,
    port.taken,
    bound_first,
    polluted,
    exhausted,
    full,
    *datagrams.RULES,
    not_honoured,
    time_wait,
    leaks,
    descriptors,
    conntrack,
    *firewall.RULES,
    *searching.RULES,
    time_wait_overflow,
    listeners,
    timestamps_off,
    old_kernel,
)


def _graded(share: float, warning: float, critical: float) -> Severity:
    """How bad a share is, which is a note below what calls for a warning."""
    if share >= critical:
        return Severity.CRITICAL
    return Severity.WARNING if share >= warning else Severity.NOTE


def _share(row: Row) -> float:
    return row.taken / max(1, row.capacity)


def _resting(row: Row) -> int:
    """The TIME_WAITs that no connect() may take over now."""
    return row.states.get("TIME-WAIT", 0) - row.reusable


def _owners_of(row: Row, unseen: str, first: str = "") -> tuple[str, ...]:
    counts = {process.described: number for process, number in row.processes.items() if process}
    counts |= {NOBODY: row.processes.get(None, 0) - row.hidden, unseen: row.hidden}
    return owners(counts, first)


def _is_asked(facts: Facts, pair: WatchedPair) -> bool:
    """Whether a pair is the one that the call belongs to."""
    call = facts.call
    return (
        call is not None
        and call.destination == pair.row.destination
        and call.census_source == pair.row.source
        and PROTOCOLS[call.protocol].table == PROTOCOLS[pair.row.protocol].table
    )


def _told(facts: Facts, pair: WatchedPair) -> tuple[str, ...]:
    """Lines with the owners of a pair's connections, and where their number is going."""
    owned = _owners_of(pair.row, facts.unseen_owner, numbers(pair.row.states))
    if facts.seconds < _A_RATE_TAKES or not pair.rate:
        return owned
    left = pair.row.capacity - pair.row.taken
    until = f": none is left in {duration(left / pair.rate)}" if left > 0 and pair.rate > 0 else ""
    return *owned, f"{pair.rate:+,.1f} ports a second over {facts.seconds:.1f} s{until}"


def _is_filling(pair: WatchedPair, seconds: float) -> bool:
    left = pair.row.capacity - pair.row.taken
    # The number of connections also varies by chance: three standard deviations are more.
    grows = pair.rate * seconds > 3 * math.sqrt(pair.row.in_use)
    soon = grows and left < _SOON * pair.rate and _share(pair.row) >= _SOON_SHARE
    return _share(pair.row) >= FILLING or soon
