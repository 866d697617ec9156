"""The settings of a dialer, checked."""

from __future__ import annotations

import math
import os
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

from connectx._connect import strategies
from connectx._connect.request import NEW_SOCKET, Options
from connectx._dial.sources import Sources
from connectx.addresses import HIGHEST_PORT, PortRange

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


def check(
    sources: Iterable[str],
    ports: tuple[int, int] | Sequence[tuple[int, int]] | None,
    *,
    strategy: str,
    rotate: str,
    limit: int | None,
    wait: float | None,
    freebind: bool,
    on_wait: Callable[[Any], object] | None,
) -> Settings:
    """Return the settings; TypeError or ValueError for what cannot be right."""
    strategies.named(strategy)
    if on_wait is not None and not callable(on_wait):
        raise TypeError(f"on_wait is a function, not {on_wait!r}")
    if not isinstance(freebind, bool):
        raise TypeError(f"freebind is True or False, not {freebind!r}")
    if isinstance(limit, float):
        raise TypeError(f"limit is an integer, not {limit!r}")
    ranges = _ranges(ports)
    found = Sources(sources, rotate, draw)
    return Settings(
        found,
        ranges,
        {version: _single(found.single(version), ranges) for version in (4, 6)},
        {
            # The same one, where nothing differs: a destination's request then serves as it is.
            each: NEW_SOCKET._replace(ports=each, freebind=freebind)
            if each or freebind
            else NEW_SOCKET
            for each in ranges
        },
        strategy,
        int(_number("limit", limit, 1)),
        float(_number("wait", wait, 0)),
        freebind,
        on_wait,
    )


def _single(
    host: str | None, ranges: Sequence[PortRange | None]
) -> tuple[str, PortRange | None] | None:
    return (host, ranges[0]) if host is not None and len(ranges) == 1 else None


def draw(count: int) -> array[int]:
    """Return numbers of 32 bits that nobody else can foresee."""
    return array("I", os.urandom(4 * count))


def _number(name: str, value: float | None, least: float) -> Any:
    """Return a number that may be left out (0 then); TypeError or ValueError for what is none."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number, not {value!r}")
    if not least <= value < math.inf:
        finite = "" if math.isfinite(value) else " and finite"
        raise ValueError(f"{name} is at least {least:g}{finite}, not {value!r}")
    return value


def _ranges(
    ports: tuple[int, int] | Sequence[tuple[int, int]] | None,
) -> tuple[PortRange | None, ...]:
    """Return the ranges of source ports, in order; (None,) for the range in force."""
    if ports is None:
        return (None,)
    given = list(ports)
    if len(given) == 2 and all(isinstance(port, int) for port in given):
        given = [given]
    ranges: list[PortRange | None] = []
    for each in given:
        if not isinstance(each, tuple | list) or len(each) != 2:
            raise TypeError(f"ports is a range such as (20000, 29999), or several: {ports!r}")
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
