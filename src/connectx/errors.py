"""What can go wrong with a source port, by name.

Every error is an OSError with the errno that plain socket calls give in the same
situation, so code that looks at `errno` goes on working. Errors that are not
about source ports (connection refused, no route, permission) are the kernel's
own and are passed on as they are.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx.addresses import Endpoint, PortRange


class ConnectxError(OSError):
    """The base of the errors below; an OSError with fields.

    protocol: "tcp", "mptcp", "udp" or "udplite".
    source: the source asked for; its host is "" and its port 0 where any would do.
    destination: where the connection was to go.
    ports: the source ports that were asked for; None where the range in force was to do.
    strategy: the name of the strategy in use.
    attempts: how often connecting was tried.
    """

    #: The errno of the class, where it does not depend on the protocol.
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
        """explanation: tells the cause at length when `explain` asks for it."""
        super().__init__(errno or self.default_errno, message)
        self.protocol = protocol
        self.source = source
        self.destination = destination
        self.ports = ports
        self.strategy = strategy
        self.attempts = attempts
        self._explanation = explanation

    def explain(self) -> str:
        """The cause and what to do about it, in a few plain lines.

        Looks at the sockets of the calling thread's network namespace as they
        are now, so it is best called soon. Never raises for want of facts: what
        could not be read is said in the text.
        """
        if self._explanation is None:
            return str(self)
        return f"{self}\n{self._explanation()}"

    def __reduce__(self) -> tuple[Callable[..., ConnectxError], tuple[object, ...]]:
        """Pickle the fields; the explanation belongs to the process that can look."""
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

    errno: EADDRNOTAVAIL for TCP, EAGAIN for UDP (never "in progress").
    """


class TupleInUse(ConnectxError):
    """Another socket holds the 4-tuple asked for.

    errno: EADDRNOTAVAIL for TCP, EADDRINUSE for UDP.
    """


class PortHeld(ConnectxError):
    """A listener or an exclusive bind holds the source port asked for (EADDRINUSE)."""

    default_errno = errno.EADDRINUSE


class SourceNotLocal(ConnectxError):
    """The source address is not one of this host's, in this namespace (EADDRNOTAVAIL)."""


class RangeNotHonoured(ConnectxError):
    """The kernel would not honour the ports asked for (EINVAL)."""

    default_errno = errno.EINVAL


class NotSupported(ConnectxError):
    """This kernel or namespace lacks what the call needs (EOPNOTSUPP)."""

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
