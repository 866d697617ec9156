"""A request as it is carried out in one namespace.

A plan is what all attempts toward one destination have in common: which program serves,
which ports there are, which source address routing chooses, and how the kernel is asked
about a 4-tuple. A destination that is seen for the first time pays for one, so making it
costs little more than the system calls it takes.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, NamedTuple, overload

from connectx._connect import strategies
from connectx._connect.namespace import MOST_PLANS, windows_work
from connectx._connect.strategies import Case, Need
from connectx.addresses import HIGHEST_PORT, PortRange
from connectx.errors import ConnectxError, NotSupported, RangeNotHonoured
from connectx.linux import features
from connectx.linux.features import Probe
from connectx.linux.uapi import AF_INET6

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx._connect.ledger import Ledger
    from connectx._connect.namespace import Namespace
    from connectx._connect.request import Request
    from connectx._connect.strategies import Program, Strategy
    from connectx.addresses import Address
    from connectx.linux.route import Route
    from connectx.linux.sock_diag import TupleLookup


class Options(NamedTuple):
    """What bears on a call's source besides its addresses.

    Attributes:
        mark, interface: SO_MARK and SO_BINDTOIFINDEX of the socket; 0 for none.
        ports: The ports to stay within, such as the socket's own IP_LOCAL_PORT_RANGE;
            None for the range in force.
        replaceable: Whether a socket that is stuck on a port may be replaced by a new one.
        freebind: Whether the source may be an address that is not local (IP_FREEBIND).
    """

    mark: int = 0
    interface: int = 0
    ports: PortRange | None = None
    replaceable: bool = False
    freebind: bool = False


#: The options of a socket that has just been made for the call.
NEW_SOCKET: Final = Options(replaceable=True)

#: A window whose ends lie outside any range in force, or on its ends: the kernel
#: falls back to the range's own ends, yet the option counts as set, which from
#: 6.8 on makes the search go in steps of one. So the full range is named without
#: knowing it, and stays right when the sysctl changes or the socket belongs to
#: another namespace (inet_sk_get_local_port_range; tests/kernel/test_windows.py).
FULL_RANGE: Final = PortRange(1, HIGHEST_PORT)


class Plan:
    """How a request is carried out in a namespace.

    Attributes:
        namespace, request, options: What it is made of.
        program: The table that its attempts walk.
        ledger: What is known of the source ports toward the destination.
        opening: The ledger, if a call may begin with a port of it without an `Attempt`.
        random: Gives so many octets that nobody else can foresee.
        ports: The range in force, or the part of it to stay within.
        search: The window in which the kernel searches it.
        asked: The source port asked for, 0 for any.
        source: The source's octets as they go on the wire; b"" for any.
        host: The same as bind() takes it; "" for any.
        binds: Whether the source's host was asked for, and not chosen by routing.
        any_port: The source as bind() takes it, for a port that is yet to be chosen.
        releasable: Whether a caller's datagram socket gets its port from a window, and so can
            give it back.
        verifies: Whether the kernel may have chosen a port that nobody asked for.
        lookup: Finds the socket on one of the 4-tuples; unset where the source is the
            kernel's to choose, as it is for TCP unless a port was asked for.
    """

    __slots__ = (
        "any_port",
        "asked",
        "binds",
        "host",
        "ledger",
        "lookup",
        "namespace",
        "opening",
        "options",
        "ports",
        "program",
        "random",
        "releasable",
        "request",
        "search",
        "source",
        "verifies",
    )

    lookup: TupleLookup

    def __init__(
        self,
        namespace: Namespace,
        request: Request,
        options: Options,
        program: Program,
        source: bytes,
        ports: PortRange | None,
    ) -> None:
        self.namespace = namespace
        self.request = request
        self.options = options
        self.program = program
        self.random: Callable[[int], bytes] = os.urandom
        self.ports = ports or namespace.ports or FULL_RANGE
        self.search = ports or FULL_RANGE
        self.asked = request.source.port
        self.source = source
        self.binds = bool(request.source.host)
        self.host = request.source.host
        if source and not self.binds:
            self.host = request.source_host(source)
        self.any_port: Address = (self.host, 0, *request.source_suffix)  # type: ignore[assignment] # two or four
        self.releasable = (
            not options.replaceable
            and windows_work(request.protocol)
            and (not self.asked or namespace.honours(request.protocol, self.asked))
        )
        self.verifies = bool(self.asked or options.ports)
        key = (
            request.table,
            source,
            request.wire_destination,
            request.destination.port,
            options.interface or request.destination.scope_id,
        )
        self.ledger: Ledger = namespace.ledger(key, self.ports)
        self.opening = self.ledger if program.opens else None

    def __repr__(self) -> str:
        return f"<Plan for {self.request!r} from {self.host or 'any source'}, ports {self.ports}>"

    def source_at(self, port: int) -> Address:
        """Return the source as bind() takes it."""
        return (self.host, port, *self.request.source_suffix)  # type: ignore[return-value] # two or four


@overload
def make_plan(namespace: Namespace, request: Request, options: Options) -> Plan: ...
@overload
def make_plan(
    namespace: Namespace, request: Request, options: Options, *, unlike: Plan
) -> Plan | None: ...
def make_plan(
    namespace: Namespace, request: Request, options: Options, *, unlike: Plan | None = None
) -> Plan | None:
    """Plan a request, and have the namespace keep the plan.

    Args:
        namespace: Where the socket is.
        request: What is asked for.
        options: What the socket has set.
        unlike: A plan that has failed; None is returned if the new one would be the same.

    Raises:
        ConnectxError: The request cannot be carried out there.
        OSError: As routing and reading sysctls do.
    """
    if namespace.ports is None and (request.source.port or options.ports):
        raise absence(request)
    program = _program(namespace, request, options)
    source = request.wire_source
    interface = 0
    if program.looks:
        _require_presence(namespace, request)
        source = source or routed_source(namespace, request, options)
        interface = _interface(namespace, request, options, source)
    if unlike is not None and (unlike.namespace, unlike.source) == (namespace, source):
        return None
    plan = Plan(namespace, request, options, program, source, within(namespace, request, options))
    if program.looks:
        from connectx.linux.sock_diag import TupleLookup  # noqa: PLC0415 - as in namespace.py

        plan.lookup = TupleLookup(
            request.table,
            request.wire_family,
            source,
            request.wire_destination,
            request.destination.port,
            interface,
        )
    if len(namespace.plans) >= MOST_PLANS:
        namespace.begin()
    namespace.plans[request, options] = plan
    return plan


def within(namespace: Namespace, request: Request, options: Options) -> PortRange | None:
    """Return the ports to stay within, if the options name any.

    Raises:
        RangeNotHonoured: The kernel would ignore them: it clamps each end without a word.
    """
    ports = namespace.ports
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


def routed_source(namespace: Namespace, request: Request, options: Options) -> bytes:
    """Return the octets of the source address that routing chooses.

    Raises:
        OSError: As connect() would.
    """
    return _route(namespace, request, options, b"").source


def absence(request: Request) -> ConnectxError:
    """Return the error for a thread that is in another namespace than the socket."""
    return request.error(
        NotSupported,
        "the socket belongs to another network namespace than the calling thread, so "
        "its port range and its sockets cannot be looked up: call from a thread in "
        "the socket's namespace",
    )


def _program(namespace: Namespace, request: Request, options: Options) -> Program:
    """Return the program that serves; NotSupported where none does."""
    kind = (
        request.strategy,
        request.protocol,
        request.source.port,
        bool(request.source.host),
        options.ports is None,
        options.replaceable,
    )
    program = namespace.programs.get(kind)
    if program is None:
        chosen = strategies.named(request.strategy)
        case, available = _case(request), _available(namespace, request, options)
        program = chosen.program(case, available)
        if program is None:
            message = _unserved(chosen, case, available, request.protocol)
            raise request.error(NotSupported, message)
        namespace.programs[kind] = program
    return program


def _available(namespace: Namespace, request: Request, options: Options) -> frozenset[Need]:
    available = set()
    if windows_work(request.protocol):
        available.add(Need.WINDOW)
        if features.probe(features.STEP_OF_ONE) is Probe.YES:
            available.add(Need.FAST_SEARCH)
    if namespace.honours(request.protocol, request.source.port):
        available.add(Need.PORT_IN_RANGE)
    if options.replaceable:
        available.add(Need.OWN_SOCKET)
    # MPTCP learnt both options in the same version.
    late = not request.source.host or request.protocol != "mptcp" or Need.WINDOW in available
    if late and (options.ports is None or Need.WINDOW in available):
        # Without a window, a port that connect() chooses may be any of the range.
        available.add(Need.LATE_PORT)
    return frozenset(available)


def _case(request: Request) -> Case:
    if request.stream:
        return Case.STREAM_ASKED_PORT if request.source.port else Case.STREAM_ANY_PORT
    return Case.DATAGRAM_ASKED_PORT if request.source.port else Case.DATAGRAM_ANY_PORT


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


def _interface(namespace: Namespace, request: Request, options: Options, source: bytes) -> int:
    """Return the device that packets from the destination come in on, as far as routing tells.

    A lookup has to name it, or it misses sockets that are bound to it.
    """
    known = options.interface or request.destination.scope_id
    if known:
        return known
    try:
        return _route(namespace, request, options, source).interface
    except OSError:
        # No route, which connect() will say itself; or a source that is not
        # local, with IP_FREEBIND, about which routing tells nothing.
        return 0


def _route(namespace: Namespace, request: Request, options: Options, source: bytes) -> Route:
    from connectx.linux.route import find_route  # noqa: PLC0415 - as in namespace.py

    try:
        netlink = namespace.sockets.route
    except AttributeError:
        netlink = namespace.route
    try:
        return find_route(
            netlink,
            request.wire_family,
            request.wire_destination,
            mark=options.mark,
            interface=options.interface or request.destination.scope_id,
            uid=os.geteuid(),
            protocol=request.table,
            destination_port=request.destination.port,
            source=source,
        )
    except OSError as error:
        number = error.errno or 0
        if request.wire_family == AF_INET6 and number == errno.ENETUNREACH:
            _require_ipv6(error)
        # In the class that connect() would raise it in: PermissionError and so on.
        raise OSError(number, os.strerror(number)) from error


def _require_ipv6(error: OSError) -> None:
    """Raise what connect() raises where no interface has an IPv6 address."""
    # Not /proc/net, which shows the namespace of the process's first thread.
    with open("/proc/thread-self/net/if_inet6", "rb") as addresses:  # noqa: PTH123 - importing pathlib takes 3 ms
        if addresses.read(1):
            return
    raise OSError(
        errno.EADDRNOTAVAIL,
        "no interface in this network namespace has an IPv6 address: "
        "is net.ipv6.conf.all.disable_ipv6 set?",
    ) from error
