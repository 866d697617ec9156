"""Findings made up, for what the report says and draws of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from connectx.addresses import PortRange
from connectx.lab.latency import Latency, Samples, Settings
from connectx.lab.machine import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

LOW = 40000


def fill(
    microseconds: Sequence[float],
    ports: Sequence[int] = (),
    *,
    way: str = "kernel",
    finished: bool = True,
) -> Latency:
    """A fill of a range of so many ports; by default, all succeed, from one port after another.

    ports: for each connection; 0 for one that was refused.
    """
    samples = Samples.none()
    ports = ports or range(LOW, LOW + len(microseconds))
    for each, port in zip(microseconds, ports, strict=True):
        samples.add(port, round(1000 * each), 0, 0 if port else 99)
    settings = Settings(way, ports=PortRange(LOW, LOW + len(ports) - 1), time_limit=300.0)
    return Latency(settings, describe(), samples, Samples.none(), finished=finished, changes=[])
