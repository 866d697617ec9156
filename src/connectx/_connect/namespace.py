"""What is known of a network namespace, found anew at each call from the socket itself.

Ports, sysctls and sockets belong to a network namespace, and a thread may have moved to
another one since the last call without telling anybody. So each call asks its socket
which namespace it is in (SO_NETNS_COOKIE) and works with what is known of that one. What
is known is at most a second old.

Safe under threads: what threads share is replaced, or changed one dictionary entry at a
time, and netlink sockets are kept per thread. Safe under fork: a child starts with nothing.
"""

from __future__ import annotations

import errno
import os
import socket
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from connectx._connect.ledger import Numbers, Shelf, template
from connectx._connect.rest import Rest
from connectx._connect.unpatched import Local
from connectx.linux import features, sysctl
from connectx.linux.features import Probe
from connectx.linux.uapi import (
    IPPROTO_TCP,
    NETLINK_ROUTE,
    NETLINK_SOCK_DIAG,
    RTMGRP_LINK,
    SO_NETNS_COOKIE,
    SOL_SOCKET,
)

# Netlink is imported where it is first needed: programs that leave the source port of TCP
# connections to us never need it, and it is a third of what importing us takes.
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import Protocol

    from connectx._connect.ledger import Ledger
    from connectx._connect.strategies import Program
    from connectx.addresses import PortRange
    from connectx.linux.devices import Devices
    from connectx.linux.netlink import NetlinkSocket

    class Plan(Protocol):
        """What is kept for a destination: a `connectx._connect.plan.Plan`."""

        @property
        def ledger(self) -> Ledger:
            """Is kept with it."""

    class Terms(Protocol):
        """What is kept for an origin: a `connectx._connect.plan.Terms`."""

        @property
        def program(self) -> Program:
            """Serves here."""

    class _NetlinkSockets(Local):
        """One thread's netlink sockets into one namespace."""

        diag: NetlinkSocket
        route: NetlinkSocket
        devices: Devices


#: What names a namespace: SO_NETNS_COOKIE as the kernel gives it, or where the
#: kernel has none (before 5.14) what `identity_of` puts together.
Identity: TypeAlias = bytes | tuple[int, int, int]

#: How old what is known of sysctls and of the routing table may be, in seconds.
FRESH: Final = 1.0

#: Seconds after which a namespace that nobody uses is forgotten.
FORGET: Final = 60.0

#: Plans that are kept at a time. To forget them all at once takes a millisecond.
MOST_PLANS: Final = 1024

#: Octets of templates that are kept at a time: one of 28,232 ports is as many octets, and each
#: caller's socket may have a window of its own.
MOST_OCTETS: Final = 2**20


#: What socket(2) fails with where a sandbox refuses netlink (seccomp, with an errno of its
#: author's choice; an LSM), or the kernel has none (gVisor).
_REFUSALS: Final = frozenset(
    {errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EPERM, errno.EACCES, errno.ENOSYS}
)


_NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE})


class NetlinkRefused(OSError):  # noqa: N818 - what has happened, which need not be an error
    """This process may not open a netlink socket; the errno is socket(2)'s.

    A class of its own, for a route may be refused with the same errno.
    """


class Namespace:
    """One network namespace, as it was when its sysctls were last read.

    Attributes:
        identity: Names it.
        ports: `net.ipv4.ip_local_port_range`; None where the thread that looked was in
            another namespace than the socket, and could not read it.
        reserved: `net.ipv4.ip_local_reserved_ports`.
        unseen: Why these two cannot be read, where /proc/sys is hidden; "" where they can. The
            range is then what windows give, None if there are none, and `reserved` is empty.
        fresh_until: When to look again, on the monotonic clock.
        plans: How the requests of the last second are carried out here.
        terms: What the plans of an origin have in common.
        shared_until: Until when UDP ports are likely to be in use, on the same clock.
        crowded_until: Until when they are likely to be held.
        sockets: A thread's `diag`, `route` and `devices`, unset until they are opened.
    """

    def __init__(
        self,
        registry: Namespaces,
        identity: Identity,
        ports: PortRange | None,
        reserved: tuple[PortRange, ...],
        unseen: str = "",
    ) -> None:
        self.identity = identity
        self.ports = ports
        self.reserved = reserved
        self.unseen = unseen
        self.fresh_until = monotonic() + FRESH
        self.shared_until = 0.0
        self.crowded_until = 0.0
        self.plans: dict[Hashable, Plan] = {}
        self.terms: dict[Hashable, Terms] = {}
        # No class of its own: an attribute of one takes three times as long to load.
        self.sockets = cast("_NetlinkSockets", Local())
        self._registry = registry
        # The ledgers of the plans before that have a map, which is worth something.
        self._former: list[Ledger] = []
        self._templates: dict[Hashable, bytes] = {}
        self._octets = 0
        self._shelves: weakref.WeakValueDictionary[Hashable, Shelf] = weakref.WeakValueDictionary()
        self._numbers = Numbers(os.urandom)
        self._rest = Rest(monotonic)

    def __repr__(self) -> str:
        ledgers = sum(map(len, self._shelves.values()))
        return f"<Namespace {self.ports}, {len(self.plans)} plans, {ledgers} ledgers>"

    def renew(self) -> None:
        """Begin another second: what is still in use is planned again.

        Destinations that were idle for the last one are forgotten with it. Their ledgers
        stay while sockets that report to them are open.
        """
        self.begin()
        self._rest.tidy()
        self.fresh_until = monotonic() + FRESH

    def shelf(
        self,
        protocol: int,
        source: bytes,
        ports: PortRange,
        exclude: tuple[PortRange, ...] = (),
    ) -> Shelf:
        """Return where the ledgers of a source and a range of ports are kept.

        Args:
            protocol: The IPPROTO_* number of the kernel's table.
            source: The octets of the address; b"" for any.
            ports: The range.
            exclude: What of it is never proposed.
        """
        key = protocol, source, ports, exclude
        shelf = self._shelves.get(key)
        if shelf is None:
            states = self._templates.get((ports, exclude))
            if states is None:
                states = template(ports, (*self.reserved, *exclude))
                self._octets += len(states)
                if self._octets > MOST_OCTETS:
                    # Plans refer to them.
                    self.begin()
                    self._templates, self._octets = {}, len(states)
                self._templates[ports, exclude] = states
            shelf = self._shelves[key] = Shelf(
                ports.low,
                states,
                self._numbers,
                self._rest,
                key,
                walks=protocol == IPPROTO_TCP,
            )
        return shelf

    def honours(self, protocol: str, port: int) -> bool:
        """Return whether a window of this one port works here."""
        return (
            self.ports is not None
            and self.ports.contains(port)
            and not any(hole.contains(port) for hole in self.reserved)
            and windows_work(protocol)
        )

    @property
    def diag(self) -> NetlinkSocket:
        """The calling thread's NETLINK_SOCK_DIAG socket into this namespace.

        Raises:
            OSError: EXDEV, in a thread that is in another namespace.
            NetlinkRefused: A sandbox does not allow it.
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

    @property
    def devices(self) -> Devices:
        """What knows its devices, for the calling thread; raises as `diag` does."""
        try:
            return self.sockets.devices
        except AttributeError:
            from connectx.linux.devices import Devices  # noqa: PLC0415 - as in open_netlink

            announcements = self._registry.open_netlink(self, NETLINK_ROUTE, RTMGRP_LINK)
            self.sockets.devices = Devices(self.route, announcements)
            return self.sockets.devices

    def leave(self) -> None:
        """Close the calling thread's netlink sockets."""
        vars(self.sockets).clear()

    def begin(self) -> None:
        """Begin a new generation of plans."""
        self._former = [plan.ledger for plan in self.plans.values() if plan.ledger.mapped]
        self.plans = {}
        self.terms = {}


def windows_work(protocol: str) -> bool:
    """Return whether the kernel knows IP_LOCAL_PORT_RANGE for a protocol."""
    feature = features.IP_LOCAL_PORT_RANGE
    if protocol == "mptcp":
        feature = features.IP_LOCAL_PORT_RANGE_MPTCP
    return features.probe(feature) is Probe.YES


class _Thread(Local):
    """The namespace a thread has netlink sockets into, if it still exists."""

    def __init__(self) -> None:
        self.namespace: Callable[[], Namespace | None] = lambda: None


class Namespaces:
    """The namespaces that were used of late, and each thread's netlink sockets."""

    _thread: _Thread
    _latest: Namespace | None

    def __init__(self) -> None:
        self._namespaces: dict[Identity, Namespace] = {}
        # Also those that are known no longer, but to an error that is yet to be explained.
        self._every: weakref.WeakSet[Namespace] = weakref.WeakSet()
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def of(self, sock: socket.socket) -> Namespace:
        """Return the namespace that a socket is in.

        Raises:
            OSError: A sysctl cannot be read.
        """
        try:
            identity: Identity = sock.getsockopt(SOL_SOCKET, SO_NETNS_COOKIE, 8)
        except OSError:
            identity = identity_of(sock)
        # The last one again, most of the time: comparing takes half of looking it up.
        namespace = self._latest
        if (
            namespace is None
            or namespace.identity != identity
            or namespace.fresh_until < monotonic()
        ):
            namespace = self._namespace(identity)
        return namespace

    def here(self) -> Namespace:
        """Return the namespace that the calling thread is in."""
        return self._namespace(thread_identity())

    def look_again(self, namespace: Namespace) -> Namespace:
        """Read the sysctls of a namespace anew; returns the same one if they have not changed."""
        return self._look(namespace.identity)

    def open_netlink(self, namespace: Namespace, protocol: int, groups: int = 0) -> NetlinkSocket:
        """Open a netlink socket into a namespace for the calling thread.

        protocol, groups: as for `NetlinkSocket`.

        Raises:
            OSError: EXDEV, where the thread is in another namespace.
            NetlinkRefused: A sandbox does not allow it.
        """
        if thread_identity() != namespace.identity:
            raise OSError(errno.EXDEV, "the socket belongs to another network namespace")
        former = self._thread.namespace()
        if former is not None and former is not namespace:
            # An open netlink socket keeps its namespace alive, which a thread that
            # has moved on must not do.
            former.leave()
        self._thread.namespace = weakref.ref(namespace)
        from connectx.linux.netlink import NetlinkSocket  # noqa: PLC0415 - see above

        try:
            return NetlinkSocket(protocol, groups)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            name = "NETLINK_ROUTE" if protocol == NETLINK_ROUTE else "NETLINK_SOCK_DIAG"
            raise NetlinkRefused(
                error.errno, f"{name} is refused to this process ({error.strerror})"
            ) from error

    def _namespace(self, identity: Identity) -> Namespace:
        namespace = self._namespaces.get(identity)
        if namespace is None or namespace.fresh_until < monotonic() or namespace.ports is None:
            # Its range is not known from outside; this thread may be inside.
            namespace = self._look(identity)
        self._latest = namespace if namespace.ports is not None else None
        return namespace

    def _look(self, identity: Identity) -> Namespace:
        namespace = self._namespaces.get(identity)
        ports: PortRange | None = None
        reserved: tuple[PortRange, ...] = ()
        unseen = ""
        try:
            here = thread_identity() == identity
            if here:
                ports, reserved, unseen = _read_sysctls()
        except OSError as error:
            if namespace is None or error.errno not in _NO_DESCRIPTOR:
                raise
            # The last descriptor is the caller's socket: what was known has to do.
            return namespace
        if not here and namespace is not None:
            # Known from before the thread moved away.
            ports, reserved, unseen = namespace.ports, namespace.reserved, namespace.unseen
        if namespace is None or (namespace.ports, namespace.reserved, namespace.unseen) != (
            ports,
            reserved,
            unseen,
        ):
            namespace = Namespace(self, identity, ports, reserved, unseen)
            self._every.add(namespace)
            self._latest = None
        elif namespace.fresh_until < monotonic():
            namespace.renew()
        self._keep(namespace)
        return namespace

    def _keep(self, namespace: Namespace) -> None:
        """Have a namespace among those that are known, and forget those nobody uses."""
        limit = monotonic() - FORGET
        kept = {namespace.identity: namespace}
        for identity, other in tuple(self._namespaces.items()):
            if identity == namespace.identity:
                continue
            if other.fresh_until > limit:
                kept[identity] = other
            else:
                other.leave()
        # Replaced as a whole: other threads may be reading it.
        self._namespaces = kept

    def _forget(self) -> None:
        for namespace in tuple(self._every):
            namespace.leave()
        self._namespaces = {}
        self._latest = None
        self._thread = _Thread()


def _read_sysctls() -> tuple[PortRange | None, tuple[PortRange, ...], str]:
    """Return the range of ports, those that are reserved, and why these cannot be read."""
    try:
        return sysctl.read_port_range(), sysctl.read_reserved_ports(), ""
    except OSError as error:
        if error.errno in _NO_DESCRIPTOR:
            raise
        from connectx.linux.port_range import find_port_range  # noqa: PLC0415 - in sandboxes only

        return find_port_range(), (), error.strerror or str(error)


def thread_identity() -> Identity:
    """Return the namespace the calling thread is in."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as scratch:
        return identity_of(scratch)


def identity_of(sock: socket.socket) -> Identity:
    """Return the namespace a socket is in, or before 5.14 the one the calling thread is in."""
    try:
        return sock.getsockopt(SOL_SOCKET, SO_NETNS_COOKIE, 8)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
    # A namespace's inode number is given to the next one when it is gone; that of its
    # own sysctl comes from a counter (get_next_ino).
    (device, inode), (_, sysctl_inode) = map(
        _file_at, ("/proc/thread-self/ns/net", "/proc/sys/net/ipv4/ip_local_port_range")
    )
    return device, inode, sysctl_inode


def _file_at(path: str) -> tuple[int, int]:
    """Return the device and the number of a file in /proc; two zeros where it is hidden."""
    try:
        status = os.stat(path)  # noqa: PTH116 - importing pathlib takes 3 ms
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


#: One for the process: what it holds belongs to namespaces and threads, and none of it
#: survives a fork. All calls share it, since they share ports.
NAMESPACES: Final = Namespaces()
