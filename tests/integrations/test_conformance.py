"""Every integration, and the checks that say most; `make test-integrations` runs all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integrations import conforming, frame, table

if TYPE_CHECKING:
    from pathlib import Path

    from connectx.sandbox.networks import Network

#: What goes wrong where the dialer is not used, or its errors get lost, or its connections.
MOST = ("shared port", "exhaustion", "no leaks", "cancelled")


@pytest.mark.parametrize("row,column", conforming.cells(MOST))
def test_conforms(
    row: frame.Row, column: str, network: Network, tmp_path: Path, trio_threads: None
) -> None:
    del trio_threads
    conforming.conform(row, column, network, tmp_path)


@pytest.mark.parametrize("module", frame.modules())
def test_every_integration_has_an_adapter(module: str) -> None:
    assert frame.adapters_of(module)


def test_the_published_table_is_of_these_rows_and_checks() -> None:
    assert table.PUBLISHED.read_text("utf-8") == table.draw(frame.rows()), table.AGAIN
