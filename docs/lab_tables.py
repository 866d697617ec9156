"""Tables of the documentation, drawn from what `connectx lab report --data` wrote.

:::{lab-table} windows
:::
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

RESULTS: Final = Path(__file__).parent / "results" / "lab.json"


def machine(found: dict[str, Any]) -> Iterator[Sequence[object]]:
    """What it ran on."""
    yield "kernel", "cores", "Python", "ports", "seconds"
    yield (
        f"Linux {found['machine']['kernel']}",
        found["machine"]["cores"],
        found["machine"]["python"],
        "-".join(map(str, found["ports"])),
        round(found["seconds"]),
    )


def parities(found: dict[str, Any]) -> Iterator[Sequence[object]]:
    """Even and odd ports by way, beside the article's."""
    yield "way", "even ports, ms", "odd ports, ms", "errors", "a second", "article: even", "odd"
    for way, fill in found["strategies"].items():
        said = found["article"].get(way, {})
        yield (
            f"`{way}`",
            f"{fill['even']['mean'] / 1000:.3f}",
            f"{fill['odd']['mean'] / 1000:.3f}",
            f"{fill['errors']:,}",
            f"{fill['per_second']:,.0f}",
            said.get("even", ""),
            said.get("odd", ""),
        )


def windows(found: dict[str, Any]) -> Iterator[Sequence[object]]:
    """The window sizes, beside the article's."""
    yield "window", "errors", "seconds", "a second", "article: errors", "seconds", "a second"
    for size, fill in found["windows"].items():
        said = found["article"]["windows"][size]
        yield (
            f"{int(size):,}",
            f"{fill['errors']:,}",
            f"{fill['seconds']:.1f}",
            f"{fill['per_second']:,.0f}",
            f"{said['errors']:,}",
            said["seconds"],
            f"{said['per_second']:,}",
        )


def occupancies(found: dict[str, Any]) -> Iterator[Sequence[object]]:
    """Mean microseconds by way and by how full the range is."""
    first = next(iter(found["strategies"].values()))
    yield (
        "way",
        *(f"{100 * each['low']:.0f} to {100 * each['high']:.0f} %" for each in first["occupied"]),
    )
    for way, fill in found["strategies"].items():
        yield f"`{way}`", *(_number(each["microseconds"]["mean"]) for each in fill["occupied"])


def churn(found: dict[str, Any]) -> Iterator[Sequence[object]]:
    """Mean microseconds of a connection that takes another one's place, and what 99 % take."""
    shares = list(dict.fromkeys(each["occupancy"] for each in found["churn"]))
    yield "way", *(f"{100 * share:g} %" for share in shares)
    for way in dict.fromkeys(each["way"] for each in found["churn"]):
        fills = [each for each in found["churn"] if each["way"] == way]
        yield (
            f"`{way}`",
            *(
                f"{_number(each['churn']['mean'])} / {_number(each['churn']['ninety_nine'])}"
                + (f", {each['churn_errors']} refused" if each["churn_errors"] else "")
                for each in fills
            ),
        )


def techniques(protocol: str) -> Callable[[dict[str, Any]], Iterator[Sequence[object]]]:
    """What each technique does over IPv4, as observed; "!" where that was not expected."""

    def rows(found: dict[str, Any]) -> Iterator[Sequence[object]]:
        yield "technique", "errno", "shares", "overshadows", "opened"
        for row in found["techniques"]:
            if (row["protocol"], row["family"]) == (protocol, 4) and row["observed"]:
                observed = row["observed"]
                yield (
                    row["technique"] + ("" if row["agrees"] else " **!**"),
                    observed["errno"] or "none",
                    "yes" if observed["shares"] else "no",
                    "**yes**" if observed["overshadows"] else "no",
                    " + ".join(map(str, observed["opened"])),
                )

    return rows


TABLES: Final = {
    "machine": machine,
    "parities": parities,
    "windows": windows,
    "occupancies": occupancies,
    "churn": churn,
    "techniques-tcp": techniques("tcp"),
    "techniques-udp": techniques("udp"),
}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


class LabTable(Directive):
    """The directive; its argument is one of TABLES."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse the table as Markdown, which the page is in."""
        self.state.document.settings.env.note_dependency(str(RESULTS))
        heading, *rows = TABLES[self.arguments[0]](json.loads(RESULTS.read_text("utf-8")))
        lines = [heading, ["---"] * len(heading), *rows]
        text = [f"| {' | '.join(map(str, cells))} |" for cells in lines]
        container = nodes.container()
        self.state.nested_parse(StringList(text, source=str(RESULTS)), 0, container)
        return container.children


def setup(app: Any) -> None:
    """Register the directive."""
    app.add_directive("lab-table", LabTable)
