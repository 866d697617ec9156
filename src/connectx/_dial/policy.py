"""What the blocking and the asyncio Dialer share: arguments, requests, capacity, detached sockets.

The decisions are in connectx._dial.call and connectx._dial.sources; how to wait is
each dialer's own affair.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import socket
import threading
import time
from collections import OrderedDict
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from connectx._connect import strategies
from connectx._connect.namespace import NETWORKS, Options, draw, identity_of
from connectx._connect.own_socket import TrackedSocket
from connectx._connect.request import V4_MAPPED, parse, parse_literal, scoped, sockaddr
from connectx._dial.call import Budget, Dial, Lease, LimitReached
from connectx._dial.capacity import Capacity, SourceCapacity, count
from connectx._dial.sources import MOST_FREE, Sources, usable
from connectx.addresses import HIGHEST_PORT, Endpoint, PortRange
from connectx.errors import PortsExhausted
from connectx.linux.mapped import unmapped
from connectx.linux.sockopts import get_so_bindtoifindex
from connectx.linux.uapi import AF_INET, AF_INET6, IPPROTO_MPTCP, SO_COOKIE, SOL_SOCKET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from connectx._connect.namespace import Network
    from connectx._connect.request import Request
    from connectx._dial.call import Steps
    from connectx._dial.destination import Turn
    from connectx.addresses import Address
    from connectx.linux.destroy_events import DestroyEvents
    from connectx.linux.sock_diag import SocketRecord

#: How many of the sockets whose end nobody tells us a call looks at, and one that waits.
SWEPT_BY_A_CALL: Final = 8
SWEPT_IN_LINE: Final = 256

#: How many times as long as looking at all of them has taken that is not done again.
_LOOK_REST: Final = 9.0


class Stats(NamedTuple):
    """What a dialer has done since it was made.

    attempts: tries to connect; one for each source and range of ports.
    opened: how many of them got a connection. retries: ports refused within tries.
    waits: calls that had to wait for a port. waiting: calls that wait now.
    failures: tries that got none, by the name of the errno.
    search_seconds: time spent in those that found no port.
    unserved: calls that ended at the limit, or before their turn came.
    """

    attempts: int
    opened: int
    retries: int
    waits: int
    waiting: int
    failures: dict[str, int]
    search_seconds: float
    unserved: int


class _Open:
    """What a process has open.

    detached: by SO_COOKIE, which an end that is told has as well; those that were looked
    at come last.
    """

    # No named tuple, whose attributes take longer to load.
    __slots__ = ("budget", "detached", "pid")

    def __init__(self, pid: int, budget: Budget) -> None:
        self.pid = pid
        self.budget = budget
        self.detached: OrderedDict[bytes, _Detached] = OrderedDict()


class Dialing:
    """The settings of a dialer, and what it has open; see connectx.Dialer for the arguments."""

    def __init__(
        self,
        sources: Iterable[str],
        ports: tuple[int, int] | Sequence[tuple[int, int]] | None,
        *,
        strategy: str,
        rotate: str,
        limit: int | None,
        wait: float | None,
        freebind: bool,
        on_wait: Callable[[Any], object] | None,
    ) -> None:
        strategies.named(strategy)
        if on_wait is not None and not callable(on_wait):
            raise TypeError(f"on_wait is a function, not {on_wait!r}")
        if not isinstance(freebind, bool):
            raise TypeError(f"freebind is True or False, not {freebind!r}")
        if isinstance(limit, float):
            raise TypeError(f"limit is an integer, not {limit!r}")
        self.sources = Sources(sources, rotate, draw)
        self.ranges = _ranges(ports)
        # Whether there are sources to choose between by how many connections they have.
        self._chooses = rotate == MOST_FREE and any(
            len(self.sources.hosts(version)) > 1 for version in (4, 6)
        )
        self.freebind = freebind
        self._limit = int(_number("limit", limit, 1))
        self._wait = float(_number("wait", wait, 0))
        self.waits = self._wait > 0
        self.strategy = strategy
        self._on_wait = on_wait
        self._options = {
            ports: Options(ports=ports, freebind=freebind, replaceable=True)
            for ports in self.ranges
            if ports is not None or freebind
        }
        #: What the socket of a call's first try is to have set.
        self.first_options = self.options(self.ranges[0])
        self._look_again = 0.0
        self._begun: dict[int, _Open] = {}
        self._open = self._begin()

    def _begin(self) -> _Open:
        """Start with nothing open: at first, and in a child process."""
        pid = os.getpid()
        budget = Budget(
            self.sources,
            self.ranges,
            limit=self._limit,
            wait=self._wait,
            lock=threading.Lock(),
            clock=time.monotonic,
            jitter=random.random,
            on_wait=self._on_wait,
            on_detached=self._watch,
            on_limit=self._look,
        )
        # Of threads that come here at once the first one's is everybody's. Not by a lock:
        # the parent's thread that holds it might not be in the child.
        begun = self._open = self._begun.setdefault(pid, _Open(pid, budget))
        for other in tuple(self._begun):
            if other != pid:
                self._begun.pop(other, None)
        return begun

    @property
    def open(self) -> _Open:
        """What is open; nothing yet in a process that was forked meanwhile."""
        begun = self._open
        return begun if begun.pid == os.getpid() else self._begin()

    @property
    def budget(self) -> Budget:
        """The same as far as it is counted."""
        return self.open.budget

    @property
    def detached(self) -> OrderedDict[bytes, _Detached]:
        """The sockets whose end nobody tells us."""
        return self._open.detached

    def dial(
        self, to: Request, stick: str | None, turn: Callable[[], Turn], *, wait: bool
    ) -> tuple[Dial, Steps]:
        """Begin a call to a destination; the steps are yet to be taken.

        wait: whether it may wait for a port, where the dialer does.

        Raises ValueError for a source, which is a socket's that is bound to it, that the
        dialer would not take.
        """
        budget = self.budget
        key, version = key_of(to), version_of(to)
        # The same for an IPv4-mapped address as for the IPv4 address.
        only = self.sources.only(version, key[1].host if stick is None else stick)
        bound = to.source.host.removeprefix(V4_MAPPED)
        if bound and (only not in ("", bound) or not self.sources.has(version, bound)):
            raise ValueError(
                f"the socket is bound to {bound}, which is none of the dialer's sources"
                if not only
                else f"the socket is bound to {bound}, but its key to {only}"
            )
        self.sweep(SWEPT_BY_A_CALL)
        dial = Dial(budget, key, version, bound or only, turn, wait=wait)
        return dial, dial.steps()

    def request(self, address: Address, host: str, kind: int, proto: int) -> Request:
        """What a try asks for: a connection to an IP address from a source address."""
        if host and address[0].startswith(V4_MAPPED) and ":" not in host:
            host = f"{V4_MAPPED}{host}"
        source = (host, 0) if host else None
        request = parse_literal(address, source, kind, proto, self.strategy)
        return request or parse(0, kind, proto, self.strategy, source, address)

    def literal(
        self, address: tuple[str | None, int | str], kind: int, proto: int
    ) -> Request | None:
        """What a call to an IP address asks for; None for a name. Errors as `parse`."""
        checked = cast("Address", scoped(tuple(address)))
        request = parse_literal(checked, None, kind, proto, self.strategy)
        return None if request is None else self.served(request)

    def served(self, to: Request) -> Request:
        """The request, if there is a source of its version; OSError (EAFNOSUPPORT) otherwise."""
        version = version_of(to)
        if not self.sources.serves(version):
            raise OSError(
                errno.EAFNOSUPPORT,
                f"none of the dialer's sources is IPv{version}, as {to.destination} is",
            )
        return to

    def requests(
        self,
        found: Iterable[tuple[Any, ...]],
        address: tuple[str | None, int | str],
        kind: int,
        proto: int,
    ) -> list[Request]:
        """What a call to a name asks for: the addresses that it has sources for.

        found: what getaddrinfo() gave.

        Raises OSError (EAFNOSUPPORT) if there are none.
        """
        # Of an IPv6 address with flowinfo and scope_id, which getaddrinfo() does not take.
        more = cast("tuple[int, ...]", address[2:])
        requests = [
            parse(0, kind, proto, self.strategy, None, (*sockaddr[:2], *(more or sockaddr[2:])))
            for family, _, _, _, sockaddr in found
            if family in (socket.AF_INET, socket.AF_INET6)
        ]
        if not requests:
            raise OSError("getaddrinfo returns an empty list")
        served = [to for to in requests if self.sources.serves(version_of(to))]
        return served or [self.served(requests[0])]

    def options(self, ports: PortRange | None) -> Options | None:
        """What the socket of a try is to have set."""
        return self._options.get(ports)

    def learn(self, to: Request, name: tuple[tuple[Any, ...], int, int]) -> None:
        """Have the next calls to a destination be quick, where one try is as good as another.

        name: what the caller calls it. Not with a scope, which may be another interface's
        the next time.
        """
        hosts = self.sources.hosts(version_of(to)) or ("",) * self.sources.any
        if (
            len(self.ranges) > 1
            or self.detached
            or "%" in name[0][0]
            or not hosts
            or self.sources.prefixes(version_of(to))
            or self.sources.rotate != MOST_FREE
        ):
            return
        requests = {host: self.request(to.address, host, to.type, to.proto) for host in hosts}
        self.budget.known_as(key_of(to), name, requests)

    def lease(self, dial: Dial, sock: socket.socket, to: Request) -> None:
        """Have a connected socket keep its place in the budget until it is closed."""
        lease = dial.lease()
        if isinstance(sock, TrackedSocket):
            sock.lease = lease
        else:
            lease.detached(sock)
        if self._chooses and lease.destination.growing:
            # Not of the socket: its handshake may not be done yet, or its peer gone.
            self.count_others(to)

    def count_others(self, to: Request) -> None:
        """Have "most-free" know of connections that are not this dialer's.

        It goes on with what it knew where that cannot be found out: a source that is full
        is passed over all the same.
        """
        with contextlib.suppress(OSError):
            self.capacity(to.address, to.type, to.proto, NETWORKS.here())

    def failure(self, error: Exception, to: Request) -> PortsExhausted:
        """The error of a call that has not come to a try, which is counted."""
        self.budget.unserved()
        open_now = sum(self.budget.open_to(key_of(to)).values())
        reason = (
            f"the dialer's limit of {self._limit} connections to {to.destination} is reached"
            if isinstance(error, LimitReached)
            else f"others waited for a port toward {to.destination} for as long as this call could"
        )
        return PortsExhausted(
            reason,
            protocol=to.protocol,
            source=Endpoint("", 0),
            destination=to.destination,
            strategy=self.strategy,
            errno=errno.EADDRNOTAVAIL if to.stream else errno.EAGAIN,
            explanation=lambda: (
                f"{open_now} connections of this dialer to {to.destination} were open. Close some, "
                "raise the limit, or wait longer."
            ),
        )

    # Sockets whose end nobody tells us.

    def _watch(self, lease: Lease, sock: Any) -> None:
        """Look for the end of a socket that nobody will tell us of."""
        try:
            detached = _Detached(lease, sock)
        except (OSError, ValueError):
            # Closed already, as uvloop does before it detaches; or unconnected by now.
            lease.release()
        else:
            self.detached[detached.key] = detached

    def sweep(self, most: int) -> None:
        """Look for so many of the detached sockets, and give back the places of closed ones.

        In turns, since each takes some microseconds and there may be thousands.
        """
        if not self.detached:
            return
        network = NETWORKS.here()
        for _ in range(min(most, len(self.detached))):
            try:
                key, detached = self.detached.popitem(last=False)
            except KeyError:
                return  # Another thread is at it.
            try:
                ended = detached.ended(network)
            except BaseException:
                self.detached.setdefault(key, detached)
                raise
            if not ended:
                # Unless it has been connected anew meanwhile.
                self.detached.setdefault(key, detached)

    def _look(self) -> None:
        """Look for all of them, before a call is refused; if many, a tenth of the time at most."""
        begun = time.monotonic()
        if len(self.detached) > SWEPT_IN_LINE and begun < self._look_again:
            self.sweep(SWEPT_IN_LINE)
            return
        self.sweep(len(self.detached))
        now = time.monotonic()
        self._look_again = now + _LOOK_REST * (now - begun)

    def ended(self, cookie: bytes) -> None:
        """Somebody's socket has ended: if it is one of these, give back its place."""
        detached = self.detached.pop(cookie, None)
        if detached is not None:
            detached.lease.release()

    # What there is.

    def capacity(self, address: Address, kind: int, proto: int, network: Network) -> Capacity:
        """The ports toward a destination in a namespace; see connectx.Dialer.capacity.

        Raises OSError (EXDEV) in a thread that is in another one.
        """
        # A list is taken, and a scope by name, where create_connection() takes them.
        address = scoped(tuple(address) if isinstance(address, list) else address)
        to = self.served(parse(0, kind, proto, self.strategy, None, address))
        version = version_of(to)
        within = self._within(to, network)
        hosts = ("",) if self.sources.any else self.sources.hosts(version)
        counted = [
            count(network, self.request(to.address, host, kind, proto), within) for host in hosts
        ]
        open_now = self.budget.open_to(key_of(to))
        for prefix in self.sources.prefixes(version):
            # Its addresses are too many to ask for each: of them our own are counted.
            ours = sum(
                number
                for host, number in open_now.items()
                if host not in hosts and ip_address(host) in prefix
            )
            listed = sum(ip_address(host) in prefix for host in hosts)
            total = (usable(prefix) - listed) * len(within)
            counted.append(SourceCapacity(str(prefix), total, {"ESTAB": ours} if ours else {}))
        self.budget.saw(key_of(to), {each.source: sum(each.in_use.values()) for each in counted})
        total = sum(each.total for each in counted)
        free = sum(each.free for each in counted)
        return Capacity(total, total - free, free, tuple(counted))

    def _within(self, to: Request, network: Network) -> set[int]:
        """The ports that may be used; RangeNotHonoured as for a call."""
        in_force = network.ports
        if in_force is None:
            raise network.absence(to)
        within: set[int] = set()
        for ports in self.ranges:
            options = self.options(ports)
            low, high = (options and network.within(to, options)) or in_force
            within.update(range(low, high + 1))
        for hole in network.reserved:
            within.difference_update(range(hole.low, hole.high + 1))
        return within

    def stats(self) -> Stats:
        """What was done; see connectx.Dialer.stats."""
        counters = self.budget.counters
        return Stats(
            counters.attempts,
            counters.opened,
            counters.retries,
            counters.waits,
            counters.waiting,
            {
                errno.errorcode.get(number, str(number)): count
                for number, count in counters.failures.copy().items()
            },
            counters.search_seconds,
            counters.unserved,
        )


class AnyDialer:
    """What a dialer is made with, and what it has done."""

    _kind: type[Dialing] = Dialing

    def __init__(
        self,
        sources: Iterable[str] = (),
        ports: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
        *,
        strategy: str = "auto",
        rotate: str = MOST_FREE,
        limit: int | None = None,
        wait: float | None = None,
        freebind: bool = False,
        on_wait: Callable[[Any], object] | None = None,
    ) -> None:
        self._dialing = self._kind(
            sources,
            ports,
            strategy=strategy,
            rotate=rotate,
            limit=limit,
            wait=wait,
            freebind=freebind,
            on_wait=on_wait,
        )

    def stats(self) -> Stats:
        """What this dialer has done since it was made."""
        return self._dialing.stats()


def hear(to: Request) -> DestroyEvents | None:
    """Hear of the ends of sockets of a protocol, or None where that is not possible."""
    from connectx.linux.destroy_events import DestroyEvents  # noqa: PLC0415 - as in network.py

    try:
        return DestroyEvents(stream=to.stream)
    except OSError:
        # An old kernel, or no descriptor left: looking now and then has to do.
        return None


def pass_on(events: DestroyEvents, ear: Ear, dial: Dial) -> None:
    """Take what has been told by now, and leave what is still to be told to the next in line."""
    try:
        events.take(ear.concerns)
        if dial.hand_on(events):
            return
    except BaseException:
        events.close()
        raise
    events.close()


class Ear:
    """Tells which of the sockets that come to their end were connected to a destination.

    heard: is told the source address of each; None if it may have been any.
    ended: is told the SO_COOKIE of every socket that comes to its end, wherever it was connected.
    hinted: whether one has ended that may have been. A socket that was reset has lost its
    port by then, but not its address (tcp_disconnect); nor has one that was refused.
    """

    def __init__(
        self,
        to: Request,
        heard: Callable[[str | None], object],
        ended: Callable[[bytes], object],
    ) -> None:
        self._host = to.wire_destination
        self._port = to.destination.port
        self._heard = heard
        self._ended = ended
        self.hinted = False

    def concerns(self, record: SocketRecord | None) -> bool:
        """Whether this end has freed a 4-tuple of the destination; None: ends nobody has told."""
        if record is None:
            self._heard(None)
            return True
        self._ended(record.cookie)
        if unmapped(record.destination) != self._host:
            return False
        self.hinted |= not record.destination_port
        if record.destination_port not in (0, self._port):
            return False
        source = unmapped(record.source)
        self._heard(socket.inet_ntop(AF_INET if len(source) == 4 else AF_INET6, source))
        return bool(record.destination_port)


def key_of(to: Request) -> tuple[str, Endpoint]:
    """What names a destination: those that share its ports have the same, MPTCP and TCP too."""
    protocol = {"mptcp": "tcp"}.get(to.protocol, to.protocol)
    return protocol, to.destination._replace(host=to.destination.host.removeprefix(V4_MAPPED))


def version_of(to: Request) -> int:
    """The IP version on the wire, 4 or 6: of an IPv4-mapped address 4."""
    return 4 if to.wire_family == AF_INET else 6


def _number(name: str, value: float | None, least: float) -> Any:
    """A number that may be left out (0 then); TypeError or ValueError for what is none."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number, not {value!r}")
    if not least <= value < math.inf:
        finite = "" if math.isfinite(value) else " and finite"
        raise ValueError(f"{name} is at least {least:g}{finite}, not {value!r}")
    return value


def _ranges(
    ports: tuple[int, int] | Sequence[tuple[int, int]] | None,
) -> tuple[PortRange | None, ...]:
    """The ranges of source ports, in order; (None,) for the range in force."""
    if ports is None:
        return (None,)
    given = list(ports)
    if len(given) == 2 and all(isinstance(port, int) for port in given):
        given = [given]
    ranges: list[PortRange | None] = []
    for each in given:
        if not isinstance(each, tuple | list) or len(each) != 2:
            raise TypeError(f"ports is a range such as (20000, 29999), or several: {ports!r}")
        low, high = each
        for port in each:
            if isinstance(port, bool) or not isinstance(port, int):
                raise TypeError(f"a port is an integer, not {port!r}")
        if not 1 <= low <= high <= HIGHEST_PORT:
            raise ValueError(
                f"a range lies within 1 to {HIGHEST_PORT}, its low end first: {each!r}"
            )
        ranges.append(PortRange(low, high))
    if not ranges:
        raise ValueError("ports names no range: leave it out for the range in force")
    return tuple(ranges)


class _Detached:
    """A connection that is looked for by its 4-tuple.

    key: its SO_COOKIE. lease: its place.
    """

    __slots__ = ("_cookie", "_identity", "_lookup", "_port", "key", "lease")

    def __init__(self, lease: Lease, sock: socket.socket) -> None:
        from connectx.linux.sock_diag import TupleLookup  # noqa: PLC0415 - as in network.py

        family = int(sock.family)
        name = sock.getsockname()
        # Not getpeername(): the handshake may not be done yet, or the peer gone.
        to: Endpoint = lease.destination.key[1]  # type: ignore[index] # see key_of()
        if family == socket.AF_INET6 and ":" not in to.host:
            to = to._replace(host=f"{V4_MAPPED}{to.host}")
        peer = sockaddr(family, to)
        ends = parse(family, int(sock.type), int(sock.proto), "auto", name, peer)
        self.lease = lease
        self.key = sock.getsockopt(SOL_SOCKET, SO_COOKIE, 8)
        self._identity = identity_of(sock)
        # Of MPTCP, what is found is a subflow with a cookie of its own: the first look
        # takes its word.
        self._cookie = None if sock.proto == IPPROTO_MPTCP else self.key
        self._port: int = name[1]
        self._lookup = TupleLookup(
            ends.diag_protocol,
            ends.wire_family,
            ends.wire_source,
            ends.wire_destination,
            ends.destination.port,
            get_so_bindtoifindex(sock) or ends.destination.scope_id,
        )

    def ended(self, network: Network) -> bool:
        """Whether the socket is gone; its place is given back then."""
        if network.identity != self._identity:
            return False
        record = self._lookup.find_record(network.diag, self._port)
        if record is not None and record.inode and self._cookie in (None, record.cookie):
            self._cookie = record.cookie
            return False
        self.lease.release()
        return True
