"""The thread that counts: it delivers results and errors, and ends when it is stopped."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

import pytest

from connectx.addresses import Endpoint, PortRange
from connectx.cli.top import watcher as module
from connectx.cli.top.watcher import Counted, Failed, Looked, Watcher
from connectx.linux.netlink import DumpInterrupted
from connectx.observe.history import Pair
from tests import limits
from tests.cli.top.states import snapshot

if TYPE_CHECKING:
    import contextlib

    from connectx.cli.top.watcher import Outcome
    from connectx.sandbox.networks import Network

PAIR = Pair("tcp", "127.0.0.1", Endpoint("127.0.0.1", 9))


def started(closing: contextlib.ExitStack, watcher: Watcher) -> queue.SimpleQueue[Outcome]:
    told: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    closing.callback(watcher.join)
    closing.callback(watcher.stop)
    watcher.start(told.put)
    return told


def test_counts_again_and_again(network: Network, closing: contextlib.ExitStack) -> None:
    network.port_range(20000, 20099)
    told = started(closing, Watcher(0.1, ["tcp"]))
    first, second = told.get(timeout=limits.LIMIT), told.get(timeout=limits.LIMIT)
    assert isinstance(first, Counted)
    assert isinstance(second, Counted)
    assert first.snapshot.ports == PortRange(20000, 20099)
    assert second.seconds - first.seconds >= 0.1


def test_looks_closer_at_once(network: Network, closing: contextlib.ExitStack) -> None:
    del network
    # The next round by itself would be a day later.
    watcher = Watcher(86400, ["tcp"], port_range=PortRange(1, 2))
    told = started(closing, watcher)
    assert isinstance(told.get(timeout=limits.LIMIT), Counted)
    watcher.look(PAIR)
    looked = told.get(timeout=limits.LIMIT)
    assert isinstance(looked, Looked)
    assert looked.pair == PAIR
    assert looked.detail.within == PortRange(1, 2)
    assert isinstance(told.get(timeout=limits.LIMIT), Counted)
    watcher.look(None)
    assert told.empty()


def test_rests_in_proportion_to_what_counting_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 10_000, 3))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(module, "snapshot", lambda **_: snapshot([]))
    watcher = Watcher(2.0, ["tcp"])
    outcomes: list[Outcome] = []
    # 6 s passed until the delivery, 9 s in all; counting may take a fifth of the time.
    assert watcher._round(outcomes.append) == 4 * 9
    (counted,) = outcomes
    assert isinstance(counted, Counted)
    assert counted.every == 5 * 6


@pytest.mark.parametrize(
    "error", [PermissionError(1, "not permitted"), DumpInterrupted(4, "interrupted")]
)
def test_an_error_is_told_and_does_not_end_it(
    error: OSError, monkeypatch: pytest.MonkeyPatch, closing: contextlib.ExitStack
) -> None:
    outcomes = iter([error, snapshot([])])

    def count(**_: object) -> object:
        outcome = next(outcomes)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    monkeypatch.setattr(module, "snapshot", count)
    told = started(closing, watcher := Watcher(0.1, ["tcp"]))
    failed = told.get(timeout=limits.LIMIT)
    assert isinstance(failed, Failed)
    assert failed.error is error
    assert isinstance(told.get(timeout=limits.LIMIT), Counted)
    watcher.stop()


def test_a_namespace_that_there_is_not(closing: contextlib.ExitStack) -> None:
    told = started(closing, Watcher(86400, ["tcp"], netns="no-such-name"))
    failed = told.get(timeout=limits.LIMIT)
    assert isinstance(failed, Failed)
    assert "no such network namespace" in str(failed.error)


def test_a_mistake_of_ours_is_raised_where_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistake(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "snapshot", mistake)
    told: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    watcher = Watcher(0.1, ["tcp"])
    watcher.start(told.put)
    assert isinstance(told.get(timeout=limits.LIMIT), Failed)
    watcher.stop()
    with pytest.raises(ZeroDivisionError):
        watcher.join()


def test_tells_nothing_once_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    counting, stopped = threading.Event(), threading.Event()

    def count(**_: object) -> object:
        counting.set()
        assert stopped.wait(10)
        return snapshot([])

    monkeypatch.setattr(module, "snapshot", count)
    told: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    watcher = Watcher(0.1, ["tcp"])
    watcher.start(told.put)
    assert counting.wait(10)
    watcher.stop()
    stopped.set()
    watcher.join()
    assert told.empty()


def test_one_that_was_never_started() -> None:
    watcher = Watcher(1.0, ["tcp"])
    watcher.stop()
    watcher.join()
