"""Ports of a range, counted by what keeps them, and the causes of there being none."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from connectx.core.causes import CONNECTED, FREED, HELD, HELD_DATAGRAM, RESERVED, TIME_WAIT

if TYPE_CHECKING:
    from connectx.addresses import FourTuple, PortRange
    from connectx.core.causes import Cause


class Census(NamedTuple):
    """The ports of a range from one source toward one destination, counted.

    connected: held by sockets on the 4-tuple, TIME_WAIT apart.
    held: not on the 4-tuple, but with other sockets on them that refuse to share.
    reserved: in net.ipv4.ip_local_reserved_ports, and used by nobody here.
    """

    ports: PortRange
    connected: int
    time_wait: int
    held: int
    reserved: int

    @property
    def free(self) -> int:
        """Ports with no socket on them."""
        return self.ports.size - self.connected - self.time_wait - self.held - self.reserved


def of_exhaustion(census: Census, *, stream: bool) -> list[Cause]:
    """Why no port was to be had, the greatest share first."""
    held = HELD if stream else HELD_DATAGRAM
    shares = [
        (census.free, FREED),
        (census.connected, CONNECTED),
        (census.time_wait, TIME_WAIT),
        (census.held, held),
        (census.reserved, RESERVED),
    ]
    return [cause for count, cause in sorted(shares, key=lambda share: -share[0]) if count]


def describe(census: Census, subject: FourTuple) -> str:
    """The census in one sentence."""
    parts = [f"{census.connected} connected"]
    if subject.protocol in ("tcp", "mptcp"):
        parts.append(f"{census.time_wait} in TIME_WAIT")
    parts += [
        f"{census.held} held by listeners or exclusive binds",
        f"{census.reserved} reserved",
        f"{census.free} free now",
    ]
    source = subject.source.host or "the address the kernel chooses"
    return (
        f"From {source} to {subject.destination}, the range {census.ports} holds "
        f"{census.ports.size} ports: {', '.join(parts)}."
    )
