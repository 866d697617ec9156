"""A connection's search for a port as one line of text: a strip of all the ports.

Each mark shows its meaning by its characters, and again by its colour. If there is room, ports
have their numbers above them, and probes their places in the order. Otherwise a port is one
character wide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from connectx.cli.page import Piece
from connectx.lab.model_sockets import Obstacle
from connectx.lab.simulate import WINDOW

if TYPE_CHECKING:
    from connectx.lab.simulate import Connection, Probe, Settings


#: A port of five digits and a blank; the mark of a probe fits as well: ``[99]``, ``99x``.
_WIDE: Final = 6

_FREE: Final = Piece(".", "dim")
_IN_USE: Final = Piece("x", "dim")
_BOUND: Final = Piece("b", "yellow")
_RESERVED: Final = Piece("-", "dim")
_ELSEWHERE: Final = Piece("o", "dim")
_OUTSIDE: Final = Piece(" ")

_CHOSEN_STYLE: Final = "bold green"
#: For even and for odd ports, which a plain connect() searches one after the other.
_PARITY_STYLES: Final = ("blue", "red")

#: The mark of a probe in a narrow strip, by what it found.
_NARROW: Final = {None: "*", Obstacle.IN_USE: ">", Obstacle.BOUND: "!"}
_WIDE_SUFFIX: Final = {Obstacle.IN_USE: _IN_USE.text, Obstacle.BOUND: _BOUND.text}


class Strips:
    """The lines of one simulation. Call line() and then note() for each connection, in order.

    Args:
        settings: What was simulated.
        width: How many columns there are.

    Attributes:
        fit: Whether there is room for the ports at all.
    """

    def __init__(self, settings: Settings, width: int) -> None:
        self._settings = settings
        self._columns = width
        self._ports = range(settings.ports.low, settings.ports.high + 1)
        self._number = max(2, len(str(settings.attempts)))
        self._destination = len(f" to {settings.destinations}") if settings.destinations > 1 else 0
        room = width - self._number - self._destination - 1 - len(_outcome("", ""))
        self._cell = _WIDE if _WIDE * len(self._ports) <= room else 1
        self.fit = self._cell * len(self._ports) <= room
        # The ports of the connections to each destination.
        self._taken: list[set[int]] = [set() for _ in range(settings.destinations)]

    def legend(self) -> list[list[Piece]]:
        """Return lines that explain the marks that can occur."""
        marks: list[tuple[str, str, str]] = [(*_FREE, "free"), (*_IN_USE, "in use")]
        even, odd = _PARITY_STYLES
        if self._cell == _WIDE:
            marks += [("1x", even, "looked at first, in use"), ("[2]", _CHOSEN_STYLE, "then taken")]
        else:
            marks += [(">", even, "looked at, in use"), ("*", _CHOSEN_STYLE, "taken")]
        if self._settings.bound:
            marks.append((*_BOUND, "bound by others"))
            marks.append(("1b" if self._cell == _WIDE else "!", odd, "looked at, bound"))
        if self._settings.reserved:
            marks.append((*_RESERVED, "reserved"))
        if self._settings.destinations > 1:
            marks.append((*_ELSEWHERE, "in use toward another destination only"))
        if self._settings.search.kind == WINDOW:
            marks.append(("blank", "", "outside the window"))
        lines: list[list[Piece]] = [[]]
        used = 0
        for mark, style, meaning in marks:
            explained = f" {meaning}   "
            if used + len(mark) + len(explained.rstrip()) > self._columns:
                lines.append([])
                used = 0
            lines[-1] += [Piece(mark, style), Piece(explained)]
            used += len(mark) + len(explained)
        return lines

    def head(self) -> list[Piece]:
        """Return the line above the strips: the ports, or the first and the last of them."""
        if self._cell == _WIDE:
            ports = [Piece(f"{port:^{_WIDE}}", _PARITY_STYLES[port % 2]) for port in self._ports]
        else:
            first, last = str(self._ports[0]), str(self._ports[-1])
            gap = len(self._ports) - len(first)
            ports = [Piece(first + (f"{last:>{gap}}" if len(last) < gap else " " * gap))]
        return [self._margin("", ""), *ports, Piece(_outcome("probes", "port"))]

    def line(self, connection: Connection, shown: int | None = None) -> list[Piece]:
        """Return a connection's search.

        Args:
            connection: The connection.
            shown: How many of its probes to show, without what came of it; None for all.
        """
        path = connection.path if shown is None else connection.path[:shown]
        probes = {probe.port: (order, probe) for order, probe in enumerate(path, 1)}
        taken = self._taken[connection.destination - 1]
        shared = set().union(*self._taken)
        cells = []
        for port in self._ports:
            if port in probes:
                mark = self._probed(*probes[port])
            elif not connection.window.contains(port):
                mark = _OUTSIDE
            elif port in self._settings.bound:
                mark = _BOUND
            elif port in self._settings.reserved:
                mark = _RESERVED
            elif port in taken:
                mark = _IN_USE
            else:
                mark = _ELSEWHERE if port in shared else _FREE
            cells.append(Piece(f"{mark.text:^{self._cell}}", mark.style))
        ended = shown is None or shown >= len(connection.path)
        found = str(connection.port or "none") if ended else ""
        return [
            self._margin(str(connection.number), f" to {connection.destination}"),
            *cells,
            Piece(_outcome(str(len(path)), found), "" if connection.port or not ended else "red"),
        ]

    def note(self, connection: Connection) -> None:
        """Note that a connection is open, if it got a port, while the next ones search."""
        if connection.port:
            self._taken[connection.destination - 1].add(connection.port)

    def _margin(self, number: str, destination: str) -> Piece:
        shown = destination if self._destination else ""
        return Piece(f"{number:>{self._number}}{shown:{self._destination}} ")

    def _probed(self, order: int, probe: Probe) -> Piece:
        obstacle = probe.obstacle
        style = _PARITY_STYLES[probe.port % 2] if obstacle else _CHOSEN_STYLE
        if self._cell == 1:
            return Piece(_NARROW[obstacle], style)
        text = f"{order}{_WIDE_SUFFIX[obstacle]}" if obstacle else f"[{order}]"
        return Piece(text, style)


def _outcome(probes: str, port: str) -> str:
    return f" {probes:>6} {port:>5}"
