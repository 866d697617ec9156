"""How far the kernel's walk through the port range is from a port that rests.

The kernel's search for a TCP port begins where nobody can foresee, and goes on by 1 to 8 ports of
one parity with each call toward a destination, whichever process makes it (__inet_hash_connect;
RFC 6056, algorithm 4). So a port comes back late whoever has used it, which no memory of one
process can achieve. Every 10 seconds the walk goes on elsewhere (secure_ipv4_port_ephemeral), and
it knows nothing of ports that rest: both are noticed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection


#: Ports to keep away from one that rests, beside twice the last step: a call takes one of the next
#: 8 of a parity, and others may make more calls in between than the last time.
CLEARANCE: Final = 32

#: A step over more than this part of the range, one in so many, leads elsewhere.
_ELSEWHERE: Final = 64

#: Resting ports that may be looked at to gain one that is clear: each takes 60 ns.
_LOOKS: Final = 8

#: The part of the range, one in so many, that may be in use. The kernel would find the last free
#: ports as well, but slowly.
IN_USE: Final = 64


class Walk:
    """The walk toward one destination, as far as one process sees it.

    Attributes:
        size: The ports of the range.
        at: The port that the kernel has chosen last.
        clear: How many ports may be gone through before one that rests, less `CLEARANCE`.
        most: How many ports may be in use.
    """

    __slots__ = ("at", "clear", "most", "size")

    def __init__(self, size: int, port: int) -> None:
        """Begin at a port of a range of this size, in which none rests."""
        self.size = size
        self.at = port
        self.clear = size - CLEARANCE
        self.most = size // IN_USE

    def look(self, resting: Collection[int], step: int) -> bool:
        """Measure anew what is clear; returns whether the walk may go on.

        It may not where little is clear and much had to be looked at. step: the last one.
        """
        at, size = self.at, self.size
        self.clear = min(((port - at - 1) % size for port in resting), default=size) - CLEARANCE
        least = len(resting) // _LOOKS
        if step * _ELSEWHERE < size:
            least += 2 * step
        return self.clear >= least
