"""The figures as text and as JSON."""

from __future__ import annotations

import math
import os
import platform
from typing import TYPE_CHECKING, Any

import connectx
from bench.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.harness import Findings, Settings, Table
    from bench.targets import Target


def conditions(settings: Settings) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "connectx": connectx.__version__,
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "rounds": settings.rounds,
        "ports": list(settings.ports),
    }


def targets_of(names: Iterable[str]) -> list[Target]:
    """Return the targets of the measurements of these names."""
    prefixes = tuple(f"{name}{end}" for name in names for end in ",:")
    return [target for target in TARGETS if f"{target.figure}:".startswith(prefixes)]


def all_met(targets: Iterable[Target], findings: Findings) -> bool:
    """Return whether every target is met."""
    return all(target.met_by(findings.figures.get(target.figure)) for target in targets)


def as_json(targets: Sequence[Target], findings: Findings, settings: Settings) -> dict[str, Any]:
    """Return everything, for json.dump()."""
    return {
        **conditions(settings),
        "met": all_met(targets, findings),
        "figures": [
            {
                "name": target.figure,
                "says": target.says,
                "value": _number(findings.figures.get(target.figure)),
                "detail": findings.details.get(target.figure, ""),
                "comparison": target.comparison,
                "target": target.bound,
                "unit": target.unit,
                "met": target.met_by(findings.figures.get(target.figure)),
            }
            for target in targets
        ],
        "tables": [
            {
                "title": table.title,
                "rows": [
                    dict(zip(table.columns, map(_number, row), strict=True)) for row in table.rows
                ],
            }
            for table in findings.tables
        ],
    }


def as_text(targets: Sequence[Target], findings: Findings, settings: Settings) -> str:
    """Return everything, for reading."""
    about = ", ".join(f"{key} {value}" for key, value in conditions(settings).items())
    rows = [
        (
            target.says,
            _measured(target, findings),
            f"{target.comparison} {target.bound:g}",
            "pass" if target.met_by(findings.figures.get(target.figure)) else "MISS",
        )
        for target in targets
    ]
    missed = sum(row[-1] == "MISS" for row in rows)
    sections = [
        about,
        *map(_table, findings.tables),
        _lines("Targets", ("figure", "measured", "target", ""), rows),
        f"{missed} of {len(rows)} targets missed" if missed else f"all {len(rows)} targets met",
    ]
    return "\n\n".join(sections)


def _measured(target: Target, findings: Findings) -> str:
    value = findings.figures.get(target.figure)
    measured = "not measured" if value is None else f"{value:.4g} {target.unit}".strip()
    detail = findings.details.get(target.figure)
    return f"{measured} ({detail})" if detail else measured


def _number(value: Any) -> Any:
    """Replace NaN, which JSON does not have."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _table(table: Table) -> str:
    return _lines(table.title, table.columns, table.rows)


def _lines(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    numeric = [
        all(isinstance(value, (int, float)) for value in column)
        for column in zip(*rows, strict=True)
    ]

    def line(texts: Sequence[str]) -> str:
        aligned = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, numeric, strict=True)
        )
        return f"  {'  '.join(aligned)}".rstrip()

    return "\n".join([title, line(columns), *map(line, cells)])


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)
