"""The model of the kernel's ports against the kernel: the same operations, the same results."""

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from connectx._connect.plan import FULL_RANGE
from connectx.addresses import Endpoint, PortRange
from connectx.lab.kernel_model import KernelModel
from connectx.lab.model_sockets import ModelSocket, Obstacle, State
from connectx.linux import features, uapi
from connectx.linux.disconnect import disconnect
from connectx.linux.features import Probe
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.sock_diag import TupleLookup
from connectx.sandbox.networks import experiment_network
from connectx.sandbox.servers import Servers
from tests import limits
from tests.kernel.mixing import COLUMNS, DATAGRAM_MATRIX, ROWS, STREAM_MATRIX, P
from tests.kernel.raw import (
    NOTAVAIL,
    OK,
    TCP,
    Technique,
    abort,
    cookie,
    destroy,
    kernel_release,
    look_up,
    set_window,
)

HOST: Final = "127.0.0.1"
HOSTS: Final = (HOST, "127.0.0.2")
DESTINATIONS: Final = (Endpoint(HOST, 9000), Endpoint(HOST, 9001))
# An even number: in steps of two, an odd range leaves out a port, by chance.
PORTS: Final = PortRange(20000, 20003)
OUTSIDE: Final = 40000
RESERVED: Final = 20002
REUSE_DELAY: Final = "net.ipv4.tcp_tw_reuse_delay"

windows = st.sampled_from(
    [(0, 0), (1, 65535), (20001, 20002), (20002, 65535), (19000, 20001)]
    + [(port, port) for port in (*range(PORTS.low, PORTS.high + 1), OUTSIDE)]
)
ports = st.sampled_from([0, 0, *range(PORTS.low, PORTS.high + 1), OUTSIDE])


class SteeredModel(KernelModel):
    """A model that searches as it would, but takes the port that the kernel took.

    Attributes:
        taken: That port; 0 if the kernel took none, so that the model is free to take any.
    """

    taken = 0

    def _probe(self, candidates: Any) -> Iterator[int]:
        return (port for port in super()._probe(candidates) if self.taken in (0, port))


@dataclass
class Pair:
    """A socket and its model.

    Attributes:
        real: The socket.
        model: The model.
        accepted: The server's side of the connection.
    """

    real: socket.socket
    model: ModelSocket
    accepted: socket.socket | None = None


class KernelComparison(RuleBasedStateMachine):
    """One namespace and its model; every operation is done in both."""

    stream: ClassVar[bool]
    pairs = Bundle("pairs")

    def __init__(self) -> None:
        super().__init__()
        stream = self.stream
        self.stack = contextlib.ExitStack()
        self.network = self.stack.enter_context(experiment_network())
        self.network.port_range(*PORTS)
        servers = self.stack.enter_context(Servers())
        self.listeners = {
            destination: servers.listen(*destination[:2]) if stream else None
            for destination in DESTINATIONS
        }
        self.netlink = self.stack.enter_context(NetlinkSocket(uapi.NETLINK_SOCK_DIAG))
        self.has_windows = features.probe(features.IP_LOCAL_PORT_RANGE) is Probe.YES
        self.has_delay = Path("/proc/sys", *REUSE_DELAY.split(".")).exists()
        self.kernel = SteeredModel(
            PORTS,
            step_of_one=kernel_release() >= (6, 8),
            recovers=kernel_release() >= (6, 18),
        )
        self.open: list[Pair] = []
        # What was left in TIME_WAIT or FIN_WAIT2, and the sources of the latter.
        self.left: list[ModelSocket] = []
        self.unanswered: set[Endpoint] = set()

    @initialize(
        reserved=st.booleans(),
        reuse=st.sampled_from([0, 1, 2]),
        after=st.sampled_from([1, 60_000]),
        timestamps=st.booleans(),
    )
    def set_sysctls(self, *, reserved: bool, reuse: int, after: int, timestamps: bool) -> None:
        if reserved:
            self.network.reserved_ports(str(RESERVED))
            self.kernel.reserved = frozenset([RESERVED])
        if not self.has_delay:
            # Whether the fixed second has passed would be a matter of timing.
            reuse = 0
        else:
            self.network.sysctl(REUSE_DELAY, after)
        self.network.sysctl("net.ipv4.tcp_tw_reuse", reuse)
        self.network.sysctl("net.ipv4.tcp_timestamps", int(timestamps))
        self.kernel.tcp_tw_reuse = reuse
        self.kernel.tcp_tw_reuse_delay = after
        self.kernel.tcp_timestamps = timestamps

    @rule(target=pairs, share=st.sampled_from(["", "", "addr", "addr", "port"]))
    def make(self, share: str) -> Pair:
        return self.new(reuseaddr=share == "addr", reuseport=share == "port")

    @rule(
        target=pairs,
        reuseaddr=st.booleans(),
        host=st.sampled_from(["", *HOSTS]),
        window=windows,
        destination=st.sampled_from(DESTINATIONS),
    )
    def open_in_the_connect_class(
        self, *, reuseaddr: bool, host: str, window: tuple[int, int], destination: Endpoint
    ) -> Pair:
        pair = self.new(reuseaddr=reuseaddr)
        self.set_window(pair, window)
        if host:
            self.set_no_port(pair)
            self.bind(pair, host, 0)
        self.connect(pair, destination)
        return pair

    @rule(
        target=pairs,
        reuseaddr=st.booleans(),
        host=st.sampled_from(HOSTS),
        port=ports,
        destination=st.sampled_from(DESTINATIONS),
    )
    def open_in_the_bind_class(
        self, *, reuseaddr: bool, host: str, port: int, destination: Endpoint
    ) -> Pair:
        pair = self.new(reuseaddr=reuseaddr)
        self.bind(pair, host, port)
        if pair.model.source.port:
            self.connect(pair, destination)
        return pair

    def new(self, *, reuseaddr: bool = False, reuseport: bool = False) -> Pair:
        kind = socket.SOCK_STREAM if self.stream else socket.SOCK_DGRAM
        real = socket.socket(socket.AF_INET, kind)
        real.settimeout(0)
        real.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, reuseaddr)
        real.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEPORT, reuseport)
        model = self.kernel.socket(stream=self.stream, reuseaddr=reuseaddr, reuseport=reuseport)
        pair = Pair(real, model)
        self.open.append(pair)
        return pair

    @rule(pair=pairs, on=st.booleans())
    def set_reuseaddr(self, pair: Pair, *, on: bool) -> None:
        pair.real.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, on)
        pair.model.reuseaddr = on

    @rule(pair=pairs)
    def set_no_port(self, pair: Pair) -> None:
        pair.real.setsockopt(uapi.IPPROTO_IP, uapi.IP_BIND_ADDRESS_NO_PORT, 1)
        pair.model.bind_address_no_port = True

    @rule(pair=pairs, window=windows)
    def set_window(self, pair: Pair, window: tuple[int, int]) -> None:
        if self.has_windows:
            set_window(pair.real, *window)
            pair.model.local_port_range = window

    @rule(pair=pairs, host=st.sampled_from(["", *HOSTS]), port=ports)
    def bind(self, pair: Pair, host: str, port: int) -> None:
        if host or not pair.model.reuseport:  # What the model leaves out.
            self.both(
                pair,
                lambda: pair.real.bind((host, port)),
                lambda: self.kernel.bind(pair.model, host, port),
            )

    @rule(pair=pairs, destination=st.sampled_from(DESTINATIONS))
    def connect(self, pair: Pair, destination: Endpoint) -> None:
        source = pair.model.source
        if pair.model.state is not State.CLOSE:
            return
        if self.stream and source.port and not source.host:
            return  # What the model leaves out.
        number = self.both(
            pair,
            lambda: pair.real.connect(destination[:2]),
            lambda: self.kernel.connect(pair.model, destination),
        )
        if self.stream and not number:
            pair.accepted = self.accept(destination, pair)

    def accept(self, destination: Endpoint, pair: Pair) -> socket.socket | None:
        """Return the server's side of a new connection; None while an old one is in its way."""
        if pair.model.source in self.unanswered:
            return None
        listener = self.listeners[destination]
        assert listener
        while True:
            accepted, peer = limits.accept(listener)
            self.stack.enter_context(accepted)
            if peer == pair.model.source[:2] and is_established(accepted):
                return accepted

    @rule(pair=pairs)
    def listen(self, pair: Pair) -> None:
        if self.stream and pair.model.state is State.CLOSE and pair.model.source.port:
            self.both(pair, lambda: pair.real.listen(1), lambda: self.kernel.listen(pair.model))

    @rule(pair=pairs)
    def disconnect(self, pair: Pair) -> None:
        if pair.model.state is not State.LISTEN:
            self.both(
                pair, lambda: disconnect(pair.real), lambda: self.kernel.disconnect(pair.model)
            )

    @rule(pair=consumes(pairs))
    def close(self, pair: Pair) -> None:
        abort(pair.real)
        self.kernel.close(pair.model)
        self.open.remove(pair)

    @rule(pair=consumes(pairs), state=st.sampled_from([State.TIME_WAIT, State.FIN_WAIT2]))
    def leave(self, pair: Pair, state: State) -> None:
        """Close a connection in an orderly way, and wait until it is in the state."""
        model = pair.model
        if model.destination is None or pair.accepted is None or model.source.host != HOST:
            self.close(pair)
            return
        pair.real.close()
        if state is State.TIME_WAIT:
            pair.accepted.close()
        else:
            # The server answers no new handshake on this 4-tuple at once.
            self.unanswered.add(model.source)
        self.open.remove(pair)
        self.kernel.close(model, leaving=state)
        self.left.append(model)
        self.wait_for(model, state)

    def wait_for(self, model: ModelSocket, state: State) -> None:
        number = uapi.TCP_TIME_WAIT if state is State.TIME_WAIT else uapi.TCP_FIN_WAIT2
        # A TIME_WAIT lasts a minute. It must be old enough for the kernel's coarsest clock
        # (10 ms) to agree that it is older than a millisecond.
        age = 30 if self.kernel.tcp_tw_reuse_delay == 1 and state is State.TIME_WAIT else 0
        destination = model.destination
        assert destination

        def look() -> bool:
            found = look_up(TCP, model.source.port, destination.port)
            return bool(found and found.state == number and found.expires <= 60_000 - age)

        limits.until(look, f"a {state} that is {age} ms old")
        self.kernel.now += age

    @rule(number=st.integers(0, 9))
    def end_a_time_wait(self, number: int) -> None:
        left = [model for model in self.left if model.state is not State.CLOSE]
        if left:
            model = left[number % len(left)]
            assert model.destination
            destroy(TCP, model.source.port, model.destination.port)
            self.kernel.close(model)

    @rule(
        host=st.sampled_from(HOSTS),
        port=st.sampled_from(range(PORTS.low, PORTS.high + 1)),
        destination=st.sampled_from(DESTINATIONS),
    )
    def look_up(self, host: str, port: int, destination: Endpoint) -> None:
        protocol = uapi.IPPROTO_TCP if self.stream else uapi.IPPROTO_UDP
        lookup = TupleLookup(
            protocol,
            uapi.AF_INET,
            socket.inet_aton(host),
            socket.inet_aton(destination.host),
            destination.port,
        )
        record = lookup.find_record(self.netlink, port)
        model = self.kernel.lookup(Endpoint(host, port), destination, stream=self.stream)
        if model is None or record is None:
            assert (model, record) == (None, None)
        elif model in self.left:
            assert record.state in (uapi.TCP_TIME_WAIT, uapi.TCP_FIN_WAIT2)
        elif not model.reuseport:  # Of a group, a hash chooses one.
            (real,) = (pair.real for pair in self.open if pair.model is model)
            assert record.cookie == cookie(real)

    def both(self, pair: Pair, real: Callable[[], object], model: Callable[[], object]) -> int:
        """Do it to the socket and to the model, and return the errno; 0 for success."""
        number = errno_of(real)
        self.kernel.taken = 0 if number else pair.real.getsockname()[1]
        assert errno_of(model) == number
        return number

    @invariant()
    def names_agree(self) -> None:
        for pair in self.open:
            host, port = pair.real.getsockname()
            source = pair.model.source
            assert host.replace("0.0.0.0", "") == source.host
            # A stream's getsockname() still returns a port that was released.
            assert port == source.port or (self.stream and not source.port)

    def teardown(self) -> None:
        for pair in self.open:
            abort(pair.real)
        self.stack.close()


def errno_of(operation: Callable[[], object]) -> int:
    try:
        operation()
    except BlockingIOError as error:
        # A connect() that does not wait succeeds with EINPROGRESS.
        return 0 if error.errno == errno.EINPROGRESS else errno.EAGAIN
    except OSError as error:
        return error.errno or -1
    return 0


def is_established(sock: socket.socket) -> bool:
    # struct tcp_info: the state comes first.
    state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state == uapi.TCP_ESTABLISHED


class StreamComparison(KernelComparison):
    stream = True


class DatagramComparison(KernelComparison):
    stream = False


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize("machine", [StreamComparison, DatagramComparison])
def test_random_operations_have_the_same_results(machine: type[KernelComparison]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


# The tables that tests/kernel compares with the kernel, compared with the model.


def outcome(
    kernel: KernelModel, technique: Technique, destination: Endpoint, *, stream: bool
) -> str:
    sock = kernel.socket(
        stream=stream,
        reuseaddr=technique.reuseaddr,
        reuseport=technique.reuseport,
        bind_address_no_port=technique.no_port,
        local_port_range=technique.window or (0, 0),
    )
    call = "bind"
    try:
        if technique.bind is not None:
            kernel.bind(sock, HOST, technique.bind)
        call = "connect"
        kernel.connect(sock, destination)
    except OSError as error:
        return f"{errno.errorcode[error.errno or 0]} at {call}"
    return OK


@pytest.mark.parametrize(
    "stream, row, column, expected",
    [
        (stream, row, column, expected)
        for stream, matrix in ((True, STREAM_MATRIX), (False, DATAGRAM_MATRIX))
        for row, cells in matrix.items()
        for column, expected in zip(COLUMNS, cells, strict=True)
    ],
)
def test_cell_of_the_mixing_matrix(*, stream: bool, row: str, column: str, expected: str) -> None:
    for held in ROWS[row]:
        for wanted in COLUMNS[column]:
            kernel = KernelModel(PortRange(P, P))
            assert outcome(kernel, held, DESTINATIONS[0], stream=stream) == OK
            assert outcome(kernel, wanted, DESTINATIONS[1], stream=stream) == expected


def ports_taken(
    kernel: KernelModel, *, stream: bool = True, window: tuple[int, int] = (0, 0)
) -> list[int]:
    """Return the ports of connections to one destination, in order, until none is left."""
    taken: list[int] = []

    def exhaust() -> None:
        while True:
            sock = kernel.socket(stream=stream, local_port_range=window)
            kernel.connect(sock, DESTINATIONS[0])
            taken.append(sock.source.port)

    with pytest.raises(OSError, match="EADDRNOTAVAIL" if stream else "EAGAIN"):
        exhaust()
    return taken


@pytest.mark.parametrize("stream", [True, False], ids=["TCP", "UDP"])
@pytest.mark.parametrize(
    "window, low, high",
    [
        ((20003, 20006), 20003, 20006),
        ((0, 20006), 20001, 20006),
        ((20003, 0), 20003, 20008),
        ((19000, 20006), 20001, 20006),
        ((20003, 60000), 20003, 20008),
        ((19000, 19999), 20001, 20008),
        ((30000, 30007), 20001, 20008),
        (FULL_RANGE, 20001, 20008),
        ((20005, 20005), 20005, 20005),
    ],
)
def test_an_end_of_a_window_outside_of_the_range_is_replaced(
    *, stream: bool, window: tuple[int, int], low: int, high: int
) -> None:
    kernel = KernelModel(PortRange(20001, 20008), reserved=[20004])
    taken = ports_taken(kernel, stream=stream, window=window)
    assert sorted(taken) == [port for port in range(low, high + 1) if port != 20004]


@pytest.mark.parametrize("low", [20000, 20001])
def test_without_a_window_the_low_ends_parity_comes_first(low: int) -> None:
    taken = ports_taken(KernelModel(PortRange(low, low + 63)))
    assert [port % 2 for port in taken] == [low % 2] * 32 + [1 - low % 2] * 32


@pytest.mark.parametrize("step_of_one, mixed", [(True, True), (False, False)])
def test_with_a_window_it_does_not_since_linux_6_8(*, step_of_one: bool, mixed: bool) -> None:
    kernel = KernelModel(PortRange(20001, 20064), step_of_one=step_of_one)
    taken = ports_taken(kernel, window=FULL_RANGE)
    assert (len({port % 2 for port in taken[:32]}) == 2) is mixed
    assert sorted(taken) == list(range(20001, 20065))


@pytest.mark.parametrize("window, count", [((0, 0), 2), (FULL_RANGE, 3)])
def test_in_steps_of_two_the_last_of_three_ports_is_never_taken(
    window: tuple[int, int], count: int
) -> None:
    assert len(ports_taken(KernelModel(PortRange(20001, 20003)), window=window)) == count
    old = KernelModel(PortRange(20001, 20003), step_of_one=False)
    assert len(ports_taken(old, window=window)) == 2


def test_searches_begin_anywhere() -> None:
    first = {ports_taken(KernelModel(PORTS, seed=seed))[0] for seed in range(50)}
    assert first == {20000, 20002}
    first = {ports_taken(KernelModel(PORTS, seed=seed), window=FULL_RANGE)[0] for seed in range(50)}
    assert first == set(range(20000, 20004))


def test_the_same_seed_does_the_same() -> None:
    runs = [ports_taken(KernelModel(PortRange(20000, 20099), seed=7)) for _ in range(2)]
    assert runs[0] == runs[1]


class TestProbes:
    """The ports that a search looks at are what it costs."""

    @pytest.mark.parametrize("window, probes", [((0, 0), 1000), ((20007, 20007), 1)])
    def test_a_search_in_vain_looks_at_every_port_once(
        self, window: tuple[int, int], probes: int
    ) -> None:
        kernel = KernelModel(PortRange(20000, 20999))
        assert len(ports_taken(kernel)) == 1000
        sock = kernel.socket(local_port_range=window)
        with pytest.raises(OSError, match="EADDRNOTAVAIL"):
            kernel.connect(sock, DESTINATIONS[0])
        assert len(kernel.probes) == len(set(kernel.probes)) == probes

    def test_past_half_of_the_range_a_plain_connect_looks_at_the_first_half_in_vain(self) -> None:
        kernel = KernelModel(PortRange(20000, 20999))
        for _ in range(501):
            kernel.connect(kernel.socket(), DESTINATIONS[0])
        assert len(kernel.probes) > 500
        kernel.connect(kernel.socket(local_port_range=FULL_RANGE), DESTINATIONS[0])
        assert len(kernel.probes) < 100

    def test_in_an_empty_range_the_first_will_do(self) -> None:
        for stream in (True, False):
            kernel = KernelModel(PortRange(20000, 20999), reserved=range(20000, 20500))
            kernel.connect(kernel.socket(stream=stream), DESTINATIONS[0])
            assert len(kernel.probes) == 1

    def test_why_a_port_is_passed_over(self) -> None:
        kernel = KernelModel(PORTS)
        kernel.bind(kernel.socket(), HOSTS[1], 20001)
        sock = kernel.socket(local_port_range=(20002, 20002))
        kernel.connect(sock, DESTINATIONS[0])

        def obstacles(host: str, destination: Endpoint) -> list[Obstacle | None]:
            ports = range(PORTS.low, PORTS.high + 1)
            return [kernel.obstacle(Endpoint(host, port), destination) for port in ports]

        assert obstacles(HOST, DESTINATIONS[0]) == [None, Obstacle.BOUND, Obstacle.IN_USE, None]
        # Another destination or source shares the port that connect() chose, but not the other.
        shared = [None, Obstacle.BOUND, None, None]
        assert obstacles(HOST, DESTINATIONS[1]) == obstacles(HOSTS[1], DESTINATIONS[0]) == shared
        kernel.close(sock, State.TIME_WAIT)
        assert obstacles(HOST, DESTINATIONS[0])[2] is Obstacle.IN_USE
        kernel.now += kernel.tcp_tw_reuse_delay + 1
        assert obstacles(HOST, DESTINATIONS[0])[2] is None

    def test_an_explicit_bind_searches_nothing(self) -> None:
        kernel = KernelModel(PORTS)
        sock = kernel.socket()
        kernel.bind(sock, HOST, 20001)
        kernel.connect(sock, DESTINATIONS[0])
        assert kernel.probes == []


def test_a_bucket_recovers_when_its_last_explicit_binder_leaves_since_linux_6_18() -> None:
    for recovers, expected in ((True, OK), (False, NOTAVAIL)):
        kernel = KernelModel(PortRange(P, P), recovers=recovers)
        window = Technique("", reuseaddr=True, window=(P, P))
        assert outcome(kernel, window, DESTINATIONS[0], stream=True) == OK
        binder = kernel.socket(reuseaddr=True)
        kernel.bind(binder, HOST, P)
        assert outcome(kernel, window, DESTINATIONS[1], stream=True) == NOTAVAIL
        kernel.close(binder)
        assert outcome(kernel, window, DESTINATIONS[1], stream=True) == expected
