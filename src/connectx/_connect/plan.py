"""A request as it is carried out in one namespace.

A plan is what all attempts toward one destination have in common: which program serves,
which ports there are, which source address routing chooses, and how the kernel is asked
about a 4-tuple. A destination that is seen for the first time pays for one, so making it
costs little more than the system calls it takes.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, overload

from connectx._connect import strategies
from connectx._connect.namespace import MOST_PLANS, NAMESPACES, NetlinkRefused, windows_work
from connectx._connect.strategies import Case, Need
from connectx.addresses import HIGHEST_PORT, PortRange, needs_scope
from connectx.errors import ConnectxError, NotSupported, RangeNotHonoured
from connectx.linux import features
from connectx.linux.features import Probe
from connectx.linux.sockopts import pack_port_range
from connectx.linux.uapi import AF_INET6, LOOPBACK_IFINDEX

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx._connect.ledger import Ledger, Shelf
    from connectx._connect.namespace import Namespace
    from connectx._connect.request import Origin, Request
    from connectx._connect.strategies import Program, Strategy
    from connectx.addresses import Address
    from connectx.linux.route import Route, RouteLookup
    from connectx.linux.sock_diag import TupleLookup


#: A window whose ends lie outside any range in force, or on its ends: the kernel
#: falls back to the range's own ends, yet the option counts as set, which from
#: 6.8 on makes the search go in steps of one. So the full range is named without
#: knowing it, and stays right when the sysctl changes or the socket belongs to
#: another namespace (inet_sk_get_local_port_range; tests/kernel/test_windows.py).
FULL_RANGE: Final = PortRange(1, HIGHEST_PORT)


class Terms:
    """How the requests of one origin are carried out in a namespace, wherever they go to.

    Attributes:
        namespace, origin: What it is made of.
        program: The table that its attempts walk.
        walks: Whether a call begins with the kernel's own walk where the ledger lets it.
        window: What IP_LOCAL_PORT_RANGE is for that, if it is needed.
        narrow: Whether it always is: the ports to stay within are a part of the range.
        opens: Whether it may begin with a port of the ledger.
        host: The source that was asked for, as bind() takes it; "" for any.
        interface: The device that the socket is bound to; 0 for none.
        random: Gives so many octets that nobody else can foresee.
        ports: The range in force, or the part of it to stay within.
        search: The window in which the kernel searches it.
        asked: The source port asked for, 0 for any.
        shares: Whether the first proposal sets SO_REUSEADDR on a stream socket.
        binds: Whether it binds the source.
        releasable: Whether a datagram socket gets its port from a window: a caller's, which can
            give it back then; and any, where only the kernel knows which ports are reserved.
        verifies: Whether the kernel may have chosen a port that nobody asked for.
        shelf: Where the ledgers toward all destinations are kept.
    """

    __slots__ = (
        "_routes",
        "asked",
        "binds",
        "host",
        "interface",
        "namespace",
        "narrow",
        "opens",
        "origin",
        "ports",
        "program",
        "random",
        "releasable",
        "search",
        "shares",
        "shelf",
        "verifies",
        "walks",
        "window",
    )

    def __init__(
        self,
        namespace: Namespace,
        origin: Origin,
        program: Program,
        ports: PortRange | None,
    ) -> None:
        self.namespace = namespace
        self.origin = origin
        self.program = program
        self.walks = program.walks
        self.opens = bool(program.proposal)
        self.host = origin.source.host
        self.interface = origin.options.interface
        self.random: Callable[[int], bytes] = os.urandom
        self.ports = ports or namespace.ports or FULL_RANGE
        self.search = ports or FULL_RANGE
        self.window = pack_port_range(*self.search)
        self.narrow = ports is not None
        self.asked = origin.source.port
        self.binds = bool(self.host)
        self.shares = origin.stream and origin.strategy != "kernel"
        in_force = namespace.ports
        # Such ports are bound by number.
        outside = ports is not None and in_force is not None and not in_force.covers(ports)
        self.releasable = (
            (not origin.options.replaceable or (bool(namespace.unseen) and not outside))
            and windows_work(origin.protocol)
            # A window does not give a reserved port, and bind() does.
            and (
                not self.asked
                or (not namespace.unseen and namespace.honours(origin.protocol, self.asked))
            )
        )
        self.verifies = bool(self.asked or origin.options.ports) and (
            origin.stream or self.releasable
        )
        self.shelf: Shelf = namespace.shelf(
            origin.table, origin.wire_source, self.ports, origin.options.exclude
        )
        # By interface.
        self._routes: dict[int, RouteLookup] = {}

    @property
    def walks_in_steps_of_one(self) -> bool:
        """Whether the kernel's walk needs a window, without which it prefers half of the ports."""
        return self.narrow or self.shelf.windows > 0

    def route(self, request: Request, source: bytes) -> Route:
        """Return the route to a destination; source: b"" for the one that routing chooses.

        Raises:
            OSError: As connect() would.
            NetlinkRefused: Routing may not be asked.
        """
        origin = self.origin
        routing = origin.options.routing
        interface = origin.options.interface or request.scope
        if routing is not None:
            interface = interface or routing.interface
            source = source or routing.source
        lookup = self._routes.get(interface)
        if lookup is None:
            from connectx.linux.route import RouteLookup  # noqa: PLC0415 - as in namespace.py

            lookup = self._routes[interface] = RouteLookup(
                origin.wire_family,
                mark=origin.options.mark,
                interface=interface,
                uid=os.geteuid() if routing is None else routing.uid,
                tos=0 if routing is None else routing.tos,
                protocol=origin.table,
            )
        try:
            netlink = self.namespace.sockets.route
        except AttributeError:
            netlink = self.namespace.route
        try:
            return lookup.find(netlink, request.wire_destination, request.address[1], source)
        except OSError as error:
            number = error.errno or 0
            if origin.wire_family == AF_INET6 and number == errno.ENETUNREACH:
                require_ipv6(error)
            # In the class that connect() would raise it in: PermissionError and so on.
            raise OSError(number, os.strerror(number)) from error


class Ends(NamedTuple):
    """Both ends of a plan's 4-tuples: what it takes to look one up.

    Attributes:
        source: The octets of the source that was asked for, or that routing chooses.
        host: The same as bind() takes it.
        suffix: What follows host and port in the address tuple.
        lookup: Finds the socket on one of the 4-tuples.
        devices: What `claim` takes besides the lookup's own device.
        anywhere: Whether that is every other one, since no device is known.
    """

    source: bytes
    host: str
    suffix: tuple[int, ...]
    lookup: TupleLookup
    devices: tuple[bytes, ...] | None
    anywhere: bool


class Plan:
    """How a request is carried out in a namespace.

    Attributes:
        terms: What it has in common with others of the same origin.
        request: What is asked for.
        any_port: The source that was asked for, as bind() takes it, for a port that is yet to be
            chosen; unset for any source.
        ledger: What is known of the source ports toward the destination.
        opening: The ledger, if a call may begin with a port of it, or with the kernel's walk,
            without an `Attempt`.
        looked: The plan's `ends`, once somebody has needed them.
        may_meet_itself: Whether a source port may be the destination's own, at the same address,
            so that the socket would be connected to itself.
        checks: Whether the source has to be looked at once the socket is connected.
    """

    __slots__ = (
        "any_port",
        "checks",
        "ledger",
        "looked",
        "may_meet_itself",
        "opening",
        "request",
        "terms",
    )

    any_port: Address
    ledger: Ledger

    def __init__(self, terms: Terms, request: Request) -> None:
        self.terms = terms
        self.request = request
        if terms.binds:
            self.any_port = self.source_at(0)
        port, wire = request.address[1], request.wire_destination
        ledger = terms.shelf.ledger((wire, port, terms.interface or request.scope))
        self.ledger = ledger
        self.opening = ledger if terms.opens else None
        self.looked: Ends | None = None
        # A source that is left to the kernel may be the destination's own address. And the range
        # may have come to the port within the last second: only what bind() was given is sure to
        # lie in the one that is known.
        self.may_meet_itself = (
            (terms.ports.low <= port <= terms.ports.high or terms.origin.stream or terms.releasable)
            and not terms.asked
            and terms.origin.wire_source in (b"", wire)
        )
        self.checks = terms.verifies or self.may_meet_itself

    def __repr__(self) -> str:
        ports = self.terms.ports
        return f"<Plan for {self.request!r} from {self.terms.host or 'any source'}, ports {ports}>"

    def source_at(self, port: int) -> Address:
        """Return the source as bind() takes it."""
        return (self.terms.host, port, *self.request.source_suffix)  # type: ignore[return-value] # two or four

    def ends(self) -> Ends:
        """Return what a lookup needs. Most calls need no lookup, so it is not made before.

        Raises:
            OSError: As connect() would, where there is no route.
            NotSupported: The thread is in another namespace.
            NetlinkRefused: Sockets may not be looked up.
        """
        if self.looked is None:
            terms, request = self.terms, self.request
            origin = terms.origin
            _require_presence(terms.namespace, request)
            source = origin.wire_source or terms.route(request, b"").source
            # For datagrams any device will do where every one is looked at, and this one all have.
            scoped = needs_scope(source)
            bound = bool(scoped or origin.options.interface)
            anywhere = not (bound or request.scope or origin.stream)
            interface = LOOPBACK_IFINDEX if anywhere else _interface(terms, request, source)
            suffix = request.source_suffix
            if scoped and not terms.binds:
                # Routing may choose a link-local source for any destination.
                suffix = (0, interface)
            from connectx.linux.sock_diag import TupleLookup  # noqa: PLC0415 - as in namespace.py

            lookup = TupleLookup(
                origin.table,
                origin.wire_family,
                source,
                request.wire_destination,
                request.address[1],
                interface,
            )
            host = terms.host or request.source_host(source)
            self.looked = Ends(source, host, suffix, lookup, None if bound else (), anywhere)
        return self.looked

    def devices(self, ends: Ends) -> tuple[bytes, ...] | None:
        """Return the devices that `claim` takes besides the lookup's own; raises as `ends`."""
        return self.terms.namespace.devices.but_loopback() if ends.anywhere else ends.devices


@overload
def make_plan(namespace: Namespace, request: Request) -> Plan: ...
@overload
def make_plan(namespace: Namespace, request: Request, *, unlike: Plan) -> Plan | None: ...
def make_plan(namespace: Namespace, request: Request, *, unlike: Plan | None = None) -> Plan | None:
    """Plan a request, and have the namespace keep the plan.

    Args:
        namespace: Where the socket is.
        request: What is asked for.
        unlike: A plan that has failed; None is returned if the new one would be the same.

    Raises:
        ConnectxError: The request cannot be carried out there.
        OSError: As reading sysctls does; for `unlike` as routing does.
    """
    origin = request.origin
    terms: Terms | None = namespace.terms.get(origin)  # type: ignore[assignment] # that it keeps
    if terms is None:
        try:
            terms = _terms(namespace, request)
        except RangeNotHonoured:
            # Unless the range has changed within the last second.
            renewed = NAMESPACES.look_again(namespace)
            if renewed is namespace:
                raise
            return make_plan(renewed, request)
    plan = Plan(terms, request)
    if (
        unlike is not None
        and unlike.terms.namespace is namespace
        and (unlike.looked is None or unlike.looked.source == plan.ends().source)
    ):
        return None
    if len(namespace.plans) >= MOST_PLANS:
        namespace.begin()
    namespace.plans[request] = plan
    return plan


def _terms(namespace: Namespace, request: Request) -> Terms:
    """Settle how requests of an origin are carried out, and have the namespace keep that."""
    origin = request.origin
    program = _program(namespace, request)
    ports = origin.options.ports
    if namespace.ports is None:
        if namespace.unseen:
            program = _program_without_range(namespace, request, program)
        elif origin.source.port or ports or (program.proposes and not origin.stream):
            raise absence(request)
    terms = Terms(namespace, origin, program, within(namespace, request, ports))
    namespace.terms[origin] = terms
    return terms


def within(namespace: Namespace, request: Request, ports: PortRange | None) -> PortRange | None:
    """Return the ports to stay within, if there are any; 0 stands for the range's own end.

    On a socket of our own they may lie outside of the range: bind() takes them then.

    Raises:
        RangeNotHonoured: The kernel would ignore them: it clamps each end without a word.
    """
    in_force = namespace.ports
    if ports is None or in_force is None:
        return None
    wanted = PortRange(ports.low or in_force.low, ports.high or in_force.high)
    if not in_force.covers(wanted) and not request.origin.options.replaceable:
        raise request.error(
            RangeNotHonoured,
            f"the ports {wanted} do not lie within net.ipv4.ip_local_port_range, {in_force}: "
            "the kernel would silently use that range instead",
            ports=wanted,
            explanation=partial(_outside, wanted, in_force),
        )
    return wanted


def _outside(wanted: PortRange, in_force: PortRange) -> str:
    """Return what helps with a window that the kernel would ignore."""
    low, high = min(wanted.low, in_force.low), max(wanted.high, in_force.high)
    return (
        "A socket made elsewhere gets its port from a window, which has to lie within that range.\n"
        "  - Have connectx make the socket: create_connection() of a Dialer binds any port.\n"
        "  - Ask for one port by number: it may lie outside of the range.\n"
        f"  - Widen the range, for every program in this network namespace: reserve the ports of\n"
        "    listeners in net.ipv4.ip_local_reserved_ports first, and then\n"
        f'    sysctl -w net.ipv4.ip_local_port_range="{low} {high}"'
    )


def routed_source(namespace: Namespace, request: Request) -> bytes:
    """Return the octets of the source address that routing chooses.

    Raises:
        OSError: As connect() would.
        NotSupported: Routing may not be asked.
    """
    try:
        return _terms(namespace, request).route(request, b"").source
    except NetlinkRefused as error:
        raise without_netlink(request, error, "asking for the route") from error


def absence(request: Request) -> ConnectxError:
    """Return the error for a thread that is in another namespace than the socket."""
    return request.error(
        NotSupported,
        "the socket belongs to another network namespace than the calling thread, so "
        "its port range and its sockets cannot be looked up: call from a thread in "
        "the socket's namespace",
    )


def _program_without_range(namespace: Namespace, request: Request, program: Program) -> Program:
    """Return a program that needs no range, where neither /proc/sys nor windows show one."""
    origin = request.origin
    if not origin.options.ports and (origin.source.port or not program.proposes):
        return program
    # It chooses a port that no socket has, and knows the range.
    chosen = strategies.named("kernel").program(_case(origin), _available(namespace, origin))
    if origin.options.ports or chosen is None:
        raise request.error(
            NotSupported,
            f"the range of source ports is not known: {namespace.unseen}, and this kernel has no "
            f"IP_LOCAL_PORT_RANGE for {origin.protocol}: make /proc/sys/net readable",
            ports=origin.options.ports,
        )
    return chosen


def without_netlink(request: Request, error: NetlinkRefused, purpose: str) -> ConnectxError:
    """Return the error for what cannot be done without netlink; purpose: what that is."""
    return request.error(
        NotSupported,
        f"{purpose} needs netlink, and {error.strerror}: allow AF_NETLINK in this process's "
        "sandbox (systemd: RestrictAddressFamilies, containers: the seccomp profile)",
    )


def _program(namespace: Namespace, request: Request) -> Program:
    """Return the program that serves; NotSupported where none does."""
    chosen = strategies.named(request.origin.strategy)
    case, available = _case(request.origin), _available(namespace, request.origin)
    program = chosen.program(case, available)
    if program is None:
        message = _unserved(chosen, case, available, request.origin.protocol)
        raise request.error(NotSupported, message)
    return program


def _available(namespace: Namespace, origin: Origin) -> frozenset[Need]:
    available = set()
    ports, in_force = origin.options.ports, namespace.ports
    outside = ports is not None and in_force is not None and not in_force.covers(ports)
    if windows_work(origin.protocol) and not (outside and origin.options.replaceable):
        available.add(Need.WINDOW)
        if features.probe(features.STEP_OF_ONE) is Probe.YES:
            available.add(Need.FAST_SEARCH)
    if namespace.honours(origin.protocol, origin.source.port):
        available.add(Need.PORT_IN_RANGE)
    if origin.options.replaceable:
        available.add(Need.OWN_SOCKET)
    if not origin.options.exclude:
        available.add(Need.WHOLE_RANGE)
    # MPTCP learnt both options in the same version.
    late = not origin.source.host or origin.protocol != "mptcp" or Need.WINDOW in available
    if late and (origin.options.ports is None or Need.WINDOW in available):
        # Without a window, a port that connect() chooses may be any of the range.
        available.add(Need.LATE_PORT)
    return frozenset(available)


def _case(origin: Origin) -> Case:
    if origin.stream:
        return Case.STREAM_ASKED_PORT if origin.source.port else Case.STREAM_ANY_PORT
    return Case.DATAGRAM_ASKED_PORT if origin.source.port else Case.DATAGRAM_ANY_PORT


def _unserved(strategy: Strategy, case: Case, available: frozenset[Need], protocol: str) -> str:
    missing = strategy.missing(case, available)
    if not missing:
        return f"strategy {strategy.name!r} does not serve {protocol}: use 'auto'"
    needs = " and ".join(sorted(need.value for need in missing))
    return f"strategy {strategy.name!r} needs {needs}"


def _require_presence(namespace: Namespace, request: Request) -> None:
    """Refuse to look at sockets of a namespace that the thread is not in."""
    try:
        namespace.sockets.diag  # noqa: B018 - known, most of the time
    except AttributeError:
        pass
    else:
        return
    try:
        namespace.diag  # noqa: B018 - opens it
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise absence(request) from error


def _interface(terms: Terms, request: Request, source: bytes) -> int:
    """Return the device that packets from the destination come in on, as far as routing tells.

    A lookup has to name it, or it misses sockets that are bound to it.
    """
    known = terms.origin.options.interface or request.scope
    if known:
        return known
    try:
        return terms.route(request, source).interface
    except OSError:
        # No route, which connect() will say itself; or a source that is not
        # local, with IP_FREEBIND, about which routing tells nothing.
        return 0


def require_ipv6(error: OSError) -> None:
    """Raise what connect() raises where no interface has an IPv6 address, as far as /proc shows."""
    try:
        # Not /proc/net, which shows the namespace of the process's first thread.
        with open("/proc/thread-self/net/if_inet6", "rb") as addresses:  # noqa: PTH123 - importing pathlib takes 3 ms
            if addresses.read(1):
                return
    except OSError:
        # No /proc, or a kernel without IPv6.
        return
    raise OSError(
        errno.EADDRNOTAVAIL,
        "no interface in this network namespace has an IPv6 address: "
        "is net.ipv6.conf.all.disable_ipv6 set?",
    ) from error
