"""What runs a check of the suite as a test."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.integrations import checks, frame, table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from connectx.sandbox.networks import Network


def cells(columns: Iterable[str]) -> list[Any]:
    """Every row of these columns."""
    return [
        pytest.param(row, column, id=f"{row.name}-{column}")
        for row in frame.rows()
        for column in columns
        if not checks.reason(row, column)
    ]


def conform(row: frame.Row, column: str, network: Network, directory: Path) -> None:
    """Check it, and that it is published."""
    with checks.Case(row, network, directory) as case:
        frame.run(row.backend, partial(checks.CHECKS[column], case))
    assert table.published().get((row.name, column)) == table.YES, table.AGAIN
