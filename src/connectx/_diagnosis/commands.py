"""What the {names} in the commands of remedies stand for.

A value is left out where its command would do nothing, or harm: the remedy is then printed
without a command.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from connectx.addresses import Endpoint, PortRange, ports_in, ranges_of

if TYPE_CHECKING:
    from connectx._diagnosis.facts import Facts

#: A range that excludes the ports of most services.
_WIDE: Final = PortRange(10240, 65535)

#: Octets of a list of ports that one write takes: proc_do_large_bitmap() takes less than a page.
_WRITTEN: Final = 4000

#: The default of fs.nr_open, above which no process may raise its limit.
NR_OPEN: Final = 1 << 20


def against_exhaustion(facts: Facts) -> dict[str, str]:
    """The values against exhaustion."""
    values = {}
    if facts.tcp_timestamps and facts.tcp_tw_reuse != 1:
        values["reuse"] = "1"
    low = max(_WIDE.low, facts.unprivileged_port_start)
    wider = PortRange(min(low, facts.ports.low), _WIDE.high)
    if wider.size > facts.ports.size:
        values.update(widening(facts, wider))
    values.update(reserving(facts, listening(facts)))
    return values


def listening(facts: Facts) -> set[int]:
    return {each.port for each in facts.holders if each.state == "LISTEN"}


def reserving(facts: Facts, ports: set[int]) -> dict[str, str]:
    """The value that reserves ports; none without any, or for more than sysctl(8) can write."""
    # The value replaces the one in force, so it repeats the ports that are reserved now.
    value = ",".join(listed(ports | ports_in(facts.reserved)))
    return {"reserve": value} if ports and len(value) < _WRITTEN else {}


def widening(facts: Facts, wider: PortRange) -> dict[str, str]:
    """The values that widen the range, and before that reserve the ports of services in it."""
    # The kernel refuses a range that reaches into the privileged ports.
    if wider.low < facts.unprivileged_port_start:
        return {}
    redirected = ports_in(ports for rule in facts.rules.redirections for ports in rule.ports or ())
    services = {port for port in facts.services | redirected if wider.contains(port)}
    added = services - ports_in(facts.reserved)
    reserved = reserving(facts, added)
    if added and not reserved:
        return {}
    first = f"net.ipv4.ip_local_reserved_ports={reserved['reserve']} " if added else ""
    return {"wider": f"{wider.low} {wider.high}", "reserve_first": first}


def listed(ports: set[int]) -> list[str]:
    """Ports as net.ipv4.ip_local_reserved_ports has them: "8080", "10000-20000"."""
    return [str(each.low) if each.size == 1 else str(each) for each in ranges_of(ports)]


def closing_leaks(facts: Facts) -> dict[str, str]:
    """The destination with the most connections in CLOSE-WAIT, if it is known."""
    leaking = Counter[Endpoint]()
    for row in (pair.row for pair in facts.pairs):
        leaking[row.destination] += row.states.get("CLOSE-WAIT", 0)
    destination, number = leaking.most_common(1)[0] if leaking else (Endpoint("", 0), 0)
    return {"leaked": str(destination)} if number else {}


def more_descriptors(limit: int, hard: int) -> str:
    """A higher limit, as prlimit(1) takes it: with a colon, the soft limit alone."""
    more = min(4 * limit, NR_OPEN)
    # To raise the hard limit takes CAP_SYS_RESOURCE, which many a container's root has not.
    return f"{min(more, hard)}:" if hard > limit else str(more)
