"""Attempts of every strategy, driven against the model of the kernel.

Other programs' sockets of every kind are on the ports before, and in some tests come
and go while the attempt goes on. Whether a port was to be had is told by trying each,
on copies of the model.
"""

import contextlib
import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from connectx._connect.strategies import STRATEGIES, Action, Case, Need, Verdict
from connectx.addresses import Endpoint, PortRange
from connectx.lab.kernel_model import KernelModel
from connectx.lab.model_sockets import ModelSocket, State
from tests._connect.driving import Driven, drive
from tests._connect.plans import EVERYTHING, SLOW_SEARCH, WITHOUT_WINDOWS, plan_of

HOST: Final = "127.0.0.1"
OTHER: Final = "127.0.0.2"
FIRST, SECOND = Endpoint(HOST, 9000), Endpoint(HOST, 9001)
LOW: Final = 20000


@dataclass(frozen=True)
class Population:
    """One of the other sockets, and how it got where it is."""

    port: int
    host: str
    destination: Endpoint | None
    bound: bool
    reuseaddr: bool
    listening: bool
    left: State
    age: int
    reuseaddr_later: bool

    def settle(self, kernel: KernelModel, *, stream: bool) -> ModelSocket | None:
        """Open it in a model; None where the model refuses."""
        sock = kernel.socket(stream=stream, reuseaddr=self.reuseaddr)
        try:
            if self.bound:
                kernel.bind(sock, self.host, self.port)
                if self.listening and stream:
                    kernel.listen(sock)
                    return sock
            else:
                sock.local_port_range = self.port, self.port
                sock.bind_address_no_port = True
                kernel.bind(sock, self.host, 0)
            if self.destination:
                kernel.connect(sock, self.destination)
        except OSError:
            kernel.close(sock)
            return None
        sock.reuseaddr = self.reuseaddr_later
        if self.destination and stream and self.left is not State.ESTABLISHED:
            kernel.close(sock, leaving=self.left)
            sock.entered -= self.age
        return sock


@st.composite
def populations(draw: st.DrawFn, size: int) -> list[Population]:
    one = st.builds(
        Population,
        port=st.integers(LOW, LOW + size - 1),
        host=st.sampled_from([HOST, HOST, HOST, OTHER]),
        destination=st.sampled_from([FIRST, FIRST, SECOND, None]),
        bound=st.booleans(),
        reuseaddr=st.booleans(),
        listening=st.booleans(),
        left=st.sampled_from([State.ESTABLISHED, State.TIME_WAIT, State.FIN_WAIT2]),
        age=st.sampled_from([0, 5000]),
        reuseaddr_later=st.booleans(),
    )
    return draw(st.lists(one, max_size=3 * size))


@dataclass(frozen=True)
class World:
    """A model with sockets in it, and the ports an attempt may use."""

    kernel: KernelModel
    ports: PortRange
    stream: bool

    def of_interest(self, host: str, destination: Endpoint) -> Counter[Endpoint]:
        """How many sockets there are on each 4-tuple toward a destination."""
        return Counter(
            sock.source
            for sock in self.kernel.sockets(stream=self.stream)
            if sock.destination == destination and sock.source.host == host
        )

    def ports_on_which(self, works: Callable[[KernelModel, int], None]) -> set[int]:
        """The unreserved ports of the range on which an operation raises nothing."""
        found = set()
        for port in range(self.ports.low, self.ports.high + 1):
            if port not in self.kernel.reserved:
                with contextlib.suppress(OSError):
                    works(copy.deepcopy(self.kernel), port)
                    found.add(port)
        return found


@st.composite
def worlds(draw: st.DrawFn, *, stream: bool, step_of_one: bool = True) -> World:
    size = draw(st.integers(1, 9))
    ports = PortRange(LOW, LOW + size - 1)
    reserved = draw(st.sets(st.integers(LOW, LOW + size - 1), max_size=3))
    kernel = KernelModel(
        ports,
        reserved,
        step_of_one=step_of_one,
        recovers=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )
    kernel.tcp_tw_reuse = draw(st.sampled_from([0, 1, 2]))
    kernel.tcp_timestamps = draw(st.booleans())
    for other in draw(populations(size)):
        other.settle(kernel, stream=stream)
    return World(kernel, ports, stream)


def by_window(kernel: KernelModel, port: int) -> None:
    sock = kernel.socket(reuseaddr=True, local_port_range=(port, port), bind_address_no_port=True)
    kernel.bind(sock, HOST, 0)
    kernel.connect(sock, FIRST)


def by_shared_bind(kernel: KernelModel, port: int) -> None:
    sock = kernel.socket(reuseaddr=True)
    kernel.bind(sock, HOST, port)
    kernel.connect(sock, FIRST)


def by_exclusive_bind(kernel: KernelModel, port: int) -> None:
    sock = kernel.socket()
    kernel.bind(sock, HOST, port)
    kernel.connect(sock, FIRST)


def by_claim(kernel: KernelModel, port: int) -> None:
    found = kernel.lookup(Endpoint(HOST, port), FIRST, stream=False)
    if found and found.destination:
        raise OSError("connected")
    sock = kernel.socket(stream=False, reuseaddr=True)
    kernel.bind(sock, HOST, port)


def attempt(
    world: World,
    strategy: str,
    case: Case,
    *,
    available: frozenset[Need] = EVERYTHING,
    asked: int = 0,
    window: int = 0,
    seed: int = 0,
    meanwhile: Callable[[], object] = lambda: None,
) -> Driven:
    plan = plan_of(
        strategy,
        case,
        world.ports,
        world.kernel.reserved,
        available=available,
        asked=asked,
        window=window,
        seed=seed,
    )
    assert plan
    former = world.of_interest(HOST, FIRST)
    driven = drive(world.kernel, plan, FIRST, stream=world.stream, host=HOST, meanwhile=meanwhile)
    if driven.socket:
        assert driven.socket.source.host == HOST
        assert driven.socket.destination == FIRST
        assert driven.socket.state is State.ESTABLISHED
        assert world.of_interest(HOST, FIRST)[driven.socket.source] == 1
        assert driven.socket.source.port == asked or (
            not asked
            and world.ports.contains(driven.socket.source.port)
            and driven.socket.source.port not in world.kernel.reserved
        )
    else:
        # A failure leaves nothing behind.
        assert world.of_interest(HOST, FIRST) == former
    return driven


def assert_used_to_the_last(driven: Driven, possible: set[int]) -> None:
    if possible:
        assert driven.socket
    else:
        assert driven.verdict is Verdict.EXHAUSTED


seeds = st.integers(0, 1000)


class TestStreamsFromAnyPort:
    @settings(deadline=None)
    @given(world=worlds(stream=True), seed=seeds)
    @pytest.mark.parametrize("strategy", ["auto", "full-range", "one-port"])
    def test_to_the_last_port_that_a_window_gets(
        self, strategy: str, world: World, seed: int
    ) -> None:
        possible = world.ports_on_which(by_window)
        driven = attempt(world, strategy, Case.STREAM_ANY_PORT, seed=seed)
        assert_used_to_the_last(driven, possible)

    @settings(deadline=None)
    @given(world=worlds(stream=True, step_of_one=False), seed=seeds)
    @pytest.mark.parametrize("strategy", ["auto", "one-port"])
    def test_where_searches_leave_a_port_out_proposals_get_it(
        self, strategy: str, world: World, seed: int
    ) -> None:
        possible = world.ports_on_which(by_window)
        driven = attempt(world, strategy, Case.STREAM_ANY_PORT, seed=seed, available=SLOW_SEARCH)
        assert_used_to_the_last(driven, possible)

    @settings(deadline=None)
    @given(world=worlds(stream=True), seed=seeds)
    def test_to_the_last_port_that_an_explicit_bind_gets(self, world: World, seed: int) -> None:
        possible = world.ports_on_which(by_shared_bind)
        driven = attempt(world, "explicit-bind", Case.STREAM_ANY_PORT, seed=seed)
        assert_used_to_the_last(driven, possible)

    @settings(deadline=None)
    @given(world=worlds(stream=True), seed=seeds, size=st.integers(1, 12))
    def test_shifting_windows_miss_no_port_that_they_covered(
        self, world: World, seed: int, size: int
    ) -> None:
        possible = world.ports_on_which(by_window)
        driven = attempt(world, "shifting-window", Case.STREAM_ANY_PORT, seed=seed, window=size)
        if driven.socket:
            assert driven.socket.source.port in possible
        else:
            assert not possible & set(driven.probes)

    @settings(deadline=None)
    @given(world=worlds(stream=True), seed=seeds)
    @pytest.mark.parametrize("strategy", ["kernel", "auto"])
    def test_the_kernel_alone_does_what_connect_does(
        self, strategy: str, world: World, seed: int
    ) -> None:
        # In steps of two a range of odd size loses a port, here as there.
        found = chosen_by_connect(world)
        driven = attempt(
            world,
            strategy,
            Case.STREAM_ANY_PORT,
            seed=seed,
            available=frozenset([Need.LATE_PORT, Need.WHOLE_RANGE]),
        )
        assert driven.actions == [Action.KERNEL]
        assert found == (driven.socket.source.port if driven.socket else 0)

    @settings(deadline=None)
    @given(world=worlds(stream=True), seed=seeds)
    def test_what_the_kernel_leaves_out_is_bound(self, world: World, seed: int) -> None:
        found = chosen_by_connect(world)
        possible = {found} if found else world.ports_on_which(by_shared_bind)
        # A survey does not tell who of those in FIN_WAIT2 has no owner any more.
        possible -= {
            sock.source.port
            for sock in world.kernel.sockets(stream=True)
            if sock.state is State.FIN_WAIT2
            and (sock.source.host, sock.destination) == (HOST, FIRST)
        }
        driven = attempt(world, "auto", Case.STREAM_ANY_PORT, seed=seed, available=WITHOUT_WINDOWS)
        assert_used_to_the_last(driven, possible)
        assert not driven.socket or driven.socket.source.port in possible


def chosen_by_connect(world: World) -> int:
    """The port that a plain connect() would get now, 0 for none."""
    kernel = copy.deepcopy(world.kernel)
    sock = kernel.socket(bind_address_no_port=True)
    kernel.bind(sock, HOST, 0)
    with contextlib.suppress(OSError):
        kernel.connect(sock, FIRST)
    return sock.source.port


class TestStreamsFromAPortAskedFor:
    @settings(deadline=None)
    @given(world=worlds(stream=True), asked=st.integers(LOW - 1, LOW + 9))
    @pytest.mark.parametrize("available", [EVERYTHING, EVERYTHING - {Need.PORT_IN_RANGE}])
    def test_auto(self, available: frozenset[Need], world: World, asked: int) -> None:
        in_range = world.ports.contains(asked) and asked not in world.kernel.reserved
        assume(in_range or Need.PORT_IN_RANGE not in available)
        former = world.kernel.lookup(Endpoint(HOST, asked), FIRST, stream=True)
        works = Need.PORT_IN_RANGE in available and succeeds(by_window, world, asked)
        works = works or succeeds(by_shared_bind, world, asked)
        driven = attempt(world, "auto", Case.STREAM_ASKED_PORT, available=available, asked=asked)
        assert bool(driven.socket) == works
        if not works:
            on_tuple = former is not None and former.destination is not None
            assert driven.verdict is (Verdict.TUPLE_IN_USE if on_tuple else Verdict.PORT_HELD)

    @settings(deadline=None)
    @given(world=worlds(stream=True), asked=st.integers(LOW - 1, LOW + 9))
    def test_an_exclusive_bind(self, world: World, asked: int) -> None:
        works = succeeds(by_exclusive_bind, world, asked)
        driven = attempt(world, "kernel", Case.STREAM_ASKED_PORT, asked=asked)
        assert bool(driven.socket) == works
        assert works or driven.verdict in (Verdict.PORT_HELD, Verdict.TUPLE_IN_USE)


class TestDatagrams:
    @settings(deadline=None)
    @given(world=worlds(stream=False), seed=seeds)
    def test_to_the_last_port_that_can_be_shared(self, world: World, seed: int) -> None:
        possible = world.ports_on_which(by_claim)
        driven = attempt(world, "auto", Case.DATAGRAM_ANY_PORT, seed=seed)
        assert_used_to_the_last(driven, possible)

    @settings(deadline=None)
    @given(world=worlds(stream=False), asked=st.integers(LOW - 1, LOW + 9))
    def test_a_port_asked_for(self, world: World, asked: int) -> None:
        works = succeeds(by_claim, world, asked)
        probe = world.kernel.socket(stream=False, reuseaddr=True)
        shared = True
        try:
            world.kernel.bind(probe, HOST, asked)
        except OSError:
            shared = False
        world.kernel.close(probe)
        driven = attempt(world, "auto", Case.DATAGRAM_ASKED_PORT, asked=asked)
        assert bool(driven.socket) == works
        if not works:
            assert driven.verdict is (Verdict.TUPLE_IN_USE if shared else Verdict.PORT_HELD)

    @settings(deadline=None)
    @given(world=worlds(stream=False), seed=seeds)
    def test_the_kernel_alone_shares_nothing(self, world: World, seed: int) -> None:
        driven = attempt(world, "kernel", Case.DATAGRAM_ANY_PORT, seed=seed)
        if driven.socket:
            port = driven.socket.source.port
            others = [
                sock
                for sock in world.kernel.sockets(stream=False)
                if sock.source.port == port and sock.source.host == HOST
            ]
            assert others == [driven.socket]


def succeeds(works: Callable[[KernelModel, int], None], world: World, port: int) -> bool:
    try:
        works(copy.deepcopy(world.kernel), port)
    except OSError:
        return False
    return True


ALL_CASES: Final = [
    (strategy.name, case)
    for strategy in STRATEGIES.values()
    for case in Case
    if strategy.program(case, EVERYTHING)
]


class TestWhileOthersComeAndGo:
    """Between any two actions other programs open and close sockets on the same ports."""

    @settings(max_examples=50, deadline=None)
    @given(data=st.data(), seed=seeds)
    @pytest.mark.parametrize("strategy, case", ALL_CASES)
    def test_the_4_tuple_is_ours_alone(
        self, strategy: str, case: Case, data: st.DataObject, seed: int
    ) -> None:
        stream = case in (Case.STREAM_ANY_PORT, Case.STREAM_ASKED_PORT)
        world = data.draw(worlds(stream=stream))
        others = iter(data.draw(populations(world.ports.size)))
        opened: list[ModelSocket] = []

        def meanwhile() -> None:
            other = next(others, None)
            sock = other and other.settle(world.kernel, stream=stream)
            if sock:
                opened.append(sock)
            if len(opened) > 2:
                closed = opened.pop(seed % 3)
                if closed.source.port:
                    world.kernel.close(closed)

        plan = plan_of(
            strategy,
            case,
            world.ports,
            world.kernel.reserved,
            asked=LOW if "asked" in case.value else 0,
            window=3,
            seed=seed,
        )
        assert plan
        driven = drive(world.kernel, plan, FIRST, stream=stream, host=HOST, meanwhile=meanwhile)
        if driven.socket:
            assert world.of_interest(HOST, FIRST)[driven.socket.source] == 1


class TestAmongManyPortsThatAreHeld:
    """One free port of 3,000, the others held by sockets that share them with nobody."""

    PORTS: Final = PortRange(20000, 22999)

    def world(self, *, stream: bool, free: int = 0) -> World:
        kernel = KernelModel(self.PORTS)
        for port in range(self.PORTS.low, self.PORTS.high + 1):
            if port != free:
                kernel.bind(kernel.socket(stream=stream), HOST, port)
        return World(kernel, self.PORTS, stream)

    @pytest.mark.parametrize("free", [20000, 21234, 22999])
    @pytest.mark.parametrize(
        "strategy, case",
        [
            ("auto", Case.STREAM_ANY_PORT),
            ("one-port", Case.STREAM_ANY_PORT),
            ("explicit-bind", Case.STREAM_ANY_PORT),
            ("auto", Case.DATAGRAM_ANY_PORT),
        ],
    )
    def test_it_is_found(self, strategy: str, case: Case, free: int) -> None:
        world = self.world(stream=case is Case.STREAM_ANY_PORT, free=free)
        driven = attempt(world, strategy, case)
        assert driven.socket
        assert driven.socket.source.port == free
        assert len(driven.actions) < 3 * self.PORTS.size

    @pytest.mark.parametrize(
        "strategy, case",
        [
            ("one-port", Case.STREAM_ANY_PORT),
            ("explicit-bind", Case.STREAM_ANY_PORT),
            ("auto", Case.DATAGRAM_ANY_PORT),
        ],
    )
    def test_where_none_is_free_each_is_tried_once_and_not_again_at_once(
        self, strategy: str, case: Case
    ) -> None:
        stream = case is Case.STREAM_ANY_PORT
        world = self.world(stream=stream)
        plan = plan_of(strategy, case, self.PORTS)
        assert plan
        for most in (self.PORTS.size + 100, 100):
            driven = drive(world.kernel, plan, FIRST, stream=stream, host=HOST)
            assert driven.verdict is Verdict.EXHAUSTED
            assert len(driven.actions) <= most
        plan.ledger.recycle()
        free = next(iter(world.kernel.sockets(stream=stream)))
        assert free.source
        port = free.source.port
        world.kernel.close(free)
        found = drive(world.kernel, plan, FIRST, stream=stream, host=HOST).socket
        assert found
        assert found.source
        assert found.source.port == port


class TestNotAttemptedInVain:
    """How much is tried where little is free."""

    def test_in_an_empty_range_one_action_does(self) -> None:
        for case in (Case.STREAM_ANY_PORT, Case.DATAGRAM_ANY_PORT):
            stream = case is Case.STREAM_ANY_PORT
            world = World(KernelModel(PortRange(20000, 20999)), PortRange(20000, 20999), stream)
            assert len(attempt(world, "auto", case).actions) == 1

    def test_the_kernel_is_asked_to_search_after_two_proposals(self) -> None:
        world = World(KernelModel(PortRange(20000, 20999)), PortRange(20000, 20999), stream=True)
        for port in range(20000, 20999):
            by_window(world.kernel, port)
        driven = attempt(world, "auto", Case.STREAM_ANY_PORT)
        assert driven.socket
        assert driven.actions in ([Action.WINDOW] * 3, [Action.WINDOW] * 2, [Action.WINDOW])

    def test_one_survey_settles_what_others_have_connected(self) -> None:
        ports = PortRange(20000, 20999)
        world = World(KernelModel(ports), ports, stream=False)
        for port in range(20000, 20999):
            sock = world.kernel.socket(stream=False, reuseaddr=True)
            world.kernel.bind(sock, HOST, port)
            world.kernel.connect(sock, FIRST)
        driven = attempt(world, "auto", Case.DATAGRAM_ANY_PORT)
        assert driven.socket
        assert driven.actions.count(Action.SURVEY) <= 1
        assert len(driven.actions) <= 66
