"""The errors about source ports.

Each is an OSError with the errno that plain socket calls set in the same situation, so code that
checks `errno` keeps working. connectx passes on the kernel's other errors (connection refused,
no route, permission denied) unchanged.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx.addresses import Endpoint, PortRange


class ConnectxError(OSError):
    """The base class of the errors about source ports.

    Attributes:
        protocol: "tcp", "mptcp", "udp" or "udplite".
        source: The source that was asked for. Its host is "" for any address, its port 0 for
            any port.
        destination: Where the connection was to go.
        ports: The range of source ports that was asked for; None for
            net.ipv4.ip_local_port_range.
        strategy: The name of the strategy in use.
        attempts: How many times connectx tried to connect.
    """

    #: The errno, unless the protocol decides it.
    default_errno = errno.EADDRNOTAVAIL

    def __init__(
        self,
        message: str,
        *,
        protocol: str,
        source: Endpoint,
        destination: Endpoint,
        strategy: str,
        ports: PortRange | None = None,
        attempts: int = 0,
        errno: int | None = None,
        explanation: Callable[[], str] | None = None,
    ) -> None:
        """`explanation` returns the cause and the remedies as text, for `explain`."""
        super().__init__(errno or self.default_errno, message)
        self.protocol = protocol
        self.source = source
        self.destination = destination
        self.ports = ports
        self.strategy = strategy
        self.attempts = attempts
        self._explanation = explanation

    def explain(self) -> str:
        """Return the cause of the error and its remedies, as a few lines of text.

        Call it soon after the error: it reads the sockets that the calling thread's network
        namespace has now. It does not raise if something cannot be read; the text says so.
        """
        if self._explanation is None:
            return str(self)
        return f"{self}\n{self._explanation()}"

    def __reduce__(self) -> tuple[Callable[..., ConnectxError], tuple[object, ...]]:
        """Pickle the fields without the explanation, which works only in this process."""
        return _rebuild, (
            type(self),
            self.strerror,
            self.protocol,
            self.source,
            self.destination,
            self.ports,
            self.strategy,
            self.attempts,
            self.errno,
        )


class PortsExhausted(ConnectxError):
    """No source port is free toward the destination.

    The errno is EADDRNOTAVAIL for TCP, and EAGAIN for UDP, where it never means "in progress".
    """


class TupleInUse(ConnectxError):
    """Another socket is on the 4-tuple that was asked for.

    The errno is EADDRNOTAVAIL for TCP, EADDRINUSE for UDP.
    """


class PortHeld(ConnectxError):
    """A listener or an exclusive bind holds the source port that was asked for (EADDRINUSE)."""

    default_errno = errno.EADDRINUSE


class SourceNotLocal(ConnectxError):
    """The source address is not local to this network namespace (EADDRNOTAVAIL)."""


class RangeNotHonoured(ConnectxError):
    """The kernel would not use the source ports that were asked for (EINVAL)."""

    default_errno = errno.EINVAL


class NotSupported(ConnectxError):
    """This kernel or network namespace lacks what the call needs (EOPNOTSUPP)."""

    default_errno = errno.EOPNOTSUPP


def _rebuild(
    cls: type[ConnectxError],
    message: str | None,
    protocol: str,
    source: Endpoint,
    destination: Endpoint,
    ports: PortRange | None,
    strategy: str,
    attempts: int,
    number: int,
) -> ConnectxError:
    return cls(
        message or os.strerror(number),
        protocol=protocol,
        source=source,
        destination=destination,
        ports=ports,
        strategy=strategy,
        attempts=attempts,
        errno=number,
    )
