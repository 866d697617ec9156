"""Where the kernel walks through the range, the ledger lets it, and tells when to stop."""

import random
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectx._connect.attempt import Attempt
from connectx._connect.plan import FULL_RANGE
from connectx._connect.rest import MINUTE
from connectx._connect.strategies import KERNEL_CHOICES, Action, Case, Outcome, Verdict
from connectx._connect.walk import Walk
from connectx.addresses import PortRange
from tests._connect.plans import plan_of, shelf_of

RANGE: Final = PortRange(32768, 60999)
SMALL: Final = PortRange(20000, 20511)

#: Seconds after which the kernel's walk goes on elsewhere.
SHUFFLE: Final = 10


class Kernel:
    """Walks as __inet_hash_connect() does, and knows only what is in use.

    Half of the ports are never all in use here.
    """

    def __init__(self, ports: PortRange, seed: int = 0) -> None:
        self.ports = ports
        self.seconds = 0.0
        self.in_use: set[int] = set()
        self.closed: dict[int, float] = {}
        self._random = random.Random(seed)  # noqa: S311 - to be repeatable is what it is for
        self._at = 0
        self._period = -1

    @property
    def period(self) -> int:
        return int(self.seconds / SHUFFLE)

    def connect(self) -> int:
        """Somebody connects, who has no port of their own in mind."""
        if self.period != self._period:
            self._period = self.period
            self._at = self._random.randrange(self.ports.size)
        for tried in range(0, self.ports.size, 2):
            port = self.ports.low + ((self._at & ~1) + tried) % self.ports.size
            if port not in self.in_use:
                self._at += max(tried, self._random.randrange(8) * 2) + 2
                self.in_use.add(port)
                return port
        return 0

    def connect_from(self, port: int) -> bool:
        """Somebody connects from a window of one port; whether it is free."""
        if port in self.in_use:
            return False
        self._at += self._random.randrange(8) + 1
        self.in_use.add(port)
        return True

    def clock(self) -> float:
        return self.seconds

    def close(self, port: int) -> None:
        self.in_use.remove(port)
        self.closed[port] = self.seconds

    def rests(self, port: int) -> bool:
        return self.seconds - self.closed.get(port, -2 * MINUTE) < MINUTE


class Client:
    """Connects as a `Connection` does.

    Attributes:
        walked: How many ports the kernel has chosen.
        met: How many of these rested, where nothing was known yet of where the walk went on.
        missed: How many of the others rested.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.ledger = shelf_of(kernel.ports, clock=kernel.clock, walks=True).ledger("there")
        self.walked = self.met = self.missed = 0
        # When the kernel has chosen the last one, and how many since then; -1 if it was proposed.
        self._period = -1
        self._seen = 0

    @property
    def walks(self) -> bool:
        return self.ledger.walks and not self.ledger.drawn

    def connect(self) -> int:
        kernel, ledger = self.kernel, self.ledger
        if not self.walks:
            self._period = -1
            while (port := ledger.propose()) and not kernel.connect_from(port):
                ledger.refused(port)
            return port
        port = kernel.connect()
        ledger.found(port)
        self.walked += 1
        if self._period != kernel.period:
            self._period, self._seen = kernel.period, 0
        self._seen += 1
        if self._seen <= 2:
            # From two calls it knows how many others make in between.
            self.met += kernel.rests(port)
        else:
            self.missed += kernel.rests(port)
        return port

    def close(self, port: int) -> None:
        self.kernel.close(port)
        self.ledger.released(port)

    def use(self) -> int:
        port = self.connect()
        self.close(port)
        return port


@pytest.fixture
def kernel() -> Kernel:
    return Kernel(RANGE)


@pytest.fixture
def client(kernel: Kernel) -> Client:
    return Client(kernel)


@pytest.mark.parametrize("others", [0, 1, 5, 50])
@pytest.mark.parametrize("a_second", [1, 25, 100, 300])
def test_no_port_comes_back_in_a_minute(
    kernel: Kernel, client: Client, a_second: int, others: int
) -> None:
    """One call after the other, and others' in between."""
    rested = 0
    for _ in range(5000):
        kernel.seconds += 1 / a_second
        walks, closed = client.walks, dict(kernel.closed)
        port = client.use()
        rested += walks or kernel.seconds - closed.get(port, -MINUTE) >= MINUTE
        for _ in range(others):
            kernel.in_use.remove(kernel.connect())
    # One in 16 at most each time that nothing was known yet. Of such a port it is forgotten that
    # it rests once more.
    assert client.met <= 10
    # Others' steps of hundreds of ports differ by more than there is room for.
    assert client.missed <= (2 if others == 50 else 0)
    assert rested >= 5000 - client.met - client.missed
    assert client.walked > (2500 if a_second == 1 and others <= 1 else 50)


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("open"), st.integers(1, 3)),
            st.tuples(st.just("use"), st.integers(1, 60)),
            st.tuples(st.just("close"), st.integers(0, 8)),
            st.tuples(st.just("others"), st.integers(1, 4)),
            st.tuples(st.just("wait"), st.integers(1, 40)),
        ),
        max_size=60,
    ),
    seed=st.integers(0, 10),
)
def test_whatever_is_open_and_closes(steps: list[tuple[str, int]], seed: int) -> None:
    """Connections that last end anywhere in the walk's way."""
    kernel = Kernel(SMALL, seed)
    client = Client(kernel)
    opened: list[int] = []
    for what, number in steps:
        if what == "wait":
            kernel.seconds += number
        elif what == "close":
            for port in opened[:number]:
                client.close(port)
            del opened[:number]
        for _ in range(number):
            if what == "open":
                opened.append(client.connect())
            elif what == "use":
                client.use()
            elif what == "others":
                kernel.in_use.remove(kernel.connect())
    assert not client.missed


@pytest.mark.parametrize("ahead", [1, 8, 30, 100])
def test_a_connection_that_ends_ahead_of_it(kernel: Kernel, client: Client, ahead: int) -> None:
    """It was opened when the walk was here the last time."""
    for _ in range(200):
        client.use()
    lasting = client.connect()
    # It goes round.
    while not 0 < (lasting - client.use()) % RANGE.size <= ahead + 8:
        assert client.walks
        kernel.closed.clear()
        client.ledger._resting = None
    client.close(lasting)
    assert lasting not in {client.use() for _ in range(200)}


def test_it_goes_on_behind_what_was_in_its_way(kernel: Kernel, client: Client) -> None:
    client.use()
    client.close(client.connect())
    for _ in range(5):
        client.kernel.closed[client.use()] = kernel.seconds
    before = client.walked
    client.ledger._walk = Walk(RANGE.size, RANGE.low)
    client.ledger.walks = False
    for _ in range(200):
        client.use()
    assert client.walked > before + 100


def test_it_stops_where_many_are_in_use(kernel: Kernel, client: Client) -> None:
    """The last free port is not to be found by a walk through the others."""
    ports = [client.connect() for _ in range(RANGE.size // 32)]
    assert not client.walks
    assert client.walked < RANGE.size // 32
    for port in ports:
        client.close(port)
    for _ in range(200):
        kernel.seconds += MINUTE
        client.use()
    assert client.walks


def test_it_stops_where_many_rest(kernel: Kernel, client: Client) -> None:
    for _ in range(RANGE.size // 8):
        kernel.seconds += 1 / 1000
        client.use()
    assert not client.walks
    assert client.walked < RANGE.size // 8


@pytest.mark.parametrize("walks", [False, True])
def test_not_in_a_small_range_or_for_datagrams(*, walks: bool) -> None:
    size = 200 if walks else RANGE.size
    shelf = shelf_of(PortRange(RANGE.low, RANGE.low + size - 1), walks=walks)
    assert not shelf.ledger("there").walks


@pytest.mark.parametrize("reserved, walks", [(500, True), (5_000, False)])
def test_not_where_many_are_reserved(reserved: int, *, walks: bool) -> None:
    """Each time it comes to them, it goes on with the first port behind them."""
    holes = range(RANGE.low, RANGE.low + reserved)
    assert shelf_of(RANGE, holes, walks=True).ledger("there").walks is walks


def test_a_new_destination_has_nothing_to_keep_away_from(client: Client) -> None:
    client.use()
    assert client.walked == 1
    assert client.ledger._walk is None
    client.use()
    assert client.ledger._walk is not None


def test_what_has_rested_is_forgotten_while_it_walks(kernel: Kernel, client: Client) -> None:
    for _ in range(500):
        client.use()
        kernel.seconds += 1
    assert client.ledger._resting is not None
    assert len(client.ledger._resting) <= MINUTE + 2


def attempt(strategy: str = "auto", *, walks: bool = True) -> Attempt:
    plan = plan_of(strategy, Case.STREAM_ANY_PORT, RANGE, walks=walks)
    assert plan
    return Attempt(plan, plan.ledger)


class TestAttempt:
    def test_the_kernel_is_asked_first(self) -> None:
        first = attempt()
        assert (first.low, first.high) == (0, 0)
        assert not first.proposed
        # It may have left one out.
        assert first.feed(Outcome.UNAVAILABLE)
        assert (first.action, first.low, first.high) == (Action.WINDOW, *FULL_RANGE)
        assert first.feed(Outcome.UNAVAILABLE)
        assert first.action is Verdict.EXHAUSTED

    def test_in_steps_of_one_where_half_of_the_ports_are_in_use(self) -> None:
        plan = plan_of("auto", Case.STREAM_ANY_PORT, RANGE, walks=True)
        assert plan
        first = Attempt(replace(plan, walks_in_steps_of_one=True), plan.ledger)
        assert (first.action, first.low, first.high) == (Action.WINDOW, *FULL_RANGE)

    def test_then_the_ledger(self) -> None:
        second = attempt(walks=False)
        assert second.low == second.high
        assert second.proposed

    def test_a_socket_connected_to_itself_is_tried_again(self) -> None:
        first = attempt()
        for _ in range(KERNEL_CHOICES):
            assert (first.low, first.high) == (0, 0)
            assert first.feed(Outcome.ITSELF)
        assert first.proposed

    def test_a_strategy_does_what_its_name_says(self) -> None:
        assert attempt("one-port").proposed
