"""Every way to choose a source port, as data.

A strategy is a set of programs, one for each kind of call: stream or datagram,
any source port or one that was asked for. A program is a table of states; a
state is something to do with the socket and, for each outcome, the state that
follows. `attempt.py` walks the tables and knows no strategy; adding one means
adding a table here, and one that chooses ports in a new way also a `Pick`, which
`Attempt._pick` carries out.

The rules, in words:

- TCP, any port: the kernel walks through the range, as it does for every program, so
  that a port comes back late whoever has used it. Once it has come round to ports
  that rest, or many are in use, the ledger proposes a port and a one-port window tries
  it. Refused twice, the kernel searches after all, and its verdict is final. Kernels
  before 6.8 search slowly and leave one port of an odd number out: there the ledger
  begins, and then the list of sockets is read, and what it shows to be free is tried.
  Kernels without windows choose by themselves, and a port that their search has left
  out is bound.
- TCP, a port asked for: a one-port window, which shares ports with everything
  that connect() chooses. Where that is refused we look at the 4-tuple: if it is
  connected, it is in use; if there is nothing or only a TIME_WAIT, SO_REUSEADDR
  and bind() get through, since an explicit bind may take a TIME_WAIT over.
- UDP: the lock (connectx._connect.udp_connect), on a port that the ledger proposes
  or that was asked for. When the ledger has nothing left, the kernel's list of
  sockets is read once, and what it shows to be free is tried; where others were
  about to claim the last ports, again and again for a short while.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from connectx.addresses import HIGHEST_PORT

if TYPE_CHECKING:
    from collections.abc import Mapping


class Action(enum.Enum):
    """What a driver does with the socket."""

    #: Let the kernel choose the port, with no window: what connect() does unaided.
    KERNEL = "kernel"
    #: Set IP_LOCAL_PORT_RANGE to the attempt's window and connect.
    WINDOW = "window"
    #: Bind the source and the attempt's port without SO_REUSEADDR, and connect.
    EXCLUSIVE_BIND = "exclusive bind"
    #: Bind the source and the attempt's port with SO_REUSEADDR, and connect.
    SHARED_BIND = "shared bind"
    #: Look whether a socket is on the 4-tuple.
    LOOK = "look"
    #: The UDP lock on the attempt's port.
    CLAIM = "claim"
    #: Read from the kernel which ports are in use toward the destination.
    SURVEY = "survey"
    #: Let others finish, and have those ports again that they may only have been trying.
    RETRY = "retry"


class Outcome(enum.Enum):
    """What came of an action that did not connect the socket."""

    #: connect() found no port or 4-tuple free (TCP: EADDRNOTAVAIL, UDP: EAGAIN).
    UNAVAILABLE = "unavailable"
    #: bind() was refused (EADDRINUSE).
    IN_USE = "in use"
    #: UDP: another socket is connected on the 4-tuple; or LOOK found one.
    OCCUPIED = "occupied"
    #: UDP: another socket bound the port after us and may connect first.
    OVERTAKEN = "overtaken"
    #: LOOK found a TIME_WAIT on the 4-tuple.
    TIME_WAIT = "time-wait"
    #: LOOK found nothing on the 4-tuple.
    NOTHING = "nothing"
    #: connect() has connected the socket to itself: source and destination are the same.
    ITSELF = "itself"
    #: SURVEY found ports that look free, or RETRY ports to try again; or none.
    SOME_FREE = "some free"
    NONE_FREE = "none free"


class Verdict(enum.Enum):
    """Why an attempt ended without a connection."""

    EXHAUSTED = "no source port is free toward the destination"
    TUPLE_IN_USE = "the 4-tuple asked for is taken"
    PORT_HELD = "the source port asked for is held"


class Pick(enum.Enum):
    """Where an action's port, or window of ports, comes from."""

    NONE = "none"
    LEDGER = "ledger"
    ASKED = "asked"
    FULL_RANGE = "full range"
    #: The same, or none, as long as the kernel's own walk keeps away from ports that rest.
    WALK = "the kernel's walk"
    RANDOM_WINDOW = "random window"


class State(NamedTuple):
    """One row of a program.

    Attributes:
        action: What to do.
        pick: Where the ports for it come from.
        then: The next state for each outcome; an outcome that is not here ends the call
            with the kernel's own error. After ITSELF the state is entered again.
        limit: How many times the state may be entered; `spent` follows after that, and
            where its pick has no port to offer.
        spent: The state or verdict that follows then.
        passing: Outcomes that may be over in a moment: the socket in the way may only be
            trying the port.
        renews: States whose `limit` begins anew when this one is entered.
    """

    action: Action
    pick: Pick
    then: Mapping[Outcome, str | Verdict]
    limit: int = 1
    spent: str | Verdict = Verdict.EXHAUSTED
    passing: frozenset[Outcome] = frozenset([Outcome.IN_USE, Outcome.OVERTAKEN])
    renews: tuple[str, ...] = ()


class Program(NamedTuple):
    """A table of states, and what follows from it; made by `_program`.

    Attributes:
        states: The states by name.
        start: The name of the state that an attempt begins with.
        proposes: Whether any state takes its port from the ledger.
        walks: Whether an attempt begins with the kernel's own search, most of the time.
        proposal: The state that proposes a port of the ledger in a one-port window or in the
            UDP lock, if an attempt begins with that or does so where it does not walk; or "".
            Nearly every attempt ends with one of these two.
        surveys: Whether a state reads the kernel's list of sockets.
        looks: Whether a state looks at 4-tuples, for which the source must be known.
        window: The number of ports in a random window.
    """

    states: Mapping[str, State]
    start: str
    proposes: bool
    walks: bool
    proposal: str
    surveys: bool
    looks: bool
    window: int = 0


def _program(states: Mapping[str, State]) -> Program:
    """Make a program of states; the first one is where an attempt begins."""
    name, start = next(iter(states.items()))
    walks = start.pick is Pick.WALK
    first = states[str(start.spent)] if walks else start
    opens = first.pick is Pick.LEDGER and first.action in (Action.WINDOW, Action.CLAIM)
    actions = {state.action for state in states.values()}
    return Program(
        states,
        name,
        proposes=any(state.pick is Pick.LEDGER for state in states.values()),
        walks=walks,
        proposal=(str(start.spent) if walks else name) if opens else "",
        surveys=Action.SURVEY in actions,
        looks=not actions.isdisjoint((Action.LOOK, Action.CLAIM, Action.SURVEY)),
    )


class Case(enum.Enum):
    """What kind of call a program serves."""

    STREAM_ANY_PORT = "stream, any source port"
    STREAM_ASKED_PORT = "stream, a source port asked for"
    DATAGRAM_ANY_PORT = "datagram, any source port"
    DATAGRAM_ASKED_PORT = "datagram, a source port asked for"


class Need(enum.Enum):
    """What a program cannot do without, in words that complete "needs ..."."""

    WINDOW = "IP_LOCAL_PORT_RANGE for this protocol (Linux 6.3, 6.1.32, MPTCP 6.8)"
    FAST_SEARCH = "a kernel that searches a window in steps of one (Linux 6.8)"
    PORT_IN_RANGE = "a source port inside ip_local_port_range that is not reserved"
    LATE_PORT = "IP_BIND_ADDRESS_NO_PORT for this protocol (MPTCP: Linux 6.8)"
    WHOLE_RANGE = "a range of which no port is left out (exclude): the kernel knows of none"
    OWN_SOCKET = "sockets it may replace: use create_connection()"


class Row(NamedTuple):
    """A program and when it serves."""

    case: Case
    needs: frozenset[Need]
    program: Program


#: The names, for type checkers; "shifting-window:1000" is one, too, which they cannot know.
StrategyName: TypeAlias = Literal[
    "auto", "kernel", "full-range", "shifting-window", "one-port", "explicit-bind"
]


class Strategy(NamedTuple):
    """A named way to choose source ports.

    window: ports in a random window, for `Pick.RANDOM_WINDOW`.
    """

    name: str
    summary: str
    rows: tuple[Row, ...]
    window: int = 0

    def program(self, case: Case, available: frozenset[Need]) -> Program | None:
        """The first program that serves the case with what is available, if any does."""
        for row in self.rows:
            if row.case is case and row.needs <= available:
                return row.program._replace(window=self.window)
        return None

    def missing(self, case: Case, available: frozenset[Need]) -> frozenset[Need]:
        """What keeps the case from being served; empty where nothing ever will."""
        for row in self.rows:
            if row.case is case:
                return row.needs - available
        return frozenset()


# How often to try.

#: Refused proposals before the kernel searches in steps of one (6.8 and later): it
#: finds a port in about the time of one proposal.
PROPOSALS_BEFORE_SEARCH: Final = 2

#: Refused proposals in one attempt before the list of sockets is read: half a
#: millisecond.
PROPOSALS_BEFORE_SURVEY: Final = 64

#: Refusals in all attempts that cost as much as reading the list of sockets (5 to 10 ms
#: for a full range). A process that knows nothing of other processes' sockets so pays at
#: most twice the cost of the best moment to read it.
REFUSALS_WORTH_A_SURVEY: Final = 512

#: How often an attempt reads the list of sockets. Once settles it, unless other processes
#: are at the last ports at the same moment: a claim that is only being tried refuses ours
#: as well, and a port is freed while another is taken.
SURVEYS: Final = 4

#: How often it goes through the ports again, after each survey, where somebody was in the
#: way. That takes microseconds.
RETRIES: Final = 3

#: Tries at one asked-for UDP port. EADDRINUSE and being overtaken may be the
#: passing effect of another claim, which takes some 10 µs, or if it loses the processor
#: some milliseconds: a blocking call waits between most of the tries.
CLAIMS_OF_ONE_PORT: Final = 64

#: How often the kernel may choose the one port with which a socket is connected to itself.
KERNEL_CHOICES: Final = 8

#: Random windows tried before giving up: the article's technique has no last word.
RANDOM_WINDOWS: Final = 16

DEFAULT_WINDOW: Final = 500


# Programs.


_KERNEL: Final = _program(
    {
        "connect": State(
            Action.KERNEL,
            Pick.NONE,
            {Outcome.UNAVAILABLE: Verdict.EXHAUSTED, Outcome.IN_USE: Verdict.EXHAUSTED},
            limit=KERNEL_CHOICES,
        ),
    }
)

_EXCLUSIVE: Final = _program(
    {
        "bind": State(
            Action.EXCLUSIVE_BIND,
            Pick.ASKED,
            {Outcome.IN_USE: Verdict.PORT_HELD, Outcome.UNAVAILABLE: Verdict.TUPLE_IN_USE},
        ),
    }
)

_SEARCH: Final = {
    "search": State(
        Action.WINDOW,
        Pick.FULL_RANGE,
        {Outcome.UNAVAILABLE: Verdict.EXHAUSTED},
        limit=KERNEL_CHOICES,
    ),
}

_WALK_PROPOSE_SEARCH: Final = _program(
    {
        "walk": State(
            Action.WINDOW,
            Pick.WALK,
            # Without a window it leaves one port of an odd number out.
            {Outcome.UNAVAILABLE: "search"},
            limit=KERNEL_CHOICES,
            spent="propose",
        ),
        "propose": State(
            Action.WINDOW,
            Pick.LEDGER,
            {Outcome.UNAVAILABLE: "propose"},
            limit=PROPOSALS_BEFORE_SEARCH,
            spent="search",
        ),
        **_SEARCH,
    }
)

_SHIFT: Final = _program(
    {
        "window": State(
            Action.WINDOW,
            Pick.RANDOM_WINDOW,
            {Outcome.UNAVAILABLE: "window"},
            limit=RANDOM_WINDOWS,
        ),
    }
)


def _survey(action: Action, refusals: tuple[Outcome, ...]) -> Mapping[str, State]:
    """Return states that ask the kernel which ports are in use, and try those that look free.

    A refused proposal leaves the ledger, so going through it ends. Then the ports where
    somebody was in the way get another chance; where nobody was, only another survey can
    have news.
    """
    return {
        "survey": State(
            Action.SURVEY,
            Pick.NONE,
            {Outcome.SOME_FREE: "settle", Outcome.NONE_FREE: Verdict.EXHAUSTED},
            limit=SURVEYS,
            renews=("settle", "retry"),
        ),
        "settle": State(
            action,
            Pick.LEDGER,
            dict.fromkeys(refusals, "settle"),
            limit=HIGHEST_PORT,
            spent="retry",
            # The survey has shown the port to be free, so it was taken just now.
            passing=frozenset(refusals) - {Outcome.OCCUPIED},
        ),
        "retry": State(
            Action.RETRY,
            Pick.NONE,
            {Outcome.SOME_FREE: "settle", Outcome.NONE_FREE: "survey"},
            limit=RETRIES,
            spent="survey",
            renews=("settle",),
        ),
    }


def _propose_then_survey(action: Action, refusals: tuple[Outcome, ...]) -> Program:
    """Propose from the ledger; when that gets nowhere, from what the kernel shows to be free."""
    return _program(
        {
            "propose": State(
                action,
                Pick.LEDGER,
                dict.fromkeys(refusals, "propose"),
                limit=PROPOSALS_BEFORE_SURVEY,
                spent="survey",
            ),
            **_survey(action, refusals),
        }
    )


_PROPOSE_WINDOWS: Final = _propose_then_survey(Action.WINDOW, (Outcome.UNAVAILABLE,))

_PROPOSE_BINDS: Final = _propose_then_survey(
    Action.SHARED_BIND, (Outcome.UNAVAILABLE, Outcome.IN_USE)
)

_PROPOSE_CLAIMS: Final = _propose_then_survey(
    Action.CLAIM, (Outcome.IN_USE, Outcome.OCCUPIED, Outcome.OVERTAKEN)
)

# The kernel's search in steps of two skips one port when the range has an odd size.
_KERNEL_THEN_BIND: Final = _program(
    {
        "connect": State(
            Action.KERNEL,
            Pick.NONE,
            {Outcome.UNAVAILABLE: "survey"},
            limit=KERNEL_CHOICES,
            spent="survey",
        ),
        **_survey(Action.SHARED_BIND, (Outcome.UNAVAILABLE, Outcome.IN_USE)),
    }
)


# An explicit bind that fails at connect() leaves the socket bound for good
# (connect(AF_UNSPEC) does not release it), so we look before we bind.
_BIND_AFTER_A_LOOK: Final = {
    "look": State(
        Action.LOOK,
        Pick.ASKED,
        {
            Outcome.OCCUPIED: Verdict.TUPLE_IN_USE,
            Outcome.TIME_WAIT: "take over",
            Outcome.NOTHING: "bind",
        },
    ),
    "bind": State(
        Action.SHARED_BIND,
        Pick.ASKED,
        {Outcome.IN_USE: Verdict.PORT_HELD, Outcome.UNAVAILABLE: Verdict.TUPLE_IN_USE},
    ),
    # A TIME_WAIT whose socket had no SO_REUSEADDR, or no timestamps, stays in the way.
    "take over": State(
        Action.SHARED_BIND,
        Pick.ASKED,
        {Outcome.IN_USE: Verdict.TUPLE_IN_USE, Outcome.UNAVAILABLE: Verdict.TUPLE_IN_USE},
    ),
}

_LOOK_THEN_BIND: Final = _program(_BIND_AFTER_A_LOOK)

_WINDOW_THEN_BIND: Final = _program(
    {
        "window": State(Action.WINDOW, Pick.ASKED, {Outcome.UNAVAILABLE: "look"}),
        **_BIND_AFTER_A_LOOK,
    }
)

_CLAIM_ASKED: Final = _program(
    {
        "claim": State(
            Action.CLAIM,
            Pick.ASKED,
            {
                Outcome.OCCUPIED: Verdict.TUPLE_IN_USE,
                Outcome.IN_USE: "claim",
                Outcome.OVERTAKEN: "claim",
            },
            limit=CLAIMS_OF_ONE_PORT,
            spent=Verdict.PORT_HELD,
        ),
    }
)


# The table of strategies.


def _row(case: Case, program: Program, *needs: Need) -> Row:
    return Row(case, frozenset(needs), program)


_ASKED_ROWS: Final = (
    _row(Case.STREAM_ASKED_PORT, _WINDOW_THEN_BIND, Need.WINDOW, Need.PORT_IN_RANGE),
    _row(Case.STREAM_ASKED_PORT, _LOOK_THEN_BIND),
)

_AUTO: Final = Strategy(
    "auto",
    "the best this kernel can do; the default",
    (
        _row(
            Case.STREAM_ANY_PORT,
            _WALK_PROPOSE_SEARCH,
            Need.WINDOW,
            Need.FAST_SEARCH,
            Need.WHOLE_RANGE,
        ),
        _row(Case.STREAM_ANY_PORT, _PROPOSE_WINDOWS, Need.WINDOW),
        _row(
            Case.STREAM_ANY_PORT,
            _KERNEL_THEN_BIND,
            Need.LATE_PORT,
            Need.OWN_SOCKET,
            Need.WHOLE_RANGE,
        ),
        _row(Case.STREAM_ANY_PORT, _KERNEL, Need.LATE_PORT, Need.WHOLE_RANGE),
        _row(Case.STREAM_ANY_PORT, _PROPOSE_BINDS, Need.OWN_SOCKET),
        *_ASKED_ROWS,
        _row(Case.DATAGRAM_ANY_PORT, _PROPOSE_CLAIMS),
        _row(Case.DATAGRAM_ASKED_PORT, _CLAIM_ASKED),
    ),
)

STRATEGIES: Final[Mapping[str, Strategy]] = {
    strategy.name: strategy
    for strategy in (
        _AUTO,
        Strategy(
            "kernel",
            "what the kernel does unaided: one parity of the range first, then the other",
            (
                _row(Case.STREAM_ANY_PORT, _KERNEL, Need.LATE_PORT, Need.WHOLE_RANGE),
                _row(Case.STREAM_ASKED_PORT, _EXCLUSIVE),
                _row(Case.DATAGRAM_ANY_PORT, _KERNEL, Need.WHOLE_RANGE),
                _row(Case.DATAGRAM_ASKED_PORT, _EXCLUSIVE),
            ),
        ),
        Strategy(
            "full-range",
            "the kernel's search over the whole range, in steps of one from Linux 6.8 (before, it "
            "leaves out one port of an odd number)",
            (
                _row(Case.STREAM_ANY_PORT, _program(_SEARCH), Need.WINDOW, Need.WHOLE_RANGE),
                *_ASKED_ROWS,
            ),
        ),
        Strategy(
            "shifting-window",
            "a window of random position (shifting-window:SIZE, 500 ports by default)",
            (_row(Case.STREAM_ANY_PORT, _SHIFT, Need.WINDOW, Need.WHOLE_RANGE), *_ASKED_ROWS),
            window=DEFAULT_WINDOW,
        ),
        Strategy(
            "one-port",
            "windows of one port that our own ledger of free ports proposes",
            (
                _row(Case.STREAM_ANY_PORT, _PROPOSE_WINDOWS, Need.WINDOW),
                *_ASKED_ROWS,
            ),
        ),
        Strategy(
            "explicit-bind",
            "select a port, bind it with SO_REUSEADDR, test it by connecting, repeat",
            (
                _row(Case.STREAM_ANY_PORT, _PROPOSE_BINDS, Need.OWN_SOCKET),
                _row(Case.STREAM_ASKED_PORT, _LOOK_THEN_BIND),
            ),
        ),
    )
}


def named(name: str) -> Strategy:
    """The strategy of that name; "shifting-window:1000" sets the window's size.

    Raises ValueError for a name or a size that does not exist, TypeError for no name.
    """
    if not isinstance(name, str):
        raise TypeError(f"the strategy is a name, not {name!r}")
    base, colon, size = name.partition(":")
    strategy = STRATEGIES.get(base)
    if strategy is None:
        known = ", ".join(STRATEGIES)
        raise ValueError(f"unknown strategy {name!r}: choose one of {known}")
    if not colon:
        return strategy
    if not strategy.window:
        raise ValueError(f"strategy {base!r} takes no window size: {name!r}")
    if not (size.isascii() and size.isdecimal()) or not 1 <= int(size) <= HIGHEST_PORT:
        raise ValueError(f"a window holds 1 to {HIGHEST_PORT} ports, not {size!r}")
    return strategy._replace(name=name, window=int(size))
