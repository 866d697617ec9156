"""Every integration, every check, over real servers in a private network."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.integrations import checks, frame

if TYPE_CHECKING:
    from pathlib import Path

    from connectx.sandbox.networks import Network

CELLS = [
    pytest.param(row, column, id=f"{row.name}-{column}")
    for row in frame.rows()
    for column in checks.CHECKS
    if not checks.reason(row, column)
]


@pytest.mark.parametrize("row,column", CELLS)
def test_conforms(
    row: frame.Row, column: str, network: Network, tmp_path: Path, trio_threads: None
) -> None:
    del trio_threads
    with checks.Case(row, network, tmp_path) as case:
        frame.run(row.backend, partial(checks.CHECKS[column], case))


@pytest.mark.parametrize("module", frame.modules())
def test_every_integration_has_an_adapter(module: str) -> None:
    assert frame.adapters_of(module)
