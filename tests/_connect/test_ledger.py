"""The ledger of free ports: what it proposes, forgets and weighs."""

import itertools
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from connectx._connect.ledger import FREE, RESERVED, RESTING, Ledger, template
from connectx.addresses import PortRange
from tests._connect.plans import ledger_of, shelf_of

PORTS: Final = PortRange(20000, 20009)
ALL: Final = set(range(20000, 20010))
DEFAULT_RANGE: Final = PortRange(32768, 60999)


def drain(ledger: Ledger, *, limit: int = 1000) -> list[int]:
    """Refuse whatever is proposed, until nothing is."""
    proposals: list[int] = []
    while port := ledger.propose():
        proposals.append(port)
        ledger.refused(port)
        assert len(proposals) < limit
    return proposals


class TestTemplate:
    def test_all_ports_are_free(self) -> None:
        assert template(PORTS, []) == bytes([FREE]) * 10

    @pytest.mark.parametrize(
        "hole, ports",
        [
            (PortRange(20003, 20005), {20003, 20004, 20005}),
            (PortRange(19000, 20001), {20000, 20001}),
            (PortRange(20008, 30000), {20008, 20009}),
            (PortRange(1, 65535), ALL),
            (PortRange(1, 19999), set()),
            (PortRange(20010, 65535), set()),
        ],
    )
    def test_reserved_ports_are_marked_as_far_as_they_lie_within(
        self, hole: PortRange, ports: set[int]
    ) -> None:
        states = template(PORTS, [hole])
        assert {20000 + at for at, state in enumerate(states) if state == RESERVED} == ports

    def test_of_several_holes(self) -> None:
        holes = [PortRange(20001, 20001), PortRange(20001, 20003), PortRange(20009, 20009)]
        assert template(PORTS, holes).count(RESERVED) == 4


class TestProposals:
    def test_refused_one_after_the_other_all_free_ports_come_and_none_twice(self) -> None:
        proposals = drain(ledger_of(PORTS, [20004, 20007]))
        assert sorted(proposals) == sorted(ALL - {20004, 20007})

    def test_a_range_of_one_port(self) -> None:
        ledger = ledger_of(PortRange(20000, 20000))
        assert drain(ledger) == [20000]

    def test_none_of_a_range_that_is_reserved(self) -> None:
        ledger = ledger_of(PORTS, ALL)
        for _ in range(2):
            assert ledger.propose() == 0
            ledger.recycle()

    def test_the_highest_port(self) -> None:
        assert sorted(drain(ledger_of(PortRange(65534, 65535)))) == [65534, 65535]

    def test_a_released_port_comes_again(self) -> None:
        ledger = ledger_of(PORTS)
        ports = drain(ledger)
        in_use = [ledger.propose()]  # Nothing: the others are refused.
        assert in_use == [0]
        ledger.recycle()
        first, second = ledger.propose(), ledger.propose()
        drain(ledger)
        ledger.released(first)
        assert ledger.propose() == first
        assert {first, second} < set(ports)

    def test_ports_in_use_are_not_proposed_once_there_is_a_map(self) -> None:
        ledger = ledger_of(PORTS)
        ledger.refused(ledger.propose())
        in_use = [ledger.propose() for _ in range(9)]
        assert sorted({*in_use}) == sorted(in_use)
        assert ledger.propose() == 0

    def test_a_held_port_is_not_proposed_once_there_is_a_map(self) -> None:
        ledger = ledger_of(PORTS)
        ledger.refused(ledger.propose())
        port = ledger.propose()
        ledger.held(port)
        assert port not in drain(ledger)

    @settings(deadline=None)
    @given(seed=st.integers(0, 2**32), size=st.integers(1, 20), opened=st.integers(1, 100))
    def test_a_refused_port_is_not_proposed_again_even_if_it_was_drawn_before(
        self, seed: int, size: int, opened: int
    ) -> None:
        # Without a map ports are drawn in batches, and one may be in a batch twice.
        ledger = ledger_of(PortRange(20000, 19999 + size), seed=seed)
        for _ in range(opened):
            ledger.propose()
        proposals = drain(ledger)
        assert len(proposals) == len(set(proposals))


class TestSurvey:
    def test_what_is_in_use_is_not_proposed(self) -> None:
        ledger = ledger_of(PORTS, [20000])
        assert ledger.survey([20001, 20002, 1, 65535])
        assert sorted(drain(ledger)) == list(range(20003, 20010))

    def test_it_replaces_what_was_known(self) -> None:
        ledger = ledger_of(PORTS)
        drain(ledger)
        assert ledger.survey(sorted(ALL - {20006}))
        assert drain(ledger) == [20006]

    def test_it_says_when_nothing_is_left(self) -> None:
        ledger = ledger_of(PORTS, [20000])
        assert not ledger.survey(range(20001, 20010))
        assert ledger.propose() == 0

    def test_it_begins_the_count_of_refusals_anew(self) -> None:
        ledger = ledger_of(PORTS)
        ledger.refusals = 10
        ledger.survey([])
        assert ledger.refusals == 0


class TestContention:
    """Ports that others hold, or were only trying."""

    def test_few_are_tried_again(self) -> None:
        ledger = ledger_of(PORTS)
        refused = {ledger.propose() for _ in range(3)}
        for port in refused:
            ledger.refused(port, contended=True)
        drain(ledger)
        assert ledger.retry()
        assert set(drain(ledger)) == refused
        assert not ledger.retry()

    def test_many_are_believed_to_be_held_until_later(self) -> None:
        ports = PortRange(20000, 20999)
        ledger = ledger_of(ports)
        while port := ledger.propose():
            ledger.refused(port, contended=port >= 20010)
        assert not ledger.retry()
        assert ledger.survey([20005])
        assert sorted(drain(ledger)) == [*range(20000, 20005), *range(20006, 20010)]
        ledger.recycle()
        assert len(drain(ledger, limit=2000)) == ports.size


class TestRecycle:
    def test_refused_ports_get_another_chance_when_nothing_else_is_left(self) -> None:
        ledger = ledger_of(PORTS, [20003])
        once = drain(ledger)
        ledger.recycle()
        assert sorted(drain(ledger)) == sorted(once)

    def test_not_while_something_is(self) -> None:
        ledger = ledger_of(PORTS)
        refused = ledger.propose()
        ledger.refused(refused)
        ledger.recycle()
        assert refused not in drain(ledger)

    def test_a_reserved_port_that_a_survey_found_in_use_stays_reserved(self) -> None:
        # Its user may have bound it explicitly. An explicit bind, as the UDP lock
        # makes one, would not be refused by the kernel.
        ledger = ledger_of(PORTS, [20003])
        ledger.survey(ALL)
        ledger.recycle()
        assert 20003 not in drain(ledger)

    def test_ports_whose_end_nobody_reported_come_back(self) -> None:
        # A socket that was detached, as ssl does it, reports nothing.
        ledger = ledger_of(PORTS)
        ledger.survey([])
        while ledger.propose():
            pass
        ledger.recycle()
        assert sorted(drain(ledger)) == sorted(ALL)


class TestMemory:
    """Nothing while idle, and then at most two bytes a port."""

    COUNT: Final = 20

    def test_of_the_default_range(self) -> None:
        shelf = shelf_of(DEFAULT_RANGE)
        ledgers: list[Ledger] = []

        def weigh(operation: Callable[[Ledger], object]) -> float:
            for ledger in ledgers:
                operation(ledger)
            return (tracemalloc.get_traced_memory()[0] - before) / self.COUNT

        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            ledgers += [Ledger(shelf, name) for name in range(self.COUNT)]
            assert weigh(lambda ledger: ledger.released(ledger.propose())) < 1000
            assert weigh(lambda ledger: ledger.propose()) < 1000
            busy = weigh(lambda ledger: ledger.refused(ledger.propose()))
            assert DEFAULT_RANGE.size <= busy < 2 * DEFAULT_RANGE.size
            survey = weigh(lambda ledger: ledger.survey([40000]))
            assert DEFAULT_RANGE.size <= survey < 2 * DEFAULT_RANGE.size
            recycled = weigh(lambda ledger: ledger.recycle())
            assert recycled < 2 * DEFAULT_RANGE.size
            # The last open socket's end: the one that the second step opened.
            assert weigh(lambda ledger: ledger.released(40001)) < 2 * DEFAULT_RANGE.size
            # And when nothing rests any more.
            assert weigh(lambda ledger: ledger.wake_all()) < 5000
        finally:
            tracemalloc.stop()

    def test_a_full_ledger_weighs_no_more(self) -> None:
        ledger = ledger_of(DEFAULT_RANGE)
        tracemalloc.start()
        try:
            drain(ledger, limit=DEFAULT_RANGE.size + 1)
            assert tracemalloc.get_traced_memory()[0] < 2 * DEFAULT_RANGE.size
        finally:
            tracemalloc.stop()


class TestUnpredictability:
    """RFC 6056: from outside, no port is likelier than another, and none follows from the last.

    The numbers come from a fixed seed, so that chance cannot fail a test; what the
    library hands in is the kernel's generator.
    """

    BINS: Final = 64

    @pytest.mark.parametrize("seed", range(5))
    def test_proposals_over_an_empty_range_are_uniform(self, seed: int) -> None:
        ledger = ledger_of(DEFAULT_RANGE, seed=seed)
        count = 20_000
        bins = Counter(
            (ledger.propose() - DEFAULT_RANGE.low) * self.BINS // DEFAULT_RANGE.size
            for _ in range(count)
        )
        expected = count / self.BINS
        chi_square = sum((bins[each] - expected) ** 2 / expected for each in range(self.BINS))
        # 63 degrees of freedom: 99.9 % of uniform samples lie below 103.4.
        assert chi_square < 103.4

    def test_neighbours_in_time_are_not_neighbours_in_port(self) -> None:
        ledger = ledger_of(DEFAULT_RANGE)
        proposals = [ledger.propose() for _ in range(5000)]
        near = sum(abs(one - other) < 100 for one, other in itertools.pairwise(proposals))
        # Expected of independent draws: 5000 * 199 / 28232 = 35.
        assert near < 70

    def test_every_first_proposal_is_drawn_anew(self) -> None:
        firsts = {ledger_of(DEFAULT_RANGE, seed=seed).propose() for seed in range(100)}
        assert len(firsts) > 95


class LedgerMachine(RuleBasedStateMachine):
    """Any sequence of reports, beside a plain account of what the ledger may know."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = ledger_of(PORTS)
        self.reserved: set[int] = set()
        self.opened: list[int] = []
        # Ports that it was told are taken, and has had no reason to forget.
        self.taken: set[int] = set()
        # Those of them that somebody may only have been trying.
        self.contended: set[int] = set()

    @initialize(reserved=st.sets(st.sampled_from(sorted(ALL))), seed=st.integers(0, 2**32))
    def begin(self, reserved: set[int], seed: int) -> None:
        self.reserved = reserved
        self.ledger = ledger_of(PORTS, reserved, seed=seed)

    @rule()
    def propose(self) -> None:
        port = self.ledger.propose()
        if port:
            assert port in ALL - self.reserved - self.taken
            self.opened.append(port)

    @rule(number=st.integers(0, 99))
    def release(self, number: int) -> None:
        if self.opened:
            port = self.opened.pop(number % len(self.opened))
            self.ledger.released(port)
            self.taken.discard(port)
            self.contended.discard(port)

    @rule(number=st.integers(0, 99))
    def refuse(self, number: int) -> None:
        if self.opened:
            port = self.opened.pop(number % len(self.opened))
            self.ledger.refused(port)
            self.taken.add(port)
            self.contended.discard(port)

    @rule(number=st.integers(0, 99))
    def refuse_as_contended(self, number: int) -> None:
        if self.opened:
            port = self.opened.pop(number % len(self.opened))
            self.ledger.refused(port, contended=True)
            self.taken.add(port)
            self.contended.add(port)

    @rule()
    def retry(self) -> None:
        assert self.ledger.retry() is bool(self.contended)
        self.taken -= self.contended
        self.contended = set()

    @rule(in_use=st.sets(st.integers(19998, 20012)))
    def survey(self, in_use: set[int]) -> None:
        free = ALL - self.reserved - in_use
        assert self.ledger.survey(sorted(in_use)) is bool(free)
        self.taken = in_use & ALL
        self.contended = set()

    @rule()
    def recycle(self) -> None:
        # What it has drawn already comes first, and what it takes to be free: it knows nothing
        # of ports that were opened while it had no map.
        left = self.ledger.drawn or {FREE, RESTING} & set(self.ledger._states)
        self.ledger.recycle()
        if not left:
            self.taken = set()
            self.contended = set()

    @invariant()
    def refusals_are_counted(self) -> None:
        assert self.ledger.refusals >= 0

    def teardown(self) -> None:
        """Whatever happened: each port that may be free is proposed before long."""
        proposed = set(drain(self.ledger))
        assert not proposed & (self.reserved | self.taken)
        self.ledger.recycle()
        proposed |= set(drain(self.ledger))
        assert ALL - self.reserved - set(self.opened) <= proposed
        assert not proposed & self.reserved


TestAnySequence = LedgerMachine.TestCase
TestAnySequence.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
