"""The UDP critical section: SO_REUSEADDR as a lock on a source port.

For UDP the kernel checks 2-tuples, never 4-tuples: with SO_REUSEADDR two sockets
can be connected on one 4-tuple, and the newer one takes the older one's packets
without an error to anybody. So the check is ours, and it needs a lock:

1. SO_REUSEADDR on and bind: joins whoever shares the port. Refused (EADDRINUSE)
   while another socket on the port has SO_REUSEADDR off: one that never shares,
   or one inside this critical section.
2. SO_REUSEADDR off: from here on nobody can bind the port.
3. Look up the 4-tuple. Among bound sockets the kernel prefers a connected one,
   then the newest. If it finds ours, nobody is connected on the 4-tuple, and of all
   who bound the port before it was locked, ours alone may go on: several processes
   can have passed step 1 together, so the lock is not enough without this.
4. Connect, and SO_REUSEADDR on, so that the port can be shared again.

Step 3 is one rule for all, so that of two that are past step 1 at least one steps back: the older
one. The kernel's order has exceptions, and each would let both go on:

- A socket that is bound to a device is found only by a lookup with that device, and then before
  any that is bound to none. So a socket without a device is looked up on every device, and must
  be found on each; one with a device on that, and on none, where nothing may be found.
- SO_INCOMING_CPU puts a socket first on one processor. It is off during the section.
- An IPv4 socket comes before an IPv6 one with an IPv4-mapped address, however old: a rule as good.

Beside a service that the kernel puts before ours, a port that was asked for by number needs the
order itself: a dump lists the sockets of a port from the newest to the oldest, whatever their
options are. A service that is older than ours is no rival; nor is anybody else who is older and
not connected by then: whoever has looked before we bound has had the lock and kept us from it, or
was connected; whoever looks later finds us, who are newer, and steps back.

tests/kernel/test_udp_order.py shows which socket the kernel finds and which it lists first, and
tests/_connect/test_udp_connect_interleavings.py that each of these looks is needed, and enough.

Sockets on two devices do not meet: neither bind() nor a packet confuses them. (A VRF and one of
its devices are two to bind(), and one to a packet: between these nothing keeps the peace.)

A port that nobody has needs no lookup: without SO_REUSEADDR bind() refuses any other, so
`claim_alone` tries that first. Only a port that is to be shared takes the four steps.

A process that dies anywhere in between leaves nothing: its socket goes with it.
Measured (tests/test_udp_race.py): without the lock, without the lookup, or with the
lookup after connect() there are duplicates; like this none.

`claim` is that. A socket that must not be lost, and cannot take its port from a window, can
`join` another one that has gone through it.

Source: "How to stop running out of ephemeral ports" (2022), and
udp_lib_get_port(), udp_lib_lport_inuse2(), __udp4_lib_lookup() in net/ipv4/udp.c.

`scripts/trace-calls --path` shows the whole way of a call to these system calls.
"""

from __future__ import annotations

import contextlib
import errno
import os

# The C class, which gevent does not replace.
from _socket import socket as _Socket  # noqa: N812
from typing import TYPE_CHECKING, Final

from connectx.addresses import AF_INET, SOCK_DGRAM, family_of, packed, text, unmapped
from connectx.linux.sock_diag import NO_DEVICE
from connectx.linux.sockopts import get_so_netns_cookie
from connectx.linux.uapi import (
    IP_FREEBIND,
    IP_LOCAL_PORT_RANGE,
    IPPROTO_IP,
    IPPROTO_UDP,
    MSG_PEEK,
    SO_BINDTOIFINDEX,
    SO_COOKIE,
    SO_INCOMING_CPU,
    SO_MEMINFO,
    SO_REUSEADDR,
    SOL_SOCKET,
    TCP_CLOSE,
    TCP_ESTABLISHED,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

    from connectx.addresses import Address
    from connectx.linux.netlink import NetlinkSocket
    from connectx.linux.sock_diag import SocketRecord, TupleLookup


#: Looks for a socket that must be there, ours or another, before we believe that the
#: lookup goes into another namespace.
_LOOKS: Final = 8


class Contested(Exception):  # noqa: N818 - an outcome of the section, not a failure
    """Another socket has the 4-tuple, or will.

    The socket at hand is still bound and still locks the port: close it, or release the
    port, at once.

    Attributes:
        connected: Whether the other one is connected on the 4-tuple; otherwise it bound
            the port after us and may connect next.
    """

    def __init__(self, *, connected: bool) -> None:
        super().__init__()
        self.connected = connected


class NotVisible(Exception):  # noqa: N818 - as above
    """The lookup does not find our own socket: it looks into another namespace."""


def claim_alone(
    sock: socket.socket, source: Address, destination: Address, *, releasable: bool = False
) -> bool:
    """Bind and connect a socket, if nobody else has the port; whether that was so.

    Without SO_REUSEADDR bind() refuses a port that anybody has: whoever it is connected to,
    and whether it shares. So there is nobody to look for, and no source address to know:
    the wildcard address leaves it to connect(). The port is locked all the while, as in
    `claim`. If it is refused, the socket is as it was, but for a window.

    SO_REUSEADDR and SO_REUSEPORT have to be off. releasable: as for `claim`.

    Raises OSError as bind() and connect() do.
    """
    try:
        _bind(sock, source, releasable=releasable)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    _connect_and_share(sock, destination)
    return True


def claim(
    sock: socket.socket,
    lookup: TupleLookup,
    netlink: NetlinkSocket,
    source: Address,
    destination: Address,
    *,
    devices: Sequence[bytes] | None = (),
    releasable: bool = False,
    beside_services: bool = False,
) -> None:
    """Bind and connect a socket, if nobody has the 4-tuple.

    Packets for a socket that is bound to no device may arrive on `devices` besides the lookup's
    own; None for one that is bound to the lookup's own device.

    A port that bind() was given explicitly stays bound after a failure, since
    connect(AF_UNSPEC) does not release it: such a socket has to be replaced. A releasable
    claim takes the port from a one-port window with a bind to port 0, which puts no lock on
    it (SOCK_BINDPORT_LOCK). That is not for every claim: a refused window costs milliseconds
    (the search ignores its size), a refused explicit bind less than one microsecond. The port
    must then lie in the range in force and not be reserved.

    A socket that is bound and not connected may be a service, whose packets from the
    destination would be ours from now on. Such a port is for those who ask for it by number:
    beside_services. For others it is as one that is not shared.

    Raises OSError as bind() and connect() do, `Contested`, `NotVisible`.
    """
    processor = sock.getsockopt(SOL_SOCKET, SO_INCOMING_CPU)
    if processor >= 0:
        sock.setsockopt(SOL_SOCKET, SO_INCOMING_CPU, -1)
        try:
            claim(
                sock,
                lookup,
                netlink,
                source,
                destination,
                devices=devices,
                releasable=releasable,
                beside_services=beside_services,
            )
        finally:
            sock.setsockopt(SOL_SOCKET, SO_INCOMING_CPU, processor)
        return
    # Before bind(): from then on the lookup finds us, the newest.
    if not beside_services and (
        lookup.is_service(netlink, source[1])
        or (devices and _serves(lookup, netlink, source[1], devices))
    ):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    try:
        _bind(sock, source, releasable=releasable)
    finally:
        # Also where bind() is refused: the next port may be tried alone.
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
    cookie = sock.getsockopt(SOL_SOCKET, SO_COOKIE, 8)
    if (
        not lookup.shows(netlink, source[1], cookie)
        or (devices and not _shown(lookup, netlink, source[1], cookie, devices))
        or (devices is None and not _alone_without_device(lookup, netlink, source[1]))
    ):
        connected = _occupied_by_now(lookup, netlink, source[1], devices)
        if connected is None:
            raise NotVisible
        if connected or not beside_services:
            raise Contested(connected=connected)
        _connect_beside_services(sock, netlink, source, destination, cookie)
        return
    _connect_and_share(sock, destination)


def _connect_beside_services(
    sock: socket.socket,
    netlink: NetlinkSocket,
    source: Address,
    destination: Address,
    cookie: bytes,
) -> None:
    """Connect a socket that has locked its port, if whoever else has it was there before.

    Raises OSError as connect() does, `Contested`, `NotVisible`.
    """
    near, far = (unmapped(packed(host) or b"") for host, *_ in (source, destination))
    family = family_of(near)
    with contextlib.ExitStack() as stack:
        ours = {cookie}
        if family != sock.family:
            ours.add(stack.enter_context(_ipv4_twin(sock, source, near)))
        from connectx.linux.socket_dump import Filter, records  # noqa: PLC0415 - rarely needed

        # In this order: a rival may connect in between.
        wanted = Filter(sock.proto or IPPROTO_UDP, 1 << TCP_CLOSE, near, source[1], family=family)
        unconnected = records(netlink, wanted)
        connected = records(
            netlink,
            wanted._replace(
                states=1 << TCP_ESTABLISHED, destination=far, destination_port=destination[1]
            ),
        )
        interface = next((each.interface for each in unconnected if each.cookie in ours), None)
        if interface is None:
            raise Contested(connected=False)
        # What connect() would bind it to.
        interface = interface or (destination[3] if len(destination) == 4 else 0)

        def meets(other: SocketRecord) -> bool:
            return not interface or other.interface in (0, interface)

        if any(map(meets, connected)):
            raise Contested(connected=True)
        # The newest first, one family after the other; of each that has one of ours, the newest
        # has to be that.
        for table in {each.family for each in unconnected if each.cookie in ours}:
            newest = next(each for each in unconnected if each.family == table and meets(each))
            if newest.cookie not in ours:
                raise Contested(connected=False)
        _connect_and_share(sock, destination)


@contextlib.contextmanager
def _ipv4_twin(sock: socket.socket, source: Address, near: bytes) -> Iterator[bytes]:
    """Bind an IPv4 socket beside one with an IPv4-mapped source; gives its SO_COOKIE.

    Rivals with IPv4 sockets take no notice of ours, so it stands for ours among them. The lock is
    open until it is bound.
    """
    with contextlib.closing(_Socket(AF_INET, SOCK_DGRAM, sock.proto)) as twin:
        if get_so_netns_cookie(twin) != get_so_netns_cookie(sock):
            raise NotVisible
        interface = sock.getsockopt(SOL_SOCKET, SO_BINDTOIFINDEX)
        if interface:
            twin.setsockopt(SOL_SOCKET, SO_BINDTOIFINDEX, interface)
        # Whether the address is local was the first bind()'s affair.
        twin.setsockopt(IPPROTO_IP, IP_FREEBIND, 1)
        twin.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        try:
            twin.bind((text(near), source[1]))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # Ours is bound, unlike one that bind() has refused.
            raise Contested(connected=False) from error
        finally:
            sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
        yield twin.getsockopt(SOL_SOCKET, SO_COOKIE, 8)


def join(sock: socket.socket, source: Address, destination: Address) -> None:
    """Connect a socket on the 4-tuple of another one of ours, which is to be closed after that.

    No lock: others who look the 4-tuple up find the other socket on it. A port that bind() was
    given cannot be released again, so the socket comes last, when nothing can refuse it any more.
    """
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    sock.bind(source)
    sock.connect(destination)
    _drop_strangers(sock, destination)


def _connect_and_share(sock: socket.socket, destination: Address) -> None:
    """Connect a socket that has locked its port, and let others share the port again."""
    sock.connect(destination)
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    if sock.getsockopt(SOL_SOCKET, SO_MEMINFO):
        _drop_strangers(sock, destination)


def _drop_strangers(sock: socket.socket, destination: Address) -> None:
    """Receive and drop what came in between bind() and connect() from anybody else.

    What the destination has sent is left, and what is behind it. SO_MEMINFO tells that
    something is queued (sk_rmem_alloc), so that nothing here waits: on a socket with a
    timeout Python waits for a datagram whatever the flags say.
    """
    # gevent's sockets are not the standard library's, and would switch to another greenlet.
    raw = sock if isinstance(sock, _Socket) else sock._sock  # noqa: SLF001 - see tests of gevent
    while raw.getsockopt(SOL_SOCKET, SO_MEMINFO):
        _, sender = raw.recvfrom(1, MSG_PEEK)
        if sender[:2] == destination[:2]:
            return
        raw.recv(1)


def _bind(sock: socket.socket, source: Address, *, releasable: bool) -> None:
    if releasable:
        sock.setsockopt(IPPROTO_IP, IP_LOCAL_PORT_RANGE, one_port(source[1]))
        sock.bind((source[0], 0, *source[2:]))
    else:
        sock.bind(source)


def one_port(port: int) -> int:
    """Return IP_LOCAL_PORT_RANGE for a window of one port.

    As an int, which setsockopt() takes quickest: unsigned for the kernel and signed for
    Python, hence the wrap.
    """
    return port * 0x10001 - (port >> 15 << 32)


def occupied(
    lookup: TupleLookup, netlink: NetlinkSocket, port: int, devices: Sequence[bytes] | None
) -> bool | None:
    """Return whether a connected socket is found; None if nothing is, False for anything else."""
    found = [
        lookup.find_record(netlink, port, device)
        for device in (None, *((NO_DEVICE,) if devices is None else devices))
    ]
    states = [each.state for each in found if each is not None]
    return TCP_ESTABLISHED in states if states else None


def _serves(
    lookup: TupleLookup, netlink: NetlinkSocket, port: int, devices: Sequence[bytes]
) -> bool:
    return any(lookup.is_service(netlink, port, device) for device in devices)


def _shown(
    lookup: TupleLookup,
    netlink: NetlinkSocket,
    port: int,
    cookie: bytes,
    devices: Sequence[bytes],
) -> bool:
    return all(lookup.shows(netlink, port, cookie, device) for device in devices)


def _alone_without_device(lookup: TupleLookup, netlink: NetlinkSocket, port: int) -> bool:
    """Return whether nobody is found who is bound to no device.

    Twice, since a socket that is just being closed hides others (see below). It has left the
    table by then, so the second look does not meet the same one.
    """
    return all(lookup.find_record(netlink, port, NO_DEVICE) is None for _ in range(2))


def _occupied_by_now(
    lookup: TupleLookup, netlink: NetlinkSocket, port: int, devices: Sequence[bytes] | None
) -> bool | None:
    # The rival may be gone by the time of this second look: then whatever it
    # finds now, possibly ourselves, is not connected. And one look that finds nothing
    # says nothing: a rival that is just being closed is found, and then cannot be
    # held (refcount_inc_not_zero in udp_dump_one).
    for _ in range(_LOOKS):
        connected = occupied(lookup, netlink, port, devices)
        if connected is not None:
            return connected
    return None
