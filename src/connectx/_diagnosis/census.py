"""Ports of a range, counted by what keeps them, and the causes of there being none."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from connectx._diagnosis.causes import CONNECTED, FREED, HELD, HELD_DATAGRAM, RESERVED, TIME_WAIT

if TYPE_CHECKING:
    from connectx._diagnosis.causes import Cause
    from connectx.addresses import FourTuple, PortRange


class Census(NamedTuple):
    """The ports of a range from one source toward one destination, counted.

    connected: held by sockets on the 4-tuple, TIME_WAIT apart.
    held: not on the 4-tuple, but with other sockets on them that refuse to share.
    reserved: in net.ipv4.ip_local_reserved_ports, and used by nobody here.
    reusable: how many of those in TIME_WAIT a connect() may take over now.
    untold: with other sockets on them, of which this kernel does not tell whether they share.
    unused: with no socket of the protocol on them at all, toward whatever destination.
    """

    ports: PortRange
    connected: int
    time_wait: int
    held: int
    reserved: int
    reusable: int = 0
    untold: int = 0
    unused: int = 0

    @property
    def free(self) -> int:
        """Ports that the next connection to the destination may have."""
        taken = self.connected + self.time_wait - self.reusable
        return self.ports.size - taken - self.held - self.reserved - self.untold


def of_exhaustion(census: Census, *, stream: bool) -> list[Cause]:
    """Why no port was to be had, the greatest share first."""
    held = HELD if stream else HELD_DATAGRAM
    shares = [
        (census.free, FREED),
        (census.connected, CONNECTED),
        (census.time_wait - census.reusable, TIME_WAIT),
        (census.held, held),
        (census.reserved, RESERVED),
    ]
    return [cause for count, cause in sorted(shares, key=lambda share: -share[0]) if count]


def describe(census: Census, subject: FourTuple) -> str:
    """The census in one sentence."""
    parts = [f"{census.connected} connected"]
    if subject.protocol in ("tcp", "mptcp"):
        reusable = f" ({census.reusable} of them to be taken over)" if census.reusable else ""
        parts.append(f"{census.time_wait} in TIME_WAIT{reusable}")
    parts += [
        f"{census.held} held by listeners or exclusive binds",
        f"{census.reserved} reserved",
        f"{census.free} free now",
    ]
    if census.untold:
        parts.insert(-1, f"{census.untold} that others have and perhaps share")
    source = subject.source.host or "the address the kernel chooses"
    return (
        f"From {source} to {subject.destination}, the range {census.ports} holds "
        f"{census.ports.size} ports: {', '.join(parts)}."
    )
