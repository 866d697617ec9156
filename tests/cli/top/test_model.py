"""Which of the results are shown, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from connectx.addresses import Endpoint
from connectx.cli.top.drawing import colour
from connectx.cli.top.model import Model, Sort
from connectx.cli.top.watcher import Counted, Failed
from connectx.observe.history import Pair
from connectx.observe.namespace import path_of
from tests.cli.top.states import DNS, FILLING, FULL, PAIRS, QUIET, busy, looked, row, snapshot

if TYPE_CHECKING:
    from connectx.observe.usage import Row


@pytest.fixture
def model() -> Model:
    model = Model(["tcp", "udp"])
    for outcome in busy():
        model.take(outcome)
    return model


def hosts(model: Model) -> list[str]:
    return [line.row.destination.host for line in model.entries()]


def verdict(model: Model) -> list[str]:
    return ["".join(piece.text for piece in line).strip() for line in model.verdict()]


def model_of(*rounds: Row, netns: str | None = None) -> Model:
    """A model of one pair, counted once a second."""
    model = Model(["tcp"], netns)
    for second, each in enumerate(rounds):
        model.take(Counted(second, 1.0, snapshot([each])))
    return model


def pair_with(in_use: int) -> Row:
    return row("tcp", "10.0.0.1", Endpoint(FULL, 443), in_use)


class TestEntries:
    def test_the_fullest_first(self, model: Model) -> None:
        assert len(model.entries()) == len(PAIRS)
        assert hosts(model)[:4] == [FULL, FILLING, DNS, QUIET]

    @pytest.mark.parametrize(
        "text, number",
        [("", 34), ("udp", 1), (":443", 2), ("tcp 10.0.1.2", 11), ("2001:DB8", 1), ("x", 0)],
    )
    def test_filtered_by_words(self, model: Model, text: str, number: int) -> None:
        model.text = text
        assert len(model.entries()) == number

    def test_filtered_by_protocol(self, model: Model) -> None:
        found = []
        for _ in range(3):
            model.next_protocol()
            found.append((model.protocol, len(model.entries())))
        assert found == [("tcp", 33), ("udp", 1), ("", 34)]

    def test_sorted_by_rate(self, model: Model) -> None:
        model.sort = Sort.RATE
        assert hosts(model)[0] == FILLING
        assert hosts(model)[-1] == DNS

    def test_sorted_by_rate_those_that_are_not_followed_come_last(self) -> None:
        model = model_of(pair_with(5), pair_with(3))
        model.take(Counted(2, 1.0, snapshot([pair_with(2), row("tcp", "::1", PAIRS[3][2], 1)])))
        model.sort = Sort.RATE
        assert [line.trend is None for line in model.entries()] == [False, True]

    def test_sorted_by_number(self, model: Model) -> None:
        tight = row("tcp", "10.9.9.9", Endpoint(QUIET, 1), 9)._replace(capacity=9)
        model.take(Counted(1000, 2.0, snapshot([tight, pair_with(500)])))
        assert [line.row.in_use for line in model.entries()] == [9, 500]
        model.sort = Sort.IN_USE
        assert [line.row.in_use for line in model.entries()] == [500, 9]

    def test_sorted_by_name(self, model: Model) -> None:
        model.sort = Sort.NAME
        sources = [entry.row.source for entry in model.entries()]
        # As numbers, not as text: 10.0.1.2 comes before 10.0.1.10.
        assert sources[:4] == ["10.0.0.1", "10.0.0.1", "10.0.0.12", "10.0.1.1"]
        assert sources.index("10.0.1.2") < sources.index("10.0.1.10")
        assert sources[-1] == "2001:db8::1:2"

    def test_sorted_by_name_scopes_come_last(self, model: Model) -> None:
        rows = [
            row("tcp", f"fe80::1%{scope}", Endpoint("fe80::9", port, 0, scope), 1)
            for scope, port in ((3, 80), (2, 443), (2, 80))
        ]
        model.take(Counted(1000, 2.0, snapshot(rows)))
        model.sort = Sort.NAME
        assert [line.destination for line in model.entries()] == [
            "[fe80::9%2]:80",
            "[fe80::9%2]:443",
            "[fe80::9%3]:80",
        ]

    def test_every_order_comes_in_turn(self) -> None:
        sort, seen = Sort.UTILISATION, []
        for _ in Sort:
            seen.append(sort)
            sort = sort.next()
        assert seen == list(Sort)
        assert sort is Sort.UTILISATION


class TestVerdict:
    def test_of_nothing(self) -> None:
        assert verdict(Model(["tcp"])) == ["", ""]

    def test_what_is_full_and_what_will_be(self, model: Model) -> None:
        assert verdict(model) == [
            f"FULL  tcp 10.0.0.1 to {FULL}:443",
            f"full in 37 s at this rate: tcp 10.0.0.12 to {FILLING}:8443",
        ]

    def test_more_than_one_is_full(self, model: Model) -> None:
        rows = [row("tcp", f"10.0.0.{number}", Endpoint(FULL, 443), 1000) for number in range(3)]
        model.take(Counted(1000, 2.0, snapshot(rows)))
        assert verdict(model)[0] == f"FULL  tcp 10.0.0.0 to {FULL}:443, and 2 more"

    @pytest.mark.parametrize(
        "in_use, expected",
        [
            (999, f"FILLING  tcp 10.0.0.1 to {FULL}:443: 99.9 %"),
            (700, f"FILLING  tcp 10.0.0.1 to {FULL}:443: 70.0 %"),
            (699, f"OK  the fullest is at 69.9 %: tcp 10.0.0.1 to {FULL}:443"),
        ],
    )
    def test_before_anything_is_full(self, in_use: int, expected: str) -> None:
        model = model_of(pair_with(in_use), pair_with(in_use))
        assert verdict(model) == [expected, "at this rate, none will be full within an hour"]

    def test_when_all_are_full_no_other_one_will_be(self) -> None:
        model = model_of(pair_with(1000), pair_with(1000))
        model.take(Counted(2, 1.0, snapshot([pair_with(1000), row("tcp", "::1", PAIRS[3][2], 1)])))
        model.take(Counted(3, 1.0, snapshot([pair_with(1000), row("tcp", "::1", PAIRS[3][2], 1)])))
        assert verdict(model) == [
            f"FULL  tcp 10.0.0.1 to {FULL}:443",
            "at this rate, no other will be full within an hour",
        ]

    def test_no_rate_is_claimed_before_there_is_one(self) -> None:
        assert verdict(model_of(pair_with(5)))[1] == ""

    def test_it_is_about_the_pairs_in_the_table(self, model: Model) -> None:
        model.text = FILLING
        assert verdict(model) == [
            f"FILLING  tcp 10.0.0.12 to {FILLING}:8443: 85.2 % (1 not shown is full)",
            f"full in 37 s at this rate: tcp 10.0.0.12 to {FILLING}:8443",
        ]
        model.text = "no such pair"
        assert verdict(model) == ["(1 not shown is full)", ""]

    @pytest.mark.parametrize("in_use", [10, 700, 949, 950, 999, 1000])
    def test_its_colour_is_that_of_the_row(self, in_use: int) -> None:
        model = model_of(pair_with(in_use), pair_with(in_use))
        (first, *_), _ = model.verdict()
        assert first.style == f"{colour(in_use / 1000)} reverse"

    def test_time_waits_that_can_be_taken_over_leave_room(self) -> None:
        free = pair_with(1000)._replace(reusable=900)
        assert verdict(model_of(free, free))[0] == (
            f"OK  the fullest is at 10.0 %: tcp 10.0.0.1 to {FULL}:443"
        )


class TestProblems:
    GONE = FileNotFoundError(2, "there is no such network namespace", path_of("blue"))

    def test_before_anything_was_counted(self) -> None:
        model = Model(["tcp"], "blue")
        model.take(Failed(1.0, self.GONE))
        assert "no such network namespace" in verdict(model)[0]
        assert verdict(model)[1] == "trying again"

    def test_a_namespace_that_has_gone_and_comes_back(self) -> None:
        model = model_of(pair_with(1), netns="blue")
        model.take(Failed(30.0, self.GONE))
        assert verdict(model) == [
            "NOT COUNTED  the network namespace blue no longer exists",
            "these numbers are 30 s old; trying again",
        ]
        assert len(model.entries()) == 1
        model.take(Counted(31.0, 1.0, snapshot([pair_with(2)])))
        assert verdict(model)[0].startswith("OK")
        assert model.samples(Pair.of(pair_with(2))) == [1, 2]

    def test_another_namespace_of_that_name_has_another_history(self) -> None:
        model = model_of(pair_with(1), pair_with(2), netns="blue")
        model.take(Counted(31.0, 1.0, snapshot([pair_with(3)], netns="net:[1]")))
        assert model.samples(Pair.of(pair_with(3))) == [3]

    def test_permission(self) -> None:
        model = Model(["tcp"])
        model.take(Failed(1.0, PermissionError(1, "Operation not permitted")))
        assert verdict(model)[0].endswith("Operation not permitted; it may need root")


class TestDetail:
    def test_belongs_to_its_pair(self, model: Model) -> None:
        first, second = (line.pair for line in model.entries()[:2])
        assert model.detail(first) is None
        model.take(looked(first))
        assert model.detail(first) == looked(first).detail
        assert model.detail(second) is None

    def test_a_pair_that_is_not_there_any_more(self, model: Model) -> None:
        pair = model.entries()[0].pair
        assert model.entry(pair) == model.entries()[0]
        model.take(Counted(1000, 2.0, snapshot([])))
        assert model.entry(pair) is None
