"""The picture on the first screen: what a connection costs as the port range fills.

Drawn from what `connectx lab report --data` wrote:

    python -m docs.figure

GitHub and the site show one of two files, for a light or a dark page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from connectx.cli.output import plural

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULTS: Final = Path(__file__).parent / "results"


class Palette(NamedTuple):
    """Colours of a page, and of the two bars."""

    text: str
    muted: str
    plain: str
    connectx: str


PALETTES: Final = {
    "light": Palette("#1f2328", "#59636e", "#cf5a1d", "#0f7b6c"),
    "dark": Palette("#f0f6fc", "#9198a1", "#f0883e", "#3fb9a5"),
}

# Pixels.
_WIDTH: Final = 540
_LEFT: Final = 112
_LONGEST: Final = 360
_TOP: Final = 86
_GROUP: Final = 58
_BAR: Final = 20
_FONT: Final = "-apple-system,BlinkMacSystemFont,'Segoe UI','Noto Sans',Helvetica,Arial,sans-serif"


def draw(found: dict[str, Any], colours: Palette) -> str:
    """The picture of the results, in the colours of one kind of page."""
    plain, ours = found["strategies"]["kernel"], found["strategies"]["auto"]
    bars = [
        (_share(one["low"], one["high"]), one["microseconds"]["mean"], two["microseconds"]["mean"])
        for one, two in zip(plain["occupied"], ours["occupied"], strict=True)
    ]
    scale = _LONGEST / max(value for _, *values in bars for value in values)
    height = _TOP + len(bars) * _GROUP + 40
    machine = found["machine"]
    ports = f"All {plain['opened']:,} ports of {'-'.join(map(str, found['ports']))}"
    notes = (
        f"{ports}: plain connect() {plain['seconds']:.0f} s, connectx {ours['seconds']:.1f} s.",
        f"Linux {machine['kernel']}, {plural(machine['cores'], 'core')}, loopback.",
    )
    title = "Microseconds per TCP connection as ports fill up"
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" font-size="15"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="{_FONT}">',
        f"<title>{title}</title>",
        _text(0, 20, title, colours.text, 'font-size="18" font-weight="600"'),
        *_legend(colours),
    ]
    for number, (share, slow, quick) in enumerate(bars):
        top = _TOP + number * _GROUP
        lines += [
            _text(_LEFT - 12, top + _BAR + 5, share, colours.text, 'text-anchor="end"'),
            *_bar(top, slow, scale, colours.plain, colours.text),
            *_bar(top + _BAR + 2, quick, scale, colours.connectx, colours.text),
        ]
    small = 'font-size="13"'
    lines += [
        _text(0, height - 26 + 20 * line, note, colours.muted, small)
        for line, note in enumerate(notes)
    ]
    lines += ["</svg>", ""]
    return "\n".join(lines)


def _share(low: float, high: float) -> str:
    if low == 0:
        return f"up to {high:.0%}".replace("%", " %")
    if high == 1:
        return f"the last {high - low:.0%}".replace("%", " %")
    return f"{low * 100:.0f} to {high * 100:.0f} %"


def _legend(colours: Palette) -> Iterator[str]:
    for left, colour, name in (
        (0, colours.plain, "plain connect()"),
        (160, colours.connectx, "connectx"),
    ):
        yield f'<rect x="{left}" y="38" width="13" height="13" rx="2" fill="{colour}"/>'
        yield _text(left + 20, 49, name, colours.text)
    yield _text(_LEFT - 12, 76, "ports in use", colours.muted, 'text-anchor="end" font-size="13"')


def _bar(top: float, value: float, scale: float, colour: str, text: str) -> Iterator[str]:
    width = max(2, round(value * scale, 1))
    yield (f'<rect x="{_LEFT}" y="{top}" width="{width}" height="{_BAR}" rx="2" fill="{colour}"/>')
    yield _text(_LEFT + width + 8, top + 15, f"{value:,.0f}", text)


def _text(x: float, y: float, text: str, colour: str, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}"{" " + more if more else ""}>{text}</text>'


def results() -> dict[str, Any]:
    """The numbers of the last report."""
    found: dict[str, Any] = json.loads((RESULTS / "lab.json").read_text("utf-8"))
    return found


def main() -> None:
    """Write both pictures."""
    found = results()
    for name, colours in PALETTES.items():
        (RESULTS / f"speed-{name}.svg").write_text(draw(found, colours), "utf-8")


if __name__ == "__main__":
    main()
