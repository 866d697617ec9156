"""The first proposal without an `Attempt` is what the interpreter would have done.

Both run against the real kernel, from the same ledger, with ports in every state that a
proposal may meet with. What they ask of the kernel is recorded, call by call.
"""

import contextlib
import errno
import itertools
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectx._connect.attempt import Attempt
from connectx._connect.connection import _WINDOWS, Connection
from connectx._connect.namespace import NAMESPACES, windows_work
from connectx._connect.plan import FULL_RANGE, make_plan
from connectx._connect.request import Request, parse
from connectx.blocking import run
from connectx.errors import PortsExhausted
from connectx.linux import features
from connectx.linux.sockopts import pack_port_range
from connectx.linux.uapi import IP_LOCAL_PORT_RANGE, IPPROTO_IP
from connectx.sandbox.networks import Network, experiment_network
from connectx.sandbox.servers import Servers
from tests.api.calls import reset_on_close
from tests.kernel.raw import FIRST, MPTCP, TCP, TCP6, UDP, UDP6, UDPLITE, Transport

LOW: Final = 20000
PORTS: Final = 8

#: What a port may be like that is proposed.
FREE, HELD, TAKEN = "free", "held by another socket", "taken on this 4-tuple"


class Asked(NamedTuple):
    """A system call, with what it was given."""

    call: str
    arguments: tuple[Any, ...]


class Result(NamedTuple):
    """What came of a connection.

    port: its source port; 0 without. error: the class and errno of what it raised.
    """

    asked: list[Asked]
    port: int
    error: tuple[type[BaseException], int | None] | None
    retries: int
    in_use: int


class RecordingSocket(socket.socket):
    """Notes what is asked of the kernel, sockets of all connections together."""

    asked: list[Asked]

    def setsockopt(self, *arguments: Any) -> None:
        self.asked.append(Asked("setsockopt", arguments))
        super().setsockopt(*arguments)

    def bind(self, *arguments: Any) -> None:
        self.asked.append(Asked("bind", arguments))
        super().bind(*arguments)

    def connect(self, *arguments: Any) -> None:
        self.asked.append(Asked("connect", arguments))
        super().connect(*arguments)


def connected(
    request: Request, drawn: list[int], go: Callable[[Connection], None], windows: int = 0
) -> Result:
    """Connect one way, from a ledger that has drawn these ports; windows: see `Shelf`."""
    asked: list[Asked] = []
    RecordingSocket.asked = asked
    connection = Connection(request, None)
    namespace = NAMESPACES.of(connection.sock)
    namespace.plans.clear()
    plan = make_plan(namespace, request)
    ledger = plan.ledger
    plan.terms.shelf.shared_calls = plan.terms.shelf.in_vain = 0
    plan.terms.shelf.windows = windows
    ledger._forget(ledger._shelf.template)
    ledger.walks = not drawn and plan.terms.shelf.walkable
    # As if it had drawn them: the last one is proposed first.
    ledger.drawn = drawn[::-1]
    ledger._given = len(drawn)
    port, error = 0, None
    try:
        go(connection)
        port = connection.sock.getsockname()[1]
    except OSError as raised:
        error = (type(raised), raised.errno)
    found = Result(asked.copy(), port, error, connection.retries, ledger.in_use)
    if port and request.origin.stream:
        # A TIME_WAIT would be in the other one's way.
        reset_on_close(connection.sock)
    connection.sock.close()
    return found


def the_walk_of(sock: socket.socket) -> int:
    """How many calls are to have a port searched for in steps of one."""
    plans: Any = NAMESPACES.of(sock).plans.values()
    return max(int(plan.terms.shelf.windows) for plan in plans)


def connect(request: Request) -> socket.socket:
    connection = Connection(request, None)
    quickly(connection)
    return connection.sock


def quickly(connection: Connection) -> None:
    steps = connection.begin()
    if steps is not None:
        run(steps)


def by_the_interpreter(connection: Connection) -> None:
    """What `begin` does, but for its first proposal."""
    namespace = NAMESPACES.of(connection.sock)
    connection.plan = namespace.plans[connection.request]  # type: ignore[assignment]
    run(connection._steps(Attempt(connection.plan.terms, connection.plan.ledger)))


@contextlib.contextmanager
def ports_like(transport: Transport, states: list[str]) -> Iterator[None]:
    """The first ports of the range in these states, the others free."""
    with contextlib.ExitStack() as stack:
        for port, state in zip(itertools.count(LOW), states, strict=False):
            if state == FREE:
                continue
            sock = stack.enter_context(transport.socket())
            if state == TAKEN and transport.type == socket.SOCK_DGRAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((transport.source, port))
            if state == TAKEN:
                sock.connect((transport.source, FIRST))
        yield


with_or_without_source = pytest.mark.parametrize(
    "with_source", [False, True], ids=["any source", "source address"]
)


def request_of(transport: Transport, *, with_source: bool) -> Request:
    default = transport.protocol in {socket.IPPROTO_TCP, socket.IPPROTO_UDP}
    request = parse(
        0,
        int(transport.type),
        0 if default else transport.protocol,
        "auto",
        (transport.source, 0) if with_source else None,
        (transport.source, FIRST),
    )
    # The first one in a process finds out what the kernel can do.
    windows_work(request.origin.protocol)
    return request


@with_or_without_source
@pytest.mark.parametrize("transport", [TCP, TCP6, MPTCP, UDP, UDP6, UDPLITE], ids=str)
@given(states=st.lists(st.sampled_from([FREE, HELD, TAKEN]), max_size=4))
def test_both_ask_the_same_of_the_kernel(
    transport: Transport, states: list[str], *, with_source: bool
) -> None:
    with (
        experiment_network() as network,
        Servers() as servers,
        pytest.MonkeyPatch.context() as patch,
    ):
        network.port_range(LOW, LOW + PORTS - 1)
        transport.socket().close()  # Skips the test where the kernel lacks the protocol.
        if transport.type == socket.SOCK_STREAM:
            servers.listen(transport.source, FIRST, protocol=transport.protocol)
        request = request_of(transport, with_source=with_source)
        drawn = [LOW + number for number in range(len(states) + 1)]
        with ports_like(transport, states):
            patch.setattr(socket, "socket", RecordingSocket)
            results = [connected(request, drawn, go) for go in (quickly, by_the_interpreter)]
    quick, interpreted = results
    if len(states) < 2 or transport.type == socket.SOCK_DGRAM:
        assert quick == interpreted
    else:
        # After two refusals the kernel searches, and chooses by chance.
        assert quick._replace(port=0) == interpreted._replace(port=0)
        assert bool(quick.port) == bool(interpreted.port)
    assert quick.error is None or quick.error[1] in (errno.EADDRNOTAVAIL, errno.EAGAIN)


@with_or_without_source
@pytest.mark.parametrize("transport", [TCP, TCP6, MPTCP], ids=str)
@pytest.mark.parametrize("exhausted", [False, True])
@pytest.mark.parametrize("windows", [0, 2], ids=["of any parity", "in steps of one"])
def test_both_let_the_kernel_walk(
    transport: Transport,
    network: Network,
    servers: Servers,
    windows: int,
    *,
    with_source: bool,
    exhausted: bool,
) -> None:
    high = LOW + 511
    network.port_range(LOW, high)
    if exhausted:
        network.sysctl("net.ipv4.ip_local_reserved_ports", f"{LOW}-{high}")
    servers.listen(transport.source, FIRST, protocol=transport.protocol)
    request = request_of(transport, with_source=with_source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", RecordingSocket)
        quick, interpreted = (
            connected(request, [], go, windows)._replace(port=0)
            for go in (quickly, by_the_interpreter)
        )
    assert quick == interpreted
    assert quick.error == ((PortsExhausted, errno.EADDRNOTAVAIL) if exhausted else None)
    if features.probe(features.STEP_OF_ONE) is features.Probe.YES:
        window = IPPROTO_IP, IP_LOCAL_PORT_RANGE, pack_port_range(*FULL_RANGE)
        asked = Asked("setsockopt", window) in quick.asked
        assert asked == (windows > 0 or exhausted)


@pytest.mark.parametrize("transport", [TCP, TCP6], ids=str)
def test_where_half_of_the_ports_are_in_use_the_kernel_searches_in_steps_of_one(
    transport: Transport, network: Network, servers: Servers
) -> None:
    """After one connection that has gone through that half."""
    if features.probe(features.STEP_OF_ONE) is not features.Probe.YES:
        pytest.skip("kernel: searches windows in steps of two before 6.8")
    high = LOW + 511
    network.port_range(LOW, high)
    evens = ",".join(map(str, range(LOW, high, 2)))
    servers.listen(transport.source, FIRST, protocol=transport.protocol)
    request = request_of(transport, with_source=False)
    with Connection(request, None).sock as unused:
        NAMESPACES.look_again(NAMESPACES.of(unused))
    before = connect(request)
    assert not the_walk_of(before)
    network.sysctl("net.ipv4.ip_local_reserved_ports", evens)
    first, second = connect(request), connect(request)
    assert the_walk_of(second) == _WINDOWS - 1
    for sock in (before, first, second):
        sock.close()
