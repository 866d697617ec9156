"""One attempt to connect: what to do next, given what came of the last action.

The decisions of a call live here and nowhere else. A `Connection` does what `next_step`
says, and tells `feed` what came of it:

    attempt.next_step() -> Action    do it; if the socket is connected, stop
    attempt.feed(Outcome)            otherwise tell what happened, and go on
    attempt.next_step() -> Verdict   nothing is left to do: this is why

An attempt holds no socket, reads no clock, and gets its randomness handed in, so that
tests can drive it against a model of the kernel. The tables it walks are in strategies.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from connectx._connect.strategies import (
    REFUSALS_WORTH_A_SURVEY,
    Action,
    Outcome,
    Pick,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from connectx._connect.ledger import Ledger
    from connectx._connect.strategies import Program, State
    from connectx.addresses import PortRange

    class Terms(Protocol):
        """What the attempts of one kind of call toward one destination have in common."""

        @property
        def program(self) -> Program:
            """The table to walk."""

        @property
        def ledger(self) -> Ledger:
            """What is known of the source ports toward the destination."""

        @property
        def random(self) -> Callable[[int], bytes]:
            """Gives so many octets that nobody else can foresee, for random windows."""

        @property
        def ports(self) -> PortRange:
            """The range in force, or the part of it to stay within."""

        @property
        def search(self) -> PortRange:
            """The window in which the kernel searches it."""

        @property
        def asked(self) -> int:
            """The source port asked for, 0 for any."""


class Attempt:
    """The state of one attempt.

    Attributes:
        low, high: The ports that the action at hand is about; equal where it is one port,
            0 where the kernel chooses.
        failures: How often connecting was tried and refused.
    """

    __slots__ = ("_at", "_entered", "_terms", "failures", "high", "low")

    def __init__(self, terms: Terms, proposed: int = 0) -> None:
        """Begin with the first state of the program.

        proposed: the port of the first proposal, if that was made already.
        """
        self._terms = terms
        self._at: str | Verdict = terms.program.start
        # How many times each state was entered, since its count began.
        self._entered = {terms.program.start: 1} if proposed else {}
        self.low = self.high = proposed
        self.failures = 0

    def __repr__(self) -> str:
        at = self._at.value if isinstance(self._at, Verdict) else self._at
        ports = f"{self.low}-{self.high}" if self.low else "no port"
        return f"<Attempt: {at}, {ports}, {self.failures} refused>"

    @property
    def proposed(self) -> bool:
        """Whether the action at hand is about a port of the ledger."""
        states = self._terms.program.states
        return not isinstance(self._at, Verdict) and states[self._at].pick is Pick.LEDGER

    def next_step(self) -> Action | Verdict:
        """Return what to do now, or why there is nothing left to do."""
        while not isinstance(self._at, Verdict):
            state = self._terms.program.states[self._at]
            times = self._entered.get(self._at, 0)
            if times < state.limit and self._pick(state):
                self._entered[self._at] = times + 1
                for name in state.renews:
                    self._entered.pop(name, None)
                return state.action
            self._at = state.spent
        return self._at

    def feed(self, outcome: Outcome) -> bool:
        """Take what came of the last action, other than a connection.

        Returns False where the program has no answer to it: the error is then the
        kernel's own and the caller's to raise.
        """
        if isinstance(self._at, Verdict):
            return False
        terms = self._terms
        state = terms.program.states[self._at]
        if outcome not in state.then:
            return False
        if state.action not in (Action.LOOK, Action.SURVEY, Action.RETRY):
            self.failures += 1
        if state.pick is Pick.LEDGER:
            terms.ledger.refused(self.low, contended=outcome in state.passing)
            terms.ledger.refusals += self._at == terms.program.start
            self.low = self.high = 0
        self._at = state.then[outcome]
        return True

    def abandon(self) -> None:
        """Give a proposed port back that has not been used."""
        if self.low and self.proposed:
            self._terms.ledger.released(self.low)
        self.low = self.high = 0

    def _pick(self, state: State) -> bool:
        """Settle the ports of the state's action; whether there are any."""
        terms, pick = self._terms, state.pick
        if pick is Pick.LEDGER:
            if (
                terms.program.surveys
                and self._at == terms.program.start
                and terms.ledger.refusals >= REFUSALS_WORTH_A_SURVEY
            ):
                # From here on reading the list of sockets costs less than refusals.
                return False
            self.low = self.high = terms.ledger.propose()
            return self.low != 0
        if pick is Pick.ASKED:
            self.low = self.high = terms.asked
        elif pick is Pick.FULL_RANGE:
            self.low, self.high = terms.search
        elif pick is Pick.RANDOM_WINDOW:
            size = min(terms.program.window, terms.ports.size)
            number = int.from_bytes(terms.random(4), "big")
            self.low = terms.ports.low + number % (terms.ports.size - size + 1)
            self.high = self.low + size - 1
        else:
            self.low = self.high = 0
        return True
