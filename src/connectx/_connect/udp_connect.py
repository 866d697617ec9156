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

import errno
import os

# The C class, which gevent does not replace.
from _socket import socket as _Socket  # noqa: N812
from typing import TYPE_CHECKING, Final

from connectx.linux.uapi import (
    IP_LOCAL_PORT_RANGE,
    IPPROTO_IP,
    MSG_PEEK,
    SO_COOKIE,
    SO_MEMINFO,
    SO_REUSEADDR,
    SOL_SOCKET,
    TCP_ESTABLISHED,
)

if TYPE_CHECKING:
    import socket

    from connectx.addresses import Address
    from connectx.linux.netlink import NetlinkSocket
    from connectx.linux.sock_diag import TupleLookup


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
    releasable: bool = False,
    beside_services: bool = False,
) -> None:
    """Bind and connect a socket, if nobody has the 4-tuple.

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
    # Before bind(): from then on the lookup finds us, the newest.
    if not beside_services and lookup.is_service(netlink, source[1]):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    try:
        _bind(sock, source, releasable=releasable)
    finally:
        # Also where bind() is refused: the next port may be tried alone.
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
    if not lookup.shows(netlink, source[1], sock.getsockopt(SOL_SOCKET, SO_COOKIE, 8)):
        raise _contested(lookup, netlink, source[1])
    _connect_and_share(sock, destination)


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


def _contested(lookup: TupleLookup, netlink: NetlinkSocket, port: int) -> Exception:
    # The rival may be gone by the time of this second look: then whatever it
    # finds now, possibly ourselves, is not connected. And one look that finds nothing
    # says nothing: a rival that is just being closed is found, and then cannot be
    # held (refcount_inc_not_zero in udp_dump_one).
    for _ in range(_LOOKS):
        rival = lookup.find_record(netlink, port)
        if rival is not None:
            return Contested(connected=rival.state == TCP_ESTABLISHED)
    return NotVisible()
