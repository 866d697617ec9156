"""Every order in which the calls of two sockets can follow each other.

Two processes that open a socket at the same time can be interrupted anywhere. A race between
them shows a rare accident only by chance, so this goes through all the orders: two times five
calls have 252.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import contextlib
    import socket
    from collections.abc import Callable, Collection, Iterator

    from connectx.lab.calls import Steps


class Pair:
    """Two sockets that are being opened, one call at a time.

    Args:
        first: The calls of one.
        second: The calls of the other.
        refusals: The errnos that mean that a socket could not be opened; others are raised.
        closing: Closes what was opened, and what was begun.

    Attributes:
        opened: The sockets that were opened.
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
            # Up to the first call that concerns the other socket.
            self._step(steps)

    def run(self, order: tuple[int, ...]) -> tuple[int, ...]:
        """Make all the calls.

        Args:
            order: Whose call is next, 0 or 1, as long as both have calls to make; when the
                order has ended, it is always the first's.

        Returns:
            Whose calls were made, as long as it could have been either's.
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
    """Run two sockets' calls in every order, each once, and yield the order.

    Args:
        run: As Pair.run(), for a new pair each time. How many calls there are may depend on
            the order: a call that fails is the last.
    """
    pending: list[tuple[int, ...]] = [()]
    while pending:
        order = pending.pop()
        taken = run(order)
        yield taken
        # After the order that was asked for, it was always the first's turn: at each of these
        # moments, the other's turn is still to be tried.
        pending.extend((*taken[:moment], 1) for moment in range(len(order), len(taken)))
