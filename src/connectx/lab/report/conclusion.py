"""What the report comes to, in a few sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from connectx.lab.summary import summarise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectx.lab.report.experiments import Findings
    from connectx.lab.summary import Summary

#: Rates whose ratio is below this are called equal: the next run may have it the other way round.
_NOTICEABLE: Final = 1.15

#: A mean that grows by less than this as the range fills up is called flat.
_GROWTH: Final = 1.5


def conclusion(findings: Findings) -> str:
    """Compare plain connect() and connectx, from the fills of the whole range by each."""
    return " ".join(_sentences(findings))


def _sentences(findings: Findings) -> Iterator[str]:
    fills = {
        "plain connect()": findings.strategies["kernel"],
        "connectx": findings.strategies["auto"],
    }
    plain, ours = map(summarise, fills.values())
    yield _rates(plain, ours)
    yield (
        f"As the range fills up, the mean cost of a plain connect() {_course(plain)}; that of "
        f"connectx {_course(ours)}."
    )
    for name, fill in fills.items():
        if not fill.finished:
            yield (
                f"The time limit of {fill.settings.time_limit:.0f} s ended the fill by {name} "
                "before the range was full."
            )
    if findings.techniques.disagreements:
        yield (
            f"{findings.techniques.disagreements:,} of {len(findings.techniques.compared):,} "
            "findings on techniques are not as expected."
        )


def _rates(plain: Summary, ours: Summary) -> str:
    if not plain.opened or not ours.opened:
        return (
            f"Plain connect() opened {plain.opened:,} of {plain.tried:,} TCP connections to one "
            f"destination, and connectx {ours.opened:,} of {ours.tried:,}."
        )
    ratio = ours.per_second / plain.per_second
    if ratio >= _NOTICEABLE:
        verdict = f"connectx is {_brief(ratio)} times as fast as plain connect()"
    elif ratio > 1 / _NOTICEABLE:
        verdict = "connectx is as fast as plain connect()"
    else:
        verdict = f"Plain connect() is {_brief(1 / ratio)} times as fast as connectx"
    return (
        f"{verdict} here: {ours.opened:,} TCP connections to one destination took "
        f"{_brief(ours.seconds)} s, and {plain.opened:,} by plain connect() took "
        f"{_brief(plain.seconds)} s."
    )


def _brief(number: float) -> str:
    """Return a number with two digits at least, and no more behind the point than these take."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _course(summary: Summary) -> str:
    """Return how the mean cost of a connection goes from an empty range to a full one."""
    means = [
        stage.microseconds.mean for stage in summary.occupied if stage.microseconds.connections
    ]
    if not means:
        return "is unknown, for none was opened"
    if max(means) >= _GROWTH * means[0]:
        return f"rises from {means[0]:,.0f} µs to {max(means):,.0f} µs"
    low, high = f"{min(means):,.0f}", f"{max(means):,.0f}"
    return f"stays at {low} µs" if low == high else f"stays between {low} and {high} µs"
