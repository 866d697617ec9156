"""The report as one HTML file, for which a browser is enough."""

from __future__ import annotations

import json
import math
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import jinja2
import vl_convert

from connectx.lab import techniques
from connectx.lab.explanations import explain
from connectx.lab.report import experiments, tables
from connectx.lab.report.conclusion import conclusion
from connectx.lab.report.figures import DRAWN, all_figures, for_page
from connectx.lab.summary import Summary, summarise

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from connectx.lab.latency import Latency
    from connectx.lab.report.experiments import Findings

#: What "connect() - why are you so slow?" (2024) measured, to stand beside these figures:
#: milliseconds of even and odd ports, errors, connections per second.
ARTICLE: Final = {
    "kernel": {"even": 0.025, "odd": 4.59, "errors": 0},
    "full-range": {"even": 0.029, "odd": 0.029, "errors": 0},
    "windows": {
        500: {"errors": 868, "seconds": 1.8, "per_second": 30_139},
        1000: {"errors": 1_129, "seconds": 2.0, "per_second": 27_260},
        5000: {"errors": 4_037, "seconds": 6.7, "per_second": 8_405},
        10000: {"errors": 6_695, "seconds": 17.7, "per_second": 3_183},
    },
}

#: For figures that are JSON within a script element.
_ESCAPES: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def write_figures(findings: Findings, directory: Path) -> list[Path]:
    """Write each figure as PNG and SVG into an existing directory, and return their paths."""
    written = []
    for name, figure in all_figures(findings).items():
        for kind in ("png", "svg"):
            path = directory / f"{name}.{kind}"
            figure.save(path, scale_factor=2 if kind == "png" else 1)
            written.append(path)
    return written


def as_json(findings: Findings) -> dict[str, Any]:
    """Return the numbers behind the figures and tables, without single samples."""
    return {
        "machine": findings.machine._asdict(),
        "seconds": round(findings.seconds, 1),
        "ports": list(findings.ports),
        "strategies": _fills(findings.strategies),
        "udp": _fills(findings.datagrams),
        "addresses": _fills(findings.addresses),
        "windows": _fills(findings.windows),
        "churn": [
            {"way": way, "occupancy": occupancy, **_fill(fill)}
            for (way, occupancy), fill in findings.churn.items()
        ],
        # `connectx lab techniques --json` has more about them.
        "techniques": techniques.as_json(findings.techniques)["rows"],
        "missing": findings.missing,
        "article": ARTICLE,
    }


def _fills(fills: Mapping[Any, Latency]) -> dict[str, Any]:
    return {str(key): _fill(fill) for key, fill in fills.items()}


def _fill(fill: Latency) -> dict[str, Any]:
    return {"finished": fill.finished, **summarise(fill).as_json()}


def render(findings: Findings) -> str:
    """Return the page."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = "{:,.0f}".format
    environment.filters["microseconds"] = _microseconds
    environment.filters["milliseconds"] = _milliseconds
    template = resources.files("connectx.lab.report").joinpath("page.html.jinja").read_text("utf-8")
    figures = {name: _in_script(for_page(figure)) for name, figure in all_figures(findings).items()}
    return environment.from_string(template).render(
        article=ARTICLE,
        article_ports=experiments.ARTICLE_PORTS,
        churning=experiments.CHURNING,
        conclusion=conclusion(findings),
        drawn=DRAWN,
        explain=lambda fill: explain(fill.settings, fill.machine),
        figures=figures,
        findings=findings,
        library=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
        occupancies=experiments.OCCUPANCIES,
        summary=_summaries(),
        alone=tables.alone(findings.techniques.rows),
        matrices=tables.matrices(findings.techniques.mixing),
        services=tables.services(findings.techniques.listeners),
    )


def _summaries() -> Any:
    """Return a function that summarises each fill of a page once."""
    known: dict[int, Summary] = {}

    def summary(fill: Latency) -> Summary:
        if id(fill) not in known:
            known[id(fill)] = summarise(fill)
        return known[id(fill)]

    return summary


def _in_script(value: object) -> str:
    text = json.dumps(value, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def _microseconds(value: float) -> str:
    return "" if math.isnan(value) else f"{value:,.1f}"


def _milliseconds(microseconds: float) -> str:
    return "" if math.isnan(microseconds) else f"{microseconds / 1000:,.3f}"
