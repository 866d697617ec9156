"""The report's figures, as Altair charts.

Altair draws on a canvas in the browser, and needs no browser for PNG and SVG. A library on WebGL
fails after some eight figures on one page.
"""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

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

#: Told apart by shape as well, for people who see the colours alike, and on paper.
_KINDS: Final = {
    "even port": (_TEAL, "circle"),
    "odd port": (_ORANGE, "triangle-up"),
    "refused": (_VIOLET, "cross"),
}

#: Labels of a logarithmic axis: these times every power of ten.
_STEPS: Final = (1, 2, 5)

#: How many points a regression line has: it is a curve where the axis is logarithmic.
_LINE_POINTS: Final = 64

_HEIGHT: Final = 300
#: Width in pixels of figures that are not on a page.
_WIDTH: Final = 760


def all_figures(findings: Findings) -> dict[str, Figure]:
    """Return every figure by the name of its place on the page, which is its file's name too."""
    figures: dict[str, Figure] = {}
    fills = [*findings.strategies.values(), *findings.windows.values()]
    times = common_times([*fills, *findings.datagrams.values()])
    for way, fill in findings.strategies.items():
        figures[f"latency-{way}"] = latency(fill, times)
    for size, fill in findings.windows.items():
        figures[f"latency-window-{size}"] = latency(fill, times)
    figures["addresses"] = histograms(findings.addresses)
    figures["strategies"] = strategies(findings.strategies)
    for way, fill in findings.datagrams.items():
        figures[f"latency-udp-{way}"] = latency(fill, times)
    figures["churn"] = churn(findings.churn)
    figures["model"] = model(findings)
    return figures


class Times(NamedTuple):
    """The ends of a logarithmic axis, in milliseconds."""

    low: float
    high: float

    @property
    def ticks(self) -> list[float]:
        """Where the axis has lines and labels."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ticks = [float(f"{step}e{power}") for power in powers for step in _STEPS]
        return [tick for tick in ticks if self.low <= tick <= self.high]


def common_times(fills: Iterable[Latency]) -> Times:
    """Return one axis for several fills: on it, what is flat looks flat, and what is slow slow.

    A few connections of each fill may lie beyond its ends: they met moments in which the machine
    was busy with something else.
    """
    lows, highs = [], []
    for fill in fills:
        times = sorted(fill.fill.nanoseconds)
        lows.append(times[len(times) // 100] / 1e6)
        highs.append(times[len(times) * 995 // 1000] / 1e6)
    return Times(_step(0.8 * min(lows)), 1.25 * max(highs))


def _step(milliseconds: float) -> float:
    """Return the nearest 1, 2 or 5 times a power of ten that is not greater."""
    power: float = 10.0 ** math.floor(math.log10(milliseconds))
    return max(step * power for step in _STEPS if step * power <= milliseconds)


def latency(fill: Latency, times: Times) -> Figure:
    """Draw each connection of a fill: when, how long, and from which kind of port.

    Args:
        fill: The fill.
        times: The axis. Times beyond its ends are drawn at the edge.
    """
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
    pick = alt.selection_point(fields=["kind"], bind="legend")
    zoom = alt.selection_interval(
        bind="scales",
        # Only with Shift: otherwise a figure would be in the way of scrolling the page.
        zoom="wheel![event.shiftKey]",
        translate="[pointerdown[event.shiftKey], window:pointerup] > window:pointermove!",
    )
    colours, shapes = zip(*_KINDS.values(), strict=True)
    points = (
        alt.Chart(_table(("number", "ms", "kind", "port"), rows))
        .mark_point(size=14, filled=True)
        .encode(
            x=alt.X(
                "number:Q",
                title="connection",
                axis=alt.Axis(format=",d"),
                scale=alt.Scale(nice=False),
            ),
            y=alt.Y(
                "ms:Q",
                title="milliseconds",
                scale=alt.Scale(type="log", domain=list(times), clamp=True, nice=False),
                axis=alt.Axis(format="~g", values=times.ticks),
            ),
            color=alt.Color(
                "kind:N", title=None, scale=alt.Scale(domain=list(_KINDS), range=list(colours))
            ),
            shape=alt.Shape(
                "kind:N", title=None, scale=alt.Scale(domain=list(_KINDS), range=list(shapes))
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
    slope = summarise(fill).slope
    line = (
        alt.Chart(_table(("number", "ms"), regression(fill, times)))
        .mark_line(strokeWidth=2, strokeDash=[6, 3], color=_PINK)
        .encode(
            x="number:Q",
            y="ms:Q",
            tooltip=alt.value(
                f"the regression line: {abs(slope) * 1000:,.3g} ns "
                f"{'less' if slope < 0 else 'more'} for each connection"
            ),
        )
    )
    return _sized(alt.layer(points, line))


def regression(fill: Latency, times: Times) -> list[tuple[float, float]]:
    """Return points of the regression line: connections and milliseconds, within the figure.

    The line ends where the connections do, and where it leaves the axis: through a slow stage
    and a quick one, it goes below zero.
    """
    summary = summarise(fill)
    opened = [number for number, port in enumerate(fill.fill.port) if port]
    if not opened:
        return []
    first, last = float(opened[0]), float(opened[-1])
    start, slope = summary.start / 1000, summary.slope / 1000
    if slope:
        ends = sorted(((times.low - start) / slope, (times.high - start) / slope))
        first, last = max(first, ends[0]), min(last, ends[1])
    elif not times.low <= start <= times.high:
        return []
    if first >= last:
        return []
    step = (last - first) / (_LINE_POINTS - 1)
    return [
        (number, start + slope * number)
        for number in (first + index * step for index in range(_LINE_POINTS))
    ]


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
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=26))
        .encode(
            x=alt.X("percent:Q", title="per cent of the range in use"),
            y=alt.Y(
                "ms:Q",
                title="milliseconds, mean",
                scale=alt.Scale(type="log"),
                axis=alt.Axis(format="~g", tickCount=6),
            ),
            color=_way_colour(STRATEGIES),
            shape=_way_shape(STRATEGIES),
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
    means = base.mark_point(size=60, filled=True).encode(
        y=alt.Y("mean:Q", scale=milliseconds), shape=_way_shape(CHURNING), **common
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
    return alt.Color("way:N", title=None, scale=_way_scale(ways, colours))


def _way_shape(ways: Sequence[str]) -> alt.Shape:
    shapes = ("triangle-up", "square", "diamond", "cross", "triangle-down", "circle")
    return alt.Shape("way:N", title=None, scale=_way_scale(ways, shapes))


def _way_scale(ways: Sequence[str], looks: Sequence[str]) -> alt.Scale:
    """Return how each way looks, which is the same in every figure."""
    by_way = dict(zip(STRATEGIES, looks, strict=True))
    return alt.Scale(domain=list(ways), range=[by_way[way] for way in ways])


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
