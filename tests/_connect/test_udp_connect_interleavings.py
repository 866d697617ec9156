"""The UDP lock, its system calls interleaved in every order with those of others.

The library's own function runs on model sockets, in threads of which one at a time
may go on, until its next system call. What chance would show in one of a thousand
runs on a real kernel (tests/test_udp_race.py) is met here for certain.
"""

import contextlib
import errno
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectx._connect.udp_connect import Contested, claim, claim_alone
from connectx.addresses import Address, Endpoint, PortRange
from connectx.lab.kernel_model import KernelModel
from connectx.linux import uapi
from tests import limits
from tests.race.variants import VARIANTS

HOST: Final = "127.0.0.1"
PORT: Final = 20000
FIRST, SECOND = Endpoint(HOST, 9000), Endpoint(HOST, 9001)

Claim = Callable[..., None]

claim_from_a_window: Final = functools.partial(claim, releasable=True)


def alone_or_shared(
    sock: Any, lookup: Any, netlink: Any, source: Address, destination: Address
) -> None:
    """As connectx connects: a port that nobody has without a lookup, any other by the lock."""
    if not claim_alone(sock, source, destination):
        claim(sock, lookup, netlink, source, destination)


claim_asked: Final = functools.partial(claim, beside_services=True)

CLAIMS: Final = [claim, claim_asked, claim_from_a_window, alone_or_shared]


class Killed(BaseException):
    """The process ends here."""


class Process:
    """A thread that makes one claim, a system call at a time, and so stands for a process.

    outcome: "connected", or why not; "" before the end.
    """

    def __init__(self, kernel: KernelModel, claim: Claim, destination: Endpoint) -> None:
        self.outcome = ""
        self.destination = destination
        self._kernel = kernel
        self._claim = claim
        self._model = kernel.socket(stream=False)
        self._go = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        self._killed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._await_arrival()

    def step(self) -> None:
        """Let it make its next system call."""
        if not self.outcome:
            self._go.release()
            self._await_arrival()

    def _await_arrival(self) -> None:
        if not self._arrived.acquire(timeout=limits.LIMIT):
            raise TimeoutError("the contender has not arrived at its next system call")

    def kill(self) -> None:
        """End it before its next system call; the kernel closes its socket."""
        self._killed = True
        self.step()
        self._kernel.close(self._model)

    def finish(self) -> None:
        while not self.outcome:
            self.step()
        limits.join(self._thread)

    def _run(self) -> None:
        outcome = "killed"
        try:
            with contextlib.suppress(Killed):
                self._wait()
                outcome = self._attempt()
        finally:
            self.outcome = outcome
            self._arrived.release()

    def _attempt(self) -> str:
        try:
            self._claim(self, self, None, (HOST, PORT), self.destination[:2])
        except Contested as contest:
            self._wait()
            self._kernel.close(self._model)
            return "occupied" if contest.connected else "overtaken"
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "connected"

    def _wait(self) -> None:
        self._arrived.release()
        self._go.acquire()
        if self._killed:
            raise Killed

    # As a socket. The first call needs no waiting for, since nothing comes before it.

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if (level, option) == (uapi.IPPROTO_IP, uapi.IP_LOCAL_PORT_RANGE):
            self._model.local_port_range = PORT, PORT
        else:
            assert (level, option) == (uapi.SOL_SOCKET, uapi.SO_REUSEADDR)
            if self._model.source.port:
                self._wait()
            self._model.reuseaddr = bool(value)

    def getsockopt(self, level: int, option: int, size: int = 0) -> bytes:
        if (level, option) == (uapi.SOL_SOCKET, uapi.SO_MEMINFO):
            return b""
        assert (level, option, size) == (uapi.SOL_SOCKET, uapi.SO_COOKIE, 8)
        return cookie(self._model)

    def bind(self, address: Address) -> None:
        self._wait()
        self._kernel.bind(self._model, address[0], address[1])

    def connect(self, address: Address) -> None:
        self._wait()
        self._kernel.connect(self._model, Endpoint(*address))

    # As a lookup.

    def shows(self, _: None, port: int, cookie: bytes) -> bool:
        record = self.find_record(None, port)
        return record is not None and record.cookie == cookie

    def is_service(self, _: None, port: int) -> bool:
        record = self.find_record(None, port)
        return record is not None and record.state != uapi.TCP_ESTABLISHED

    def find_record(self, _: None, port: int) -> "Record | None":
        self._wait()
        found = self._kernel.lookup(Endpoint(HOST, port), self.destination, stream=False)
        if found is None:
            return None
        connected = found.destination is not None
        return Record(cookie(found), uapi.TCP_ESTABLISHED if connected else uapi.TCP_CLOSE)


@dataclass(frozen=True)
class Record:
    cookie: bytes
    state: int


def cookie(sock: object) -> bytes:
    return id(sock).to_bytes(8, "big")


@dataclass
class Race:
    """Processes that claim one port."""

    claims: Sequence[tuple[Claim, Endpoint]]
    kernel: KernelModel = field(default_factory=lambda: KernelModel(PortRange(PORT, PORT)))

    def run(self, schedule: Iterable[int], kill: tuple[int, int] | None = None) -> list[str]:
        """Let processes go on in an order, then each to its end; the outcomes.

        kill: which process, and before which step of the schedule.
        """
        processes = [Process(self.kernel, *each) for each in self.claims]
        try:
            for number, which in enumerate(schedule):
                if kill and number == kill[1]:
                    processes[kill[0]].kill()
                processes[which].step()
        finally:
            for process in processes:
                process.finish()
        return [process.outcome for process in processes]

    def holders(self, destination: Endpoint) -> int:
        return sum(sock.destination == destination for sock in self.kernel.sockets(stream=False))


#: Steps of a claim that nothing comes in the way of: start, bind, option, lookup,
#: connect, option. Those that meet a rival have others, and as many at most.
STEPS: Final = 6


def all_orders() -> Iterator[list[int]]:
    """Every order of the steps of two processes."""
    for mine in itertools.combinations(range(2 * STEPS), STEPS):
        yield [0 if at in mine else 1 for at in range(2 * STEPS)]


@pytest.mark.parametrize("other", CLAIMS)
@pytest.mark.parametrize("one", CLAIMS)
def test_of_two_exactly_one_gets_the_4_tuple_in_every_order(one: Claim, other: Claim) -> None:
    for order in all_orders():
        race = Race([(one, FIRST), (other, FIRST)])
        outcomes = race.run(order)
        assert outcomes.count("connected") == race.holders(FIRST) == 1, order


def test_toward_two_destinations_at_least_one_is_connected_in_every_order() -> None:
    seen = set()
    for order in all_orders():
        race = Race([(claim, FIRST), (claim, SECOND)])
        outcomes = race.run(order)
        assert "connected" in outcomes, order
        # Neither has the other's 4-tuple: what keeps it off is passing.
        assert "occupied" not in outcomes
        seen.add(tuple(sorted(outcomes)))
    assert ("connected", "connected") in seen


def test_nobody_gets_a_4_tuple_that_is_taken_in_any_order() -> None:
    for order in all_orders():
        race = Race([(claim, FIRST), (claim, FIRST)])
        holder = race.kernel.socket(stream=False, reuseaddr=True)
        race.kernel.bind(holder, HOST, PORT)
        race.kernel.connect(holder, FIRST)
        assert "connected" not in race.run(order)
        assert race.holders(FIRST) == 1


@settings(deadline=None)
@given(
    order=st.lists(st.integers(0, 3), max_size=4 * STEPS),
    claims=st.lists(st.sampled_from(CLAIMS), min_size=4, max_size=4),
)
def test_of_four_exactly_one_gets_it(order: list[int], claims: list[Claim]) -> None:
    race = Race([(each, FIRST) for each in claims])
    assert race.run(order).count("connected") == race.holders(FIRST) == 1


@settings(deadline=None)
@given(
    order=st.lists(st.integers(0, 2), max_size=3 * STEPS),
    victim=st.integers(0, 2),
    moment=st.integers(0, 3 * STEPS),
)
def test_who_is_killed_leaves_nothing(order: list[int], victim: int, moment: int) -> None:
    race = Race([(claim, FIRST)] * 3)
    outcomes = race.run(order, kill=(victim, moment))
    assert race.holders(FIRST) == sum(
        outcome == "connected" and not (number == victim and moment < len(order))
        for number, outcome in enumerate(outcomes)
    )
    assert race.holders(FIRST) <= 1
    # Neither lock nor port is stuck.
    assert Race([(claim, SECOND)], race.kernel).run([]) == ["connected"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_one_of_its_protections_some_order_gives_the_4_tuple_to_both(variant: str) -> None:
    duplicates = 0
    for order in all_orders():
        race = Race([(VARIANTS[variant], FIRST), (VARIANTS[variant], FIRST)])
        race.run(order)
        duplicates += race.holders(FIRST) > 1
    assert duplicates
