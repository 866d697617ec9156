"""A closer look at one pair of source and destination: states, processes, source ports."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from connectx.addresses import PROTOCOLS
from connectx.linux import sysctl
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.processes import owners
from connectx.linux.sock_diag import ALL_STATES
from connectx.linux.socket_dump import UNCONNECTED, filter_between, records
from connectx.linux.uapi import NETLINK_SOCK_DIAG, STATE_NAMES
from connectx.observe.namespace import visiting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from connectx.addresses import PortRange
    from connectx.linux.processes import Process
    from connectx.observe.history import Pair


class Detail(NamedTuple):
    """The connections of a pair.

    states: connections by state, as ss(8) names it.
    processes: by owner; None is nobody's, as in TIME_WAIT, or somebody's whom we may not see.
    hidden: processes whose descriptors we may not see, which explains a None.
    within: the range that they are looked for in.
    ports: their source ports in it, in order. Reserved ones too, which a snapshot leaves out.
    """

    states: Mapping[str, int]
    processes: Mapping[Process | None, int]
    hidden: int
    within: PortRange
    ports: tuple[int, ...]


def look(pair: Pair, *, netns: str | None = None, port_range: PortRange | None = None) -> Detail:
    """Find out about a pair's connections; arguments and errors as for `snapshot`.

    Costs a look at every descriptor of every process, beside the pair's own connections.
    """
    protocol, source, destination = pair
    with visiting(netns), NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        within = port_range or sysctl.read_port_range()
        family, asked = filter_between(
            PROTOCOLS[protocol].table, ALL_STATES & ~UNCONNECTED, source, destination, (within,)
        )
        found = records(netlink, family, asked)
        known = owners()
    states: Counter[str] = Counter()
    processes: Counter[Process | None] = Counter()
    for record in found:
        states[STATE_NAMES.get(record.state, str(record.state))] += 1
        # Of several processes that share it, after a fork, the one that had it first.
        processes[min(known.by_inode.get(record.inode, ()), default=None)] += 1
    ports = tuple(sorted({record.source_port for record in found}))
    return Detail(dict(states), dict(processes), known.hidden, within, ports)
