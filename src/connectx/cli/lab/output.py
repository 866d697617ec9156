"""How experiments print what they found."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from connectx.lab.machine import Machine


def changes_text(changes: Iterable[str]) -> str:
    """Return what an experiment changed, as a sentence."""
    return (
        f"Changed in private network namespaces, which are gone: {'; '.join(changes)}. "
        "Nothing else was changed."
    )


def machine_text(machine: Machine, seconds: float) -> str:
    """Return what an experiment ran on, and how long it took."""
    return f"Linux {machine.kernel}, {machine.processors}, {seconds:.1f} s"
