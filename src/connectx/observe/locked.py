"""TCP ports that sockets lock which were bound before they connected: found out by trying."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from connectx.explanation import shared, tells_binds_apart
from connectx.linux import sysctl
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.sock_diag import ALL_STATES
from connectx.linux.socket_dump import UNCONNECTED, Filter, source_ports
from connectx.linux.uapi import IPPROTO_TCP, NETLINK_SOCK_DIAG
from connectx.network import NETWORKS, NEW_SOCKET
from connectx.requests import parse

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Nobody's destination: toward it every port is free that is not shut.
_DISCARD: Final = ("127.0.0.1", 9)


def locked(ports: Iterable[int]) -> list[int] | None:
    """Those of some ports in use that connect() would not give out; None where nobody can tell.

    Each is tried with a socket that is bound for some microseconds and sends nothing.

    Raises OSError where that cannot be, as without a route to the loopback.
    """
    if not tells_binds_apart():
        return None
    prepared = NETWORKS.here().prepare(
        parse(socket.AF_INET, socket.SOCK_STREAM, 0, "auto", None, _DISCARD), NEW_SOCKET
    )
    return [port for port in sorted(ports) if not shared(prepared, port)]


def count_locked() -> int | None:
    """How many ports of the range in force are locked, of those that are not held or reserved.

    None where nobody can tell. Raises OSError as `locked` does, and as netlink does.
    """
    ports = sysctl.read_port_range()
    with NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        of_connections, held = (
            source_ports(netlink, Filter(IPPROTO_TCP, states, ports=(ports,)))
            for states in (ALL_STATES & ~UNCONNECTED, UNCONNECTED)
        )
    reserved = sysctl.read_reserved_ports()
    found = locked(
        port for port in of_connections - held if not any(hole.contains(port) for hole in reserved)
    )
    return None if found is None else len(found)
