"""A caller's socket: what is set on it, and how to leave it as it was found.

To keep one more option: read it in `__init__`, set it back in `_made` and `_failed`, and if
bind() or connect() look at it, set it in `_equip` too. Tests: tests/api/test_options.py,
tests/api/test_after_an_error.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

# The C class, which is a base of all sockets but gevent's. socket.SocketType is this one, until
# gevent replaces it.
from _socket import socket as _Socket  # noqa: N812
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from connectx._connect.connection import Connection
from connectx._connect.looking import try_bind
from connectx._connect.namespace import NetlinkRefused, identity_of
from connectx._connect.plan import absence, make_plan
from connectx._connect.request import (
    PLAIN,
    Routing,
    parse,
    request_with,
    require_served,
)
from connectx._connect.routing import (
    copy_routing,
    prefers_a_source,
    routing_of,
    source_by_trying,
)
from connectx._connect.udp_connect import Contested, claim, claim_alone, join, occupied
from connectx.addresses import AF_INET, AF_INET6, PROTOCOL_OF, SOCK_DGRAM, SOCK_STREAM
from connectx.linux import sockopts
from connectx.linux.disconnect import disconnect, make_ready
from connectx.linux.uapi import (
    IP_BIND_ADDRESS_NO_PORT,
    IP_LOCAL_PORT_RANGE,
    IPPROTO_IP,
    IPPROTO_MPTCP,
    MSG_FASTOPEN,
    SO_BINDTOIFINDEX,
    SO_BROADCAST,
    SO_MARK,
    SO_REUSEADDR,
    SO_REUSEPORT,
    SOL_SOCKET,
)

if TYPE_CHECKING:
    from connectx._connect.plan import Ends, Plan
    from connectx._connect.request import Request
    from connectx._connect.steps import Steps
    from connectx.addresses import Address, PortRange
    from connectx.linux.netlink import NetlinkSocket

#: The C class has these, and all subclasses of the standard library's share them.
_FAMILY: Final = _Socket.family.__get__
_TYPE: Final = _Socket.type.__get__

#: Options as getsockopt() gives them in 4 octets.
_OFF: Final = bytes(4)
_NO_WINDOW: Final = bytes(4)

_WILDCARDS: Final = ("0.0.0.0", "::")
_FAMILIES: Final = (AF_INET, AF_INET6)

#: Seconds for which ports are shared at once, or tried with a socket that is thrown away, after
#: a window was refused: that costs 2.4 ms, and so happens for 1 % of the time at most.
_CROWDED: Final = 0.25


class CallersConnection(Connection):
    """A connection on a socket that a caller has made.

    Attributes:
        taken: How many bytes of the data were sent.
    """

    leaves_handshake = True

    __slots__ = (
        "_data",
        "_family",
        "_kind",
        "_name",
        "_no_port",
        "_ports",
        "_proto",
        "_reuse",
        "_reuse_port",
        "_window",
        "taken",
    )

    def __init__(self, sock: socket.socket, ports: PortRange | None = None) -> None:
        """Look at the socket.

        ports: the ports to stay within, whatever its own window is; None for that.

        Raises TypeError for what is no socket, ValueError for one that is bound to a
        port or connected, and OSError as getsockname() does.
        """
        if isinstance(sock, _Socket):
            # Without the standard library's enumerations, which cost as much as three
            # system calls.
            self._family, self._kind, self._proto = _FAMILY(sock), _TYPE(sock), sock.proto
        elif isinstance(sock, socket.socket):  # gevent's
            self._family, self._kind, self._proto = int(sock.family), int(sock.type), sock.proto
        else:
            raise TypeError(f"connectx() takes a socket, not {sock!r}")
        if self._family not in _FAMILIES or (self._kind, self._proto) not in PROTOCOL_OF:
            require_served(self._family, self._kind, self._proto)
        self.sock = sock
        self.retries = self.taken = 0
        self.under_way = self.reports = False
        self._apart = None
        self._data: bytes | memoryview = b""
        self._ports = ports
        if self._kind == SOCK_DGRAM:
            make_ready()
        self._no_port = self._option(IP_BIND_ADDRESS_NO_PORT)
        self._name: Address = sock.getsockname()
        if self._name[1]:
            self._name = self._unbound_name()
        self._reuse = sock.getsockopt(SOL_SOCKET, SO_REUSEADDR)
        self._reuse_port = self._kind == SOCK_DGRAM and sock.getsockopt(SOL_SOCKET, SO_REUSEPORT)
        self._window = self._option(IP_LOCAL_PORT_RANGE)

    def ask(self, source: Address | None, destination: Address, strategy: str) -> Request:
        """Return what a call asks for; errors as `connectx._connect.request.parse`."""
        if self._name[0] not in _WILDCARDS:
            # Its user has bound it to an address, without a port.
            if source is None:
                source = self._name
            elif isinstance(source, tuple) and len(source) > 1 and not source[0]:
                source = (self._name[0], source[1], *self._name[2:])
        request = parse(self._family, self._kind, self._proto, strategy, source, destination, PLAIN)
        if self._family != request.origin.wire_family and sockopts.get_ipv6_v6only(self.sock):
            # bind() would say the one, connect() the other.
            number = errno.EINVAL if request.origin.source.host else errno.ENETUNREACH
            raise OSError(number, "IPV6_V6ONLY is set, and the destination is IPv4")
        return request

    def prepare(
        self, request: Request, data: bytes | bytearray | memoryview = b""
    ) -> CallersConnection:
        """Settle what to connect to, and the first data; ValueError for data in pieces."""
        if data.__class__ is not bytes or data:
            with memoryview(data) as view:
                if not view.c_contiguous:
                    raise ValueError("data is not contiguous in memory: copy it with bytes()")
                self._data = view.cast("B")
        self.request = request
        if not isinstance(self.sock, _Socket) and not (self._data and request.origin.stream):
            # As a gevent socket of our own. Its sendto() does not wait.
            timeout = self.sock.gettimeout()
            if timeout != 0:
                self.apart(timeout, blocking=True)
        ports = self._ports
        if ports is None and self._window not in (None, _NO_WINDOW):
            ports = sockopts.get_ip_local_port_range(self.sock)
        # Only a route depends on the mark, and the kernel finds a stream's.
        mark = 0
        if not request.origin.stream or request.origin.source.port:
            mark = self.sock.getsockopt(SOL_SOCKET, SO_MARK) and sockopts.get_so_mark(self.sock)
        interface = self.sock.getsockopt(SOL_SOCKET, SO_BINDTOIFINDEX)
        if mark or interface or ports:
            options = request.origin.options._replace(mark=mark, interface=interface, ports=ports)
            self.request = request_with(request, options)
        return self

    def result(self) -> int:
        """Return how many bytes of data were taken; BlockingIOError while it is connecting."""
        if self.under_way:
            raise BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))
        return self.taken

    def begin(self) -> Steps[None] | None:
        """As for a socket of our own."""
        if self._kind == SOCK_DGRAM:
            if self._no_port not in (None, _OFF):
                # The lock is on a port, so bind() has to take one.
                sockopts.set_ip_bind_address_no_port(self.sock, on=False)
            # With either of these the kernel may give one 4-tuple to two sockets.
            if self._reuse:
                self.sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
            if self._reuse_port:
                self.sock.setsockopt(SOL_SOCKET, SO_REUSEPORT, 0)
        return super().begin()

    def _connect(self) -> int:
        """connect(2), for a stream with the first bytes of data, in the SYN where possible."""
        if not self._data or not self.request.origin.stream:
            return super()._connect()
        self.taken = 0
        try:
            self.taken = self.sock.sendto(self._data, MSG_FASTOPEN, self.request.address)
        except BlockingIOError:
            # No cookie yet. A socket with a timeout waits in send() until the handshake
            # is done, a non-blocking one tells its user, as connect() would.
            if self.sock.gettimeout() == 0:
                if self.plan.checks:
                    self._check()
                raise
        except OSError as error:
            # Clients may not (net.ipv4.tcp_fastopen), or MPTCP cannot (before 6.2).
            if error.errno != errno.EOPNOTSUPP:
                raise
            super()._connect()
        if not self.taken:
            self.taken = self.sock.send(self._data)
        if self.plan.checks:
            self._check()
        return 0

    def _claim(self, port: int) -> None:
        """Connect a datagram socket from a port; it must not get stuck on it."""
        plan = self.plan
        if not plan.terms.releasable:
            self._claim_for_good(port)
            return
        namespace = plan.terms.namespace
        if not namespace.shared_until or namespace.shared_until < monotonic():
            source = plan.source_at(port)
            if claim_alone(self.sock, source, self.request.address, releasable=True):
                if plan.checks:
                    self._check()
                return
            namespace.shared_until = monotonic() + _CROWDED
        try:
            ends, netlink = self._ends(), namespace.diag
            devices = self.plan.devices(ends)
        except NetlinkRefused:
            if not self._claim_unshared(plan.source_at(port)):
                raise
        else:
            self._claim_shared(ends, netlink, devices, port)
        if plan.checks:
            self._check()

    def _claim_shared(
        self, ends: Ends, netlink: NetlinkSocket, devices: tuple[bytes, ...] | None, port: int
    ) -> None:
        """Connect from a port that others have, if nobody has the 4-tuple."""
        namespace = self.plan.terms.namespace
        source: Any = (ends.host, port, *ends.suffix)
        if namespace.crowded_until and monotonic() < namespace.crowded_until:
            # A window that is refused costs milliseconds, for the search it ends in ignores
            # its size; a refused bind of another socket, microseconds.
            try_bind(self.plan, source, sharing=True)
        try:
            claim(
                self.sock,
                ends.lookup,
                netlink,
                source,
                self.request.address,
                devices=devices,
                releasable=True,
                beside_services=self.plan.terms.asked != 0,
            )
        except OSError as error:
            self._require_local(error, ends.host)
            if error.errno == errno.EADDRINUSE:
                namespace.crowded_until = monotonic() + _CROWDED
            raise

    def _claim_unshared(self, source: Address) -> bool:
        """Connect from a port that nobody has; False if others have it and share it.

        Raises OSError (EADDRINUSE) if they do not.
        """
        try:
            try_bind(self.plan, source, sharing=False)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            if claim_alone(self.sock, source, self.request.address, releasable=True):
                return True
        try_bind(self.plan, source, sharing=True)
        return False

    def _claim_for_good(self, port: int) -> None:
        """Connect a datagram socket from a port that no window can have.

        Such a port cannot be released again, so another socket takes the 4-tuple first. It may
        need a privilege that this process has given up since the socket was made: then the
        socket goes by itself, as with bind() and connect().
        """
        plan, request = self.plan, self.request
        ends: Ends | None = None
        source: Any = plan.source_at(port)
        with contextlib.suppress(NetlinkRefused):
            ends, netlink = self._ends(), plan.terms.namespace.diag
            source = (ends.host, port, *ends.suffix)
        with self._twin() as twin:
            first = twin if self._equip(twin) else self.sock
            if first is self.sock and ends is not None:
                self._require_vacant(ends, netlink, port)
            try:
                if not claim_alone(first, source, request.address):
                    if ends is None:
                        try_bind(self.plan, source, sharing=True)
                        # Raises why they could not be had.
                        ends, netlink = plan.ends(), plan.terms.namespace.diag
                    claim(
                        first,
                        ends.lookup,
                        netlink,
                        source,
                        request.address,
                        devices=self.plan.devices(ends),
                        beside_services=plan.terms.asked != 0,
                    )
                if first is twin:
                    join(self.sock, source, request.address)
            except OSError as error:
                self._require_local(error, source[0])
                raise

    def _require_vacant(self, ends: Ends, netlink: NetlinkSocket, port: int) -> None:
        if occupied(ends.lookup, netlink, port, self.plan.devices(ends)):
            raise Contested(connected=True)

    def _ends(self) -> Ends:
        """Return what `Plan.ends` does, for a plan that knows all that decides the route.

        What the socket's owner has set is looked at only here, where others have the port.
        """
        request, namespace = self.request, self.plan.terms.namespace
        options = request.origin.options
        if options.routing is None:
            routing = routing_of(self.sock, request)
            if prefers_a_source(self.sock, request):
                with self._twin() as scratch:
                    self._equip(scratch)
                    source = source_by_trying(scratch, request)
                routing = (routing or Routing(0, 0, b"", os.geteuid()))._replace(source=source)
            if routing is not None:
                self.request = request_with(request, options._replace(routing=routing))
                # A plan of the same ledger.
                known: Plan | None = namespace.plans.get(self.request)  # type: ignore[assignment] # that it keeps
                self.plan = known or make_plan(namespace, self.request)
        return self.plan.ends()

    def _twin(self) -> socket.socket:
        """Return another socket of this one's kind, in its namespace."""
        twin = socket.socket(self._family, self._kind, self._proto)
        # The thread may have netlink sockets into the other one still.
        if identity_of(twin) != self.plan.terms.namespace.identity:
            twin.close()
            raise absence(self.request)
        return twin

    def _equip(self, twin: socket.socket) -> bool:
        """Set on a socket what bind() and connect() look at; False if that is not allowed."""
        sock, options = self.sock, self.request.origin.options
        copy_routing(sock, twin)
        if sock.getsockopt(SOL_SOCKET, SO_BROADCAST):
            twin.setsockopt(SOL_SOCKET, SO_BROADCAST, 1)
        if sockopts.get_ip_freebind(sock):
            sockopts.set_ip_freebind(twin, on=True)
        try:
            if options.mark:
                sockopts.set_so_mark(twin, options.mark)
            if options.interface:
                sockopts.set_so_bindtoifindex(twin, options.interface)
            if sockopts.get_ip_transparent(sock):
                sockopts.set_ip_transparent(twin, on=True)
        except PermissionError:
            return False
        return True

    def _made(self, port: int) -> None:
        """Set back what only finding a port has needed, so that it binds no later connect()."""
        super()._made(port)
        if self._kind == SOCK_DGRAM:
            if self._no_port not in (None, _OFF):
                sockopts.set_ip_bind_address_no_port(self.sock, on=True)
            # What a socket shares its port by.
            if self._reuse:
                self.sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            if self._reuse_port:
                self.sock.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
            if self._data:
                self.taken = self.sock.send(self._data)
        self._restore_window()

    def _renew(self) -> None:
        """Give the socket's port back, if bind() was not given it explicitly."""
        disconnect(self.sock)
        if self._kind == SOCK_DGRAM:
            # The next port is to be tried alone.
            self.sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
        interface = self.request.origin.options.interface
        if interface:
            # connect(AF_UNSPEC) has cleared it.
            sockopts.set_so_bindtoifindex(self.sock, interface)

    def _failed(self) -> None:
        """Leave the socket unbound and its options as they were found.

        Two things cannot be undone: a port that bind() was given explicitly (see
        `connectx.linux.disconnect`), and, without CAP_NET_RAW, the device that a
        link-local source has bound a stream socket to.
        """
        sock = self.sock
        if sock.fileno() < 0:
            return
        if self._apart is not None and self._apart[1]:
            sock.settimeout(self._apart[0])
        if self._kind == SOCK_DGRAM:
            self._renew()
        self._restore_window()
        self._set(SOL_SOCKET, SO_REUSEADDR, self._reuse)
        if self._reuse_port:
            sock.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
        name = sock.getsockname()
        if name[1] and self._kind == SOCK_STREAM:
            self._takes_a_bind(self._name)
        elif not name[1] and name != self._name:
            # With the option this second bind() takes no port either.
            sockopts.set_ip_bind_address_no_port(sock, on=True)
            sock.bind(self._name)
        if self._no_port is not None:
            self._set(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, self._no_port)
        interface = self.request.origin.options.interface
        if sockopts.get_so_bindtoifindex(sock) != interface:
            with contextlib.suppress(PermissionError):
                sockopts.set_so_bindtoifindex(sock, interface)

    def _unbound_name(self) -> Address:
        """Return getsockname() of a socket that shows a port; ValueError if it has that port."""
        name = self._name
        if self._kind == SOCK_STREAM and self._takes_a_bind(name):
            return self.sock.getsockname()  # type: ignore[no-any-return]
        raise ValueError(
            f"the socket is bound to a port or connected already (getsockname() gives {name!r}): "
            "connectx() takes one that is neither"
        )

    def _takes_a_bind(self, name: Address) -> bool:
        """Return whether a stream socket that shows a port has in truth given it up.

        After a refused connection it goes on showing it. An unbound socket takes this
        bind() and forgets the port; another refuses it, or MPTCP the option before it,
        with EINVAL before anything is changed (__inet_bind).
        """
        try:
            sockopts.set_ip_bind_address_no_port(self.sock, on=True)
            self.sock.bind((name[0], 0, *name[2:]))
        except OSError as error:
            # MPTCP does not know the option before 6.8: there is no way to tell.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            return False
        finally:
            if self._no_port is not None:
                self._set(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, self._no_port)
        return True

    def _restore_window(self) -> None:
        if self._window is not None:
            self._set(IPPROTO_IP, IP_LOCAL_PORT_RANGE, self._window)

    def _set(self, level: int, option: int, value: int | bytes) -> None:
        """Set an option back.

        MPTCP takes no such options once it is connecting (__mptcp_nmpc_sk). They have no
        meaning for it any more then: it cannot connect again.
        """
        try:
            self.sock.setsockopt(level, option, value)
        except OSError as error:
            if self._proto != IPPROTO_MPTCP or error.errno != errno.EINVAL:
                raise

    def _option(self, option: int) -> bytes | None:
        """Return what an option is set to, or None where this kernel does not know it there."""
        try:
            return self.sock.getsockopt(IPPROTO_IP, option, 4)
        except OSError as error:
            if error.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
                return None
            raise
