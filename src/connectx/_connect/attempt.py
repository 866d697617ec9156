"""One attempt to connect: what to do next, given what came of the last thing.

The decisions of a call live here and nowhere else; the drivers (blocking,
asyncio) do what `next_step` says, and tell `feed` what came of it:

    attempt.next_step() -> Action    do it; if the socket is connected, stop
    attempt.feed(Outcome)            otherwise tell what happened, and go on
    attempt.next_step() -> Verdict   nothing is left to do: this is why

An attempt holds no socket, reads no clock, and gets its randomness handed in,
so that tests can drive it against a model of the kernel. The tables it walks
are in strategies.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from connectx._connect.strategies import (
    REFUSALS_WORTH_A_SURVEY,
    Action,
    Outcome,
    Pick,
    State,
    Verdict,
)
from connectx.addresses import HIGHEST_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from connectx._connect.ledger import Ledger
    from connectx._connect.strategies import Program
    from connectx.addresses import PortRange

#: A window whose ends lie outside any range in force, or on its ends: the kernel
#: falls back to the range's own ends, yet the option counts as set, which from
#: 6.8 on makes the search go in steps of one. So the full range is named without
#: knowing it, and stays right when the sysctl changes or the socket belongs to
#: another namespace (inet_sk_get_local_port_range; tests/kernel/test_windows.py).
FULL_RANGE: Final = (1, HIGHEST_PORT)


class Plan:
    """What the attempts toward one destination have in common.

    program: the table to walk.
    ledger: what is known of the source ports toward the destination.
    draw: gives as many 32-bit numbers as asked for, that nobody else can foresee.
    ports: the range in force, or the part of it to stay within; for random windows.
    search: the window in which the kernel searches it.
    window: how many ports a random window holds.
    asked: the source port asked for, 0 for any.
    proposes: whether the program makes use of the ledger.
    opening: the ledger, where the program begins with a proposal, which a driver may
    then make by itself; None elsewhere.
    survey_after: the state to leave early, once surveying costs less than refusals.
    """

    __slots__ = (
        "asked",
        "draw",
        "ledger",
        "opening",
        "ports",
        "program",
        "proposes",
        "search",
        "start",
        "survey_after",
        "window",
    )

    def __init__(
        self,
        program: Program,
        ledger: Ledger,
        draw: Callable[[int], Sequence[int]],
        ports: PortRange,
        *,
        search: tuple[int, int] = FULL_RANGE,
        window: int = 0,
        asked: int = 0,
    ) -> None:
        self.program = program
        self.ledger = ledger
        self.draw = draw
        self.ports = ports
        self.search = search
        self.window = window
        self.asked = asked
        self.start = next(iter(program.values()))
        self.proposes = any(state.pick is Pick.LEDGER for state in program.values())
        begins = self.start.pick is Pick.LEDGER
        quick = begins and self.start.action in (Action.WINDOW, Action.CLAIM)
        self.opening = ledger if quick else None
        surveys = any(state.action is Action.SURVEY for state in program.values())
        self.survey_after = self.start if surveys and self.start.pick is Pick.LEDGER else None


class Attempt:
    """The state of one attempt.

    low, high: the ports the action at hand is about; equal where it is one port,
    0 where the kernel chooses.
    failures: how often connecting was tried and refused.
    """

    __slots__ = ("_plan", "_state", "_times", "failures", "high", "low")

    def __init__(self, plan: Plan, proposed: int = 0) -> None:
        """Begin with the plan's first state.

        proposed: the port of the first proposal, if that was made already. Most
        attempts end with it, and a driver may take it from the ledger and save
        itself the rest.
        """
        self._plan = plan
        self._state: State | Verdict = plan.start
        self._times = 1 if proposed else 0
        self.low = self.high = proposed
        self.failures = 0

    def next_step(self) -> Action | Verdict:
        """What to do now, or why there is nothing left to do."""
        while isinstance(self._state, State):
            state = self._state
            if self._times < state.limit and self._pick(state):
                self._times += 1
                return state.action
            self._enter(state.spent)
        return self._state

    def feed(self, outcome: Outcome) -> bool:
        """Tell what came of the last action, other than a connection.

        Returns False where the program has no row for it: then it is not about
        ports, and the error behind it is the caller's to raise.
        """
        state = self._state
        if not isinstance(state, State) or outcome not in state.then:
            return False
        if state.action not in (Action.LOOK, Action.SURVEY, Action.RETRY):
            self.failures += 1
        if state.pick is Pick.LEDGER:
            self._plan.ledger.refused(self.low, contended=outcome in state.passing)
            self._plan.ledger.refusals += state is self._plan.start
        self._enter(state.then[outcome])
        return True

    def abandon(self) -> None:
        """Give a proposed port back that has not been used."""
        if isinstance(self._state, State) and self._state.pick is Pick.LEDGER:
            self._plan.ledger.released(self.low)

    def _enter(self, successor: str | Verdict) -> None:
        state = successor if isinstance(successor, Verdict) else self._plan.program[successor]
        if state is not self._state:
            self._state = state
            self._times = 0

    def _pick(self, state: State) -> bool:
        """Settle the ports of the state's action; whether there are any."""
        plan, pick = self._plan, state.pick
        if pick is Pick.LEDGER:
            if state is plan.survey_after and plan.ledger.refusals >= REFUSALS_WORTH_A_SURVEY:
                return False
            self.low = self.high = plan.ledger.propose()
            return self.low != 0
        if pick is Pick.ASKED:
            self.low = self.high = plan.asked
        elif pick is Pick.FULL_RANGE:
            self.low, self.high = plan.search
        elif pick is Pick.RANDOM_WINDOW:
            size = min(plan.window, plan.ports.size)
            self.low = plan.ports.low + plan.draw(1)[0] % (plan.ports.size - size + 1)
            self.high = self.low + size - 1
        else:
            self.low = self.high = 0
        return True
