"""Turns, lines for one source only, and deadlines, with a clock that stands still."""

from typing import Any

import pytest

from connectx._dial.call import LimitReached, TurnMissed
from connectx._dial.slots import Destination
from tests._dial.world import HOSTS, Place, Refused, Try, World


class Queued:
    """A call that waits."""

    queue: Destination | None = None


class TestTurns:
    def test_first_come_first_served(self) -> None:
        world = World(limit=1, wait=10)
        held = world.call().connect()
        line = [world.call() for _ in range(3)]
        assert all(call.waits for call in line)
        assert [call.listens for call in line] == [True, False, False]
        for call in line:
            held.release()
            assert call.places[0].woken
            call.again()
            held = call.connect()
        held.release()
        world.nothing_is_kept()

    def test_only_the_first_is_woken_and_tries(self) -> None:
        world = World(limit=1, wait=10)
        held = world.call().connect()
        first, second = world.call(), world.call()
        held.release()
        assert (first.places[0].woken, second.places[0].woken) == (1, 0)
        # Should the other look by itself, it is not its turn.
        second.again()
        assert second.waits
        first.again()
        assert first.tries

    def test_leaving_looks_at_nobody_else(self) -> None:
        """Or ten thousand tasks that are cancelled together would take a second for it."""

        class Compared(Place):
            looks = 0

            def __eq__(self, other: object) -> bool:
                Compared.looks += 1
                return self is other

            __hash__ = Place.__hash__

        world = World(limit=1, wait=10)
        queued = [(Queued(), Compared()) for _ in range(300)]
        for call, waiter in queued:
            world.destinations.join(call, "there", waiter, "", again=False)
        for call, waiter in reversed(queued):
            assert call.queue is not None
            world.destinations.leave(call.queue, waiter, "")
        assert Compared.looks <= len(queued)
        world.nothing_is_kept()

    def test_nobody_barges_in(self) -> None:
        """There is a place free, and somebody who was here before."""
        world = World(limit=1, wait=10)
        held = world.call().connect()
        first = world.call()
        held.release()
        late = world.call()
        assert late.waits
        first.again()
        first.connect().release()
        late.again()
        assert late.tries
        # Elsewhere nobody waits.
        assert world.call("elsewhere").tries

    def test_the_next_is_woken_when_a_port_is_found(self) -> None:
        """One end may have been the first of several."""
        world = World(limit=2, wait=10)
        held = [world.call().connect() for _ in range(2)]
        first, second = world.call(), world.call()
        for slot in held:
            slot.release()
        first.again()
        # The handshake may take its time: it leaves the line before.
        assert first.call.queue is not None
        first.has_port()
        assert first.call.queue is None
        assert second.places[0].woken == 1
        second.again()
        assert second.tries

    def test_who_will_never_look_again_is_passed_over(self) -> None:
        """As a task whose loop was closed."""
        world = World(limit=1, wait=10)
        held = world.call().connect()
        first, second = world.call(), world.call()
        first.places[0].gone = True
        held.release()
        assert first.places[0].woken == 0
        assert second.places[0].woken == 1
        second.again()
        second.connect().release()
        late = world.call()
        assert late.tries
        late.connect().release()
        world.nothing_is_kept()

    def test_refused_again_it_keeps_its_turn(self) -> None:
        world = World(wait=10)
        first = world.call()
        first.refuse()
        second = world.call()
        assert first.waits
        assert second.waits
        first.again()
        first.refuse()
        assert first.waits
        assert first.listens
        assert world.destinations.counters.waits == 2

    def test_who_has_to_wait_again_counts_once(self) -> None:
        """It left the line for a port, which was another's in the end."""
        told: list[Any] = []
        world = World(limit=1, wait=10, on_wait=told.append)
        held = world.call().connect()
        call = world.call()
        held.release()
        call.again()
        call.has_port()
        call.refuse()
        assert call.waits
        assert world.destinations.counters.waits == len(told) == 1
        assert world.destinations.counters.waiting == 1
        call.cancel()
        world.nothing_is_kept()

    def test_on_wait_is_told_once_for_each_call(self) -> None:
        told: list[Any] = []
        world = World(wait=10, on_wait=told.append)
        call = world.call()
        for _ in range(3):
            call.refuse()
            # By then, what was full may not be so any more.
            world.time += 1.1
            call.again()
        call.refuse()
        world.call()
        assert told == ["there", "there"]

    def test_on_wait_that_raises_ends_the_call(self) -> None:
        def fail(_: Any) -> None:
            raise LookupError

        world = World(wait=10, on_wait=fail)
        call = world.call()
        call.refuse()
        assert isinstance(call.ended, LookupError)
        assert call.places[0].closed
        world.nothing_is_kept()


class TestOneSourceOnly:
    """Such as a key's, or the one that a socket is bound to."""

    def test_is_not_in_the_way_of_another(self) -> None:
        world = World(HOSTS, wait=10)
        one, other = HOSTS
        waiting = [world.call(only=one)]
        waiting[0].refuse()
        waiting.append(world.call(only=one))
        free = world.call(only=other)
        assert free.step == Try(other, None)
        kept = free.connect()
        anyone = world.call()
        assert anyone.tries
        anyone.cancel()
        assert all(call.waits for call in waiting)
        # An end there wakes the first of its kind, an end elsewhere none.
        before = waiting[0].places[0].woken
        kept.release()
        assert waiting[0].places[0].woken == before
        call = world.call()
        assert call.step == Try(one, None)
        call.connect().release()
        assert [call.places[0].woken for call in waiting] == [before + 1, 0]
        waiting[0].again()
        waiting[0].connect().release()
        assert waiting[1].places[0].woken >= 1
        waiting[1].cancel()
        world.nothing_is_kept()

    def test_an_end_wakes_who_waits_for_any_source_as_well(self) -> None:
        world = World(HOSTS, wait=10)
        held = world.call().connect()
        anyone = world.call()
        for _ in HOSTS:
            anyone.refuse()
        one = world.call(only=HOSTS[0])
        one.refuse()
        held.release()
        assert anyone.places[0].woken
        assert one.places[0].woken
        anyone.cancel()
        one.cancel()
        world.nothing_is_kept()

    def test_with_a_limit_all_wait_for_the_same(self) -> None:
        world = World(HOSTS, limit=1, wait=10)
        held = world.call(only=HOSTS[0]).connect()
        first, second = world.call(only=HOSTS[0]), world.call(only=HOSTS[1])
        held.release()
        assert (first.places[0].woken, second.places[0].woken) == (1, 0)
        second.again()
        assert second.waits
        first.cancel()
        second.again()
        assert second.tries
        second.cancel()
        world.nothing_is_kept()


class TestDeadline:
    def test_no_wait_is_an_error_at_once(self) -> None:
        world = World()
        call = world.call()
        call.refuse()
        assert isinstance(call.ended, Refused)
        assert call.places == []

    def test_is_counted_from_the_first_refusal(self) -> None:
        world = World(wait=10)
        call = world.call()
        world.time += 50
        call.refuse()
        # A search of 50 seconds earns the longest rest there is.
        assert call.rests
        assert call.wait.seconds == pytest.approx(1.0)
        world.time += 1.0
        call.again()
        assert not call.rests
        world.time += 8.99
        call.again()
        call.refuse()
        assert call.waits
        assert call.wait.seconds == pytest.approx(0.01)
        world.time += 0.01
        call.again()
        # A last try, and then what that met with.
        last = Refused()
        call.refuse(last)
        assert call.ended is last
        assert call.places[0].closed
        world.nothing_is_kept()

    def test_who_is_not_the_first_waits_for_all_of_it(self) -> None:
        world = World(wait=10)
        first = world.call()
        first.refuse()
        second = world.call()
        assert second.wait.seconds == 10
        assert not second.listens
        world.time += 10
        second.again()
        assert isinstance(second.ended, TurnMissed)
        assert world.destinations.counters.waiting == 1

    def test_at_the_limit(self) -> None:
        world = World(limit=1, wait=10)
        held = world.call().connect()
        call = world.call()
        world.time += 10
        call.again()
        assert isinstance(call.ended, LimitReached)
        held.release()
        world.nothing_is_kept()

    def test_looks_grow_rarer_and_are_spread(self) -> None:
        world = World(wait=1000)
        seconds = []
        call = world.call()
        for world.jitter in (0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 1.0):
            call.refuse()
            seconds.append(call.wait.seconds)
            # What was full may not be so any more.
            world.time += 1.1
            call.again()
        assert seconds == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 0.5, 1.5])

    def test_who_becomes_the_first_begins_with_short_ones(self) -> None:
        world = World(wait=1000)
        first = world.call()
        first.refuse()
        second = world.call()
        for _ in range(6):
            world.time += 1.1
            first.again()
            first.refuse()
        first.cancel()
        assert second.places[0].woken == 1
        world.time += 1.1
        second.again()
        second.refuse()
        assert second.wait.seconds == pytest.approx(0.05)
