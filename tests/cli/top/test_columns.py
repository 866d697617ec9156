import pytest

from connectx.addresses import Endpoint
from connectx.cli.top.columns import cells, columns, titles
from connectx.cli.top.model import Model, Sort
from tests.cli.top.states import busy, counted, row, snapshot


def model_of(*protocols: str) -> Model:
    model = Model(protocols)
    for outcome in busy():
        model.take(outcome)
    return model


@pytest.mark.parametrize("width", [70, 80, 81, 100, 120, 200, 400])
def test_no_line_is_longer_than_the_width(width: int) -> None:
    model = model_of("tcp", "udp")
    widths = columns(width, model.entries())
    for line in model.entries():
        pieces = cells(line, model.samples(line.pair), widths)
        assert sum(len(piece.text) for piece in pieces) <= width
    assert sum(len(piece.text) for piece in titles(widths, Sort.NAME)) <= width + 1


def test_the_longest_ipv4_addresses_fit_into_80_columns() -> None:
    model = Model(["tcp"])
    of = row("tcp", "192.168.100.100", Endpoint("198.151.100.200", 54321), 1)
    model.take(counted(0)._replace(snapshot=snapshot([of])))
    widths = columns(80, model.entries())
    assert (widths.source, widths.destination) == (15, 21)


def test_a_wide_terminal_has_the_capacity_and_longer_bars() -> None:
    lines = model_of("tcp").entries()
    narrow, wide = columns(80, lines), columns(140, lines)
    assert (narrow.capacity, wide.capacity) == (0, 6)
    assert wide.bar > narrow.bar
    assert wide.trend > narrow.trend
