"""Turns, limits and deadlines, with a clock that stands still and callers that are a line each."""

import contextlib
import gc
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectx._dial.call import LimitReached
from connectx._dial.sources import load
from connectx.addresses import PortRange
from tests._dial.world import HOSTS, Call, Refused, Try, World

if TYPE_CHECKING:
    from collections.abc import Callable


class TestTries:
    def test_every_source_and_range_in_order(self) -> None:
        low, high = PortRange(1, 2), PortRange(3, 4)
        call = World(HOSTS, [low, high]).call()
        seen = []
        while call.tries:
            assert isinstance(call.step, Try)
            seen.append(tuple(call.step))
            call.refuse()
        assert seen == [(HOSTS[0], low), (HOSTS[0], high), (HOSTS[1], low), (HOSTS[1], high)]
        assert isinstance(call.ended, Refused)

    def test_the_last_error_is_the_calls(self) -> None:
        world = World(HOSTS)
        call = world.call()
        call.refuse(Refused(1))
        last = Refused(2)
        call.refuse(last)
        assert call.ended is last
        assert world.destinations.counters.attempts == 2
        assert world.destinations.counters.retries == 3
        assert world.destinations.counters.failures == {99: 2}
        world.nothing_is_kept()

    def test_the_emptier_source_is_next(self) -> None:
        world = World(HOSTS)
        slots = []
        for expected in (*HOSTS, *HOSTS):
            call = world.call()
            assert call.step == Try(expected, None)
            slots.append(call.connect())
        slots[1].release()
        slots[3].release()
        for _ in range(2):
            call = world.call()
            assert call.step == Try(HOSTS[1], None)
            slots.append(call.connect())
        assert world.destinations.open_to("there") == dict.fromkeys(HOSTS, 2)

    def test_a_try_under_way_counts(self) -> None:
        world = World(HOSTS)
        first, second = world.call(), world.call()
        assert (first.step, second.step) == (Try(HOSTS[0], None), Try(HOSTS[1], None))
        first.cancel()
        second.cancel()
        world.nothing_is_kept()

    def test_what_the_kernel_said_counts(self) -> None:
        world = World(HOSTS)
        kept = world.call().connect()
        world.destinations.saw("there", {HOSTS[0]: 1, HOSTS[1]: 5})
        assert world.call().step == Try(HOSTS[0], None)
        # Of nobody it is concerned with it keeps nothing.
        world.destinations.saw("elsewhere", {HOSTS[0]: 5})
        assert load(world.destinations.find("elsewhere"), HOSTS[0]) == 0
        kept.release()


class TestLimit:
    def test_counts_tries_and_connections(self) -> None:
        world = World(HOSTS, limit=2)
        slot = world.call().connect()
        trying = world.call()
        assert isinstance(world.call().ended, LimitReached)
        assert world.call("elsewhere").tries
        trying.cancel()
        other = world.call().connect()
        assert isinstance(world.call().ended, LimitReached)
        slot.release()
        assert world.call().tries
        other.release()

    def test_looks_for_ends_that_nobody_told_before_it_refuses(self) -> None:
        world = World(limit=1)
        held = world.call().connect()
        world.unreported.ends = held.release
        world.call().connect().release()
        world.nothing_is_kept()

    def test_is_per_destination(self) -> None:
        world = World(limit=1)
        kept = [world.call(key).connect() for key in ("a", "b", "c")]
        assert isinstance(world.call("b").ended, LimitReached)
        assert len(kept) == 3


class TestSlot:
    def test_is_released_once_only(self) -> None:
        world = World(limit=2)
        first, second = world.call().connect(), world.call().connect()
        for _ in range(3):
            first.release()
        assert world.destinations.open_to("there") == {"": 1}
        second.release()
        world.nothing_is_kept()

    def test_ends_with_its_last_reference(self) -> None:
        world = World(limit=1)
        slot: list[Any] = [world.call().connect()]
        assert isinstance(world.call().ended, LimitReached)
        slot.append(slot)
        del slot
        gc.collect()
        world.nothing_is_kept()


class TestFull:
    """What was full a moment ago is tried last, and not at all by who waits in line."""

    def test_others_come_first(self) -> None:
        world = World(["192.0.2.1", "192.0.2.2"])
        call = world.call()
        assert isinstance(call.step, Try)
        other = call.step.host
        slots = [call.connect()]
        (full,) = {"192.0.2.1", "192.0.2.2"} - {other}
        for hosts in ([full, other], [other], [other]):
            # The one that is full has fewer connections, and is tried once all the same.
            call = world.call()
            for host in hosts:
                assert isinstance(call.step, Try)
                assert call.step.host == host
                if host == full:
                    call.refuse()
            slots.append(call.connect())
        call = world.call()
        call.refuse()
        assert isinstance(call.step, Try)
        assert call.step.host == full
        call.refuse()
        assert isinstance(call.ended, Refused)

    def test_searches_of_many_sources_take_a_small_share_of_the_time(self) -> None:
        """Each of them takes 10 ms; nobody tells of an end."""
        world = World([f"192.0.2.{number}" for number in range(1, 9)], wait=60)
        begun, searched = world.time, 0.0
        call = world.call()
        while call.ended is None:
            if call.tries:
                world.time += 0.010
                searched += 0.010
                call.refuse()
            else:
                world.time += call.wait.seconds
                call.again()
        assert world.time - begun < 61
        # The first round, one at the end, and a fiftieth of the time between.
        assert 0.24 < searched < 0.16 + 60 / 45

    def test_who_waits_tries_it_after_a_moment_or_an_end_there(self) -> None:
        world = World(["192.0.2.1"], wait=10)
        call = world.call()
        call.refuse()
        world.time += 0.1
        # Nobody heard of ends while the first search was on.
        call.again()
        call.refuse()
        world.time += 0.2
        call.again()
        assert call.waits
        call.hear("192.0.2.99")
        call.again()
        assert call.waits
        call.hear("192.0.2.1")
        call.again()
        assert call.tries
        call.refuse()
        world.time += 1.1
        call.again()
        assert call.tries
        call.cancel()
        world.nothing_is_kept()

    def test_an_end_during_the_search_counts(self) -> None:
        """Of our own or others', there or, where routing chooses, anywhere."""
        for hosts, ends in ((["192.0.2.1"], ["192.0.2.1", None]), ([], ["192.0.2.9", None])):
            for end in ends:
                world = World(hosts, wait=10)
                held = world.call().connect()
                call = world.call()
                call.refuse()
                call.again()
                call.hear(end)
                call.refuse()
                call.again()
                assert call.tries
                held.release()
                call.refuse()
                call.again()
                assert call.tries
                # Nothing has ended this time.
                call.refuse()
                call.again()
                assert call.waits
                call.cancel()
                world.nothing_is_kept()

    def test_ends_nobody_has_told_may_be_anywhere(self) -> None:
        world = World(HOSTS, wait=10)
        held = world.call().connect()
        call = world.call()
        for _ in range(2):
            for _ in HOSTS:
                call.refuse()
            call.again()
        assert call.waits
        call.hear(None)
        call.again()
        for _ in HOSTS:
            call.refuse()
        call.cancel()
        held.release()

    def test_what_is_heard_too_late_is_for_the_next_in_line(self) -> None:
        world = World(HOSTS, wait=10)
        held = world.call().connect()
        first = world.call()
        for _ in HOSTS:
            first.refuse()
        second = world.call()
        first.again()
        for _ in HOSTS:
            first.refuse()
        second.again()
        assert second.waits
        woken = second.places[0].woken
        first.hear(HOSTS[0])
        first.cancel()
        assert second.places[0].woken > woken
        second.again()
        assert second.step == Try(HOSTS[0], None)
        second.cancel()
        held.release()
        world.nothing_is_kept()

    def test_how_ends_are_noticed_is_handed_on_to_the_next_in_the_queue(self) -> None:
        world = World(limit=1, wait=10)
        held = world.call().connect()
        first, second = world.call(), world.call()
        (heard,) = first.heard
        assert first.listens
        assert not second.listens
        first.cancel()
        assert not heard.closed
        second.again()
        assert second.listens
        assert second.heard == []
        second.cancel()
        assert heard.closed
        held.release()
        world.nothing_is_kept()

    def test_of_two_that_notice_ends_one_hands_on(self) -> None:
        world = World(HOSTS, wait=10)
        held = world.call().connect()
        first = world.call()
        for _ in HOSTS:
            first.refuse()
        second = world.call()
        first.cancel()
        second.again()
        for _ in HOSTS:
            second.refuse()
        third = world.call()
        assert second.heard == []
        second.cancel()
        third.cancel()
        assert first.heard[0].closed
        held.release()
        world.nothing_is_kept()


class TestCancelled:
    """The generator is closed, in every state there is."""

    def test_before_it_has_begun(self) -> None:
        world = World()
        world.new_call()
        world.nothing_is_kept()

    def test_while_it_tries(self) -> None:
        world = World(limit=1, wait=10)
        call = world.call()
        waiting = world.call()
        call.cancel()
        assert waiting.places[0].woken == 1
        waiting.again()
        assert waiting.tries
        waiting.cancel()
        world.nothing_is_kept()
        assert world.destinations.counters.failures == {}

    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_while_it_waits(self, which: int) -> None:
        world = World(limit=1, wait=10)
        held = world.call().connect()
        line = [world.call() for _ in range(3)]
        cancelled = line.pop(which)
        cancelled.cancel()
        assert cancelled.places[0].closed
        assert world.destinations.counters.waiting == 2
        held.release()
        for call in line:
            call.again()
            call.connect().release()
        world.nothing_is_kept()

    def test_when_it_has_just_been_woken(self) -> None:
        world = World(limit=1, wait=10)
        held = world.call().connect()
        first, second = world.call(), world.call()
        held.release()
        first.cancel()
        # What it was woken for is the next one's.
        assert second.places[0].woken >= 1
        second.again()
        assert second.tries

    def test_between_the_port_and_the_handshake(self) -> None:
        world = World(limit=1, wait=10)
        held = world.call().connect()
        first, second = world.call(), world.call()
        held.release()
        first.again()
        first.has_port()
        second.again()
        assert second.waits
        woken = second.places[0].woken
        first.cancel()
        assert second.places[0].woken > woken
        second.again()
        assert second.tries
        second.cancel()
        world.nothing_is_kept()

    def test_by_an_error_that_is_not_about_ports(self) -> None:
        world = World(limit=1, wait=10)
        call = world.call()
        with pytest.raises(LookupError):
            call.steps.throw(LookupError())
        world.nothing_is_kept()


def test_ten_thousand_idle_destinations_are_nothing() -> None:
    world = World(HOSTS)
    for number in range(10_000):
        world.call(f"host {number}").connect().release()
    world.nothing_is_kept()
    assert len(world.destinations.idle) == 0
    assert len(world.destinations.good) < 100


def test_what_is_full_is_noted_within_bounds() -> None:
    """The addresses of a large prefix are others at each call."""
    world = World()
    kept = world.call().connect()
    known = world.destinations.find("there")
    for number in range(10_000):
        world.time += 0.1
        known.fill(f"2001:db8::{number:x}", None, world.time, world.time)
    # For a second each.
    assert 10 <= len(known.full) < 200
    assert known.is_full(f"2001:db8::{9_999:x}", None, world.time)
    kept.release()


def test_an_end_elsewhere_leaves_a_full_source_full() -> None:
    world = World(HOSTS, wait=10)
    slots = [world.call().connect() for _ in HOSTS]
    known = world.destinations.find("there")
    for host in HOSTS:
        known.fill(host, None, world.time, world.time)
    slots[0].release()
    assert [known.is_full(host, None, world.time) for host in HOSTS] == [False, True]
    slots[1].release()


def test_errors_do_not_refer_to_themselves() -> None:
    """Else each would stay until the next garbage collection, with all that it refers to."""
    world = World(HOSTS)
    gc.disable()
    try:
        steps = world.new_call().begin()
        assert steps is not None
        next(steps)
        steps.throw(Refused())
        last: Refused | None = Refused()
        assert last is not None
        alive = weakref.ref(last)
        with contextlib.suppress(Refused):
            steps.throw(last)
        last = None
        assert alive() is None
    finally:
        gc.enable()


@dataclass
class Model:
    """What has to hold of some calls whatever happens to them, and when.

    free: ports that the kernel would give.
    """

    world: World
    limit: int
    free: int
    calls: list[Call] = field(default_factory=list)
    open: list[Call] = field(default_factory=list)
    #: Those who wait, by destination, in the order in which they came.
    lines: dict[str, list[Call]] = field(default_factory=dict)

    def begin(self, key: str) -> None:
        call = self.world.call(key)
        line = self.lines.setdefault(key, [])
        if line:
            assert call.waits, "somebody was here before"
        self.calls.append(call)
        self.settle(call)

    def settle(self, call: Call) -> None:
        """Note where it is after a step."""
        line = self.lines.setdefault(call.key, [])
        if call.waits and call not in line:
            line.append(call)
        if call.step is None:
            self.calls.remove(call)
            if call in line:
                line.remove(call)
        assert [other for other in line if other.waits or other.tries] == line

    def step(self, call: Call) -> None:
        line = self.lines[call.key]
        if call.waits:
            call.again()
            if call.tries:
                assert line[0] is call, "served before an earlier one"
        elif self.free:
            self.free -= 1
            call.connect()
            self.open.append(call)
        else:
            call.refuse()
        self.settle(call)

    def leave(self, call: Call) -> None:
        """It has a port, and its handshake takes a while."""
        if call.tries and call.call.queue is not None:
            call.has_port()
            self.lines[call.key].remove(call)

    def cancel(self, call: Call) -> None:
        call.cancel()
        self.settle(call)

    def close(self, call: Call) -> None:
        assert call.slot is not None
        self.open.remove(call)
        self.free += 1
        call.slot.release()

    def check(self) -> None:
        for key in ("a", "b"):
            trying = [call for call in self.calls if call.key == key and call.tries]
            held = [call for call in self.open if call.key == key]
            counted = sum(self.world.destinations.open_to(key).values())
            assert counted == len(trying) + len(held)
            assert counted <= self.limit
            # Nobody sleeps while there is something for him.
            line = self.lines.get(key, [])
            if line and line[0].waits and counted < self.limit and self.free and not trying:
                first = line[0]
                assert first.places[0].woken or first.wait.seconds <= 1.5
        assert self.world.destinations.counters.waiting == sum(map(len, self.lines.values()))


@settings(max_examples=150)
@given(st.data())
def test_whatever_happens(data: st.DataObject) -> None:
    """Calls come, try, wait, are refused, connect, are cancelled and closed, in any order."""
    limit = data.draw(st.integers(1, 3))
    world = World(data.draw(st.sampled_from([[], HOSTS])), limit=limit, wait=20)
    model = Model(world, limit, free=data.draw(st.integers(0, 4)))
    for _ in range(data.draw(st.integers(1, 40))):
        options: list[Callable[[], None]] = [
            lambda: model.begin("a"),
            lambda: model.begin("b"),
        ]
        if model.calls:
            call = data.draw(st.sampled_from(model.calls))
            options += [
                lambda: model.step(call),  # noqa: B023 -- called in this turn
                lambda: model.step(call),  # noqa: B023 -- as above
                lambda: model.cancel(call),  # noqa: B023 -- as above
                lambda: model.leave(call),  # noqa: B023 -- as above
            ]
        if model.open:
            held = data.draw(st.sampled_from(model.open))
            options.append(lambda: model.close(held))  # noqa: B023 -- as above
        data.draw(st.sampled_from(options))()
        world.time += data.draw(st.sampled_from([0.0, 0.1, 5.0]))
        model.check()
    for call in list(model.calls):
        model.cancel(call)
    for call in list(model.open):
        model.close(call)
    for key in ("a", "b"):
        assert world.destinations.open_to(key) == {}
    world.nothing_is_kept()
