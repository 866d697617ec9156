"""Rules about connect()'s search for a port, which net.ipv4.ip_local_port_step_width changes.

From a port in use, __inet_hash_connect() then goes on by a random step of at most that many ports,
and not to the next port. It draws a step that is coprime to the number of ports, so it tries each
of them all the same, in windows too. bind() and UDP search as ever, and a window of one port needs
no search (tests/kernel/test_step_width.py). The kernel's documentation, ip-sysctl.rst, says what it
is for: a search that meets a block of reserved ports ends right behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from connectx._diagnosis import causes
from connectx._diagnosis.finding import FILLING, Finding, Severity
from connectx.addresses import PortRange, ports_in, ranges_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from connectx._diagnosis.facts import Facts

#: The width to advise, in blocks of reserved ports: ip-sysctl.rst has three to four.
_BLOCKS: Final = 4


def step_width(facts: Facts) -> Iterator[Finding]:
    """Random steps make searches long, or are too narrow for what they are for."""
    width = facts.step_width
    known = f"net.ipv4.ip_local_port_step_width is {width}"
    full = [
        pair
        for pair in facts.pairs
        if pair.row.protocol == "tcp" and pair.row.utilisation >= FILLING
    ]
    # A width of 1 leaves the search as it is.
    if width > 1 and full:
        row = max(full, key=lambda pair: pair.row.utilisation).row
        yield Finding(
            Severity.WARNING,
            causes.RANDOM_STEPS,
            f"connect() searches in random steps of up to {width:,} ports, where most are in use",
            (
                f"{known}; 0, the default, is a search port by port",
                (
                    f"{row.taken:,} of {row.capacity:,} source ports are in use from {row.source} "
                    f"to {row.destination}"
                ),
            ),
            fields={"width": width, "pairs": tuple(full)},
        )
    elif width:
        block = _largest_block(facts)
        if width <= block.size:
            yield Finding(
                Severity.NOTE,
                causes.NARROW_STEPS,
                f"random steps of up to {width:,} ports do not get over a block of {block.size:,} "
                "reserved ones",
                (known, f"net.ipv4.ip_local_reserved_ports has all of {block}"),
                {"step": str(min(_BLOCKS * block.size, facts.ports.size))},
                fields={"width": width, "ports": block, "range": facts.ports},
            )


def _largest_block(facts: Facts) -> PortRange:
    """The largest block of reserved ports within the range; an empty one for none."""
    inside = ports_in(facts.reserved) & ports_in([facts.ports])
    none = PortRange(facts.ports.low, facts.ports.low - 1)
    return max(ranges_of(inside), key=lambda block: block.size, default=none)


RULES: Final[tuple[Callable[[Facts], Iterable[Finding]], ...]] = (step_width,)
