"""What has the same findings, shown once: transports, and rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from connectx.lab.listeners import Case
from connectx.lab.mixing import Cell
from connectx.lab.techniques import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from connectx.lab.transports import Transport

#: A finding, whose first field is the transport.
Found = TypeVar("Found", Row, Cell, Case)

Item = TypeVar("Item")


def alike(everything: Sequence[Found]) -> list[tuple[str, list[Found]]]:
    """Group what was found by transport; those with the same findings have one group.

    Returns:
        The transports of each group as people write them, and the findings over its first one.
    """
    over: dict[Transport, list[Found]] = {}
    for each in everything:
        over.setdefault(each.transport, []).append(each)
    groups = folded(over, lambda transport: tuple(tuple(each)[1:] for each in over[transport]))
    return [(_title(transports), over[transports[0]]) for transports in groups]


def folded(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Group the items that have the same key, in the order in which the keys first occur."""
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _title(transports: Sequence[Transport]) -> str:
    protocols = list(dict.fromkeys(each.protocol.title for each in transports))
    families = sorted({f"IPv{each.family}" for each in transports})
    if len(protocols) * len(families) == len(transports):
        return f"{' and '.join(protocols)} over {' and '.join(families)}"
    return ", ".join(each.title for each in transports)
