"""A dialer's policy with a clock that stands still, and callers that are a line each."""

import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest

import connectx._dial.call as calls
from connectx._connect.steps import Handshake, NewWaiter, Pause, Steps, Work
from connectx._dial.endings import Ending
from connectx._dial.slots import Destinations, Slot
from connectx._dial.sources import Sources
from connectx._dial.terms import Terms
from connectx.addresses import Endpoint, PortRange
from connectx.errors import PortsExhausted

HOSTS = ["192.0.2.1", "192.0.2.2"]


class Refused(PortsExhausted):
    """No port."""

    def __init__(self, attempts: int = 0) -> None:
        nowhere = Endpoint("", 0)
        super().__init__(
            "no port",
            protocol="tcp",
            source=nowhere,
            destination=nowhere,
            strategy="auto",
            attempts=attempts,
            errno=99,
        )


class Try(NamedTuple):
    """What a connection is asked for."""

    host: str
    ports: PortRange | None


class HasPort(NamedTuple):
    """A connection has a port, and its handshake takes a while."""


class Place:
    """A place in a queue that notes how often it was woken."""

    def __init__(self) -> None:
        self.woken = 0
        self.closed = False
        self.gone = False

    def wake(self) -> None:
        self.woken += 1

    def close(self) -> None:
        self.closed = True


class Connection:
    """A connection that waits for a test to say what comes of it."""

    retries = 0
    reports = True

    def __init__(self, wanted: Try) -> None:
        self._wanted = wanted
        self.sock: Any = SimpleNamespace()

    def begin(self) -> Any:
        return self._go()

    def _go(self) -> Iterator[Any]:
        while (yield self._wanted) is not None:
            # Has its port. What the call makes of that, it makes of a Handshake.
            yield HANDSHAKE


HANDSHAKE: Any = Handshake(cast("Any", None), None)


class Heard:
    """The kernel's notifications: what a test puts in."""

    def __init__(self) -> None:
        self.ends: list[Ending] = []
        self.closed = False

    def fileno(self) -> int:
        return 99

    def take(self) -> list[Ending]:
        taken, self.ends = self.ends, []
        return taken

    def close(self) -> None:
        self.closed = True


class Unreported:
    """The sockets that do not report their end: none, unless a test says otherwise."""

    def __init__(self) -> None:
        self.ends: Callable[[], object] = lambda: None

    def sweep(self, most: int) -> None:
        pass

    def look(self) -> None:
        self.ends()


class Target(NamedTuple):
    """What a call has to know of a connectx._dial.targets.Target."""

    key: str
    version: int
    only: str
    lane: str
    single: tuple[str, PortRange | None] | None


class TriedCall(calls.Call):
    """A call whose connections wait for a test."""

    def __init__(
        self, terms: Terms, key: str, version: int, only: str, listen: Callable[[], Heard]
    ) -> None:
        self._terms = terms
        host = only or terms.sources.single(version)
        single = (host, terms.ranges[0]) if host is not None and len(terms.ranges) == 1 else None
        lane = "" if terms.destinations.limit else only
        self._target = Target(key, version, only, lane, single)
        self._wait = terms.wait
        self._heard = listen

    def _connect(self, host: str, ports: PortRange | None) -> Connection:
        return Connection(Try(host, ports))

    def _count_others(self) -> Any:
        pytest.fail("there are not so many connections")

    def _find_full(self) -> Work:
        return Work(set)

    def _listen(self) -> Heard:
        return self._heard()

    def _unserved(self, error: Exception) -> Exception:
        return error


class World:
    """A policy, and a clock to set."""

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
        self.unreported = Unreported()
        self.destinations = Destinations(
            limit,
            threading.RLock(),
            lambda: self.time,
            lambda _slot, _sock: pytest.fail("nothing is detached here"),
        )
        self.terms = Terms(
            self.destinations,
            Sources(hosts, "most-free", range),
            ranges,
            wait=wait,
            clock=lambda: self.time,
            jitter=lambda: self.jitter,
            on_wait=on_wait,
            unreported=self.unreported,
        )

    def call(self, key: str = "there", only: str = "") -> "Call":
        return Call(self, key, only)

    def new_call(
        self, key: str = "there", only: str = "", listen: Callable[[], Heard] = Heard
    ) -> TriedCall:
        """A call of which no step is taken."""
        return TriedCall(self.terms, key, 4, only, listen)

    def nothing_is_kept(self) -> None:
        assert self.destinations.open_to("there") == {}
        assert self.destinations.everything() == []
        assert self.destinations.counters.waiting == 0


class Call:
    """One call, one step at a time.

    step: what it is to do. ended: what it raised, if it has. heard: what it learns from the
    kernel, if it is to learn something.
    """

    def __init__(self, world: World, key: str, only: str) -> None:
        self.key = key
        self.places: list[Place] = []
        self.heard: list[Heard] = []
        self.call = world.new_call(key, only, self._listen)
        self.step: Any = None
        self.ended: BaseException | None = None
        self.slot: Slot | None = None
        self.steps: Steps[None] = self.call.begin() or pytest.fail("nothing was tried")
        self._go(lambda: next(self.steps))

    def _listen(self) -> Heard:
        self.heard.append(Heard())
        return self.heard[-1]

    def _go(self, act: Callable[[], Any]) -> None:
        try:
            step = act()
            while isinstance(step, NewWaiter | Work):
                if isinstance(step, Work):
                    step = self.steps.send(step.function())
                    continue
                self.places.append(Place())
                step = self.steps.send(self.places[-1])
        except StopIteration:
            self.step = None
            self.slot = self.call.slot
        except Exception as error:  # noqa: BLE001 -- looked at by the tests
            self.step = None
            self.ended = error.with_traceback(None)
        else:
            self.step = step

    @property
    def tries(self) -> bool:
        return isinstance(self.step, Try | Handshake)

    @property
    def waits(self) -> bool:
        return isinstance(self.step, Pause)

    @property
    def wait(self) -> Pause:
        assert isinstance(self.step, Pause)
        return self.step

    @property
    def rests(self) -> bool:
        """Whether it waits whoever wakes it."""
        return self.wait.waiter is None

    @property
    def listens(self) -> bool:
        """Whether it is the first in its queue, which learns from the kernel."""
        return self.wait.descriptor >= 0

    def again(self) -> None:
        """Its wait is over."""
        assert self.waits
        self._go(lambda: self.steps.send(object()))

    def hear(self, host: str | None, *, certain: bool = True) -> None:
        """Something has ended, as the kernel reports it to this call."""
        self.heard[-1].ends.append(Ending(host, certain))

    def refuse(self, error: Exception | None = None) -> None:
        """Its try has found no port."""
        assert self.tries
        self._go(lambda: self.steps.throw(error or Refused()))

    def has_port(self) -> None:
        """Its try has a port, and the handshake is still to be done."""
        assert isinstance(self.step, Try)
        self._go(lambda: self.steps.send(HasPort()))

    def connect(self) -> Slot:
        """Its try was good."""
        assert self.tries
        if not isinstance(self.step, Try):
            self._go(lambda: self.steps.send(None))
        if self.step is not None:
            self._go(lambda: self.steps.send(None))
        assert self.slot is not None
        return self.slot

    def cancel(self) -> None:
        self.steps.close()
        self.step = None
