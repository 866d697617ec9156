"""Many processes on the same UDP ports: no 4-tuple is ever given to two of them.

And the same races with one of the lock's protections taken out, to show that they
would be lost without. What is up to chance here, tests/core/test_claim_interleavings.py
goes through in every order on a model.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Final

import pytest

import connectx
from connectx.addresses import PortRange
from connectx.testing.namespaces import Network
from connectx.testing.servers import Servers
from tests.race.asked_port import race_for
from tests.race.competition import Competition
from tests.race.connecting import (
    DESTINATIONS,
    HOST,
    MOMENTS,
    Connect,
    by_connectx,
    by_create_connection,
    by_stream,
    interrupt,
    replace_claim,
)
from tests.race.processes import Child, children
from tests.race.variants import VARIANTS

#: More than the eight processes ever use at once, so that none is to be refused.
PORTS: Final = PortRange(20000, 20011)
PORT: Final = 20003
FIRST, SECOND = DESTINATIONS
THIRD: Final = (HOST, 9002)

WAYS: Final = {
    "create_connection": [by_create_connection],
    "connectx": [by_connectx],
    "both": [by_create_connection, by_connectx],
}

ways = pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS)


@pytest.fixture(autouse=True)
def _twelve_ports(network: Network) -> None:
    network.port_range(*PORTS)


def assert_every_port_can_be_used() -> None:
    with contextlib.ExitStack() as stack:
        for destination in DESTINATIONS:
            for _ in range(PORTS.size):
                stack.enter_context(by_create_connection((HOST, 0), destination))
            with pytest.raises(connectx.PortsExhausted):
                by_create_connection((HOST, 0), destination)


class TestForAnyPort:
    """Each opens and closes sockets to two destinations, and some are killed meanwhile."""

    @ways
    def test_no_4_tuple_has_two_owners(self, ways: list[Connect]) -> None:
        result = Competition(PORTS, ways=ways, lives=3, rounds=2000).run()
        assert result.duplicates == 0
        assert result.exhausted == 0
        assert result.killed == 24
        assert result.used == set(range(len(DESTINATIONS) * PORTS.size))
        assert result.in_the_kernel == dict.fromkeys(result.in_the_end, 1)
        assert_every_port_can_be_used()

    def test_the_last_port_under_contention(self, network: Network) -> None:
        # Whoever asks, one port is free, but it may be locked for the moment by somebody
        # who is about to find that it is not free for him.
        four = PortRange(20000, 20003)
        network.port_range(*four)
        result = Competition(four, places=4, rounds=8000).run()
        assert result.duplicates == 0
        # Not nought: a holder of the lock may lose the processor for long.
        assert result.exhausted < result.opened / 2000

    @pytest.mark.parametrize("variant", ["without lock", "without lookup", "lookup before lock"])
    def test_with_a_protection_taken_out_some_have(self, variant: str) -> None:
        # As many runs as it takes: the first will nearly always do.
        for _ in range(20):
            competition = Competition(PORTS, lives=3, rounds=2000)
            if competition.run(lambda: replace_claim(VARIANTS[variant])).duplicates:
                return
        pytest.fail("the test shows nothing: it would pass without the protection, too")


class TestForAPortAskedFor:
    """All ask for the same source port at the same moment."""

    @ways
    @pytest.mark.parametrize("destinations", [[FIRST], [FIRST, SECOND]], ids=["one", "two"])
    def test_of_each_4_tuple_exactly_one_gets_it(
        self, ways: list[Connect], destinations: list[tuple[str, int]]
    ) -> None:
        # In the order of ways for each destination.
        contenders = [way for way in ways for _ in destinations] * (4 // len(ways))
        won = race_for(PORT, destinations, contenders, rounds=200)
        assert won == [[1] * len(destinations)] * 200

    def test_nor_is_a_stream_given_to_two(self, servers: Servers) -> None:
        servers.listen(*FIRST)
        won = race_for(PORT, [FIRST], [by_stream] * 4, rounds=1)
        assert won == [[1]]

    @pytest.mark.parametrize("variant", ["without lock", "without lookup", "lookup before lock"])
    def test_with_a_protection_taken_out_several_do(self, variant: str) -> None:
        for _ in range(20):
            won = race_for(
                PORT,
                [FIRST],
                [by_create_connection] * 4,
                rounds=200,
                prepare=lambda: replace_claim(VARIANTS[variant]),
            )
            if max(won) > [1]:
                return
        pytest.fail("the test shows nothing: it would pass without the protection, too")


def connect_interrupted(way: Connect, moment: str, number: int) -> None:
    interrupt(moment, number)
    way((HOST, PORT), FIRST).close()


def assert_taken(way: Connect, destination: tuple[str, int]) -> None:
    with pytest.raises(connectx.TupleInUse):
        way((HOST, PORT), destination)


def assert_free(way: Connect, destination: tuple[str, int]) -> None:
    with way((HOST, PORT), destination) as sock:
        assert sock.getsockname() == (HOST, PORT)


@pytest.mark.parametrize("way", [by_create_connection, by_connectx])
class TestInTheSection:
    """What others get while a process is at a certain moment of it, and afterwards."""

    @pytest.mark.parametrize("moment", MOMENTS)
    def test_a_killed_process_leaves_nothing(self, way: Connect, moment: str) -> None:
        with children() as start:
            child = start(lambda _: connect_interrupted(way, moment, signal.SIGKILL))
            child.wait(killed=True)
        for destination in DESTINATIONS:
            assert_free(way, destination)
        assert_every_port_can_be_used()

    @pytest.fixture
    def stopped(self, way: Connect, moment: str) -> Iterator[Child]:
        def task(send: Callable[[bytes], None]) -> None:
            interrupt(moment, signal.SIGSTOP)
            try:
                sock = way((HOST, PORT), FIRST)
            except connectx.TupleInUse:
                send(b"lost")
            else:
                send(b"won!")
                # Stop once more, with the socket open.
                os.kill(os.getpid(), signal.SIGSTOP)
                sock.close()

        with children() as start:
            child = start(task)
            child.wait_until_stopped()
            yield child

    @pytest.mark.parametrize("moment", ["before bind", "bound"])
    def test_before_it_has_the_lock_others_may_be_quicker(
        self, way: Connect, stopped: Child
    ) -> None:
        with way((HOST, PORT), FIRST):
            stopped.resume()
            assert stopped.receive(4) == b"lost"
            stopped.wait()
            assert_free(way, SECOND)

    @pytest.mark.parametrize("moment", ["before bind", "bound"])
    def test_nor_does_it_keep_others_from_other_destinations(
        self, way: Connect, stopped: Child
    ) -> None:
        with way((HOST, PORT), SECOND):
            self.assert_it_wins(stopped, way)

    @pytest.mark.parametrize("moment", ["locked", "looked up", "before connect", "connected"])
    def test_while_it_has_the_lock_nobody_gets_the_port(self, way: Connect, stopped: Child) -> None:
        for destination in DESTINATIONS:
            with pytest.raises(connectx.PortHeld):
                way((HOST, PORT), destination)
        for destination in DESTINATIONS:
            with way((HOST, 0), destination) as sock:
                assert sock.getsockname()[1] != PORT
        self.assert_it_wins(stopped, way)

    @pytest.mark.parametrize("moment", ["unlocked"])
    def test_then_its_4_tuple_is_taken_and_the_port_is_shared(
        self, way: Connect, stopped: Child
    ) -> None:
        assert_taken(way, FIRST)
        assert_free(way, SECOND)
        self.assert_it_wins(stopped, way)

    @staticmethod
    def assert_it_wins(stopped: Child, way: Connect) -> None:
        stopped.resume()
        assert stopped.receive(4) == b"won!"
        stopped.wait_until_stopped()
        assert_taken(way, FIRST)
        assert_free(way, THIRD)
        stopped.resume()
        stopped.wait()
        assert_free(way, FIRST)
