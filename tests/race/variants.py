"""The UDP lock with one of its protections taken out, to show that each is needed.

They take the place of connectx._connect.udp_connect.claim and have its arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from connectx._connect.udp_connect import Contested
from connectx.linux.uapi import SO_COOKIE, SO_REUSEADDR, SOL_SOCKET, TCP_ESTABLISHED

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from connectx.addresses import Address
    from connectx.linux.netlink import NetlinkSocket
    from connectx.linux.sock_diag import TupleLookup


def without_lock(
    sock: socket.socket,
    lookup: TupleLookup,
    netlink: NetlinkSocket,
    source: Address,
    destination: Address,
    **_: bool,
) -> None:
    """SO_REUSEADDR stays on, so that others can bind the port at any time."""
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    sock.bind(source)
    if not lookup.shows(netlink, source[1], sock.getsockopt(SOL_SOCKET, SO_COOKIE, 8)):
        raise Contested(connected=True)
    sock.connect(destination)


def without_lookup(
    sock: socket.socket,
    lookup: TupleLookup,  # noqa: ARG001 - the signature of claim()
    netlink: NetlinkSocket,  # noqa: ARG001 - as above
    source: Address,
    destination: Address,
    **_: bool,
) -> None:
    """The port is locked, but nobody looks who is on the 4-tuple."""
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    sock.bind(source)
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
    sock.connect(destination)
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)


def lookup_before_lock(
    sock: socket.socket,
    lookup: TupleLookup,
    netlink: NetlinkSocket,
    source: Address,
    destination: Address,
    **_: bool,
) -> None:
    """What was seen may have changed by the time the port is locked."""
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    sock.bind(source)
    ours = lookup.shows(netlink, source[1], sock.getsockopt(SOL_SOCKET, SO_COOKIE, 8))
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
    if not ours:
        raise Contested(connected=True)
    sock.connect(destination)
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)


def without_comparison(
    sock: socket.socket,
    lookup: TupleLookup,
    netlink: NetlinkSocket,
    source: Address,
    destination: Address,
    **_: bool,
) -> None:
    """Only a connected socket counts: of several that hold the lock, all go on."""
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    sock.bind(source)
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
    rival = lookup.find_record(netlink, source[1])
    if rival is not None and rival.state == TCP_ESTABLISHED:
        raise Contested(connected=True)
    sock.connect(destination)
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)


def lookup_after_connect(
    sock: socket.socket,
    lookup: TupleLookup,
    netlink: NetlinkSocket,
    source: Address,
    destination: Address,
    **_: bool,
) -> None:
    """Connect first and verify then: whoever comes last finds itself."""
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    sock.bind(source)
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
    sock.connect(destination)
    if not lookup.shows(netlink, source[1], sock.getsockopt(SOL_SOCKET, SO_COOKIE, 8)):
        raise Contested(connected=True)
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)


VARIANTS: Final[dict[str, Callable[..., None]]] = {
    "without lock": without_lock,
    "without lookup": without_lookup,
    "lookup before lock": lookup_before_lock,
    "without comparison": without_comparison,
    "lookup after connect": lookup_after_connect,
}
