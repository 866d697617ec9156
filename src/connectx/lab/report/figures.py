"""The report's figures, as Altair charts.

Altair draws on a canvas in the browser, and needs no browser for PNG and SVG. A library on WebGL
fails after some eight figures on one page.
"""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, Any, Final

import altair as alt

from connectx.lab.report.experiments import CHURNING, STRATEGIES
from connectx.lab.summary import summarise

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from connectx.lab.latency import Latency
    from connectx.lab.report.experiments import Findings

    Figure = alt.LayerChart | alt.Chart

#: Connections of a fill that are drawn: as many as a phone draws at once. They are the slowest
#: ones, refused ones up to a third of all, and others at regular distances.
DRAWN: Final = 6_000
_SLOWEST: Final = 500

#: Colours that people with any colour vision tell apart, on light and dark alike
#: (ColorBrewer's "Dark2").
_TEAL, _ORANGE, _VIOLET, _PINK, _GREEN, _YELLOW = (
    "#1b9e77",
    "#d95f02",
    "#7570b3",
    "#e7298a",
    "#66a61e",
    "#e6ab02",
)

_KINDS: Final = {"even port": _TEAL, "odd port": _ORANGE, "refused": _VIOLET}

_HEIGHT: Final = 300
#: Width in pixels of figures that are not on a page.
_WIDTH: Final = 760


def all_figures(findings: Findings) -> dict[str, Figure]:
    """Return every figure by the name of its place on the page, which is its file's name too."""
    figures: dict[str, Figure] = {}
    for way, fill in findings.strategies.items():
        figures[f"latency-{way}"] = latency(fill)
    for size, fill in findings.windows.items():
        figures[f"latency-window-{size}"] = latency(fill)
    figures["addresses"] = histograms(findings.addresses)
    figures["strategies"] = strategies(findings.strategies)
    for way, fill in findings.datagrams.items():
        figures[f"latency-udp-{way}"] = latency(fill)
    figures["churn"] = churn(findings.churn)
    figures["model"] = model(findings)
    return figures


def latency(fill: Latency) -> Figure:
    """Draw each connection of a fill: when, how long, and from which kind of port."""
    numbers = _chosen(fill)
    rows = [
        (
            number,
            fill.fill.nanoseconds[number] / 1e6,
            _kind(fill.fill.port[number]),
            fill.fill.port[number] or "none",
        )
        for number in numbers
    ]
    # What takes longer met moments in which the machine was busy with something else.
    top = sorted(fill.fill.nanoseconds)[len(fill.fill.nanoseconds) * 995 // 1000] / 1e6
    pick = alt.selection_point(fields=["kind"], bind="legend")
    zoom = alt.selection_interval(
        bind="scales",
        # Only with Shift: otherwise a figure would be in the way of scrolling the page.
        zoom="wheel![event.shiftKey]",
        translate="[pointerdown[event.shiftKey], window:pointerup] > window:pointermove!",
    )
    points = (
        alt.Chart(_table(("number", "ms", "kind", "port"), rows))
        .mark_point(size=9, filled=True)
        .encode(
            x=alt.X(
                "number:Q",
                title="connection",
                axis=alt.Axis(format=",d"),
                scale=alt.Scale(nice=False),
            ),
            y=alt.Y(
                "ms:Q", title="milliseconds", scale=alt.Scale(domain=[0, 1.25 * top], clamp=True)
            ),
            color=alt.Color(
                "kind:N",
                title=None,
                scale=alt.Scale(domain=list(_KINDS), range=list(_KINDS.values())),
            ),
            shape=alt.Shape(
                "kind:N",
                title=None,
                scale=alt.Scale(domain=list(_KINDS), range=["circle", "circle", "cross"]),
            ),
            opacity=alt.condition(pick, alt.value(0.8), alt.value(0.03)),
            tooltip=[
                alt.Tooltip("number:Q", title="connection", format=",d"),
                alt.Tooltip("ms:Q", title="milliseconds", format=",.3f"),
                alt.Tooltip("port:N", title="source port"),
                alt.Tooltip("kind:N", title="kind"),
            ],
        )
        .add_params(pick, zoom)
    )
    summary = summarise(fill)
    last = len(fill.fill.port) - 1
    # Only its part above zero: the line through two stages begins far below.
    zero = -summary.start / summary.slope if summary.slope else 0.0
    ends = [(x, (summary.start + summary.slope * x) / 1000) for x in (max(0.0, zero), last)]
    line = (
        alt.Chart(_table(("number", "ms"), ends))
        .mark_line(strokeWidth=2, strokeDash=[6, 3], color=_PINK)
        .encode(
            x="number:Q",
            y="ms:Q",
            tooltip=alt.value(
                f"the regression line: {summary.slope * 1000:,.3g} ns more for each connection"
            ),
        )
    )
    return _sized(alt.layer(points, line))


def histograms(addresses: Mapping[int, Latency]) -> Figure:
    """Draw how many connections took how long, on one source address and on two."""
    rows = []
    for sources, fill in addresses.items():
        name = "1 source address" if sources == 1 else f"{sources} source addresses"
        counts: dict[int, int] = {}
        for nanoseconds, port in zip(fill.fill.nanoseconds, fill.fill.port, strict=True):
            if port:
                # Eight bars for each power of ten.
                bar = math.floor(8 * math.log10(nanoseconds))
                counts[bar] = counts.get(bar, 0) + 1
        rows += [
            (10 ** (bar / 8) / 1e6, 10 ** ((bar + 1) / 8) / 1e6, count, name)
            for bar, count in sorted(counts.items())
        ]
    pick = alt.selection_point(fields=["addresses"], bind="legend")
    chart = (
        alt.Chart(_table(("low", "high", "connections", "addresses"), rows))
        .mark_bar(opacity=0.6)
        .encode(
            x=alt.X(
                "low:Q",
                title="milliseconds",
                scale=alt.Scale(type="log"),
                axis=alt.Axis(format="~g", tickCount=6),
            ),
            x2="high:Q",
            y=alt.Y("connections:Q", title="connections", stack=None),
            # Explicit, because Vega-Lite draws a line if a bar has both ends of x.
            y2=alt.Y2Datum(0),
            color=alt.Color("addresses:N", title=None, scale=alt.Scale(range=[_ORANGE, _TEAL])),
            opacity=alt.condition(pick, alt.value(0.6), alt.value(0.05)),
            tooltip=[
                alt.Tooltip("addresses:N", title="on"),
                alt.Tooltip("low:Q", title="from, ms", format=",.3f"),
                alt.Tooltip("high:Q", title="to, ms", format=",.3f"),
                alt.Tooltip("connections:Q", format=",d"),
            ],
        )
        .add_params(pick)
    )
    return _sized(chart)


def strategies(fills: Mapping[str, Latency]) -> Figure:
    """Draw the mean time of a connection by how full the range is, a line for each way."""
    rows = [row for way, fill in fills.items() for row in _by_percent(way, fill)]
    pick = alt.selection_point(fields=["way"], bind="legend")
    chart = (
        alt.Chart(_table(("percent", "ms", "way"), rows))
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=12))
        .encode(
            x=alt.X("percent:Q", title="per cent of the range in use"),
            y=alt.Y(
                "ms:Q",
                title="milliseconds, mean",
                scale=alt.Scale(type="log"),
                axis=alt.Axis(format="~g", tickCount=6),
            ),
            color=_way_colour(STRATEGIES),
            opacity=alt.condition(pick, alt.value(1), alt.value(0.08)),
            tooltip=[
                alt.Tooltip("way:N"),
                alt.Tooltip("percent:Q", title="per cent in use"),
                alt.Tooltip("ms:Q", title="milliseconds", format=",.3f"),
            ],
        )
        .add_params(pick)
    )
    return _sized(chart)


def churn(fills: Mapping[tuple[str, float], Latency]) -> Figure:
    """Draw what a connection of churn costs, by way and by how full the range is."""
    rows = [
        (f"{occupancy:.1%}", way, times.half / 1000, times.mean / 1000, times.ninety_nine / 1000)
        for (way, occupancy), fill in fills.items()
        if (times := summarise(fill).churn).connections
    ]
    base = alt.Chart(_table(("full", "way", "half", "mean", "ninety_nine"), rows))
    pick = alt.selection_point(fields=["way"], bind="legend")
    milliseconds = alt.Scale(type="log")
    chosen = alt.condition(pick, alt.value(1), alt.value(0.08))
    common: dict[str, Any] = {
        "x": alt.X("full:N", title="of the range in use", sort=None, axis=alt.Axis(labelAngle=0)),
        "xOffset": alt.XOffset("way:N", sort=list(CHURNING)),
        "color": _way_colour(CHURNING),
        "opacity": chosen,
        "tooltip": [
            alt.Tooltip("way:N"),
            alt.Tooltip("full:N", title="in use"),
            alt.Tooltip("half:Q", title="half take up to, ms", format=",.3f"),
            alt.Tooltip("mean:Q", title="mean, ms", format=",.3f"),
            alt.Tooltip("ninety_nine:Q", title="99 % take up to, ms", format=",.3f"),
        ],
    }
    axis = alt.Axis(format="~g", tickCount=6)
    spread = base.mark_rule(strokeWidth=3).encode(
        y=alt.Y("half:Q", title="milliseconds: half, mean, 99 %", scale=milliseconds, axis=axis),
        y2="ninety_nine:Q",
        **common,
    )
    means = base.mark_point(size=50, filled=True).encode(
        y=alt.Y("mean:Q", scale=milliseconds), **common
    )
    return _sized(alt.layer(spread.add_params(pick), means))


def model(findings: Findings) -> Figure:
    """Draw how many ports the model says a search looks at, and how long the kernel took."""
    measured = findings.measured.fill
    size = max(1, len(measured.port) // 128)
    rows = []
    for low in range(0, len(measured.port), size):
        times = sorted(measured.nanoseconds[low : low + size])
        probes = [each.probes for each in findings.predicted.connections[low : low + size]]
        rows.append((low, times[len(times) // 2] / 1000, sum(probes) / len(probes)))
    base = alt.Chart(_table(("number", "microseconds", "probes"), rows)).encode(
        x=alt.X("number:Q", title="connection", axis=alt.Axis(format=",d"))
    )
    tooltip = [
        alt.Tooltip("number:Q", title="from connection", format=",d"),
        alt.Tooltip("microseconds:Q", title="measured, µs", format=",.1f"),
        alt.Tooltip("probes:Q", title="predicted, ports probed", format=",.0f"),
    ]
    probes = base.mark_area(opacity=0.35, color=_TEAL).encode(
        y=alt.Y("probes:Q", title="ports probed, predicted", axis=alt.Axis(titleColor=_TEAL)),
        tooltip=tooltip,
    )
    times = base.mark_point(filled=True, size=22, color=_ORANGE).encode(
        y=alt.Y(
            "microseconds:Q",
            title="microseconds, measured",
            scale=alt.Scale(zero=True),
            axis=alt.Axis(titleColor=_ORANGE),
        ),
        tooltip=tooltip,
    )
    return _sized(alt.layer(probes, times).resolve_scale(y="independent"))


def for_page(figure: Figure) -> dict[str, Any]:
    """Return a figure's specification, as wide as its place on the page."""
    specification: dict[str, Any] = figure.properties(width="container").to_dict()
    return specification


def _sized(figure: Any) -> Figure:
    sized: Figure = figure.properties(width=_WIDTH, height=_HEIGHT)
    return sized


def _way_colour(ways: Sequence[str]) -> alt.Color:
    colours = (_ORANGE, _YELLOW, _VIOLET, _GREEN, _PINK, _TEAL)
    by_way = dict(zip(STRATEGIES, colours, strict=True))
    scale = alt.Scale(domain=list(ways), range=[by_way[way] for way in ways])
    return alt.Color("way:N", title=None, scale=scale)


def _kind(port: int) -> str:
    if not port:
        return "refused"
    return "odd port" if port % 2 else "even port"


def _chosen(fill: Latency) -> list[int]:
    """Return the numbers of the connections to draw."""
    total = len(fill.fill.port)
    if total <= DRAWN:
        return list(range(total))
    by_time = sorted(range(total), key=fill.fill.nanoseconds.__getitem__)
    chosen = set(by_time[-_SLOWEST:])
    refused = [number for number, port in enumerate(fill.fill.port) if not port]
    # Of very many refusals, some at regular distances are enough.
    chosen.update(refused[:: math.ceil(len(refused) / (DRAWN // 3)) or 1])
    rest = DRAWN - len(chosen)
    chosen.update(number * total // rest for number in range(rest))
    return sorted(chosen)


def _by_percent(way: str, fill: Latency) -> Iterator[tuple[int, float, str]]:
    """Yield the mean milliseconds of the connections tried at each per cent of occupancy."""
    capacity = fill.settings.capacity
    sums = [0] * 101
    counts = [0] * 101
    opened = 0
    for nanoseconds, port in zip(fill.fill.nanoseconds, fill.fill.port, strict=True):
        percent = 100 * opened // capacity
        sums[percent] += nanoseconds
        counts[percent] += 1
        opened += port != 0
    for percent, (total, count) in enumerate(zip(sums, counts, strict=True)):
        if count:
            yield percent, round(total / count / 1e6, 5), way


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> alt.InlineData:
    """Return rows as CSV, which takes a third of the space of JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(
        [f"{cell:.5g}" if isinstance(cell, float) else cell for cell in row] for row in rows
    )
    return alt.InlineData(values=text.getvalue(), format=alt.CsvDataFormat(type="csv"))
