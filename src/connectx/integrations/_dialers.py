"""What all integrations have in common: what dialer=, sources= and ports= mean, and the releases.

A dialer of either kind serves any library: the face that blocks and the one that awaits share
their limits, counts and wait queue.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import socket
from typing import TYPE_CHECKING, Any

from connectx._connect.connection import DEFAULT_TIMEOUT
from connectx._dial.policy import AnyDialer
from connectx._dial.sources import ROUND_ROBIN
from connectx.dialer import Dialer
from connectx.errors import ConnectxError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from connectx import aio
    from connectx._connect.configured import SocketOptions
    from connectx.addresses import Address

    #: What the keywords take.
    Sources = Iterable[str] | None
    Ports = tuple[int, int] | Sequence[tuple[int, int]] | None


def blocking(dialer: AnyDialer | None, sources: Sources = None, ports: Ports = None) -> Dialer:
    """Return the dialer that the keywords name, as one that blocks.

    Raises:
        TypeError: A dialer and settings for another one are given, or something else.
    """
    dialer = _checked(dialer, sources, ports)
    if isinstance(dialer, Dialer):
        return dialer
    return Dialer(sources if dialer is None else dialer, ports)


class WithDialer:
    """What takes the keywords, for a dialer that blocks: the first base of a library's class."""

    def __init__(
        self,
        *arguments: Any,
        dialer: AnyDialer | None = None,
        sources: Sources = None,
        ports: Ports = None,
        **keywords: Any,
    ) -> None:
        self._dialer = blocking(dialer, sources, ports)
        super().__init__(*arguments, **keywords)


def awaiting(dialer: AnyDialer | None, sources: Sources = None, ports: Ports = None) -> aio.Dialer:
    """Return the dialer that the keywords name, as one whose methods are awaited.

    Raises:
        TypeError: As `blocking` does.
    """
    # Not imported for libraries that block: asyncio takes longer than all of connectx.
    from connectx import aio  # noqa: PLC0415

    dialer = _checked(dialer, sources, ports)
    if isinstance(dialer, aio.Dialer):
        return dialer
    return aio.Dialer(sources if dialer is None else dialer, ports)


def _checked(dialer: AnyDialer | None, sources: Sources, ports: Ports) -> AnyDialer | None:
    if dialer is None:
        return None
    if not isinstance(dialer, AnyDialer):
        raise TypeError(f"dialer is a connectx.Dialer or a connectx.aio.Dialer, not {dialer!r}")
    if sources is not None or ports is not None:
        raise TypeError("give a dialer, or sources and ports for a new one, but not both")
    return dialer


def given(dialer: AnyDialer | None, sources: Sources, ports: Ports) -> bool:
    """Return whether a dialer is asked for, and not only what routing chooses."""
    return any(each is not None for each in (dialer, sources, ports))


def connect(
    dialer: Dialer,
    address: tuple[str | None, int | str],
    timeout: float | None = DEFAULT_TIMEOUT,
    source_address: Address | None = None,
    socket_options: SocketOptions | None = None,
) -> socket.socket:
    """Connect for a library: its timeout holds for the wait for a port, too.

    Args:
        dialer: What decides.
        address, timeout, source_address, socket_options: As `Dialer.create_connection` takes
            them.
    """
    seconds = socket.getdefaulttimeout() if timeout is DEFAULT_TIMEOUT else timeout
    return dialer.create_connection(
        address, timeout, source_address, socket_options=socket_options, wait=seconds
    )


async def dial(
    dialer: aio.Dialer,
    address: tuple[str, int],
    source: tuple[Any, int | None],
    failure: str,
    **keywords: Any,
) -> socket.socket:
    """Connect for a library whose error is an OSError of its own, with ours as its cause.

    Args:
        dialer: What decides.
        address: Where to.
        source: As `local` takes it.
        failure: What the library says. That a name is not found is no such error.
        keywords: Others of `connectx.aio.Dialer.create_connection`.
    """
    try:
        return await dialer.create_connection(address, source_address=local(*source), **keywords)
    except socket.gaierror:
        raise
    except OSError as error:
        failed = OSError(failure)
        failed.errno = error.errno
        raise failed from error


def local(host: object, port: int | None = None) -> Address | None:
    """Return the source address that a library's arguments are; None for the dialer's choice."""
    return (str(host or ""), port or 0) if host or port else None


def plain(sock: socket.socket) -> socket.socket:
    """Give a socket's descriptor to one of the standard library's class, as trio wants it."""
    kept = sock.gettimeout()
    made = socket.socket(sock.family, sock.type, sock.proto, sock.detach())
    made.settimeout(kept)
    return made


def in_turns(dialer: AnyDialer) -> bool:
    """Return whether a dialer's sources take turns ("round-robin").

    Then each request goes from the next one, and not only each connection. Other rotations
    are about new connections.
    """
    return dialer._policy.settings.sources.rotate == ROUND_ROBIN  # noqa: SLF001 - of the same house


def turns(dialer: AnyDialer, family: int, most: int) -> int:
    """Return how many connections of a pool take turns, if sources do; 0 if any of them will do.

    Args:
        dialer: What decides.
        family: AF_INET or AF_INET6, of the connections.
        most: How many connections the pool keeps. A prefix has more sources than that.
    """
    sources = dialer._policy.settings.sources  # noqa: SLF001 - as above
    version = 6 if family == socket.AF_INET6 else 4
    if sources.single(version) is not None:
        return 0
    return most if sources.prefixes(version) else len(sources.hosts(version))


def own_error(error: BaseException | None) -> ConnectxError | None:
    """Return the error of connectx that another one comes from, if there is one.

    Not by `__context__`, which is whatever error the program was handling meanwhile.
    """
    while error is not None and not isinstance(error, ConnectxError):
        error = error.__cause__ or _wrapped(error)
    return error


def _wrapped(error: BaseException) -> BaseException | None:
    """Return the error that another one was made from, as libraries keep it."""
    kept = (
        # Of urllib and urllib3; of requests; of botocore.
        getattr(error, "reason", None),
        error.args[0] if error.args else None,
        getattr(error, "kwargs", {}).get("error"),
    )
    return next((each for each in kept if isinstance(each, BaseException)), None)


def with_cause(error: Exception) -> None:
    """Give a library's error the cause that it comes from, and the errno of that."""
    cause = own_error(error)
    if cause is not None and cause is not error:
        error.__cause__ = cause
        if isinstance(error, OSError) and error.errno is None:
            error.errno = cause.errno


@contextlib.contextmanager
def library(name: str, oldest: str) -> Iterator[None]:
    """Import a library in a with block.

    Args:
        name: What pip calls it.
        oldest: The oldest release that will do.

    Raises:
        ImportError: It is missing, or older; the text names the release that is needed.
    """
    wanted = f"connectx needs {name} {oldest} or newer here: pip install '{name}>={oldest}'"
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        # It may be there all the same, as a copy that pip knows nothing of.
        found = oldest
    if _numbers(found) < _numbers(oldest):
        raise ImportError(f"{wanted} ({found} is installed)", name=name)
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{wanted} ({error})", name=name) from error


def _numbers(release: str) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", release)[:3]]
