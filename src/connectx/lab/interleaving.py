"""Every order in which the calls of two sockets can follow each other.

Two processes that open a socket at once are interrupted anywhere. What can come
of it is found not by racing them, which shows a rare accident only by chance, but
by going through all the orders: two times five calls have 252.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import contextlib
    import socket
    from collections.abc import Callable, Collection, Iterator

    from connectx.lab.calls import Steps


class Pair:
    """Two sockets being opened, a call of one and then a call of either.

    refusals: the errnos that mean that one was not to be opened; others are raised.
    closing: gets what was opened, and what was begun.
    """

    def __init__(
        self,
        first: Steps,
        second: Steps,
        refusals: Collection[int],
        closing: contextlib.ExitStack,
    ) -> None:
        self.opened: list[socket.socket] = []
        self._running = [first, second]
        self._refusals = refusals
        self._closing = closing
        for steps in (first, second):
            closing.callback(steps.close)
            # Up to the first call that concerns the other.
            self._step(steps)

    def run(self, order: tuple[int, ...]) -> tuple[int, ...]:
        """Make all the calls; returns whose turn it was, as long as it could be either's.

        order: whose turn it is first, 0 or 1; after its end the first's.
        """
        taken: list[int] = []
        while self._running:
            turn = 0
            if len(self._running) == 2:
                turn = order[len(taken)] if len(taken) < len(order) else 0
                taken.append(turn)
            self._step(self._running[turn])
        return tuple(taken)

    def _step(self, steps: Steps) -> None:
        try:
            next(steps)
        except StopIteration as end:
            self.opened.append(self._closing.enter_context(end.value))
            self._running.remove(steps)
        except OSError as error:
            if error.errno not in self._refusals:
                raise
            self._running.remove(steps)


def orders(run: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """Run two sockets' calls in every order, each once, and yield it.

    run: as Pair.run(), of a new pair each time. How many calls there are may depend on
    the order: a call that fails is the last.
    """
    pending: list[tuple[int, ...]] = [()]
    while pending:
        order = pending.pop()
        taken = run(order)
        yield taken
        # Behind what was asked for it was always the first's turn, so at each of
        # these moments the other's is yet to be tried.
        pending.extend((*taken[:moment], 1) for moment in range(len(order), len(taken)))
