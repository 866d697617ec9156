"""No order is left out: a finding of "never" depends on it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import socket
from typing import TYPE_CHECKING

import pytest

from connectx.lab.interleaving import Pair, orders

if TYPE_CHECKING:
    from connectx.lab.calls import Steps


def steps(name: str, calls: int, log: list[str], *, fails: int = 0, number: int = 0) -> Steps:
    for call in range(1, calls + 1):
        yield f"call {call}"
        log.append(name)
        if call == fails:
            raise OSError(number, "refused")
    return socket.socket()


def every_order(
    first: int, second: int, *, fails: int = 0, number: int = errno.EADDRINUSE
) -> list[str]:
    """Return who made each call, for every order; the second may fail at one of its calls."""
    seen = []

    def run(order: tuple[int, ...]) -> tuple[int, ...]:
        log: list[str] = []
        with contextlib.ExitStack() as closing:
            pair = Pair(
                steps("a", first, log),
                steps("b", second, log, fails=fails, number=number),
                {errno.EADDRINUSE},
                closing,
            )
            taken = pair.run(order)
            assert len(pair.opened) == 2 - bool(fails)
        seen.append("".join(log))
        return taken

    assert len(set(orders(run))) == len(seen)
    return seen


@pytest.mark.parametrize("first, second", [(1, 1), (2, 2), (2, 3), (5, 5)])
def test_each_order_is_run_once(first: int, second: int) -> None:
    seen = every_order(first, second)
    assert len(seen) == len(set(seen)) == math.comb(first + second, first)


def test_they_are_the_orders_there_are() -> None:
    expected = set(map("".join, itertools.permutations("aabb")))
    assert set(every_order(2, 2)) == expected


def test_a_refusal_ends_one_of_the_two() -> None:
    assert set(every_order(2, 3, fails=1)) == {"aab", "aba", "baa"}


def test_any_other_error_ends_the_experiment() -> None:
    with pytest.raises(ConnectionRefusedError):
        every_order(1, 1, fails=1, number=errno.ECONNREFUSED)


def test_sockets_are_closed_whatever_happens() -> None:
    log: list[str] = []
    with contextlib.ExitStack() as closing:
        pair = Pair(steps("a", 1, log), steps("b", 1, log), set(), closing)
        pair.run(())
    assert [sock.fileno() for sock in pair.opened] == [-1, -1]
