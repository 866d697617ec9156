"""The private networks of one experiment, and what it changes in them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, Self

from connectx.addresses import PortRange
from connectx.lab.resources import in_first_network
from connectx.sandbox.networks import Network, experiment_network

if TYPE_CHECKING:
    from collections.abc import Iterator

#: At most so many values of one setting are listed; of more, only the first.
_LISTED: Final = 3


class PrivateNetworks(contextlib.ExitStack):
    """Makes private networks, one after the other, and records what is changed in them.

    A context manager.

    Raises:
        CannotStartError: On entry, where the machine allows no private network.
    """

    def __init__(self) -> None:
        super().__init__()
        self._changed: dict[str, dict[str, None]] = {}

    def __enter__(self) -> Self:
        self.enter_context(in_first_network())
        return super().__enter__()

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Network]:
        """Run a block in another private network.

        Raises:
            OSError: As experiment_network() does.
        """
        with experiment_network() as network:
            try:
                yield network
            finally:
                for change in network.changes:
                    name, _, value = change.partition(" = ")
                    self._changed.setdefault(name, {})[value] = None

    @property
    def changes(self) -> tuple[str, ...]:
        """What was changed in any of them, each setting once, for people to read."""
        lines = []
        for name, values in self._changed.items():
            listed = list(values)
            if len(listed) > _LISTED:
                listed = [f"{listed[0]} and {len(listed) - 1} other values"]
            lines += [f"{name} = {value}" if value else name for value in listed]
        return tuple(lines)


def leave_one_port(network: Network, port: int) -> PortRange:
    """Leave the kernel one port to choose, which must be even.

    The range is not that port alone: for ends of the same parity the kernel writes a line into
    its log, which is the machine's (set_local_port_range()). The other port is reserved.

    Returns:
        The range that was set.
    """
    ports = PortRange(port, port + 1)
    network.port_range(*ports)
    network.reserved_ports(str(port + 1))
    return ports
