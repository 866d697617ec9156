"""Processes that ask for one source port at the same moment, round after round."""

import contextlib
import functools
from collections.abc import Callable

import connectx
from tests.race.connecting import HOST, Address, Connect
from tests.race.processes import Barrier, children, shared

WON = 1
LOST = {connectx.TupleInUse: 2, connectx.PortHeld: 3}


def race_for(
    port: int,
    destinations: list[Address],
    ways: list[Connect],
    *,
    rounds: int,
    prepare: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """For each round, how many won of those who wanted to connect to each destination.

    ways: a process for each, which connects this way; they want the destinations in turn.
    prepare: called in each process first.

    A process that fails in another way than by TupleInUse or PortHeld ends the race
    with an AssertionError.
    """
    parties = len(ways)
    outcomes = shared(rounds * parties)
    barrier = Barrier(parties)

    def contend(party: int, _: object) -> None:
        prepare()
        destination = destinations[party % len(destinations)]
        for turn in range(rounds):
            barrier.wait(party, 3 * turn)
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(ways[party]((HOST, port), destination))
                    outcome = WON
                except (connectx.TupleInUse, connectx.PortHeld) as error:
                    outcome = LOST[type(error)]
                outcomes[turn * parties + party] = outcome
                # Open until all have tried, so that nobody wins who was late.
                barrier.wait(party, 3 * turn + 1)
            barrier.wait(party, 3 * turn + 2)

    with children() as start:
        for child in [start(functools.partial(contend, party)) for party in range(parties)]:
            child.receive()
            child.finish()
    assert all(outcomes)
    count = len(destinations)
    return [
        [
            outcomes[turn * parties + each : (turn + 1) * parties : count].tolist().count(WON)
            for each in range(count)
        ]
        for turn in range(rounds)
    ]
