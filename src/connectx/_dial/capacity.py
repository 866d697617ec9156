"""How many connections there can be to a destination, and how many there are."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from connectx._connect.namespace import NetlinkRefused
from connectx._connect.plan import routed_source, without_netlink
from connectx._dial.sources import usable as usable_addresses
from connectx.addresses import packed, text
from connectx.linux.uapi import STATE_NAMES, TCP_FIN_WAIT2, TCP_TIME_WAIT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from connectx._connect.namespace import Namespace
    from connectx._connect.request import Request
    from connectx._dial.sources import Network


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


def count(namespace: Namespace, request: Request, usable: bytes) -> SourceCapacity:
    """Return the ports of a request's source toward its destination.

    Args:
        namespace: Where to count.
        request: From one source.
        usable: For each port number, 1 if it may be used, else 0.

    Raises:
        OSError: As routing and netlink do.
        NotSupported: Netlink is refused.
    """
    from connectx.linux.socket_dump import ports_toward  # noqa: PLC0415 - as in namespace.py

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
    usable = _of(wire, request, usable)
    # A dump may list a socket twice.
    in_use = {state: sum(map(usable.__getitem__, set(some))) for state, some in found.items()}
    return SourceCapacity(request.source_host(wire), usable.count(1), _by_name(in_use))


def count_each(
    namespace: Namespace,
    to: Request,
    hosts: Sequence[str],
    prefixes: Sequence[Network],
    usable: bytes,
) -> list[SourceCapacity]:
    """Return the ports of many sources toward a destination, by one dump for all of them.

    Args:
        namespace: Where to count.
        to: The destination.
        hosts: Single addresses.
        prefixes: Prefixes, for all of their addresses that are not listed by themselves.
        usable: As for `count`.

    Raises:
        OSError: As netlink does.
    """
    in_use: dict[bytes, Counter[int]] = {}
    for (source, state), ports in _in_use(namespace, to).items():
        some = _of(source, to, usable)
        in_use.setdefault(source, Counter())[state] = sum(map(some.__getitem__, ports))
    counted = []
    for host in hosts:
        source = packed(host) or b""
        states = in_use.pop(source, Counter())
        total = _of(source, to, usable).count(1)
        counted.append(SourceCapacity(to.source_host(source), total, _by_name(states)))
    for prefix in prefixes:
        states = Counter()
        shift = prefix.max_prefixlen - prefix.prefixlen
        first = int(prefix.network_address) >> shift
        for source, found in in_use.items():
            if int.from_bytes(source, "big") >> shift == first:
                states.update(found)
        listed = sum(ip_address(host) in prefix for host in hosts)
        total = (usable_addresses(prefix) - listed) * usable.count(1)
        host = text(to.wire_destination)
        if ip_address(host) in prefix and host not in hosts:
            total -= usable[to.destination.port]
        counted.append(SourceCapacity(str(prefix), total, _by_name(states)))
    return counted


def full_sources(
    namespace: Namespace, to: Request, usable: Sequence[bytes]
) -> list[AbstractSet[str]]:
    """Return the sources of which every port is connected to a destination, by one dump.

    Args:
        namespace: Where to look.
        to: The destination.
        usable: As for `count`; there is one result for each.

    Raises:
        OSError: As netlink does.
    """
    taken: dict[bytes, set[int]] = {}
    for (source, state), ports in _in_use(namespace, to).items():
        # A TIME_WAIT may be taken over, and is reported as FIN_WAIT2 in its first part.
        if state not in (TCP_TIME_WAIT, TCP_FIN_WAIT2):
            taken.setdefault(source, set()).update(ports)
    return [
        {
            text(source)
            for source, ports in taken.items()
            if sum(map(_of(source, to, some).__getitem__, ports)) == _of(source, to, some).count(1)
        }
        for some in usable
    ]


def _of(source: bytes, to: Request, usable: bytes) -> bytes:
    """Return the ports of a source: not the destination's own at its own address.

    From there a socket would be connected to itself.
    """
    if source != to.wire_destination:
        return usable
    port = to.destination.port
    return usable[:port] + b"\0" + usable[port + 1 :]


def _in_use(namespace: Namespace, to: Request) -> dict[tuple[bytes, int], set[int]]:
    """Return the ports in use toward a destination, by source and state."""
    from connectx.linux.socket_dump import sources_toward  # noqa: PLC0415 - as in network.py

    return sources_toward(
        namespace.diag,
        to.origin.table,
        to.origin.wire_family,
        to.wire_destination,
        to.destination.port,
        interface=to.scope,
    )


def _by_name(states: Mapping[int, int]) -> dict[str, int]:
    """Return the counts that are not 0, by state as ss(8) names it."""
    return {
        STATE_NAMES.get(state, str(state)): number for state, number in states.items() if number
    }
