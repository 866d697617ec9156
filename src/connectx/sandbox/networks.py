"""A private network made ready for experiments with source ports."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from connectx.linux import netns

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How many unaccepted connections a listener here may hold (net.core.somaxconn). In the
#: accept queue they take no descriptor of the server, so an experiment is limited by its
#: clients alone.
BACKLOG = 65535


@dataclass(frozen=True, slots=True)
class Network:
    """A private network, and what an experiment changed in it.

    Attributes:
        namespace: The namespace itself, for what has no method here.
        changes: What the methods changed, in order, for people to read.
    """

    namespace: netns.PrivateNetwork
    changes: list[str] = field(default_factory=list)

    def port_range(self, low: int, high: int) -> None:
        """Set net.ipv4.ip_local_port_range, both ends included; it serves IPv6 as well.

        Raises:
            OSError: With EINVAL for low > high, and for low < ip_unprivileged_port_start.
        """
        self.sysctl("net.ipv4.ip_local_port_range", f"{low} {high}")

    def reserved_ports(self, ports: str) -> None:
        """Set net.ipv4.ip_local_reserved_ports.

        Args:
            ports: As in "20001,20010-20019"; "" for none.
        """
        self.sysctl("net.ipv4.ip_local_reserved_ports", ports)

    def sysctl(self, name: str, value: str | int) -> None:
        """Set any sysctl whose name starts with "net."; errors as PrivateNetwork.set_sysctl()."""
        self.namespace.set_sysctl(name, value)
        self.changes.append(f"{name} = {value}")

    def add_address(self, address: str, prefix: int | None = None, device: str = "lo") -> None:
        """Add an address, to the loopback by default; errors as PrivateNetwork.add_address()."""
        self.namespace.add_address(address, prefix, device)
        self.changes.append(f"{address} on {device}")

    def add_device_pair(self, name: str, peer: str) -> None:
        """Add two joined devices; errors as PrivateNetwork.add_device_pair()."""
        self.namespace.add_device_pair(name, peer)
        self.changes.append(f"devices {name} and {peer}")


@contextlib.contextmanager
def experiment_network() -> Iterator[Network]:
    """Run a block in a fresh private network in which the server side is never the limit.

    The loopback is up with 127.0.0.1 and ::1, accept queues are long, and IPv6 addresses can
    be used at once. Everything else is as the kernel makes a namespace: the port range is
    32768 to 60999, and no port is reserved.

    Raises:
        OSError: As netns.unshare_network() does.
    """
    with netns.private_network() as namespace:
        network = Network(namespace)
        network.sysctl("net.ipv4.tcp_max_syn_backlog", BACKLOG)
        # Older kernels (6.1) hide net.core from a namespace that an ordinary user owns
        # (sysctl_core_net_init); accept queues then hold 4,096.
        if Path("/proc/sys/net/core/somaxconn").exists():
            network.sysctl("net.core.somaxconn", BACKLOG)
        # Duplicate address detection keeps a new device's link-local address unusable for a
        # second or two. The file is missing where IPv6 is off.
        if Path("/proc/sys/net/ipv6").exists():
            network.sysctl("net.ipv6.conf.default.accept_dad", 0)
        yield network
