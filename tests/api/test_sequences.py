"""Any sequence of calls among other users of the ports: every refusal is checked with the kernel.

What is known of ports is a hint that others can prove wrong at any time. So whatever has
happened before, "exhausted" has to mean that not one port of the range could be had, "in use"
and "held" that it is so, and no 4-tuple is ever given out twice.
"""

import contextlib
import errno
import socket
from typing import Final, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectx import PortHeld, PortsExhausted, TupleInUse
from connectx.addresses import Address
from connectx.linux import uapi
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.socket_dump import Filter, records
from connectx.sandbox.networks import Network, experiment_network
from connectx.sandbox.servers import listen
from tests.api.calls import CALLS, TCP_MAPPED, UDP_MAPPED, is_stream, port_of, reset_on_close
from tests.kernel.raw import (
    FIRST,
    SECOND,
    TCP,
    TCP6,
    UDP,
    UDP6,
    Technique,
    Transport,
    prepare,
)

LOW, HIGH = 20001, 20004

#: What is done, and its arguments.
Step: TypeAlias = tuple[str, tuple[object, ...]]

CALL: Final = st.sampled_from(sorted(CALLS))
DESTINATION: Final = st.sampled_from([FIRST, SECOND])
PORT: Final = st.integers(LOW, HIGH + 1)
INDEX: Final = st.integers(0, 20)

STEPS: Final = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.tuples(CALL, st.booleans(), DESTINATION)),
        st.tuples(st.just("open"), st.tuples(CALL, st.booleans(), DESTINATION)),
        st.tuples(st.just("ask"), st.tuples(CALL, PORT, DESTINATION)),
        st.tuples(st.just("plain"), st.tuples(DESTINATION)),
        st.tuples(st.just("share"), st.tuples(PORT, DESTINATION)),
        st.tuples(st.just("hold"), st.tuples(PORT)),
        st.tuples(st.just("close"), st.tuples(INDEX)),
        st.tuples(st.just("close"), st.tuples(INDEX)),
        st.tuples(st.just("vanish"), st.tuples(INDEX)),
        st.tuples(st.just("widen"), st.tuples(st.integers(0, 2), st.integers(0, 3))),
        st.tuples(st.just("reserve"), st.tuples(st.sets(PORT, max_size=2))),
    ),
    min_size=8,
    max_size=40,
)


class World:
    """One network, our calls in it, and the sockets of others."""

    def __init__(self, transport: Transport, network: Network, stack: contextlib.ExitStack) -> None:
        self.transport = transport
        self.sockets: list[socket.socket] = []
        self._network = network
        self._stack = stack
        self._range = (LOW, HIGH)
        self._reserved: set[int] = set()
        network.port_range(*self._range)

    def open(self, call: str, has_source: bool, destination: int) -> None:  # noqa: FBT001
        source = (self.transport.source, 0) if has_source else None
        try:
            sock = self._call(call, source, destination)
        except PortsExhausted:
            for port in range(self._range[0], self._range[1] + 1):
                assert port in self._reserved or not self._can_be_had(port, destination)
            return
        self._keep(sock)
        if is_stream(self.transport):
            # For datagrams, ports are bound explicitly, and the range is up to a second old.
            assert self._range[0] <= port_of(sock) <= self._range[1]

    def ask(self, call: str, port: int, destination: int) -> None:
        try:
            sock = self._call(call, (self.transport.source, port), destination)
        except TupleInUse:
            assert self._is_connected(port, destination)
        except PortHeld:
            assert not self._can_be_bound(port)
        else:
            self._keep(sock)
            assert port_of(sock) == port

    def plain(self, destination: int) -> None:
        """Somebody connects who has never heard of us."""
        sock = self._new()
        try:
            sock.connect((self.transport.source, destination))
        except OSError as error:
            # For a datagram "no port" is EAGAIN.
            assert error.errno in {errno.EADDRNOTAVAIL, errno.EAGAIN}  # noqa: PT017

    def share(self, port: int, destination: int) -> None:
        """Somebody binds the port with SO_REUSEADDR, and connects if that is safe."""
        sock = self._new()
        with contextlib.suppress(OSError):
            prepare(sock, Technique("", reuseaddr=True, bind=port), self.transport.source)
            if not self._is_connected(port, destination):
                sock.connect((self.transport.source, destination))

    def hold(self, port: int) -> None:
        """Somebody binds the port for himself."""
        with contextlib.suppress(OSError):
            self._new().bind((self.transport.source, port))

    def close(self, index: int) -> None:
        if self.sockets:
            sock = self.sockets.pop(index % len(self.sockets))
            if is_stream(self.transport):
                reset_on_close(sock)
            sock.close()

    def vanish(self, index: int) -> None:
        """The same, but the object that was returned does not learn of it."""
        if self.sockets:
            index %= len(self.sockets)
            self.sockets[index] = self._stack.enter_context(
                socket.socket(fileno=self.sockets[index].detach())
            )
            self.close(index)

    def widen(self, below: int, above: int) -> None:
        self._range = (LOW - below, HIGH + above - 2)
        self._network.port_range(*self._range)

    def reserve(self, ports: set[int]) -> None:
        self._reserved = ports
        self._network.reserved_ports(",".join(map(str, ports)))

    def assert_no_tuple_twice(self) -> None:
        with NetlinkSocket(uapi.NETLINK_SOCK_DIAG) as netlink:
            connected = [
                (record.source_port, record.destination_port)
                for record in records(netlink, Filter(self.transport.protocol, family=self._family))
                if record.state == uapi.TCP_ESTABLISHED
                and record.destination_port in {FIRST, SECOND}
            ]
        assert len(connected) == len(set(connected))

    @property
    def _family(self) -> int:
        return uapi.AF_INET6 if self.transport.source == "::1" else uapi.AF_INET

    def _call(self, call: str, source: Address | None, destination: int) -> socket.socket:
        return CALLS[call](self.transport, source, (self.transport.source, destination), "auto")

    def _keep(self, sock: socket.socket) -> None:
        self.sockets.append(self._stack.enter_context(sock))

    def _new(self) -> socket.socket:
        sock = self._stack.enter_context(self.transport.socket())
        self.sockets.append(sock)
        return sock

    def _is_connected(self, port: int, destination: int) -> bool:
        with NetlinkSocket(uapi.NETLINK_SOCK_DIAG) as netlink:
            return any(
                record.state == uapi.TCP_ESTABLISHED
                for record in records(
                    netlink,
                    Filter(
                        self.transport.protocol,
                        source_port=port,
                        destination_port=destination,
                        family=self._family,
                    ),
                )
            )

    def _has_a_service(self, port: int) -> bool:
        """Whether somebody's datagram socket is bound to it, and receives from anybody."""
        with NetlinkSocket(uapi.NETLINK_SOCK_DIAG) as netlink:
            wanted = Filter(self.transport.protocol, source_port=port, family=self._family)
            return any(record.state == uapi.TCP_CLOSE for record in records(netlink, wanted))

    def _can_be_bound(self, port: int) -> bool:
        with self.transport.socket() as sock:
            try:
                prepare(sock, Technique("", reuseaddr=True, bind=port), self.transport.source)
            except OSError as error:
                assert error.errno == errno.EADDRINUSE  # noqa: PT017
                return False
        return True

    def _can_be_had(self, port: int, destination: int) -> bool:
        """Whether the port could have been used, by the kernel's own word."""
        if not is_stream(self.transport):
            return (
                self._can_be_bound(port)
                and not self._is_connected(port, destination)
                and not self._has_a_service(port)
            )
        window = Technique("", reuseaddr=True, window=(port, port))
        with self.transport.socket() as sock:
            prepare(sock, window, self.transport.source)
            reset_on_close(sock)
            try:
                sock.connect((self.transport.source, destination))
            except OSError as error:
                assert error.errno == errno.EADDRNOTAVAIL  # noqa: PT017
                return False
        return True


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize("transport", [TCP, TCP6, TCP_MAPPED, UDP, UDP6, UDP_MAPPED], ids=str)
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_every_refusal_is_true(transport: Transport, steps: list[Step]) -> None:
    with experiment_network() as network, contextlib.ExitStack() as stack:
        if is_stream(transport):
            for port in (FIRST, SECOND):
                stack.enter_context(listen(transport.source, port))
        world = World(transport, network, stack)
        for name, arguments in steps:
            getattr(world, name)(*arguments)
            world.assert_no_tuple_twice()
