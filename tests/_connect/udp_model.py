"""A model of UDP sockets on one address and port, with the options that decide who is found.

tests/kernel/test_udp_order.py compares it with the running kernel.
"""

import errno
from dataclasses import dataclass, field
from typing import Final

from connectx.addresses import Endpoint

HOST: Final = "127.0.0.1"
PORT: Final = 20000

#: Devices by their index, and processors.
LO, OTHER = 1, 2
HERE, THERE = 0, 1


@dataclass(eq=False)
class ModelSocket:
    """A socket.

    device: What it is bound to; 0 for no device.
    processor: SO_INCOMING_CPU; -1 for none.
    mapped: Whether it is an IPv6 socket with an IPv4-mapped address.
    destination: What it is connected to.
    """

    device: int = 0
    processor: int = -1
    mapped: bool = False
    reuseaddr: bool = False
    destination: Endpoint | None = None

    def score(self, device: int, processor: int) -> int:
        """What the kernel compares of unconnected sockets (compute_score); -1 for no match."""
        if self.device not in (0, device):
            return -1
        return (not self.mapped) + 4 * bool(self.device) + (self.processor == processor)


@dataclass
class UdpModel:
    """The sockets: bound are those that have the port, connected those that have a peer.

    Both have the newest first.
    """

    bound: list[ModelSocket] = field(default_factory=list)
    connected: list[ModelSocket] = field(default_factory=list)

    def bind(self, sock: ModelSocket) -> None:
        """Bind a socket; OSError with EADDRINUSE, as udp_lib_lport_inuse()."""
        for other in self.bound:
            shared = sock.reuseaddr and other.reuseaddr
            apart = sock.device and other.device and sock.device != other.device
            if not shared and not apart:
                raise OSError(errno.EADDRINUSE, "in use")
        self.bound.insert(0, sock)

    def connect(self, sock: ModelSocket, destination: Endpoint) -> None:
        """Connect a socket."""
        sock.destination = destination
        self.connected.insert(0, sock)

    def close(self, sock: ModelSocket) -> None:
        """Close a socket."""
        for sockets in (self.bound, self.connected):
            if sock in sockets:
                sockets.remove(sock)

    def lookup(self, destination: Endpoint, device: int, processor: int) -> ModelSocket | None:
        """Return what a packet reaches that comes on a device and is received on a processor."""
        for sock in self.connected:
            if sock.destination == destination and sock.device in (0, device):
                return sock
        unconnected = [sock for sock in self.bound if sock.destination is None]
        # The first of those with the same score.
        found = max(unconnected, key=lambda sock: sock.score(device, processor), default=None)
        return found if found is not None and found.score(device, processor) >= 0 else None

    def listed(self, *, connected_to: Endpoint | None) -> list[ModelSocket]:
        """Return what a dump lists of IPv4 sockets and then of mapped ones, the newest first."""
        found = [sock for sock in self.bound if sock.destination == connected_to]
        return sorted(found, key=lambda sock: sock.mapped)
