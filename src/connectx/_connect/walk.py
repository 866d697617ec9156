"""How far the kernel's walk through the port range is from a port that rests.

The kernel's search for a TCP port begins where nobody can foresee, and goes on by 1 to 8 ports
with each call toward a destination, whichever process makes it (__inet_hash_connect; RFC 6056,
algorithm 4). So a port comes back late whoever has used it, which no memory of one process can
achieve. Every 10 seconds the walk goes on elsewhere (secure_ipv4_port_ephemeral), and it knows
nothing of ports that rest: both are noticed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection


#: Ports to keep away from one that rests, beside what others' calls in between take: a call takes
#: one of the next 8 that are free.
_CLEARANCE: Final = 32

#: A step over more than this part of the range, one in so many, leads elsewhere.
_ELSEWHERE: Final = 64

#: Resting ports that may be looked at to gain one that is clear: each takes 60 ns.
_LOOKS: Final = 8


class Walk:
    """The walk toward one destination, as far as one process sees it."""

    __slots__ = ("_at", "_clear", "_margin", "_size")

    def __init__(self, size: int, port: int) -> None:
        """Begin at a port of a range of this size, in which none rests."""
        self._size = size
        self._at = port
        # How many ports follow until one that rests.
        self._clear = size
        # How many have to: what others' calls take of the range is not known yet.
        self._margin = _CLEARANCE + 2 * size // _ELSEWHERE

    def goes_to(self, port: int) -> bool:
        """Note where the kernel is; returns False if the next port may be one that rests."""
        step = (port - self._at) % self._size
        self._at = port
        self._clear -= step
        if step * _ELSEWHERE < self._size:
            # Others may make twice as many calls the next time.
            self._margin = _CLEARANCE + 2 * step
        return self._clear >= self._margin

    def leaves(self, port: int) -> bool:
        """Note that a port rests from now on; returns as `goes_to`."""
        # Where the kernel has just been is what it comes to last.
        ahead = (port - self._at - 1) % self._size
        self._clear = min(self._clear, ahead)
        return self._clear >= self._margin

    def look(self, resting: Collection[int]) -> bool:
        """Measure anew; returns as `goes_to`.

        Where that is not worth its time, since little is clear and much was looked at, False.
        """
        at, size = self._at, self._size
        self._clear = min(((port - at - 1) % size for port in resting), default=size)
        return self._clear >= self._margin + len(resting) // _LOOKS
