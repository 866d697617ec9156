"""A model of how Linux gives out source ports, small enough to read.

A simulation can count the ports that the kernel probes. A test can drive an attempt against it,
and ask what would have been possible. tests/lab/test_kernel_model.py compares it with the
running kernel, operation by operation. The rules, in words:

- TCP: a port has a *bucket* of the sockets on it. The bucket is of the connect class as long as
  connect() chose the port of each of them, and of the bind class once bind() has put a socket
  there. connect() takes a port that has no bucket, or one of the connect class on which its
  4-tuple is unique; it does not compare source addresses. bind() takes a port on which no socket
  of the same address conflicts with it.
- TIME_WAIT is a socket without an owner: it stays in its bucket, and keeps its 4-tuple until
  another socket may take it over.
- UDP: two sockets share a port if both have SO_REUSEADDR, or both SO_REUSEPORT. The kernel
  compares no 4-tuples; a packet goes to the socket that was connected last, then to the one that
  was bound last.

The model has one protocol family, one user, no devices, and a server that accepts everything. It
leaves out three cases in which the kernel's tables contradict each other. So set SO_REUSEPORT
before bind(), and not for the wildcard; disconnect a UDP socket before you connect it elsewhere;
and do not connect a TCP socket that is bound to the wildcard and a port on which connect() has
put others.

Source: __inet_hash_connect() and __inet_check_established() in net/ipv4/inet_hashtables.c,
inet_csk_get_port() and inet_csk_find_open_port() in net/ipv4/inet_connection_sock.c,
tcp_twsk_unique() in net/ipv4/tcp_ipv4.c, udp_lib_get_port() and __udp4_lib_lookup() in
net/ipv4/udp.c.
"""

from __future__ import annotations

import errno
import itertools
import random
from typing import TYPE_CHECKING

from connectx.addresses import Endpoint, PortRange
from connectx.lab.model_sockets import (
    OWNERLESS,
    UNBOUND,
    Bucket,
    ModelSocket,
    Obstacle,
    State,
    conflict,
    overlap,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class KernelModel:
    """The ports of one network namespace, and the sockets on them.

    The methods raise OSError with the errno of the system call. Attributes may be changed at any
    time.

    Args:
        seed: The model does the same again for the same seed.

    Attributes:
        ports: `ip_local_port_range`.
        reserved: `ip_local_reserved_ports`.
        step_of_one: Whether a search in a window goes in steps of one (Linux 6.8 and later).
        recovers: Whether a bucket is of the connect class again when the last socket that was
            bound leaves it (6.18 and later), and not only when all sockets have left.
        address: The source address that routing chooses.
        tcp_tw_reuse: The sysctl.
        tcp_tw_reuse_delay: The sysctl, in milliseconds.
        tcp_timestamps: The sysctl.
        now: The time, in milliseconds.
        probes: The ports that the search of the last call looked at, in order.
    """

    def __init__(
        self,
        ports: PortRange,
        reserved: Iterable[int] = (),
        *,
        step_of_one: bool = True,
        recovers: bool = True,
        seed: int = 0,
        address: str = "127.0.0.1",
    ) -> None:
        self.ports = ports
        self.reserved = frozenset(reserved)
        self.step_of_one = step_of_one
        self.recovers = recovers
        self.address = address
        self.tcp_tw_reuse = 2
        self.tcp_tw_reuse_delay = 1000
        self.tcp_timestamps = True
        self.now = 0
        self.probes: list[int] = []
        self._random = random.Random(seed)  # noqa: S311 - to be repeatable is what it is for
        self._connected = 0
        # TCP: by port; and by source address and destination, then by port, so that a search
        # only looks up a number for each port.
        self._buckets: dict[int, Bucket] = {}
        self._tuples: dict[tuple[str, Endpoint], dict[int, ModelSocket]] = {}
        # Where the next search toward a destination begins: RFC 6056, algorithm 4.
        # The kernel has a table of 65,536 hashed entries; here they never collide.
        self._offsets: dict[tuple[str, Endpoint], int] = {}
        # UDP: by port, the newest first.
        self._datagrams: dict[int, list[ModelSocket]] = {}

    def socket(
        self,
        *,
        stream: bool = True,
        reuseaddr: bool = False,
        reuseport: bool = False,
        bind_address_no_port: bool = False,
        local_port_range: tuple[int, int] = (0, 0),
    ) -> ModelSocket:
        """Make a socket with options."""
        return ModelSocket(stream, reuseaddr, reuseport, bind_address_no_port, local_port_range)

    def bind(self, sock: ModelSocket, host: str, port: int) -> None:
        """Bind a socket.

        Args:
            sock: The socket.
            host: "" for the wildcard.
            port: 0 for any, or with IP_BIND_ADDRESS_NO_PORT for none yet.

        Raises:
            OSError: With EINVAL for a socket that has a port; with EADDRINUSE.
        """
        self.probes = []
        if sock.source.port or sock.state is not State.CLOSE:
            raise _error(errno.EINVAL)
        sock.source = Endpoint(host, 0)
        if port or not sock.bind_address_no_port:
            try:
                self._get_port(sock, port)
            except OSError:
                sock.source = UNBOUND
                raise
        sock.host_locked |= bool(host)
        sock.port_locked |= bool(port)

    def listen(self, sock: ModelSocket) -> None:
        """Listen.

        Raises:
            OSError: With EADDRINUSE if another socket listens, or does not share the port.
        """
        sock.state = State.LISTEN
        try:
            self._get_port(sock, sock.source.port)
        except OSError:
            sock.state = State.CLOSE
            raise

    def connect(self, sock: ModelSocket, destination: Endpoint) -> None:
        """Connect a socket.

        Raises:
            OSError: With EADDRNOTAVAIL (TCP) or EAGAIN (UDP) if no port is free.
        """
        self.probes = []
        if sock.stream:
            self._connect_stream(sock, destination)
        else:
            self._connect_datagram(sock)
        sock.destination = destination
        sock.state = State.ESTABLISHED
        self._connected += 1
        sock.order = self._connected

    def disconnect(self, sock: ModelSocket) -> None:
        """Undo connect() by AF_UNSPEC: what the kernel chose goes, what bind() got stays."""
        if sock.state is not State.CLOSE or not sock.stream:
            self._vacate(sock)
        if not sock.host_locked:
            self._move(sock, "")

    def close(self, sock: ModelSocket, leaving: State = State.CLOSE) -> None:
        """Close a socket; or end a TIME_WAIT, as its timer or SOCK_DESTROY does.

        Args:
            sock: The socket.
            leaving: TIME_WAIT or FIN_WAIT2 if a TCP connection is to leave that behind.
        """
        if leaving is State.CLOSE:
            self._vacate(sock)
            self._release(sock)
        else:
            sock.state = leaving
            sock.entered = self.now

    def lookup(
        self, source: Endpoint, destination: Endpoint, *, stream: bool
    ) -> ModelSocket | None:
        """Return the socket that a packet from destination to source would reach."""
        if stream:
            found = self._tuples.get((source.host, destination), {}).get(source.port)
            candidates = [
                sock
                for sock in self._owners(source.port)
                if sock.state is State.LISTEN and sock.source.host in (source.host, "")
            ]
            return found or max(candidates, key=lambda sock: sock.source.host, default=None)
        on_port = self._datagrams.get(source.port, ())
        connected = [
            sock
            for sock in on_port
            if sock.source.host == source.host and sock.destination == destination
        ]
        if connected:
            return max(connected, key=lambda sock: sock.order)
        for host in (source.host, ""):
            for sock in on_port:
                if sock.source.host == host and sock.destination is None:
                    return sock
        return None

    def sockets(self, *, stream: bool) -> list[ModelSocket]:
        """Return all sockets that have a port, including those in TIME_WAIT."""
        if stream:
            return [sock for bucket in self._buckets.values() for sock in bucket.owners]
        return [sock for on_port in self._datagrams.values() for sock in on_port]

    def obstacle(self, source: Endpoint, destination: Endpoint) -> Obstacle | None:
        """Return why connect() from an address passes over a port; None if it would take it."""
        bucket = self._buckets.get(source.port)
        if bucket is None:
            return None
        if not bucket.connect_class:
            return Obstacle.BOUND
        former = self._tuples.get((source.host, destination), {}).get(source.port)
        if former is None or (
            former.state in OWNERLESS and self._may_take_over(former, explicit=False)
        ):
            return None
        return Obstacle.IN_USE

    # Ports.

    def _range_of(self, sock: ModelSocket) -> tuple[PortRange, bool]:
        """Return the ports to search, and whether the socket has a window.

        An end of the window outside of the range is replaced by the range's own
        (inet_sk_get_local_port_range).
        """
        low, high = sock.local_port_range
        ports = PortRange(
            low if self.ports.contains(low) else self.ports.low,
            high if self.ports.contains(high) else self.ports.high,
        )
        return ports, bool(low or high)

    def _probe(self, candidates: Iterable[int]) -> Iterator[int]:
        """Yield the candidates that are not reserved, and note that each was probed."""
        for port in candidates:
            if port not in self.reserved:
                self.probes.append(port)
                yield port

    def _get_port(self, sock: ModelSocket, port: int) -> None:
        if not sock.stream:
            self._bind_datagram(sock, port)
            return
        if not port:
            port = self._search_to_bind(sock)
        elif any(conflict(sock, other, shared=True) for other in self._owners(port)):
            raise _error(errno.EADDRINUSE)
        bucket = self._buckets.setdefault(port, Bucket(connect_class=False))
        bucket.connect_class = False
        if sock not in bucket.owners:
            bucket.owners.append(sock)
        sock.source = sock.source._replace(port=port)

    def _move(self, sock: ModelSocket, host: str) -> None:
        """Change a socket's address while it may be on a port."""
        if host == sock.source.host:
            return
        sock.source = sock.source._replace(host=host)
        if not sock.stream and sock.source.port:
            # udp_lib_rehash(): a lookup then takes it for the newest on the port.
            on_port = self._datagrams[sock.source.port]
            on_port.remove(sock)
            on_port.insert(0, sock)

    def _vacate(self, sock: ModelSocket) -> None:
        """Leave the 4-tuple, and the port unless bind() got it."""
        if sock.stream and sock.destination is not None:
            del self._tuples[sock.source.host, sock.destination][sock.source.port]
        sock.destination = None
        sock.state = State.CLOSE
        if not sock.port_locked:
            self._release(sock)

    def _release(self, sock: ModelSocket) -> None:
        """Leave the port (inet_put_port, udp_lib_unhash)."""
        port = sock.source.port
        if not port:
            return
        sock.source = sock.source._replace(port=0)
        if not sock.stream:
            self._datagrams[port].remove(sock)
            return
        sock.chosen_by_connect = False
        bucket = self._buckets[port]
        bucket.owners.remove(sock)
        if not bucket.owners:
            del self._buckets[port]
        elif self.recovers and all(owner.chosen_by_connect for owner in bucket.owners):
            bucket.connect_class = True

    # TCP.

    def _owners(self, port: int) -> list[ModelSocket]:
        bucket = self._buckets.get(port)
        return bucket.owners if bucket else []

    def _connect_stream(self, sock: ModelSocket, destination: Endpoint) -> None:
        if sock.state is not State.CLOSE:
            raise _error(errno.EISCONN)
        self._move(sock, sock.source.host or self.address)
        try:
            source = self._take_tuple(sock, destination)
        except OSError:
            self._vacate(sock)
            if not sock.host_locked:
                self._move(sock, "")
            raise
        sock.timestamps = self.tcp_timestamps
        on_path = self._on_path(source.host, destination)
        former = on_path.get(source.port)
        if former is not None:
            self._vacate(former)
            self._release(former)
        on_path[source.port] = sock

    def _take_tuple(self, sock: ModelSocket, destination: Endpoint) -> Endpoint:
        if sock.source.port:
            former = self._on_path(sock.source.host, destination).get(sock.source.port)
            if former is not None and not (
                former.state in OWNERLESS and self._may_take_over(former, explicit=True)
            ):
                raise _error(errno.EADDRNOTAVAIL)
            return sock.source
        port = self._search_to_connect(sock, destination)
        self._buckets.setdefault(port, Bucket(connect_class=True)).owners.append(sock)
        sock.chosen_by_connect = True
        sock.source = sock.source._replace(port=port)
        return sock.source

    def _search_to_connect(self, sock: ModelSocket, destination: Endpoint) -> int:
        """Search as __inet_hash_connect(): a window port by port, else one parity first."""
        ports, window = self._range_of(sock)
        step = 1 if window and self.step_of_one else 2
        size = ports.size & ~1 if step > 1 and ports.size > 1 else ports.size
        buckets, on_path = self._buckets, self._on_path(sock.source.host, destination)
        key = sock.source.host, destination
        offset = self._offsets.setdefault(key, self._random.getrandbits(32))
        first = offset % size // step * step
        walk = itertools.chain.from_iterable(
            _walk(ports, first + parity, size, step) for parity in range(min(step, size))
        )
        for port in self._probe(walk):
            bucket = buckets.get(port)
            if bucket is None or (
                bucket.connect_class
                and (
                    (former := on_path.get(port)) is None
                    or (
                        # Tested here, because a call costs as much as the rest of a probe.
                        former.state in OWNERLESS and self._may_take_over(former, explicit=False)
                    )
                )
            ):
                gone = (port - ports.low - first) % size // step * step
                self._offsets[key] = offset + max(gone, self._random.randrange(8) * step) + step
                return port
        raise _error(errno.EADDRNOTAVAIL)

    def _on_path(self, host: str, destination: Endpoint) -> dict[int, ModelSocket]:
        """Return the connections from an address to a destination, by source port."""
        return self._tuples.setdefault((host, destination), {})

    def _may_take_over(self, former: ModelSocket, *, explicit: bool) -> bool:
        """Return whether the 4-tuple of a socket without an owner may be taken (tcp_twsk_unique).

        Args:
            former: That socket.
            explicit: Whether bind() chose the port.
        """
        if explicit or not former.timestamps:
            return former.timestamps
        hosts = former.source.host, former.destination.host if former.destination else ""
        loopback = any(host.startswith("127.") for host in hosts)
        return (
            former.state is State.TIME_WAIT
            and (self.tcp_tw_reuse == 1 or (self.tcp_tw_reuse == 2 and loopback))
            and self.now > former.entered + self.tcp_tw_reuse_delay
        )

    def _search_to_bind(self, sock: ModelSocket) -> int:
        """Search as inet_csk_find_open_port(): the other parity first, and no port is shared."""
        ports, _ = self._range_of(sock)
        halves = [ports]
        if sock.reuseaddr and ports.size >= 4:
            middle = ports.low + ports.size // 4 * 2
            halves = [PortRange(ports.low, middle - 1), PortRange(middle, ports.high)]
        for half in halves:
            size = half.size & ~1 if half.size > 1 else 1
            first = self._random.randrange(size) | 1
            for start in (first, first - 1):
                for port in self._probe(_walk(half, start, size, 2)):
                    if not any(conflict(sock, other, shared=False) for other in self._owners(port)):
                        return port
        raise _error(errno.EADDRINUSE)

    # UDP.

    def _connect_datagram(self, sock: ModelSocket) -> None:
        if not sock.source.port:
            # Routing has not chosen an address yet: the port must be free on all of them.
            try:
                self._bind_datagram(sock, 0)
            except OSError as error:
                raise _error(errno.EAGAIN) from error
        self._move(sock, sock.source.host or self.address)

    def _bind_datagram(self, sock: ModelSocket, port: int) -> None:
        candidates: Iterable[int] = (port,)
        if not port:
            # Exact for ranges within the kernel's hash table of at least 256 ports; it walks a
            # larger range in another order.
            ports, _ = self._range_of(sock)
            candidates = self._probe(
                _walk(ports, self._random.randrange(ports.size), ports.size, 1)
            )
        for candidate in candidates:
            on_port = self._datagrams.setdefault(candidate, [])
            if all(
                (sock.reuseaddr and other.reuseaddr)
                or (sock.reuseport and other.reuseport)
                or not overlap(sock, other)
                for other in on_port
            ):
                on_port.insert(0, sock)
                sock.source = sock.source._replace(port=candidate)
                return
        raise _error(errno.EADDRINUSE)


def _walk(ports: PortRange, first: int, size: int, step: int) -> Iterator[int]:
    """Return `size` ports in steps, from an offset on and around the end."""
    count = len(range(0, size, step))
    start = ports.low + first
    ahead = range(start, ports.high + 1, step)[:count]
    around = range(start + len(ahead) * step - size, ports.high + 1, step)[: count - len(ahead)]
    return itertools.chain(ahead, around)


def _error(number: int) -> OSError:
    return OSError(number, errno.errorcode[number])
