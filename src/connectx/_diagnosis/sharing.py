"""UDP sockets that share what should be one socket's: a 4-tuple, or a port without a connection.

With SO_REUSEADDR on all of them, the kernel lets sockets share an address and port, and gives
each datagram to the newest (udp4_lib_lookup2 takes the first of the best, and bind() puts a
socket at the head of its list). With SO_REUSEPORT it spreads datagrams over them instead.
SOCK_DIAG reports neither option, so each is tried with a socket of our own, which is bound for
some microseconds to a device that does not exist, where nothing arrives.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from connectx._diagnosis.census import NO_DEVICE
from connectx._diagnosis.facts import Overshadowing, SharedPort
from connectx.addresses import AF_INET, AF_INET6, PROTOCOLS, Endpoint, text, unmapped
from connectx.linux import proc_net
from connectx.linux.sockopts import set_ipv6_v6only, set_so_bindtoifindex
from connectx.linux.uapi import SO_REUSEADDR, SO_REUSEPORT, SOL_SOCKET, TCP_ESTABLISHED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from connectx._diagnosis.ownership import Ownership
    from connectx.linux.sock_diag import SocketRecord

#: Where datagrams go to every socket: multicast, and the limited broadcast.
_TO_ALL: Final = tuple(range(224, 240))


def overshadowed(
    protocol: str, datagrams: Iterable[SocketRecord], ownership: Ownership
) -> tuple[Overshadowing, ...]:
    """Find the 4-tuples that have several sockets on one device."""
    on_tuple: defaultdict[tuple[bytes, int, bytes, int, int], list[SocketRecord]]
    on_tuple = defaultdict(list)
    for record in datagrams:
        if record.state == TCP_ESTABLISHED:
            source, destination = unmapped(record.source), unmapped(record.destination)
            ends = source, record.source_port, destination, record.destination_port
            on_tuple[*ends, record.interface].append(record)
    return tuple(
        Overshadowing(
            Endpoint(text(source), port),
            Endpoint(text(destination), destination_port),
            _owners(some, ownership),
            protocol,
        )
        for (source, port, destination, destination_port, _), some in on_tuple.items()
        if _are_several(some)
    )


def deaf(
    protocol: str, datagrams: Iterable[SocketRecord], ownership: Ownership
) -> tuple[SharedPort, ...]:
    """Find the ports on which only one of several unconnected sockets receives."""
    on_port: defaultdict[tuple[bytes, int, int], list[SocketRecord]] = defaultdict(list)
    for record in datagrams:
        if record.state != TCP_ESTABLISHED:
            on_port[unmapped(record.source), record.source_port, record.interface].append(record)
    groups: set[str] | None = None
    found = []
    for (address, port, interface), some in on_port.items():
        if not _are_several(some) or _reaches_all(address):
            continue
        spread = None if interface else _is_spread(protocol, address, port, some[0].uid)
        if spread:
            continue
        if groups is None:
            groups = proc_net.multicast_groups()
        for_multicast = not any(address) and bool(groups)
        found.append(
            SharedPort(
                protocol,
                Endpoint(text(address), port),
                len(some),
                _owners(some, ownership),
                certain=spread is False and not for_multicast,
            )
        )
    return tuple(found)


def _are_several(sockets: Iterable[SocketRecord]) -> bool:
    """Whether these are several sockets: a dump may list one twice."""
    return len({record.cookie for record in sockets}) > 1


def _owners(sockets: Iterable[SocketRecord], ownership: Ownership) -> tuple[str, ...]:
    """The owners of sockets, each with the descriptors that it has them under."""
    numbers: dict[str, list[int | None]] = {}
    for record in sockets:
        numbers.setdefault(ownership.name(record), []).append(ownership.descriptor(record))
    found = []
    for name, some in numbers.items():
        seen = sorted(number for number in some if number is not None)
        which = f", descriptor{'s' * (len(seen) > 1)} {', '.join(map(str, seen))}" if seen else ""
        found.append(f"{name}{which}")
    return tuple(found)


def _reaches_all(address: bytes) -> bool:
    """Whether what is sent to an address reaches every socket that is bound to it."""
    if len(address) == 16:
        return address[0] == 0xFF
    return address[0] in _TO_ALL or address == b"\xff\xff\xff\xff"


def _is_spread(protocol: str, address: bytes, port: int, uid: int) -> bool | None:
    """Whether datagrams are spread over the sockets on a port; None if that cannot be found out."""
    if _may_join(protocol, address, port, SO_REUSEADDR) is False:
        # Without it, they can share the port by SO_REUSEPORT only.
        return True
    return _may_join(protocol, address, port, SO_REUSEPORT, uid)


def _may_join(
    protocol: str, address: bytes, port: int, option: int, uid: int | None = None
) -> bool | None:
    """Whether a socket that has just one of the two options could share the port, too.

    SO_REUSEPORT takes the same user besides.
    """
    kind = PROTOCOLS[protocol]
    family = AF_INET if len(address) == 4 else AF_INET6
    with socket.socket(family, kind.type, kind.number) as scratch:
        try:
            scratch.setsockopt(SOL_SOCKET, option, 1)
            if uid is not None and uid != os.geteuid():
                os.fchown(scratch.fileno(), uid, -1)
            set_so_bindtoifindex(scratch, NO_DEVICE)
            host = text(address)
            if family == AF_INET6:
                # An address of IPv6 has to be one of the device's, so this is about all of them.
                set_ipv6_v6only(scratch, on=True)
                host = "::"
            scratch.bind((host, port))
        except OSError as error:
            return False if error.errno == errno.EADDRINUSE else None
    return True
