"""The tables of strategies: complete, reachable, terminating, and saying what they serve."""

import typing
from collections.abc import Iterator
from graphlib import TopologicalSorter
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectx._connect.attempt import Attempt
from connectx._connect.ledger import Ledger
from connectx._connect.strategies import (
    CLAIMS_OF_ONE_PORT,
    DEFAULT_WINDOW,
    RANDOM_WINDOWS,
    RETRIES,
    STRATEGIES,
    SURVEYS,
    Action,
    Case,
    Need,
    Outcome,
    Pick,
    Program,
    State,
    StrategyName,
    Verdict,
    named,
)
from connectx._dial.sources import ROTATIONS, Rotation
from connectx.addresses import HIGHEST_PORT, PortRange
from tests._connect.plans import (
    EVERYTHING,
    PROGRAMS,
    SLOW_SEARCH,
    WITHOUT_WINDOWS,
    Terms,
    drawing,
    ledger_of,
    plan_of,
)

PORTS: Final = PortRange(20000, 20019)

#: What can come of an action other than a connection.
POSSIBLE: Final = {
    Action.KERNEL: {Outcome.UNAVAILABLE},
    Action.WINDOW: {Outcome.UNAVAILABLE},
    Action.EXCLUSIVE_BIND: {Outcome.IN_USE, Outcome.UNAVAILABLE},
    Action.SHARED_BIND: {Outcome.IN_USE, Outcome.UNAVAILABLE},
    Action.LOOK: {Outcome.OCCUPIED, Outcome.TIME_WAIT, Outcome.NOTHING},
    Action.CLAIM: {Outcome.IN_USE, Outcome.OCCUPIED, Outcome.OVERTAKEN},
    Action.SURVEY: {Outcome.SOME_FREE, Outcome.NONE_FREE},
    Action.RETRY: {Outcome.SOME_FREE, Outcome.NONE_FREE},
}

LATE: Final = frozenset([Need.LATE_PORT, Need.WHOLE_RANGE])
OWN: Final = frozenset([Need.OWN_SOCKET])

programs = pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)


def successors(program: Program, state: State) -> Iterator[State | Verdict]:
    for successor in (*state.then.values(), state.spent):
        yield successor if isinstance(successor, Verdict) else program.states[successor]


def _terms(program: Program, ledger: Ledger, seed: int, *, asked: int) -> Terms:
    return Terms(program._replace(window=5), ledger, drawing(seed), PORTS, asked=asked)


class TestTables:
    @programs
    def test_every_state_can_be_reached(self, program: Program) -> None:
        reached = [program.states[program.start]]
        for state in reached:
            for successor in successors(program, state):
                if isinstance(successor, State) and successor not in reached:
                    reached.append(successor)
        assert len(reached) == len(program.states)

    @programs
    def test_every_outcome_that_an_action_can_have_is_provided_for(self, program: Program) -> None:
        for state in program.states.values():
            assert POSSIBLE[state.action] <= state.then.keys()

    @programs
    def test_whatever_may_be_entered_again_and_again_is_limited(self, program: Program) -> None:
        for name, state in program.states.items():
            if name in state.then.values():
                assert state.limit > 1

    @programs
    def test_states_lead_forward_or_to_themselves_or_count_how_often(
        self, program: Program
    ) -> None:
        """A count that begins anew does so only as often as a state before it is entered."""
        order = list(program.states)
        for at, (name, state) in enumerate(program.states.items()):
            for successor in (*state.then.values(), state.spent):
                if isinstance(successor, str) and order.index(successor) < at:
                    assert min(state.limit, program.states[successor].limit) < HIGHEST_PORT, name
        renewals = {name: state.renews for name, state in program.states.items()}
        assert list(TopologicalSorter(renewals).static_order())

    @programs
    def test_actions_on_one_port_have_one(self, program: Program) -> None:
        for state in program.states.values():
            if state.action in (Action.KERNEL, Action.SURVEY, Action.RETRY):
                assert state.pick is Pick.NONE
            else:
                assert state.pick is not Pick.NONE


def all_outcomes() -> st.SearchStrategy[dict[Action, list[Outcome]]]:
    # For each action a sequence to take its outcomes from, again and again.
    return st.fixed_dictionaries(
        {
            action: st.lists(st.sampled_from(sorted(outcomes, key=str)), min_size=1, max_size=8)
            for action, outcomes in POSSIBLE.items()
        }
    )


class TestTermination:
    @programs
    @settings(deadline=None)
    @given(outcomes=all_outcomes(), seed=st.integers(0, 1000), reserved=st.booleans())
    def test_any_outcomes_end_in_a_verdict_before_long(
        self,
        program: Program,
        outcomes: dict[Action, list[Outcome]],
        seed: int,
        *,
        reserved: bool,
    ) -> None:
        ledger = ledger_of(PORTS, range(20000, 20020) if reserved else (), seed=seed)
        attempt = Attempt(_terms(program, ledger, seed, asked=20000), ledger)
        # The longest walk: claims before the survey, then the whole range in each round.
        bound = 64 + SURVEYS * (1 + RETRIES) * (1 + PORTS.size) + 3
        for step in range(bound):
            action = attempt.action
            if isinstance(action, Verdict):
                return
            assert attempt.low == attempt.high == 0 or 0 < attempt.low <= attempt.high <= 65535
            choices = outcomes[action]
            outcome = choices[step % len(choices)]
            if outcome is Outcome.SOME_FREE:
                ledger.survey([])
            assert attempt.feed(outcome)
        pytest.fail(f"no verdict within {bound} steps")

    @programs
    def test_a_verdict_stays(self, program: Program) -> None:
        ledger = ledger_of(PORTS)
        attempt = Attempt(_terms(program, ledger, 0, asked=1), ledger)
        while not isinstance(action := attempt.action, Verdict):
            attempt.feed(min(POSSIBLE[action], key=str))
        assert attempt.action is action
        assert not attempt.feed(Outcome.UNAVAILABLE)
        attempt.abandon()
        assert attempt.action is action


class TestAttempt:
    def test_an_outcome_without_a_row_is_the_callers_affair(self) -> None:
        plan = plan_of("auto", Case.STREAM_ANY_PORT, PORTS)
        assert plan
        attempt = Attempt(plan, plan.ledger)
        assert attempt.action is Action.WINDOW
        port = attempt.low
        assert not attempt.feed(Outcome.OVERTAKEN)
        assert (attempt.low, attempt.failures) == (port, 0)
        attempt.feed(Outcome.UNAVAILABLE)
        assert attempt.failures == 1

    def test_a_refused_proposal_leaves_the_ledger(self) -> None:
        plan = plan_of("one-port", Case.STREAM_ANY_PORT, PORTS)
        assert plan
        attempt = Attempt(plan, plan.ledger)
        tried = set()
        while attempt.action is Action.WINDOW:
            assert attempt.low == attempt.high
            tried.add(attempt.low)
            attempt.feed(Outcome.UNAVAILABLE)
        assert tried == set(range(20000, 20020))

    def test_a_proposal_made_before_counts_as_the_first(self) -> None:
        plan = plan_of("auto", Case.STREAM_ANY_PORT, PORTS)
        assert plan
        port = plan.ledger.propose()
        attempt = Attempt(plan, plan.ledger, plan.program.proposal, port)
        assert (attempt.low, attempt.high) == (port, port)
        attempt.feed(Outcome.UNAVAILABLE)
        assert attempt.action is Action.WINDOW
        assert attempt.low not in (0, port)
        attempt.feed(Outcome.UNAVAILABLE)
        # Two proposals before the search, the one made before among them.
        assert attempt.action is Action.WINDOW
        assert (attempt.low, attempt.high) == (1, 65535)

    @pytest.mark.parametrize("before", [True, False])
    def test_an_abandoned_proposal_is_free_again(self, *, before: bool) -> None:
        plan = plan_of("auto", Case.DATAGRAM_ANY_PORT, PortRange(20000, 20001))
        assert plan
        plan.ledger.refused(plan.ledger.propose())
        attempt = (
            Attempt(plan, plan.ledger, plan.program.proposal, plan.ledger.propose())
            if before
            else Attempt(plan, plan.ledger)
        )
        port = attempt.low
        assert plan.ledger.propose() == 0
        attempt.abandon()
        assert plan.ledger.propose() == port

    def test_the_full_range_is_named_by_ends_outside_of_any(self) -> None:
        plan = plan_of("full-range", Case.STREAM_ANY_PORT, PORTS)
        assert plan
        attempt = Attempt(plan, plan.ledger)
        assert (attempt.low, attempt.high) == (1, 65535)

    def test_a_search_stays_within_the_window_of_the_sockets_owner(self) -> None:
        ledger = ledger_of(PortRange(20003, 20005))
        program = STRATEGIES["full-range"].program(Case.STREAM_ANY_PORT, EVERYTHING)
        assert program
        ports = PortRange(20003, 20005)
        attempt = Attempt(Terms(program, ledger, drawing(0), ports, search=ports), ledger)
        assert (attempt.low, attempt.high) == (20003, 20005)

    @settings(deadline=None)
    @given(size=st.integers(1, 65535), seed=st.integers(0, 1000))
    def test_random_windows_lie_within_the_range(self, size: int, seed: int) -> None:
        plan = plan_of("shifting-window", Case.STREAM_ANY_PORT, PORTS, window=size, seed=seed)
        assert plan
        attempt = Attempt(plan, plan.ledger)
        windows = []
        while attempt.action is Action.WINDOW:
            assert attempt.high - attempt.low + 1 == min(size, PORTS.size)
            assert PORTS.low <= attempt.low <= attempt.high <= PORTS.high
            windows.append(attempt.low)
            attempt.feed(Outcome.UNAVAILABLE)
        assert len(windows) == RANDOM_WINDOWS

    def test_random_windows_begin_anywhere(self) -> None:
        lows = set()
        for seed in range(300):
            plan = plan_of("shifting-window", Case.STREAM_ANY_PORT, PORTS, window=5, seed=seed)
            assert plan
            attempt = Attempt(plan, plan.ledger)
            lows.add(attempt.low)
        assert lows == set(range(20000, 20016))

    def test_a_port_asked_for_is_claimed_a_bounded_number_of_times(self) -> None:
        plan = plan_of("auto", Case.DATAGRAM_ASKED_PORT, PORTS, asked=20003)
        assert plan
        attempt = Attempt(plan, plan.ledger)
        while attempt.action is Action.CLAIM:
            assert attempt.low == attempt.high == 20003
            attempt.feed(Outcome.IN_USE)
        assert attempt.action is Verdict.PORT_HELD
        assert attempt.failures == CLAIMS_OF_ONE_PORT


#: Which needs each strategy has in each case, the preferred program first; none where
#: it does not serve the case.
SERVES: Final = {
    "auto": {
        Case.STREAM_ANY_PORT: [
            {Need.WINDOW, Need.FAST_SEARCH, Need.WHOLE_RANGE},
            {Need.WINDOW},
            {Need.LATE_PORT, Need.OWN_SOCKET, Need.WHOLE_RANGE},
            {Need.LATE_PORT, Need.WHOLE_RANGE},
            {Need.OWN_SOCKET},
        ],
        Case.STREAM_ASKED_PORT: [{Need.WINDOW, Need.PORT_IN_RANGE}, set()],
        Case.DATAGRAM_ANY_PORT: [set()],
        Case.DATAGRAM_ASKED_PORT: [set()],
    },
    "kernel": {
        Case.STREAM_ANY_PORT: [{Need.LATE_PORT, Need.WHOLE_RANGE}],
        Case.STREAM_ASKED_PORT: [set()],
        Case.DATAGRAM_ANY_PORT: [{Need.WHOLE_RANGE}],
        Case.DATAGRAM_ASKED_PORT: [set()],
    },
    "full-range": {
        Case.STREAM_ANY_PORT: [{Need.WINDOW, Need.WHOLE_RANGE}],
        Case.STREAM_ASKED_PORT: [{Need.WINDOW, Need.PORT_IN_RANGE}, set()],
    },
    "shifting-window": {
        Case.STREAM_ANY_PORT: [{Need.WINDOW, Need.WHOLE_RANGE}],
        Case.STREAM_ASKED_PORT: [{Need.WINDOW, Need.PORT_IN_RANGE}, set()],
    },
    "one-port": {
        Case.STREAM_ANY_PORT: [{Need.WINDOW}],
        Case.STREAM_ASKED_PORT: [{Need.WINDOW, Need.PORT_IN_RANGE}, set()],
    },
    "explicit-bind": {
        Case.STREAM_ANY_PORT: [{Need.OWN_SOCKET}],
        Case.STREAM_ASKED_PORT: [set()],
    },
}


class TestWhatIsServed:
    def test_type_checkers_know_them(self) -> None:
        assert typing.get_args(StrategyName) == tuple(STRATEGIES)
        assert typing.get_args(Rotation) == ROTATIONS

    def test_these_are_the_strategies(self) -> None:
        assert STRATEGIES.keys() == SERVES.keys()
        assert all(strategy.name == name for name, strategy in STRATEGIES.items())
        assert all(strategy.summary for strategy in STRATEGIES.values())

    @pytest.mark.parametrize("name", STRATEGIES)
    def test_each_states_its_cases_and_needs(self, name: str) -> None:
        stated: dict[Case, list[set[Need]]] = {}
        for row in STRATEGIES[name].rows:
            stated.setdefault(row.case, []).append(set(row.needs))
        assert stated == SERVES[name]

    @pytest.mark.parametrize("case", Case)
    @pytest.mark.parametrize("available", [EVERYTHING, SLOW_SEARCH, WITHOUT_WINDOWS, LATE, OWN])
    def test_auto_serves_everything_on_every_kernel(
        self, case: Case, available: frozenset[Need]
    ) -> None:
        assert STRATEGIES["auto"].program(case, available) is not None

    @pytest.mark.parametrize(
        "available, actions",
        [
            (EVERYTHING, [Action.WINDOW]),
            (SLOW_SEARCH, [Action.WINDOW, Action.SURVEY, Action.RETRY]),
            (WITHOUT_WINDOWS, [Action.KERNEL, Action.SURVEY, Action.SHARED_BIND, Action.RETRY]),
            (LATE, [Action.KERNEL]),
            (OWN, [Action.SHARED_BIND, Action.SURVEY, Action.RETRY]),
        ],
    )
    def test_the_first_program_whose_needs_are_met_is_taken(
        self, available: frozenset[Need], actions: list[Action]
    ) -> None:
        program = STRATEGIES["auto"].program(Case.STREAM_ANY_PORT, available)
        assert program
        assert list(dict.fromkeys(state.action for state in program.states.values())) == actions

    @pytest.mark.parametrize("name", ["full-range", "shifting-window", "one-port"])
    def test_what_is_missing_is_named(self, name: str) -> None:
        strategy = STRATEGIES[name]
        assert strategy.program(Case.STREAM_ANY_PORT, WITHOUT_WINDOWS) is None
        assert strategy.missing(Case.STREAM_ANY_PORT, WITHOUT_WINDOWS) == {Need.WINDOW}
        assert strategy.missing(Case.DATAGRAM_ANY_PORT, EVERYTHING) == set()
        assert strategy.program(Case.DATAGRAM_ANY_PORT, EVERYTHING) is None


class TestNames:
    @pytest.mark.parametrize("name", STRATEGIES)
    def test_each_is_found_by_its_name(self, name: str) -> None:
        assert named(name) is STRATEGIES[name]

    def test_a_window_has_500_ports_unless_told_otherwise(self) -> None:
        assert named("shifting-window").window == DEFAULT_WINDOW == 500
        for size in (1, 1000, 65535):
            assert named(f"shifting-window:{size}").window == size
            assert named(f"shifting-window:{size}").name == f"shifting-window:{size}"

    @pytest.mark.parametrize("name", ["", "Auto", "automatic", "auto ", ":500"])
    def test_an_unknown_name_is_an_error_that_lists_the_known(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"unknown strategy .*auto, kernel, full-range"):
            named(name)

    @pytest.mark.parametrize("name", ["auto:500", "full-range:1", "one-port:"])
    def test_only_windows_have_a_size(self, name: str) -> None:
        with pytest.raises(ValueError, match="takes no window size"):
            named(name)

    @pytest.mark.parametrize("size", ["", "0", "65536", "-1", "1.5", "many", " 5", "²"])
    def test_a_size_is_a_number_of_ports(self, size: str) -> None:
        with pytest.raises(ValueError, match="1 to 65535 ports"):
            named(f"shifting-window:{size}")
