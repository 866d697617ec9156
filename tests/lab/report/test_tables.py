"""Tables of techniques that behave alike: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import itertools

from connectx.lab.listeners import Case, Outcome
from connectx.lab.mixing import OK, Cell
from connectx.lab.report import tables
from connectx.lab.technique_table import Findings
from connectx.lab.techniques import Row
from connectx.lab.transports import Transport

TRANSPORTS = [Transport(name, family) for name in ("tcp", "udp") for family in (4, 6)]
SHARES = Findings("EADDRNOTAVAIL", shares=True, overshadows=False, opened=(64, 64))
EXCLUSIVE = Findings("EADDRINUSE", shares=False, overshadows=False, opened=(64, 0))


def row(transport: Transport, name: str, observed: Findings | None, note: str = "") -> Row:
    return Row(transport, name, f"{name}()", SHARES, observed, note)


class TestAlone:
    def test_transports_that_behave_alike_have_one_table(self) -> None:
        found = tables.alone(
            [
                row(transport, "a", SHARES if transport.name == "tcp" else EXCLUSIVE)
                for transport in TRANSPORTS
            ]
        )
        assert [table.title for table in found] == [
            "TCP over IPv4 and IPv6",
            "UDP over IPv4 and IPv6",
        ]

    def test_techniques_with_the_same_findings_have_one_row(self) -> None:
        given = [
            row(TRANSPORTS[0], "a", SHARES),
            row(TRANSPORTS[0], "b", EXCLUSIVE),
            row(TRANSPORTS[0], "c", SHARES, note="what else there is to say"),
            row(TRANSPORTS[0], "d", None, note="no option"),
            row(TRANSPORTS[0], "e", None, note="no protocol"),
        ]
        (table,) = tables.alone(given)
        names = [[each.technique for each in group] for group in table.rows]
        assert names == [["a", "c"], ["b"], ["d"], ["e"]]


class TestMatrices:
    NAMES = ("connect", "window", "bind", "strange")

    def outcome(self, first: str, second: str) -> str:
        # The first two are one as the other; "strange" is like "bind" as the second socket only.
        sharing = {"connect", "window"}
        if first == "strange":
            return OK
        return OK if {first, second} <= sharing else "EADDRINUSE at bind"

    def matrix(self, *, expected: str | None = None) -> tables.Matrix:
        cells = [
            Cell(TRANSPORTS[0], first, second, expected or found, found)
            for first, second in itertools.product(self.NAMES, repeat=2)
            for found in [self.outcome(first, second)]
        ]
        (found,) = tables.matrices(cells)
        return found

    def test_only_what_is_alike_in_rows_and_columns_is_folded(self) -> None:
        assert self.matrix().groups == [["connect", "window"], ["bind"], ["strange"]]

    def test_each_cell_stands_for_all_its_pairs(self) -> None:
        matrix = self.matrix()
        for firsts, cells in zip(matrix.groups, matrix.rows, strict=True):
            for seconds, cell in zip(matrix.groups, cells, strict=True):
                for first, second in itertools.product(firsts, seconds):
                    assert cell.observed == self.outcome(first, second)

    def test_pairs_are_counted_before_they_are_folded(self) -> None:
        assert (self.matrix().agreeing, self.matrix().tried) == (16, 16)
        ok = self.matrix(expected=OK)
        assert (ok.agreeing, ok.tried) == (8, 16)


class TestServices:
    def case(self, outgoing: str, service: str, *, anywhere: bool, reserved: bool = False) -> Case:
        found = Outcome(takes=True, service=service)
        return Case(TRANSPORTS[0], outgoing, "listen()", anywhere, reserved, found, found)

    def test_places_and_connections_with_the_same_outcome_have_one_row(self) -> None:
        cases = [
            self.case(
                outgoing,
                OK if outgoing == "c" and anywhere else "EADDRINUSE at bind",
                anywhere=anywhere,
            )
            for outgoing in "abc"
            for anywhere in (False, True)
        ]
        (table,) = tables.services(cases)
        assert [(row.outgoing, row.places) for row in table.rows] == [
            (["a", "b"], ["source", "wildcard"]),
            (["c"], ["source"]),
            (["c"], ["wildcard"]),
        ]

    def test_reserved_ports_are_told_apart(self) -> None:
        cases = [
            self.case("a", OK, anywhere=False, reserved=reserved) for reserved in (False, True)
        ]
        (table,) = tables.services(cases)
        assert [row.case.reserved for row in table.rows] == [False, True]
