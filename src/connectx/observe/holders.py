"""Ports that sockets without a destination have for themselves: no connection can share them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from connectx.addresses import family_of, needs_scope, unmapped
from connectx.linux.socket_dump import UNCONNECTED, Filter, with_v6only
from connectx.linux.uapi import (
    AF_INET,
    AF_INET6,
    IPPROTO_TCP,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from connectx.addresses import PortRange
    from connectx.linux.netlink import NetlinkSocket

_BOTH: Final = (AF_INET, AF_INET6)


class Holders(NamedTuple):
    """Ports that are held.

    everywhere: by family of addresses, those that no source address can use.
    own: by source address, packed, and its scope, those that only it cannot use.
    """

    everywhere: Mapping[int, set[int]]
    own: Mapping[tuple[bytes, int], set[int]]

    def own_of(self, source: bytes, scope: int) -> set[int]:
        """What a source address cannot use, beside what none of its family can."""
        return self.own.get((source, scope), set()) - self.everywhere[family_of(source)]


def read_holders(
    netlink: NetlinkSocket, protocol: int, ports: PortRange, reserved: set[int]
) -> Holders:
    """The ports in a range that unconnected sockets hold, those left out that are reserved.

    connect() passes over a TCP port that is bound on any address of either family
    (__inet_hash_connect); and over a UDP port that is bound on its own address, or on all
    of its family. "::" is for both families, unless IPV6_V6ONLY is on.

    Raises as `connectx.linux.socket_dump.dump` does.
    """
    everywhere: dict[int, set[int]] = {family: set() for family in _BOTH}
    own: dict[tuple[bytes, int], set[int]] = {}
    wanted = Filter(protocol, UNCONNECTED, ports=(ports,))
    for record, v6only in with_v6only(netlink, wanted):
        if record.source_port in reserved:
            continue
        source = unmapped(record.source)
        if protocol != IPPROTO_TCP and any(source):
            scope = record.interface if needs_scope(source) else 0
            own.setdefault((source, scope), set()).add(record.source_port)
            continue
        for family in _families(protocol, source, v6only=v6only):
            everywhere[family].add(record.source_port)
    return Holders(everywhere, own)


def _families(protocol: int, source: bytes, *, v6only: bool) -> tuple[int, ...]:
    if protocol == IPPROTO_TCP:
        return _BOTH
    if len(source) == 4:
        return (AF_INET,)
    return (AF_INET6,) if v6only else _BOTH
