"""The steps that a call yields, for a driver to wait for: all that a driver has to know.

A call is a generator. It does everything itself except waiting: it yields one of the values
below, the driver waits in its own manner, and sends back what came of it or throws the
error that ended the wait. A driver is therefore one function that waits, and a loop around
it: connectx.blocking has them for system calls, connectx.aio for asyncio and trio.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    import socket
    from typing import Protocol

    class Waiter(Protocol):
        """A place in a wait queue, made by a driver: `wake` ends its wait."""

        def wake(self) -> None:
            """End the wait; from any thread, at any moment, more than once too."""

        @property
        def gone(self) -> bool:
            """Whether nobody will ever look again, though nothing has ended the call."""

        def close(self) -> None:
            """Wait no more; it may be woken all the same."""


class Handshake(NamedTuple):
    """Wait until a connecting socket is writable, or raise TimeoutError.

    Attributes:
        sock: A non-blocking socket whose connect() is in progress.
        seconds: How long; None for as long as the kernel tries.
    """

    sock: socket.socket
    seconds: float | None


class Work(NamedTuple):
    """Call a function that may take milliseconds, where that keeps nobody waiting.

    Attributes:
        function: Makes no change but to values of its own, so another thread may call it.
        awaited: Whether the call needs the result; otherwise the driver goes on at once,
            where it can, and the function raises nothing.
    """

    function: Callable[[], object]
    awaited: bool = True


class Names(NamedTuple):
    """Resolve a name; the answer is getaddrinfo()'s."""

    host: str | bytes | None
    port: int | str | bytes | None
    type: int
    family: int = 0


class Race(NamedTuple):
    """Go through calls until one returns, and send back what it returned.

    A driver that can do several things at once starts the next call `delay` seconds after
    the one before, or as soon as that one fails (RFC 8305), and ends the others when one
    returns. Every other driver goes through them one after the other.

    Attributes:
        calls: What to go through; those that were not started are closed.
        errors: Gets the OSError of each call that failed. Any other error ends the race.
        delay: Seconds; None for one after the other.

    If none returns, the last of the errors is raised.
    """

    calls: Sequence[Steps[Any]]
    errors: list[OSError]
    delay: float | None


class NewWaiter(NamedTuple):
    """Make a `Waiter` for this call."""


class Pause(NamedTuple):
    """Wait until woken, or until something is readable, or until the time is up.

    The answer is whether the waiter was woken.

    Attributes:
        seconds: How long at most.
        waiter: The call's own waiter; None to wait for the whole time.
        descriptor: A file descriptor that is readable when there is news; -1 for none.
    """

    seconds: float
    waiter: Waiter | None = None
    descriptor: int = -1


Wait: TypeAlias = Handshake | Work | Names | Race | NewWaiter | Pause

_T = TypeVar("_T")

#: A call: what it yields is to be waited for, what it is sent came of that.
Steps: TypeAlias = Generator[Wait, Any, _T]
