from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from connectx.addresses import Endpoint
from connectx.cli.top.columns import cells, columns, titles
from connectx.cli.top.model import Model, Sort
from tests.cli.top.states import LONG, busy, counted, row, snapshot

if TYPE_CHECKING:
    from connectx.observe.usage import Row


def model_of(*protocols: str) -> Model:
    model = Model(protocols)
    for outcome in busy():
        model.take(outcome)
    return model


def model_with(*rows: Row) -> Model:
    model = Model(["tcp"])
    model.take(counted(0)._replace(snapshot=snapshot(rows)))
    return model


def drawn(model: Model, width: int) -> list[str]:
    """The titles, and then the lines of the pairs."""
    widths = columns(width, model.entries())
    lines = [titles(widths, Sort.NAME)]
    for entry in model.entries():
        lines += cells(entry, model.samples(entry.pair), widths)
    return ["".join(piece.text for piece in line).rstrip() for line in lines]


@pytest.mark.parametrize("width", [20, 30, 40, 50, 60, 70, 80, 81, 100, 120, 200, 400])
@pytest.mark.parametrize("long", [False, True])
def test_no_line_is_longer_than_the_width(width: int, long: bool) -> None:  # noqa: FBT001
    model = model_with(LONG) if long else model_of("tcp", "udp")
    assert max(map(len, drawn(model, width))) <= width


@pytest.mark.parametrize("width", [38, 40, 46, 50, 60, 70, 80, 100])
def test_addresses_are_never_shortened_for_anything_else(width: int) -> None:
    model = model_of("tcp", "udp")
    lines = drawn(model, width)
    for entry in model.entries():
        assert any(f"{entry.row.source} " in line for line in lines)
        assert any(entry.destination in line for line in lines)


@pytest.mark.parametrize("width", [52, 60, 80, 90, 100])
def test_long_ones_have_a_line_each(width: int) -> None:
    lines = drawn(model_with(LONG), width)
    assert any(f"{LONG.source} " in line for line in lines)
    assert any(str(LONG.destination) in line for line in lines)


def test_decoration_goes_first_and_then_the_protocol() -> None:
    model = model_of("tcp", "udp")
    parts = ("trend", "bar", "protocol", "rate", "left", "in_use")
    before = list(parts)
    width = 90
    # Below, destinations have lines of their own, and there is room again.
    while (widths := columns(width, model.entries())).lines == 1:
        width -= 1
        there = [part for part in parts if getattr(widths, part)]
        # One after the other, in this order, and none comes back.
        assert there == before or there == before[len(before) - len(there) :]
        before = there
    assert before == []


def test_the_longest_ipv4_addresses_fit_into_80_columns() -> None:
    model = model_with(row("tcp", "192.168.100.100", Endpoint("198.151.100.200", 54321), 1))
    widths = columns(80, model.entries())
    assert (widths.source, widths.destination) == (15, 21)


def test_a_wide_terminal_has_the_capacity_and_longer_bars() -> None:
    lines = model_of("tcp").entries()
    narrow, wide = columns(80, lines), columns(140, lines)
    assert (narrow.capacity, wide.capacity) == (0, 6)
    assert wide.bar > narrow.bar
    assert wide.trend > narrow.trend
