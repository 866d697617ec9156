"""Every integration, and all checks: `make test-integrations`, not `make test`, collects this."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integrations import checks, conforming, frame

if TYPE_CHECKING:
    from pathlib import Path

    from connectx.sandbox.networks import Network


@pytest.mark.parametrize("row,column", conforming.cells(checks.CHECKS))
def test_conforms(
    row: frame.Row, column: str, network: Network, tmp_path: Path, trio_threads: None
) -> None:
    del trio_threads
    conforming.conform(row, column, network, tmp_path)
