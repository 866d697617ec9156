"""Many processes on the same UDP ports: no 4-tuple is ever given to two of them.

And the same races with one of the lock's protections taken out, to show that they
would be lost without. What is up to chance here, tests/_connect/test_udp_connect_interleavings.py
goes through in every order on a model.
"""

import contextlib
import functools
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import pytest

import connectx
from connectx.addresses import PortRange
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests.race.asked_port import race_for
from tests.race.competition import Competition
from tests.race.connecting import (
    DESTINATIONS,
    HOST,
    MOMENTS,
    Connect,
    WithOptions,
    by_connectx,
    by_create_connection,
    by_stream,
    interrupt,
    leave_out,
    replace_claim,
    share_every_port,
)
from tests.race.processes import Child, children
from tests.race.variants import VARIANTS

#: More than the eight processes ever use at once, so that none is to be refused.
PORTS: Final = PortRange(20000, 20011)
PORT: Final = 20003
#: Where no window reaches, so that a caller's socket takes another way.
OUTSIDE: Final = 40000
FIRST, SECOND = DESTINATIONS
THIRD, FOURTH = (HOST, 9002), (HOST, 9003)

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

    @pytest.mark.parametrize(
        "variant", ["without lock", "without lookup", "lookup before lock", "lookup after connect"]
    )
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
    @pytest.mark.parametrize("port", [PORT, OUTSIDE])
    def test_exactly_one_gets_the_4_tuple(self, ways: list[Connect], port: int) -> None:
        won = race_for(port, [FIRST], ways * (4 // len(ways)), rounds=200)
        assert won == [[1]] * 200

    @ways
    @pytest.mark.parametrize("port", [PORT, OUTSIDE])
    def test_toward_two_destinations_one_gets_each(self, ways: list[Connect], port: int) -> None:
        contenders = [way for way in ways for _ in DESTINATIONS] * (4 // len(ways))
        won = race_for(port, DESTINATIONS, contenders, rounds=200)
        assert max(map(max, won)) == 1
        # Or hardly ever none: whoever holds the lock may lose the processor for longer
        # than the others go on trying.
        assert won.count([1, 1]) >= 198

    def test_nor_is_a_stream_given_to_two(self, servers: Servers) -> None:
        servers.listen(*FIRST)
        for port in range(PORTS.low, PORTS.high + 1):
            # One round each, for the winner leaves a TIME_WAIT.
            assert race_for(port, [FIRST], [by_stream] * 4, rounds=1) == [[1]]

    def test_without_lookup_several_do(self) -> None:
        won = race_for(
            PORT,
            [FIRST],
            [by_create_connection] * 4,
            rounds=200,
            prepare=lambda: replace_claim(VARIANTS["without lookup"]),
        )
        assert max(won) > [1]


#: The processors that this process may run on; a lookup prefers sockets by them.
PROCESSORS: Final = sorted(os.sched_getaffinity(0))

SERVICES: Final = {
    "nobody": [],
    "a service": [WithOptions()],
    "one with a device": [WithOptions(device=True)],
    "one with each processor": [WithOptions(processor=each) for each in PROCESSORS],
    "an IPv6 one": [WithOptions(device=True, mapped=True)],
}


class TestForAPortAskedForWithOptions:
    """Sockets that a lookup does not find in the order in which they were bound."""

    @pytest.fixture(params=list(SERVICES.values()), ids=list(SERVICES))
    def _services(self, request: pytest.FixtureRequest, network: Network) -> Iterator[None]:  # noqa: ARG002 -- they are in it
        with contextlib.ExitStack() as stack:
            for port in (PORT, OUTSIDE):
                for service in request.param:
                    stack.enter_context(service.serve(port))
            yield

    @pytest.mark.usefixtures("_services")
    @pytest.mark.parametrize("port", [PORT, OUTSIDE])
    @pytest.mark.parametrize(
        "ways",
        [
            [WithOptions(), WithOptions(device=True)],
            [WithOptions(), *(WithOptions(processor=each) for each in PROCESSORS)],
            [WithOptions(), WithOptions(mapped=True)],
            [WithOptions(device=True), WithOptions(mapped=True)],
            [by_create_connection, WithOptions(device=True, mapped=True)],
        ],
        ids=["device", "processors", "mapped", "device and mapped", "device that is mapped"],
    )
    def test_nobody_shares_it(self, ways: list[Connect], port: int) -> None:
        won = race_for(port, [FIRST], ways * 2, rounds=40)
        assert max(won) == [1]
        # Or none, where each of two that are not compared by their age steps back.
        assert won.count([1]) > won.count([0])


class Call(NamedTuple):
    """A way to connect from a source port that is asked for."""

    way: Connect
    port: int

    def __call__(self, destination: tuple[str, int]) -> socket.socket:
        return self.way((HOST, self.port), destination)

    def __str__(self) -> str:
        return f"{self.way.__name__} {self.port}"

    def assert_taken(self, destination: tuple[str, int]) -> None:
        with pytest.raises(connectx.TupleInUse):
            self(destination)

    def assert_free(self, destination: tuple[str, int]) -> None:
        with self(destination) as sock:
            assert sock.getsockname() == (HOST, self.port)


calls = pytest.mark.parametrize(
    "call",
    [Call(way, port) for way in (by_create_connection, by_connectx) for port in (PORT, OUTSIDE)],
    ids=str,
)


def contend(
    call: Call,
    moment: str,
    send: Callable[[bytes], None],
    *,
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Stop at a moment; then, if connected, once more with the socket open."""
    prepare()
    interrupt(moment, signal.SIGSTOP)
    try:
        sock = call(FIRST)
    except (connectx.TupleInUse, connectx.PortHeld):
        send(b"lost")
    else:
        send(b"won!")
        os.kill(os.getpid(), signal.SIGSTOP)
        sock.close()


def outcomes_around(
    moment: str, call: Call, prepare: Callable[[], None] = lambda: None
) -> list[bytes]:
    """What comes of two processes, of which one stops at a moment until the other is done."""
    with children() as start:
        task = functools.partial(contend, call, prepare=prepare)
        stopped = start(functools.partial(task, moment))
        stopped.wait_until_stopped()
        other = start(functools.partial(task, "never"))
        outcomes = [other.receive(4)]
        stopped.resume()
        return [*outcomes, stopped.receive(4)]


class TestOneStopsUntilTheOtherIsDone:
    """Of two that want the same 4-tuple; chance has no part in it."""

    @calls
    @pytest.mark.parametrize("moment", MOMENTS)
    def test_exactly_one_wins(self, moment: str, call: Call) -> None:
        assert sorted(outcomes_around(moment, call)) == [b"lost", b"won!"]

    @pytest.mark.parametrize(
        "variant, moment",
        [
            ("without lock", "before connect"),
            ("without lookup", "bound"),
            ("lookup before lock", "before lock"),
            ("lookup after connect", "bound"),
        ],
    )
    def test_with_a_protection_taken_out_both_do(self, variant: str, moment: str) -> None:
        call = Call(by_create_connection, PORT)
        outcomes = outcomes_around(moment, call, lambda: replace_claim(VARIANTS[variant]))
        assert outcomes == [b"won!", b"won!"]


@pytest.mark.parametrize(
    "older, newer, look",
    [
        (WithOptions(device=True), WithOptions(), "_alone_without_device"),
        (WithOptions(), WithOptions(mapped=True), "_ipv4_twin"),
    ],
    ids=str,
)
@pytest.mark.parametrize("spoilt", [False, True])
def test_of_two_that_are_bound_the_newer_one_wins(
    older: Connect, newer: Connect, look: str, *, spoilt: bool
) -> None:
    """It takes the older one for a service, so the older one has to see it and step back."""
    prepare = functools.partial(leave_out, look) if spoilt else share_every_port
    with children() as start:
        contenders = []
        for way, moment in ((older, "bound"), (newer, "before connect")):
            contender = start(functools.partial(contend, Call(way, PORT), moment, prepare=prepare))
            contender.wait_until_stopped()
            contenders.append(contender)
        outcomes = []
        for contender in contenders:
            contender.resume()
            outcomes.append(contender.receive(4))
    assert outcomes == [b"won!" if spoilt else b"lost", b"won!"]


@pytest.fixture
def stopped(call: Call, moment: str) -> Iterator[Child]:
    """Give a process that is stopped at the moment of its call."""
    with children() as start:
        child = start(functools.partial(contend, call, moment))
        child.wait_until_stopped()
        yield child


def kill(call: Call, moment: str) -> None:
    """Kill a process at the moment of its call, and assert that it leaves nothing."""

    def task(_: object) -> None:
        interrupt(moment, signal.SIGKILL)
        call(FIRST)

    with children() as start:
        start(task).finish(killed=True)
    for destination in DESTINATIONS:
        call.assert_free(destination)


def assert_it_wins(stopped: Child, call: Call) -> None:
    """Assert that a process that was stopped connects, and nobody else has its 4-tuple."""
    stopped.resume()
    assert stopped.receive(4) == b"won!"
    stopped.wait_until_stopped()
    call.assert_taken(FIRST)
    call.assert_free(THIRD)
    stopped.resume()
    stopped.finish()
    call.assert_free(FIRST)


@calls
class TestInTheSection:
    """What others get while a process is at a certain moment of it, and afterwards.

    The port is in use to another destination, so that all have to share it.
    """

    @pytest.fixture(autouse=True)
    def _shared(self, call: Call) -> Iterator[None]:
        with call(FOURTH):
            yield

    @pytest.mark.parametrize("moment", MOMENTS)
    def test_a_killed_process_leaves_nothing(self, call: Call, moment: str) -> None:
        kill(call, moment)
        assert_every_port_can_be_used()

    @pytest.mark.parametrize("moment", ["before bind", "bound", "before lock"])
    def test_before_it_has_the_lock_others_may_be_quicker(self, call: Call, stopped: Child) -> None:
        with call(FIRST):
            stopped.resume()
            assert stopped.receive(4) == b"lost"
            stopped.finish()
            call.assert_free(SECOND)

    @pytest.mark.parametrize("moment", ["before bind", "bound", "before lock"])
    def test_nor_does_it_keep_others_from_other_destinations(
        self, call: Call, stopped: Child
    ) -> None:
        with call(SECOND):
            assert_it_wins(stopped, call)

    @pytest.mark.parametrize("moment", ["locked", "before lookup", "before connect", "connected"])
    def test_while_it_has_the_lock_nobody_gets_the_port(self, call: Call, stopped: Child) -> None:
        for destination in DESTINATIONS:
            with pytest.raises(connectx.PortHeld):
                call(destination)
        for destination in DESTINATIONS:
            with call.way((HOST, 0), destination) as sock:
                assert sock.getsockname()[1] != call.port
        assert_it_wins(stopped, call)

    @pytest.mark.parametrize("moment", ["unlocked"])
    def test_then_its_4_tuple_is_taken_and_the_port_is_shared(
        self, call: Call, stopped: Child
    ) -> None:
        call.assert_taken(FIRST)
        call.assert_free(SECOND)
        assert_it_wins(stopped, call)


@pytest.mark.parametrize("call", [Call(way, PORT) for way in WAYS["both"]], ids=str)
class TestAlone:
    """The same with a port that nobody has: bind() itself takes the lock."""

    @pytest.mark.parametrize("moment", ["before bind", "bound", "before connect", "unlocked"])
    def test_a_killed_process_leaves_nothing(self, call: Call, moment: str) -> None:
        kill(call, moment)

    @pytest.mark.parametrize("moment", ["before bind"])
    def test_before_it_has_the_port_others_may_be_quicker(self, call: Call, stopped: Child) -> None:
        with call(FIRST):
            stopped.resume()
            assert stopped.receive(4) == b"lost"
            stopped.finish()
            call.assert_free(SECOND)

    @pytest.mark.parametrize("moment", ["before bind"])
    def test_nor_does_it_keep_others_from_other_destinations(
        self, call: Call, stopped: Child
    ) -> None:
        with call(SECOND):
            assert_it_wins(stopped, call)

    @pytest.mark.parametrize("moment", ["bound", "before connect", "connected"])
    def test_while_it_has_the_port_nobody_else_gets_it(self, call: Call, stopped: Child) -> None:
        for destination in DESTINATIONS:
            with pytest.raises(connectx.PortHeld):
                call(destination)
            with call.way((HOST, 0), destination) as sock:
                assert sock.getsockname()[1] != call.port
        assert_it_wins(stopped, call)

    @pytest.mark.parametrize("moment", ["unlocked"])
    def test_then_its_4_tuple_is_taken_and_the_port_is_shared(
        self, call: Call, stopped: Child
    ) -> None:
        call.assert_taken(FIRST)
        call.assert_free(SECOND)
        assert_it_wins(stopped, call)
