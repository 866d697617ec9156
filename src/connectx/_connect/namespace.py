"""What we know of a network namespace, found anew at each call from the socket itself.

Ports, sysctls and sockets belong to a network namespace, and a thread may have
moved to another one since the last call without telling anybody. So each call
asks its socket which namespace it is in (SO_NETNS_COOKIE) and works with what is
known of that one. What is known is at most a second old.

Safe under threads: what threads share is replaced, or changed one dictionary
entry at a time, and netlink sockets are kept per thread. Safe under fork: a child
starts with nothing.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import threading
import weakref
from array import array
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from connectx._connect import strategies
from connectx._connect.attempt import FULL_RANGE, Plan
from connectx._connect.ledger import Ledger, template
from connectx._connect.strategies import Action, Case, Need
from connectx.addresses import PortRange
from connectx.errors import ConnectxError, NotSupported, RangeNotHonoured
from connectx.linux import features, sysctl
from connectx.linux.features import Probe
from connectx.linux.uapi import (
    AF_INET6,
    NETLINK_ROUTE,
    NETLINK_SOCK_DIAG,
    SO_NETNS_COOKIE,
    SOL_SOCKET,
)

# Netlink is imported where it is first needed: programs that leave the source port
# of TCP connections to us never need it, and it is a third of what importing us takes.
if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx._connect.request import Request
    from connectx._connect.strategies import Program, Strategy
    from connectx.addresses import Address
    from connectx.linux.netlink import NetlinkSocket
    from connectx.linux.route import Route
    from connectx.linux.sock_diag import TupleLookup

    class _NetlinkSockets(threading.local):
        """One thread's netlink sockets into one namespace."""

        diag: NetlinkSocket
        route: NetlinkSocket


#: What names a namespace: SO_NETNS_COOKIE as the kernel gives it, or where the
#: kernel has none (before 5.14) what `identity_of` puts together.
Identity: TypeAlias = bytes | tuple[int, int, int]

#: How old what is known of sysctls and of the routing table may be, in seconds.
FRESH: Final = 1.0

#: Seconds after which a namespace that nobody uses is forgotten.
FORGET: Final = 60.0


class Options:
    """What bears on a call's source besides its addresses. Compared by identity.

    mark, interface: SO_MARK and SO_BINDTOIFINDEX of the socket; 0 for none.
    ports: the ports to stay within, such as the socket's own IP_LOCAL_PORT_RANGE;
    None for the range in force.
    replaceable: whether a socket that is stuck on a port may be replaced by a new one.
    freebind: whether the source may be an address that is not local (IP_FREEBIND).
    """

    __slots__ = ("freebind", "interface", "mark", "ports", "replaceable")

    def __init__(
        self,
        mark: int = 0,
        interface: int = 0,
        ports: PortRange | None = None,
        *,
        replaceable: bool = False,
        freebind: bool = False,
    ) -> None:
        self.freebind = freebind
        self.mark = mark
        self.interface = interface
        self.ports = ports
        self.replaceable = replaceable


#: The options of a socket that has just been made for the call.
NEW_SOCKET: Final = Options(replaceable=True)


@functools.lru_cache(maxsize=256)
def options_of_socket(mark: int, interface: int, ports: PortRange | None) -> Options:
    """The options of a socket that a caller has set up: one object for equal values."""
    return Options(mark, interface, ports)


class Prepared:
    """A request as it is carried out in one namespace.

    plan: what its attempts have in common.
    source, host: the source's address, packed as it goes on the wire and in text as
    bind() takes it; empty for any.
    binds: whether the source's host was asked for, and not chosen by routing.
    any_port: the source as bind() takes it, for a port that is yet to be chosen.
    suffix: what comes after host and port in the source's address tuple.
    lookup: finds the socket on one of the 4-tuples; unset where the source is the
    kernel's to choose, as it is for TCP unless a port was asked for.
    """

    __slots__ = (
        "any_port",
        "binds",
        "host",
        "lookup",
        "network",
        "options",
        "plan",
        "request",
        "source",
        "suffix",
    )

    def __init__(
        self,
        network: Network,
        request: Request,
        options: Options,
        plan: Plan,
        source: bytes,
        interface: int,
    ) -> None:
        self.network = network
        self.request = request
        self.options = options
        self.plan = plan
        self.lookup: TupleLookup
        self.source = source
        self.host = request.source_host(source) if source else ""
        self.suffix = request.source_suffix
        self.any_port = self.source_at(0)
        self.binds = bool(request.source.host)
        if source:
            from connectx.linux.sock_diag import TupleLookup  # noqa: PLC0415 - see above

            self.lookup = TupleLookup(
                request.diag_protocol,
                request.wire_family,
                source,
                request.wire_destination,
                request.destination.port,
                interface,
            )

    def source_at(self, port: int) -> Address:
        """The source as bind() takes it."""
        return (self.host, port, *self.suffix)


class Network:
    """One network namespace, as it was when its sysctls were last read.

    ports: `net.ipv4.ip_local_port_range`; None where the thread that looked was
    in another namespace than the socket, and could not read it.
    reserved: `net.ipv4.ip_local_reserved_ports`.
    fresh_until: when to look again, on the monotonic clock.
    prepared: the requests of the last second, as they are carried out here.
    """

    def __init__(
        self,
        registry: Networks,
        identity: Identity,
        ports: PortRange | None,
        reserved: tuple[PortRange, ...],
    ) -> None:
        self.identity = identity
        self.ports = ports
        self.reserved = reserved
        self.fresh_until = monotonic() + FRESH
        self._registry = registry
        # A thread's `diag` and `route`, unset until they are opened. No class of its own:
        # an attribute of one takes three times as long to load.
        self.sockets = cast("_NetlinkSockets", threading.local())
        self._templates: dict[PortRange, bytes] = {}
        self._ledgers: weakref.WeakValueDictionary[tuple[object, ...], Ledger] = (
            weakref.WeakValueDictionary()
        )
        self.prepared: dict[object, Prepared] = {}
        self._former: dict[object, Prepared] = {}

    def renew(self) -> None:
        """Begin another second: what is prepared is prepared again if still in use.

        Destinations that were idle for the last one are forgotten with it. Their
        ledgers stay while sockets that report to them are open.
        """
        # valuerefs() is one call in C, which another thread cannot interrupt.
        for reference in self._ledgers.valuerefs():
            ledger = reference()
            if ledger is not None:
                ledger.recycle()
        self._former = self.prepared
        self.prepared = {}
        self.fresh_until = monotonic() + FRESH

    def prepare(self, request: Request, options: Options) -> Prepared:
        """The request as it is carried out here; raises ConnectxError where it cannot be."""
        prepared = self._prepare(request, options)
        self.prepared[request if options is NEW_SOCKET else (request, options)] = prepared
        return prepared

    def honours(self, protocol: str, port: int) -> bool:
        """Whether a window of this one port works here."""
        return (
            self.ports is not None
            and self.ports.contains(port)
            and not any(hole.contains(port) for hole in self.reserved)
            and windows_work(protocol)
        )

    @property
    def diag(self) -> NetlinkSocket:
        """The calling thread's NETLINK_SOCK_DIAG socket into this namespace.

        Raises OSError (EXDEV) where the thread is in another one.
        """
        try:
            return self.sockets.diag
        except AttributeError:
            self.sockets.diag = self._registry.open_netlink(self, NETLINK_SOCK_DIAG)
            return self.sockets.diag

    @property
    def route(self) -> NetlinkSocket:
        """The same for NETLINK_ROUTE."""
        try:
            return self.sockets.route
        except AttributeError:
            self.sockets.route = self._registry.open_netlink(self, NETLINK_ROUTE)
            return self.sockets.route

    def leave(self) -> None:
        """Close the calling thread's netlink sockets."""
        vars(self.sockets).clear()

    def _prepare(self, request: Request, options: Options) -> Prepared:
        chosen = strategies.named(request.strategy)
        if self.ports is None and (request.source.port or options.ports):
            raise self.absence(request)
        case = _case(request)
        available = self._available(request, options)
        program = chosen.program(case, available)
        if program is None:
            raise request.error(
                NotSupported,
                _unserved(chosen, case, available, request.protocol),
            )
        source = request.wire_source
        interface = 0
        if _looks_at_tuples(program):
            self._require_presence(request)
            source = source or self.routed_source(request, options)
            interface = self._interface(request, options, source)
        within = self.within(request, options)
        ports = within or self.ports or PortRange(*FULL_RANGE)
        plan = Plan(
            program,
            self._ledger(request, source, options, ports),
            draw,
            ports,
            search=within or FULL_RANGE,
            window=chosen.window,
            asked=request.source.port,
        )
        return Prepared(self, request, options, plan, source, interface)

    def _require_presence(self, request: Request) -> None:
        """Refuse what has to look at sockets of a namespace that the thread is not in."""
        try:
            self.diag  # noqa: B018 - opens it
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise self.absence(request) from error

    def absence(self, request: Request) -> ConnectxError:
        """The error for a thread that is in another namespace."""
        return request.error(
            NotSupported,
            "the socket belongs to another network namespace than the calling thread, so "
            "its port range and its sockets cannot be looked up: call from a thread in "
            "the socket's namespace",
        )

    def _available(self, request: Request, options: Options) -> frozenset[Need]:
        available = set()
        if windows_work(request.protocol):
            available.add(Need.WINDOW)
            if features.probe(features.STEP_OF_ONE) is Probe.YES:
                available.add(Need.FAST_SEARCH)
        if self.honours(request.protocol, request.source.port):
            available.add(Need.PORT_IN_RANGE)
        if options.replaceable:
            available.add(Need.OWN_SOCKET)
        # MPTCP learnt both options in the same version.
        late = not request.source.host or request.protocol != "mptcp" or Need.WINDOW in available
        if late and (options.ports is None or Need.WINDOW in available):
            # Without a window, a port that connect() chooses may be any of the range.
            available.add(Need.LATE_PORT)
        return frozenset(available)

    def within(self, request: Request, options: Options) -> PortRange | None:
        """The ports to stay within, if the options name any.

        Refuses a window that the kernel would ignore: it clamps each end without a word.
        """
        ports = self.ports
        if options.ports is None or ports is None:
            return None
        # 0 is the range's own end.
        wanted = PortRange(options.ports.low or ports.low, options.ports.high or ports.high)
        if not ports.low <= wanted.low <= wanted.high <= ports.high:
            raise request.error(
                RangeNotHonoured,
                f"the ports {wanted} do not lie within net.ipv4.ip_local_port_range, {ports}: "
                "the kernel would silently use that range instead",
                ports=wanted,
            )
        return wanted

    def routed_source(self, request: Request, options: Options) -> bytes:
        """The source address, packed, that routing chooses; raises OSError as connect() would."""
        return self._route(request, options, b"").source

    def _route(self, request: Request, options: Options, source: bytes) -> Route:
        from connectx.linux.route import RouteLookup  # noqa: PLC0415 - see above

        lookup = RouteLookup(
            request.wire_family,
            request.wire_destination,
            mark=options.mark,
            interface=options.interface or request.destination.scope_id,
            uid=os.geteuid(),
            protocol=request.diag_protocol,
            destination_port=request.destination.port,
            source=source,
        )
        try:
            return lookup.find(self.route)
        except OSError as error:
            number = error.errno or 0
            if request.wire_family == AF_INET6 and number == errno.ENETUNREACH:
                _require_ipv6(error)
            # In the class that connect() would raise it in: PermissionError and so on.
            raise OSError(number, os.strerror(number)) from error

    def _interface(self, request: Request, options: Options, source: bytes) -> int:
        """The device that packets from the destination come in on, as far as routing tells.

        A lookup has to name it, or it misses sockets that are bound to it.
        """
        known = options.interface or request.destination.scope_id
        if known:
            return known
        try:
            return self._route(request, options, source).interface
        except OSError:
            # No route, which connect() will say itself; or a source that is not
            # local, with IP_FREEBIND, about which routing tells nothing.
            return 0

    def _ledger(
        self, request: Request, source: bytes, options: Options, ports: PortRange
    ) -> Ledger:
        key = (
            request.diag_protocol,
            source,
            request.wire_destination,
            request.destination.port,
            options.interface or request.destination.scope_id,
            ports,
        )
        ledger = self._ledgers.get(key)
        if ledger is None:
            states = self._templates.get(ports)
            if states is None:
                states = self._templates[ports] = template(ports, self.reserved)
            ledger = self._ledgers[key] = Ledger(ports.low, states, draw)
        return ledger


def windows_work(protocol: str) -> bool:
    """Whether the kernel knows IP_LOCAL_PORT_RANGE for a protocol."""
    feature = features.IP_LOCAL_PORT_RANGE
    if protocol == "mptcp":
        feature = features.IP_LOCAL_PORT_RANGE_MPTCP
    return features.probe(feature) is Probe.YES


def _require_ipv6(error: OSError) -> None:
    """Raise what connect() raises where no interface has an IPv6 address."""
    # Not /proc/net, which shows the namespace of the process's first thread.
    with open("/proc/thread-self/net/if_inet6", "rb") as addresses:  # noqa: PTH123 - as above
        if addresses.read(1):
            return
    raise OSError(
        errno.EADDRNOTAVAIL,
        "no interface in this network namespace has an IPv6 address: "
        "is net.ipv6.conf.all.disable_ipv6 set?",
    ) from error


def _case(request: Request) -> Case:
    if request.stream:
        return Case.STREAM_ASKED_PORT if request.source.port else Case.STREAM_ANY_PORT
    return Case.DATAGRAM_ASKED_PORT if request.source.port else Case.DATAGRAM_ANY_PORT


def _looks_at_tuples(program: Program) -> bool:
    """Whether a program looks at 4-tuples, and so has to know the source beforehand."""
    looks = (Action.LOOK, Action.CLAIM, Action.SURVEY)
    return any(state.action in looks for state in program.values())


def _unserved(strategy: Strategy, case: Case, available: frozenset[Need], protocol: str) -> str:
    missing = strategy.missing(case, available)
    if not missing:
        return f"strategy {strategy.name!r} does not serve {protocol}: use 'auto'"
    needs = " and ".join(sorted(need.value for need in missing))
    return f"strategy {strategy.name!r} needs {needs}"


class _Thread(threading.local):
    """The namespace a thread has netlink sockets into, if it still exists."""

    def __init__(self) -> None:
        self.network: Callable[[], Network | None] = lambda: None


class Networks:
    """The namespaces that were used of late, and each thread's netlink sockets."""

    _thread: _Thread
    _latest: Network | None

    def __init__(self) -> None:
        self._networks: dict[Identity, Network] = {}
        # Also those that are known no longer, but to an error that is yet to be explained.
        self._every: weakref.WeakSet[Network] = weakref.WeakSet()
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def prepare(
        self, sock: socket.socket, request: Request, options: Options | None = None
    ) -> Prepared:
        """The request as it is carried out in the namespace of a socket.

        options: None for a socket that was made for the request.

        Raises ConnectxError where it cannot be carried out there, and OSError as
        reading sysctls and the routing table does.
        """
        try:
            identity: Identity = sock.getsockopt(SOL_SOCKET, SO_NETNS_COOKIE, 8)
        except OSError:
            identity = identity_of(sock)
        # The last one again, most of the time: comparing takes half of looking it up.
        network = self._latest
        if network is None or network.identity != identity or network.fresh_until < monotonic():
            network = self._network(identity)
        if options is None:
            prepared = network.prepared.get(request)
            return network.prepare(request, NEW_SOCKET) if prepared is None else prepared
        if not request.stream and not options.replaceable and _thread_identity() != identity:
            # The thread may have netlink sockets there still, but other sockets that a
            # claim makes would be where the thread is now.
            raise network.absence(request)
        return network.prepared.get((request, options)) or network.prepare(request, options)

    def here(self) -> Network:
        """The namespace that the calling thread is in."""
        return self._network(_thread_identity())

    def prepare_again(self, prepared: Prepared) -> Prepared | None:
        """The same with sysctls and routes read anew, or None if nothing has changed."""
        network = self._look(prepared.network.identity)
        renewed = network.prepare(prepared.request, prepared.options)
        if renewed.network is prepared.network and renewed.source == prepared.source:
            return None
        return renewed

    def open_netlink(self, network: Network, protocol: int) -> NetlinkSocket:
        """A netlink socket into a namespace for the calling thread.

        Raises OSError (EXDEV) where the thread is in another one.
        """
        if _thread_identity() != network.identity:
            raise OSError(errno.EXDEV, "the socket belongs to another network namespace")
        former = self._thread.network()
        if former is not None and former is not network:
            # An open netlink socket keeps its namespace alive, which a thread that
            # has moved on must not do.
            former.leave()
        self._thread.network = weakref.ref(network)
        from connectx.linux.netlink import NetlinkSocket  # noqa: PLC0415 - see above

        return NetlinkSocket(protocol)

    def _network(self, identity: Identity) -> Network:
        network = self._networks.get(identity)
        if network is None or network.fresh_until < monotonic():
            network = self._look(identity)
        self._latest = network
        return network

    def _look(self, identity: Identity) -> Network:
        network = self._networks.get(identity)
        ports: PortRange | None = None
        reserved: tuple[PortRange, ...] = ()
        try:
            here = _thread_identity() == identity
            if here:
                ports, reserved = sysctl.read_port_range(), sysctl.read_reserved_ports()
        except OSError as error:
            if network is None or error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            # The last descriptor is the caller's socket: what was known has to do.
            return network
        if not here and network is not None:
            # Known from before the thread moved away.
            ports, reserved = network.ports, network.reserved
        if network is not None and (network.ports, network.reserved) == (ports, reserved):
            network.renew()
        else:
            network = Network(self, identity, ports, reserved)
            self._every.add(network)
        self._keep(network)
        return network

    def _keep(self, network: Network) -> None:
        """Have a namespace among those that are known, and forget those nobody uses."""
        limit = monotonic() - FORGET
        kept = {network.identity: network}
        for identity, other in tuple(self._networks.items()):
            if identity == network.identity:
                continue
            if other.fresh_until > limit:
                kept[identity] = other
            else:
                other.leave()
        # Replaced as a whole: other threads may be reading it.
        self._networks = kept

    def _forget(self) -> None:
        for network in tuple(self._every):
            network.leave()
        self._networks = {}
        self._latest = None
        self._thread = _Thread()


def draw(count: int) -> array[int]:
    """Numbers of 32 bits from the kernel's generator, for RFC 6056's sake."""
    return array("I", os.urandom(4 * count))


def _thread_identity() -> Identity:
    """The namespace the calling thread is in."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as scratch:
        return identity_of(scratch)


def identity_of(sock: socket.socket) -> Identity:
    """The namespace a socket is in, or before 5.14 the one the calling thread is in."""
    try:
        return sock.getsockopt(SOL_SOCKET, SO_NETNS_COOKIE, 8)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
    status = os.stat("/proc/thread-self/ns/net")  # noqa: PTH116 - importing pathlib takes 3 ms
    # A namespace's inode number is given to the next one when it is gone; that of its
    # own sysctl comes from a counter (get_next_ino).
    sysctl_status = os.stat("/proc/sys/net/ipv4/ip_local_port_range")  # noqa: PTH116 - as above
    return status.st_dev, status.st_ino, sysctl_status.st_ino


#: One for the process: what it holds belongs to namespaces and threads, and none of it
#: survives a fork. The blocking and the asyncio driver share it, since they share ports.
NETWORKS: Final = Networks()
