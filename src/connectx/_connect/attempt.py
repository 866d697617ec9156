"""One attempt to connect: what to do next, given what came of the last action.

The decisions of a call live here and nowhere else. A `Connection` does what `action` says,
and tells `feed` what came of it:

    attempt.action is an Action     do it; if the socket is connected, stop
    attempt.feed(Outcome)           otherwise tell what happened, and go on
    attempt.action is a Verdict     nothing is left to do: this is why

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
        """What the attempts of one kind of call have in common."""

        @property
        def program(self) -> Program:
            """The table to walk."""

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
        def walks_in_steps_of_one(self) -> bool:
            """Whether it needs that for a walk."""

        @property
        def asked(self) -> int:
            """The source port asked for, 0 for any."""


class Attempt:
    """The state of one attempt.

    Attributes:
        action: What to do now, or why there is nothing left to do.
        low, high: The ports that the action is about; equal where it is one port,
            0 where the kernel chooses.
        proposed: Whether that is a port of the ledger, which is to get it back.
        failures: How often connecting was tried and refused.
    """

    __slots__ = (
        "_entered",
        "_ledger",
        "_name",
        "_terms",
        "action",
        "failures",
        "high",
        "low",
        "proposed",
    )

    action: Action | Verdict

    def __init__(self, terms: Terms, ledger: Ledger, tried: str = "", port: int = 0) -> None:
        """Begin with the first state of the program.

        ledger: what is known of the source ports toward the destination. tried: the state that
        was carried out already, if any was. port: the ledger's port that it was about; 0 for none.
        """
        self._terms = terms
        self._ledger = ledger
        # The state, by name, and how many times each was entered since its count began.
        self._name = tried
        self._entered = {tried: 1} if tried else {}
        self.low = self.high = port
        self.proposed = port != 0
        self.failures = 0
        if tried:
            self.action = terms.program.states[tried].action
        else:
            self._enter(terms.program.start)

    def __repr__(self) -> str:
        ports = f"{self.low}-{self.high}" if self.low else "no port"
        return f"<Attempt: {self.action.value}, {ports}, {self.failures} refused>"

    def feed(self, outcome: Outcome) -> bool:
        """Take what came of the last action, other than a connection.

        Returns False where the program has no answer to it: the error is then the
        kernel's own and the caller's to raise.
        """
        terms = self._terms
        state = terms.program.states[self._name]
        itself = outcome is Outcome.ITSELF
        if isinstance(self.action, Verdict) or not (itself or outcome in state.then):
            return False
        if state.action not in (Action.LOOK, Action.SURVEY, Action.RETRY):
            self.failures += 1
        if self.proposed:
            self.proposed = False
            self._ledger.refused(self.low, contended=outcome in state.passing)
            self._ledger.refusals += self._name == terms.program.proposal
        self._enter(self._name if itself else state.then[outcome])
        return True

    def has(self, port: int) -> None:
        """Take note of the port that the kernel has chosen; the ledger knows of it."""
        self.low = self.high = port
        self.proposed = True

    def abandon(self) -> None:
        """Give a proposed port back that has not been used."""
        if self.proposed:
            self.proposed = False
            self._ledger.released(self.low)

    def _enter(self, successor: str | Verdict) -> None:
        """Go on to a state, or past those that have been entered often enough."""
        while not isinstance(successor, Verdict):
            state = self._terms.program.states[successor]
            self._name = successor
            times = self._entered.get(successor, 0)
            if times < state.limit and self._pick(state):
                self._entered[successor] = times + 1
                for name in state.renews:
                    self._entered.pop(name, None)
                self.action = state.action
                return
            successor = state.spent
        self.action = successor
        self.low = self.high = 0

    def _pick(self, state: State) -> bool:
        """Settle the ports of the state's action; whether there are any."""
        terms, pick = self._terms, state.pick
        self.proposed = False
        if pick is Pick.WALK and (self._ledger.drawn or not self._ledger.walks):
            return False
        if pick is Pick.LEDGER:
            if (
                terms.program.surveys
                and self._name == terms.program.proposal
                and self._ledger.refusals >= REFUSALS_WORTH_A_SURVEY
            ):
                # From here on reading the list of sockets costs less than refusals.
                return False
            self.low = self.high = self._ledger.propose()
            self.proposed = self.low != 0
            return self.proposed
        if pick is Pick.ASKED:
            self.low = self.high = terms.asked
        elif pick is Pick.FULL_RANGE or (pick is Pick.WALK and terms.walks_in_steps_of_one):
            self.low, self.high = terms.search
        elif pick is Pick.RANDOM_WINDOW:
            size = min(terms.program.window, terms.ports.size)
            number = int.from_bytes(terms.random(4), "big")
            self.low = terms.ports.low + number % (terms.ports.size - size + 1)
            self.high = self.low + size - 1
        else:
            self.low = self.high = 0
        return True
