"""How many connections there can be to a destination, and how many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from connectx._connect.namespace import NetlinkRefused
from connectx._connect.plan import routed_source, without_netlink
from connectx.linux.uapi import STATE_NAMES

if TYPE_CHECKING:
    from connectx._connect.namespace import Namespace
    from connectx._connect.request import Request


class SourceCapacity(NamedTuple):
    """The ports of one source address toward a destination.

    source: the address, or a prefix: all of its addresses that are not listed by themselves.
    total: ports there are. in_use: of these, by state as ss(8) names it.
    """

    source: str
    total: int
    in_use: dict[str, int]

    @property
    def free(self) -> int:
        """Ports that no connection to the destination has."""
        return self.total - sum(self.in_use.values())


class Capacity(NamedTuple):
    """The connections there can be to a destination, and those there are.

    total, in_use, free: ports of all sources together. sources: the same for each.

    Whoever has the connections counts, in the calling thread's network namespace.
    Sockets to other destinations do not: they take no port away.
    """

    total: int
    in_use: int
    free: int
    sources: tuple[SourceCapacity, ...]


def count(namespace: Namespace, request: Request, within: set[int]) -> SourceCapacity:
    """The ports of a request's source toward its destination; within: those that may be used.

    Raises OSError as routing and netlink do, and NotSupported where netlink is refused.
    """
    from connectx.linux.socket_dump import ports_toward  # noqa: PLC0415 - as in network.py

    wire = request.origin.wire_source or routed_source(namespace, request)
    try:
        netlink = namespace.diag
    except NetlinkRefused as error:
        raise without_netlink(request, error, "counting the ports in use") from error
    found = ports_toward(
        netlink,
        request.origin.table,
        request.origin.wire_family,
        wire,
        request.wire_destination,
        request.destination.port,
        interface=request.scope,
    )
    in_use: dict[str, int] = {}
    for state, some in found.items():
        number = len(within.intersection(some))
        if number:
            in_use[STATE_NAMES.get(state, str(state))] = number
    return SourceCapacity(request.source_host(wire), len(within), in_use)
