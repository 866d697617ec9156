"""Ports that were in use a moment ago come back late, and still at random."""

import gc
import itertools
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectx._connect.ledger import Ledger, Shelf
from connectx._connect.rest import LEDGER, MINUTE, MOST, MOST_FEW, Rest, RestingPorts, age
from connectx.addresses import PortRange
from tests._connect.plans import shelf_of

DEFAULT_RANGE: Final = PortRange(32768, 60999)
EIGHT: Final = PortRange(20000, 20007)


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def use(ledger: Ledger) -> int:
    """Open a connection, and close it."""
    port = ledger.propose()
    assert port
    ledger.released(port)
    return port


def kept_few(rest: Rest) -> int:
    """How many destinations with few ports that rest are kept."""
    return len(rest.few) + len(rest.former)


def all_of(ledger: Ledger) -> list[int]:
    ports = []
    while port := ledger.propose():
        ports.append(port)
    return ports


class TestOneAfterTheOther:
    @pytest.mark.parametrize("seed", range(5))
    def test_no_port_comes_back_in_a_minute(self, clock: Clock, seed: int) -> None:
        """As plain connect() over the default range: of 1,500 calls, none."""
        ledger = shelf_of(DEFAULT_RANGE, seed=seed, clock=clock).ledger("there")
        ports = []
        for _ in range(1500):
            ports.append(use(ledger))
            clock.seconds += MINUTE / 1500
        assert len(set(ports)) == len(ports)

    @pytest.mark.parametrize("size", [1, 2, 8, 100])
    def test_more_often_than_there_are_ports_each_has_rested_longest(
        self, clock: Clock, size: int
    ) -> None:
        ledger = shelf_of(PortRange(20000, 20000 + size - 1), clock=clock).ledger("there")
        ports = [use(ledger) for _ in range(5 * size)]
        for start in range(4 * size):
            # Up to half of the ports are drawn before they are needed, in no order.
            assert len(set(ports[start : start + size])) >= size / 2

    def test_after_a_minute_any_may_come(self, clock: Clock) -> None:
        ledger = shelf_of(EIGHT, clock=clock).ledger("there")
        first = [use(ledger) for _ in range(8)]
        clock.seconds += MINUTE + 2
        again = {tuple(use(ledger) for _ in range(8))}
        for _ in range(20):
            clock.seconds += MINUTE + 2
            again.add(tuple(use(ledger) for _ in range(8)))
        assert all(sorted(each) == sorted(first) for each in again)
        assert len(again) > 1

    def test_what_rests_is_known_to_a_ledger_that_is_asked_for_again(self, clock: Clock) -> None:
        """Nobody else refers to it in between."""
        shelf = shelf_of(EIGHT, clock=clock)
        used = [use(shelf.ledger("there")) for _ in range(8)]
        assert len(set(used)) == 8

    @pytest.mark.parametrize("near", [0, 20_000, 28_000])
    def test_what_is_drawn_is_uniform_over_the_rested(self, clock: Clock, near: int) -> None:
        """Between ports that are in use, or rest: no free port is likelier than another."""
        ledger = shelf_of(DEFAULT_RANGE, clock=clock).ledger("there")
        ledger.survey(range(DEFAULT_RANGE.low, DEFAULT_RANGE.low + near))
        free = DEFAULT_RANGE.size - near
        bins = 16
        counts = Counter[int]()
        rounds = 6000 // bins * bins
        for _ in range(rounds):
            port = use(ledger)
            counts[(port - DEFAULT_RANGE.low - near) * bins // free] += 1
            clock.seconds += MINUTE + 2
        expected = rounds / bins
        chi_square = sum((counts[each] - expected) ** 2 / expected for each in range(bins))
        # 15 degrees of freedom: 99.9 % of uniform samples lie below 37.7. Where most ports are
        # in use the first free one after them is likelier (RFC 6056, algorithm 1).
        assert near > 20_000 or chi_square < 37.7

    def test_one_destination_says_nothing_of_another(self, clock: Clock) -> None:
        shelf = shelf_of(DEFAULT_RANGE, clock=clock)
        one, other = shelf.ledger("one"), shelf.ledger("other")
        pairs = [(use(one), use(other)) for _ in range(1000)]
        differences = Counter(
            (b - a) % DEFAULT_RANGE.size * 8 // DEFAULT_RANGE.size for a, b in pairs
        )
        assert max(differences.values()) < 2 * min(differences.values())


class TestNearExhaustion:
    def test_the_last_port_is_found_although_it_rests(self, clock: Clock) -> None:
        ledger = shelf_of(EIGHT, clock=clock).ledger("there")
        ledger.survey([])
        ports = all_of(ledger)
        ledger.released(ports[3])
        assert all_of(ledger) == [ports[3]]

    def test_the_longest_rested_comes_first(self, clock: Clock) -> None:
        ledger = shelf_of(EIGHT, clock=clock).ledger("there")
        ledger.survey([])
        ports = all_of(ledger)
        for port in ports:
            ledger.released(port)
            clock.seconds += 1
        again = all_of(ledger)
        # The last of a batch that was drawn is the first to be proposed.
        assert set(again) == set(ports)

    def test_all_that_a_range_has_is_few(self, clock: Clock) -> None:
        """Then that comes first which has rested longest, without a map before it is needed."""
        reserved = range(20002, 20100)
        shelf = shelf_of(PortRange(20000, 20099), reserved, clock=clock)
        ports = [use(shelf.ledger("there")) for _ in range(6)]
        assert {ports[0], ports[1]} == {20000, 20001}
        assert ports == 3 * ports[:2]

    def test_a_port_outside_of_the_range_is_nobodys(self, clock: Clock) -> None:
        """The kernel has chosen it, since the range is another one by now."""
        ledger = shelf_of(EIGHT, clock=clock).ledger("there")
        ledger.survey([])
        for port in (19999, 20008, 65535, 1):
            ledger.found(port)
        for port in (19999, 20008, 65535, 1):
            ledger.released(port)
        assert sorted(all_of(ledger)) == list(range(20000, 20008))
        assert ledger.in_use == 8

    def test_a_port_that_the_kernel_has_chosen_meanwhile_is_not_proposed(
        self, clock: Clock
    ) -> None:
        ledger = shelf_of(EIGHT, clock=clock).ledger("there")
        ledger.survey([])
        ports = all_of(ledger)
        ledger.refused(ports.pop())
        for port in ports[:2]:
            ledger.released(port)
        ledger.found(ports[0])
        assert all_of(ledger) == [ports[1]]


class TestMemory:
    def test_four_octets_a_port(self) -> None:
        resting = RestingPorts()
        tracemalloc.start()
        try:
            for port in range(28_232):
                resting.closed.append(port)
            assert tracemalloc.get_traced_memory()[0] < 4 * 28_232 * 1.2
        finally:
            tracemalloc.stop()

    def test_of_many_destinations_the_oldest_goes_first(self, clock: Clock) -> None:
        """With one port each, which is what a crawler has."""
        shelf = shelf_of(DEFAULT_RANGE, clock=clock)
        count = 3 * MOST_FEW
        tracemalloc.start()
        try:
            for number in range(count):
                use(shelf.ledger(number))
                assert kept_few(shelf.rest) <= 2 * MOST_FEW
            used = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert used < 4 << 20
        assert kept_few(shelf.rest) >= MOST_FEW
        assert len(shelf) == len(shelf.rest) == 0
        names = [shelf.ledger(number)._name for number in (0, count - MOST_FEW, count - 1)]
        assert [len(shelf.rest.few_of(name)) for name in names] == [0, 1, 1]

    def test_of_many_destinations_again_and_again_no_more_are_kept(self, clock: Clock) -> None:
        shelf = shelf_of(DEFAULT_RANGE, clock=clock)
        for number in range(MOST_FEW * 3 // 2):
            use(shelf.ledger(number))
        for _ in range(2):
            for number in range(MOST_FEW * 3 // 2):
                use(shelf.ledger(number))
                assert kept_few(shelf.rest) <= 2 * MOST_FEW

    def test_of_many_busy_destinations_the_oldest_goes_first(self, clock: Clock) -> None:
        """With a map each."""
        ports = PortRange(20000, 20999)
        shelf = shelf_of(ports, clock=clock)
        count = 2 * MOST // (LEDGER + ports.size)
        tracemalloc.start()
        try:
            for number in range(count):
                ledger = shelf.ledger(number)
                for _ in range(17):
                    use(ledger)
            del ledger
            used = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert shelf.rest.octets <= MOST
        assert used < 1.1 * MOST
        assert len(shelf) == len(shelf.rest) < count
        assert len(shelf.ledger(count - 1)._resting or ()) == 17
        assert shelf.ledger(0)._resting is None

    def test_nothing_that_the_garbage_collector_would_go_through(self, clock: Clock) -> None:
        """Which would take a call milliseconds, with many destinations."""
        shelf = shelf_of(DEFAULT_RANGE, clock=clock)
        gc.collect()
        before = len(gc.get_objects())
        for number in range(1000):
            use(shelf.ledger(number))
        gc.collect()
        assert len(gc.get_objects()) - before < 20

    def test_a_map_is_for_many_in_one_minute(self, clock: Clock) -> None:
        """A destination with a connection every five seconds has none, for however long."""
        shelf = shelf_of(DEFAULT_RANGE, clock=clock)
        for _ in range(100):
            use(shelf.ledger("there"))
            clock.seconds += 5
        ledger = shelf.ledger("there")
        assert ledger._states is shelf.template
        assert len(shelf.rest.few_of(ledger._name)) == MINUTE // 5

    def test_after_a_minute_idle_destinations_are_nothing(self, clock: Clock) -> None:
        shelf = shelf_of(DEFAULT_RANGE, clock=clock)
        for number in range(100):
            use(shelf.ledger(number))
        clock.seconds += MINUTE + 2
        for _ in range(51):
            use(shelf.ledger("there"))
            clock.seconds += 1
        assert len(shelf.rest) == len(shelf) == 1
        for _ in range(2):
            shelf.rest.tidy()
            clock.seconds += MINUTE + 1
        assert kept_few(shelf.rest) == 0

    def test_the_octets_add_up(self, clock: Clock) -> None:
        shelf = shelf_of(EIGHT, clock=clock)
        for number, _ in itertools.product(range(10), range(40)):
            use(shelf.ledger(number))
        ledgers = [shelf.ledger(number) for number in range(10)]
        clock.seconds += 1
        for ledger in ledgers:
            use(ledger)
        kept = sum(LEDGER + 4 * len(each._resting or ()) + EIGHT.size for each in ledgers)
        assert kept <= shelf.rest.octets <= kept + 4 * 10 * EIGHT.size
        clock.seconds += MINUTE + 2
        for _ in range(9):
            clock.seconds += 1
            use(ledgers[0])
        assert len(shelf.rest) == 1
        assert shelf.rest.octets <= LEDGER + 5 * EIGHT.size


@given(
    st.lists(st.one_of(st.integers(1, 65535), st.none()), max_size=200),
    st.integers(0, 0xFFFF),
)
def test_ports_wake_in_the_order_in_which_they_were_closed(
    steps: list[int | None], start: int
) -> None:
    """A plain list beside it; None: the oldest is taken, and a second passes."""
    resting, plain, now = RestingPorts(), list[tuple[int, int]](), start
    for step in steps:
        if step is None:
            taken = resting.take_oldest()
            assert taken == (plain.pop(0)[0] if plain else 0)
            now = (now + 1) & 0xFFFF
        else:
            resting.closed.append(now << 16 | step)
            plain.append((step, now))
        assert list(resting) == [port for port, _ in plain]
    later = (now + MINUTE) & 0xFFFF
    assert resting.take_rested(later) == [port for port, at in plain if age(at, later) > MINUTE]


def test_an_interrupt_leaves_ports_that_can_be_taken() -> None:
    """A signal's handler raises at each line in turn; no more than the port at hand is lost."""
    left = 0

    def interrupt(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        nonlocal left
        if frame.f_code is RestingPorts.take_oldest.__code__ and event == "line":
            left -= 1
            if not left:
                raise KeyboardInterrupt
        return interrupt

    previous = sys.gettrace()
    for line in itertools.count(1):
        left, resting = line, RestingPorts([1, 2, 3])
        resting.take_oldest()
        sys.settrace(interrupt)
        try:
            resting.take_oldest()
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            sys.settrace(previous)
        assert list(resting)[-1:] == [3]
        assert len(resting) == len(list(resting))
        while resting:
            taken = resting.take_oldest()
        assert taken == 3
    assert line > 4


def at_each_step(function: Callable[..., Any], act: Callable[[], object]) -> Iterator[None]:
    """Have another thread act before one step of a function, at each in turn.

    The caller calls it once a turn, until it takes no more steps.
    """
    left = 0

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        nonlocal left
        if frame.f_code is not function.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if not left:
                act()
        return trace

    previous = sys.gettrace()
    for step in itertools.count(1):
        left = step
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(previous)
        if left > 0:
            assert step > 10
            return


class TestAnotherThread:
    def test_forgets_them_all_while_one_is_added(self, clock: Clock) -> None:
        rest = shelf_of(EIGHT, clock=clock).rest

        def forget() -> None:
            rest._ledgers.clear()
            rest.octets = 0

        for _ in at_each_step(Rest.add, forget):
            shelf = shelf_of(EIGHT, clock=clock)
            rest = shelf.rest
            for name in range(3):
                rest.add(shelf.ledger(name), LEDGER, rest.now())
            clock.seconds += 1
            rest.add(shelf.ledger(0), LEDGER, rest.now())

    def test_uses_a_destination_while_its_ledger_ends(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failures: list[object] = []
        monkeypatch.setattr(sys, "unraisablehook", failures.append)
        shelf = shelf_of(EIGHT)
        forget: Any = shelf._forget
        for _ in at_each_step(forget, lambda: shelf.ledger("there")):
            ledger = shelf.ledger("there")
            del ledger
        assert failures == []


def test_a_clock_that_begins_anew(clock: Clock) -> None:
    clock.seconds = 65536 - 10
    rest = Rest(clock)
    then = rest.now()
    clock.seconds += 30
    assert age(then, rest.now()) == 30


def test_shelves_share_what_bounds_them(clock: Clock) -> None:
    first = shelf_of(EIGHT, clock=clock)
    second = Shelf(EIGHT.low, first.template, first.numbers, first.rest, "elsewhere")
    use(first.ledger("there"))
    for _ in range(8):
        use(second.ledger("there"))
    assert kept_few(first.rest) == len(first.rest) == 1
