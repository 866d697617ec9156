"""TCP ports that sockets lock which were bound before they connected: found out by trying."""

from __future__ import annotations

from connectx._diagnosis.explanation import locked
from connectx.linux import sysctl
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.sock_diag import ALL_STATES
from connectx.linux.socket_dump import UNCONNECTED, Filter, source_ports
from connectx.linux.uapi import IPPROTO_TCP, NETLINK_SOCK_DIAG


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
