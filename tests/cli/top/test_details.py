"""The details of a pair; tests/cli/top/test_top.py has pictures of them."""

from __future__ import annotations

from connectx.addresses import Endpoint
from connectx.cli.top.details import details
from connectx.cli.top.model import Entry
from connectx.observe.history import Pair
from tests.cli.top.states import row


def lines(in_use: int, reusable: int) -> list[str]:
    of = row("tcp", "10.0.0.1", Endpoint("192.0.2.7", 443), in_use)._replace(reusable=reusable)
    line = Entry(Pair.of(of), of, None, str(of.destination))
    return ["".join(piece.text for piece in each).strip() for each in details(line, [], None, 80)]


def test_how_many_ports_can_be_had() -> None:
    assert lines(1000, 0)[1:3] == ["1,000 of 1,000 ports in use, 0 free", "full"]
    assert lines(1000, 100)[1] == "1,000 of 1,000 ports in use, 100 free, 100 of them in TIME-WAIT"
    assert lines(1000, 100)[0].endswith(" 90.0 %")
