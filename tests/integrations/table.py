"""The table of the conformance suite, as docs/integrations.md shows it.

    python -m tests.integrations.table

runs every check and writes it, as `make pictures` does among other things. Each test of the suite
looks whether its cell says what it has found.
"""

from __future__ import annotations

import re
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from connectx.sandbox.networks import experiment_network
from tests.integrations import checks, frame

if TYPE_CHECKING:
    from collections.abc import Sequence

PUBLISHED: Final = Path(__file__).parent.parent.parent / "docs" / "outputs" / "integrations.md"

AGAIN: Final = "the table has changed: run `python -m tests.integrations.table`, and look at it"

YES: Final = "✓"
NO: Final = "\N{EN DASH}"


def run() -> str:
    """Run every check; the table.

    Raises what a check raises: a table with a failure is not for publication.
    """
    rows = frame.rows()
    for row in rows:
        for column, check in checks.CHECKS.items():
            if not checks.reason(row, column):
                with (
                    tempfile.TemporaryDirectory() as directory,
                    experiment_network() as network,
                    checks.Case(row, network, Path(directory)) as case,
                ):
                    frame.run(row.backend, partial(check, case))
    return draw(rows)


def draw(rows: Sequence[frame.Row]) -> str:
    """The table of rows that have passed."""
    reasons: list[str] = []
    lines = [_line(["", *checks.CHECKS]), _line(["---", *[":-:"] * len(checks.CHECKS)])]
    for row in rows:
        cells = [row.name]
        for column in checks.CHECKS:
            reason = checks.reason(row, column)
            if reason and reason not in reasons:
                reasons.append(reason)
            cells.append(f"{NO} {reasons.index(reason) + 1}" if reason else YES)
        lines.append(_line(cells))
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    about = [
        f"- *{column}*: {' '.join((check.__doc__ or '').split())}"
        for column, check in checks.CHECKS.items()
    ]
    return "\n".join(
        [*lines, "", f"{NO} means that there is nothing to check:", "", *notes, ""]
    ) + ("\n".join(["", "The columns:", "", *about, ""]))


def published() -> dict[tuple[str, str], str]:
    """The cells that the documentation shows, by row and column."""
    table = re.findall(r"^\| *(.*?) *\|$", PUBLISHED.read_text("utf-8"), re.MULTILINE)
    heading, _, *rows = [re.split(r" *\| *", line) for line in table]
    return {
        (name, column): cell
        for name, *cells in rows
        for column, cell in zip(heading[1:], cells, strict=True)
    }


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PUBLISHED.write_text(run(), "utf-8")
