"""How experiments print what they found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from connectx.lab.machine import Machine


def table(**options: Any) -> Table:
    """Return a table with a line below its headings and none around it.

    Args:
        options: As rich.table.Table takes them.
    """
    from rich import box  # noqa: PLC0415 -- from the tools extra
    from rich.table import Table  # noqa: PLC0415

    return Table(box=box.SIMPLE_HEAD, show_edge=False, **{"padding": 0, **options})


def changes_text(changes: Iterable[str]) -> str:
    """Return what an experiment changed, as a sentence."""
    return (
        f"Changed in private network namespaces, which are gone: {'; '.join(changes)}. "
        "Nothing else was changed."
    )


def machine_text(machine: Machine, seconds: float) -> str:
    """Return what an experiment ran on, and how long it took."""
    return f"Linux {machine.kernel}, {machine.cores} cores, {seconds:.1f} s"
