"""Rules about what surrounds the ports: settings, tables and limits that stand in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from connectx._diagnosis import causes
from connectx._diagnosis.finding import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectx._diagnosis.facts import Facts

#: What fs.nr_open allows by default.
_NR_OPEN: Final = 1 << 20
#: Shares of descriptors, of conntrack's table and of TIME_WAIT buckets.
_NEARLY: Final = 0.8
_LAST: Final = 0.95


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
    """No more TIME_WAITs than a sysctl allows."""
    if facts.time_wait is None:
        return
    count, most = facts.time_wait
    # As many as 0 are no bound, but the kernel's own way to have none at all.
    near = bool(most) and count >= _NEARLY * most
    if not (near or facts.time_wait_overflows):
        return
    yield Finding(
        Severity.WARNING if near or facts.overflows_gain else Severity.NOTE,
        causes.TIME_WAIT_OVERFLOW,
        f"{count:,} TIME_WAITs of {most:,} that there may be",
        (
            f"{facts.time_wait_overflows:,} connections ended without one (TCPTimeWaitOverflow)",
            f"{facts.overflows_gain:,} of them in the last {facts.seconds:.1f} s",
        ),
        {"more": str(max(262144, 4 * most))},
    )


def descriptors(facts: Facts) -> Iterator[Finding]:
    """Processes that run out of descriptors before they run out of ports."""
    for each in facts.descriptors:
        if each.used >= _NEARLY * each.limit:
            yield Finding(
                Severity.CRITICAL if each.used >= _LAST * each.limit else Severity.WARNING,
                causes.DESCRIPTORS,
                f"{each.owner} has {each.used:,} of {each.limit:,} descriptors open",
                (f"/proc/{each.pid}/limits: Max open files {each.limit}",),
                {"pid": str(each.pid), "more": str(min(4 * each.limit, _NR_OPEN))}
                if each.limit < _NR_OPEN
                else {},
            )


def conntrack(facts: Facts) -> Iterator[Finding]:
    """A table of tracked connections that is nearly full."""
    if facts.conntrack is None:
        return
    count, most = facts.conntrack
    # 0 is no limit.
    if most and count >= _NEARLY * most:
        yield Finding(
            Severity.CRITICAL if count >= _LAST * most else Severity.WARNING,
            causes.CONNTRACK,
            f"conntrack has {count:,} entries of {most:,}",
            ("net.netfilter.nf_conntrack_count and nf_conntrack_max",),
            {"more": str(2 * most)},
        )


def translated(facts: Facts) -> Iterator[Finding]:
    """Translation to fewer ports than the host has."""
    for each in facts.translations:
        if each.ports.size < facts.ports.size:
            yield Finding(
                Severity.NOTE if each.forwarded else Severity.WARNING,
                causes.TRANSLATED,
                f"a rule translates to {each.ports.size:,} ports, fewer than the range's "
                f"{facts.ports.size:,}",
                (each.text,),
            )


def old_kernel(facts: Facts) -> Iterator[Finding]:
    """What a newer kernel would bring."""
    if facts.lacking:
        yield Finding(
            Severity.NOTE,
            causes.OLD_KERNEL,
            f"Linux {facts.kernel} lacks something that helps",
            facts.lacking,
        )
