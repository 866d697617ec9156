"""A budget with a clock that stands still, and callers that are a line each."""

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from connectx._dial.call import (
    Budget,
    Dial,
    Lease,
    Try,
    Wait,
)
from connectx._dial.sources import Sources
from connectx.addresses import PortRange

if TYPE_CHECKING:
    from connectx._dial.call import Steps

HOSTS = ["192.0.2.1", "192.0.2.2"]


class Refused(OSError):  # noqa: N818 -- what happened
    """No port."""

    def __init__(self, attempts: int = 0) -> None:
        super().__init__(99, "no port")
        self.attempts = attempts


class Place:
    """A place in the line that notes how often it was woken."""

    def __init__(self) -> None:
        self.woken = 0
        self.closed = False

    def wake(self) -> None:
        self.woken += 1

    def close(self) -> None:
        self.closed = True


class World:
    """A budget, and a clock to set."""

    def __init__(
        self,
        hosts: Sequence[str] = (),
        ranges: Sequence[PortRange | None] = (None,),
        *,
        limit: int = 0,
        wait: float = 0.0,
        on_wait: Callable[[Any], object] | None = None,
    ) -> None:
        self.time = 100.0
        self.jitter = 0.5
        self.budget = Budget(
            Sources(hosts, "most-free", range),
            ranges,
            limit=limit,
            wait=wait,
            lock=threading.Lock(),
            clock=lambda: self.time,
            jitter=lambda: self.jitter,
            on_wait=on_wait,
            on_detached=lambda _lease, _sock: pytest.fail("nothing is detached here"),
            on_limit=lambda: None,
        )

    def call(self, key: str = "there", only: str = "") -> "Call":
        return Call(self.budget, key, only)

    def nothing_is_kept(self) -> None:
        assert self.budget.open_to("there") == {}
        assert self.budget._destinations == {}
        assert self.budget.counters.waiting == 0


class Call:
    """One call, one step at a time.

    step: what it is to do. ended: what it raised, if it has.
    """

    def __init__(self, budget: Budget, key: str, only: str) -> None:
        self.key = key
        self.places: list[Place] = []
        self.dial = Dial(budget, key, 4, only, self._turn)
        self.steps: Steps = self.dial.steps()
        self.step: Try | Wait | None = None
        self.ended: Exception | None = None
        self.lease: Lease | None = None
        self._go(lambda: next(self.steps))

    def _turn(self) -> Place:
        self.places.append(Place())
        return self.places[-1]

    def _go(self, act: Callable[[], Try | Wait]) -> None:
        try:
            self.step = act()
        except Exception as error:  # noqa: BLE001 -- looked at by the tests
            self.step = None
            self.ended = error.with_traceback(None)

    @property
    def tries(self) -> bool:
        return isinstance(self.step, Try)

    @property
    def waits(self) -> bool:
        return isinstance(self.step, Wait)

    @property
    def wait(self) -> Wait:
        assert isinstance(self.step, Wait)
        return self.step

    def again(self) -> None:
        """Its wait is over."""
        assert self.waits
        self._go(lambda: next(self.steps))

    def refuse(self, error: Exception | None = None) -> None:
        """Its try has found no port."""
        assert self.tries
        self._go(lambda: self.steps.send(error or Refused()))

    def connect(self) -> Lease:
        """Its try was good."""
        assert self.tries
        self.lease = self.dial.lease()
        self.steps.close()
        self.step = None
        return self.lease

    def cancel(self) -> None:
        self.steps.close()
        self.step = None
