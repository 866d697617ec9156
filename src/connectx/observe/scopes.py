"""The scope of IPv6 addresses that mean something on one device only, as link-local ones."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from connectx.addresses import Endpoint


def needs_scope(address: bytes) -> bool:
    """Whether an address, packed, is another one on each device (RFC 4007)."""
    if len(address) != 16:
        return False
    if address[0] == 0xFF:
        # Multicast of the interface-local and the link-local scope.
        return address[1] & 0x0F in (1, 2)
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def scope_of(interface: int, *addresses: bytes) -> int:
    """Which device's 4-tuples a socket's is one of; 0 if its addresses mean the same on all.

    interface: the device that the socket is bound to, as connect() binds it to a scope.

    A device that was chosen otherwise (SO_BINDTODEVICE) is not told apart. Two of them also
    have a 4-tuple each, but one socket that is bound to none shuts it for all of them
    (tests/kernel/test_devices.py).
    """
    return interface if any(map(needs_scope, addresses)) else 0


def scoped(host: str, address: bytes, scope: int) -> str:
    """An address as text, with its scope where it needs one."""
    return f"{host}%{scope}" if scope and needs_scope(address) else host


def index_of(host: str, scope_id: int = 0) -> int:
    """The scope in an address such as "fe80::9%eth0", or of its socket address; 0 for none.

    Raises OSError (ENODEV) where the calling thread's network namespace has no such device.
    """
    _, _, name = host.partition("%")
    if not name:
        return scope_id
    if name.isascii() and name.isdecimal():
        return int(name)
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise OSError(errno.ENODEV, f"there is no such device: {name}") from error


def device_of(source: str, destination: Endpoint) -> int:
    """The device that connections are asked for of, by their addresses' scopes; 0 for any.

    Raises ValueError for two, and OSError as `index_of`.
    """
    scopes = {index_of(source), index_of(destination.host, destination.scope_id)} - {0}
    if len(scopes) > 1:
        raise ValueError(f"not on one device: {source} and {destination.host}")
    return scopes.pop() if scopes else 0
