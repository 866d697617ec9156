"""The settings of a dialer, checked."""

from __future__ import annotations

import math
import os
from array import array
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from connectx._connect import strategies
from connectx._connect.here import plain_if
from connectx._connect.request import NEW_SOCKET, Options
from connectx._dial.sources import Sources
from connectx.addresses import HIGHEST_PORT, PortRange, ports_in, ranges_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence


class Settings(NamedTuple):
    """What a dialer was made with; see connectx.Dialer for what it means.

    Attributes:
        sources: Where from.
        ranges: The source ports, range by range; (None,) for the range in force.
        single: The only source of IP version 4 and 6, "" for routing's choice, and the only
            range; None if there are more, or none.
        options: What sockets are to have set, by range.
        strategy: How a source port is chosen.
        limit: Connections to one destination at most; 0 for no limit.
        wait: Seconds to wait for a port; 0 for not at all.
        freebind: Whether sources need not be local.
        on_wait: Called when a call begins to wait.
        exclude: The source ports that are left out.
        asked: What a socket is to have set whose port is asked for by number.
        plain: Whether to connect as the standard library does where connectx cannot.
    """

    sources: Sources
    ranges: tuple[PortRange | None, ...]
    single: Mapping[int, tuple[str, PortRange | None] | None]
    options: Mapping[PortRange | None, Options]
    strategy: str
    limit: int
    wait: float
    freebind: bool
    on_wait: Callable[[Any], object] | None
    exclude: tuple[PortRange, ...]
    asked: Options
    plain: bool

    def require(self, port: int) -> None:
        """Refuse a source port that the dialer would not choose: ValueError."""
        if any(hole.contains(port) for hole in self.exclude):
            raise ValueError(f"source port {port} is excluded by the dialer")
        if not any(each is None or each.contains(port) for each in self.ranges):
            ranges = ", ".join(map(str, self.ranges))
            raise ValueError(f"source port {port} is none of the dialer's ports, {ranges}")


def check(
    sources: Iterable[str] | None,
    ports: tuple[int, int] | Sequence[tuple[int, int]] | None,
    *,
    exclude: Iterable[int | tuple[int, int]],
    strategy: str,
    rotate: str,
    limit: int | None,
    wait: float | None,
    freebind: bool,
    on_wait: Callable[[Any], object] | None,
    fallback: str | None,
) -> Settings:
    """Return the settings; TypeError or ValueError for what cannot be right."""
    strategies.named(strategy)
    if on_wait is not None and not callable(on_wait):
        raise TypeError(f"on_wait is a function, not {on_wait!r}")
    if not isinstance(freebind, bool):
        raise TypeError(f"freebind is True or False, not {freebind!r}")
    if isinstance(limit, float):
        raise TypeError(f"limit is an integer, not {limit!r}")
    ranges, holes, plain = _ranges(ports), _holes(exclude), plain_if(fallback)
    for each in ranges:
        if each and len(ports_in([each]) - ports_in(holes)) == 0:
            raise ValueError(f"exclude leaves no port of {each}")
    found = Sources(_sources(sources), rotate, draw)
    asked = NEW_SOCKET
    if holes or freebind or plain:
        asked = asked._replace(exclude=holes, freebind=freebind, plain=plain)
    return Settings(
        found,
        ranges,
        {version: _single(found.single(version), ranges) for version in (4, 6)},
        {
            # The same one, where nothing differs: a destination's request then serves as it is.
            each: asked._replace(ports=each) if each else asked
            for each in ranges
        },
        strategy,
        int(number("limit", limit, 1)),
        float(number("wait", wait, 0)),
        freebind,
        on_wait,
        holes,
        asked,
        plain,
    )


def _single(
    host: str | None, ranges: Sequence[PortRange | None]
) -> tuple[str, PortRange | None] | None:
    return (host, ranges[0]) if host is not None and len(ranges) == 1 else None


def draw(count: int) -> array[int]:
    """Return numbers of 32 bits that nobody else can foresee."""
    return array("I", os.urandom(4 * count))


def number(name: str, value: float | None, least: float) -> Any:
    """Return a number that may be left out (0 then); TypeError or ValueError for what is none."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number, not {value!r}")
    if not least <= value < math.inf:
        finite = "" if math.isfinite(value) else " and finite"
        raise ValueError(f"{name} is at least {least:g}{finite}, not {value!r}")
    return value


_PORTS_FORM: Final = "ports is a range such as (20000, 29999), or several, not {0!r}"


def _sources(sources: Any) -> Iterable[str]:
    """Return the sources; TypeError or ValueError for what names none."""
    if sources is None:
        return ()
    if isinstance(sources, str | bytes):
        raise TypeError(f"sources is a list of addresses, such as [{sources!r}], not text")
    try:
        found = list(sources)
    except TypeError:
        raise TypeError(
            f"sources is a list of addresses and prefixes, or a dialer, not {sources!r}"
        ) from None
    if not found:
        raise ValueError("sources names no address: leave it out to have the routing table choose")
    return found


def _holes(exclude: Any) -> tuple[PortRange, ...]:
    """Return the ports that are left out, as few ranges as possible."""
    form = f"exclude is a list of ports and ranges, such as [11211, (8000, 8099)], not {exclude!r}"
    if isinstance(exclude, str | bytes):
        raise TypeError(form)
    try:
        given = list(exclude)
    except TypeError:
        raise TypeError(form) from None
    ranges = [(each, each) if isinstance(each, int) else each for each in given]
    if not ranges:
        return ()
    return tuple(ranges_of(ports_in(each for each in _ranges(ranges, form) if each)))


def _ranges(
    ports: tuple[int, int] | Sequence[tuple[int, int]] | None, form: str = ""
) -> tuple[PortRange | None, ...]:
    """Return the ranges of source ports, in order; (None,) for the range in force.

    form: what to say of any other form; "" for that of `ports`.
    """
    if ports is None:
        return (None,)
    try:
        given = list(ports)
    except TypeError:
        raise TypeError(_PORTS_FORM.format(ports)) from None
    if len(given) == 2 and all(isinstance(port, int) for port in given):
        given = [given]
    ranges: list[PortRange | None] = []
    for each in given:
        if not isinstance(each, tuple | list) or len(each) != 2:
            raise TypeError(form or _PORTS_FORM.format(ports))
        low, high = each
        for port in each:
            if isinstance(port, bool) or not isinstance(port, int):
                raise TypeError(f"a port is an integer, not {port!r}")
        if not 1 <= low <= high <= HIGHEST_PORT:
            raise ValueError(
                f"a range lies within 1 to {HIGHEST_PORT}, its low end first: {each!r}"
            )
        ranges.append(PortRange(low, high))
    if not ranges:
        raise ValueError("ports names no range: leave it out for the range in force")
    return tuple(ranges)
