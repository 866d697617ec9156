"""The private networks of one experiment, and what was changed in them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, Self

from connectx.addresses import PortRange
from connectx.lab.resources import in_first_network
from connectx.sandbox.networks import Network, experiment_network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

#: Values of one setting that are listed; of more, the first is named.
_LISTED: Final = 3


class PrivateNetworks:
    """Makes private networks, one after the other, and keeps the books.

    A context manager; entering raises as in_first_network().
    """

    def __init__(self) -> None:
        self._changed: dict[str, dict[str, None]] = {}
        self._outer = contextlib.ExitStack()

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Network]:
        """Run a block in another private network; raises OSError as experiment_network()."""
        with experiment_network() as network:
            try:
                yield network
            finally:
                self._note(network)

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

    def __enter__(self) -> Self:
        self._outer.enter_context(in_first_network())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._outer.close()

    def _note(self, network: Network) -> None:
        for change in network.changes:
            name, _, value = change.partition(" = ")
            self._changed.setdefault(name, {})[value] = None


def leave_one_port(network: Network, port: int) -> PortRange:
    """Have the kernel choose an even port, for lack of another; returns the range.

    Not by a range of that port alone: the kernel would tell its log, which is the
    machine's, that it prefers ends of different parity (set_local_port_range()).
    """
    ports = PortRange(port, port + 1)
    network.port_range(*ports)
    network.reserved_ports(str(port + 1))
    return ports
