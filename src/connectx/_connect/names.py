"""From a name to a connection: resolve it, and try its addresses."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any, cast

from connectx._connect.request import as_tuple, check_forms, parse, scoped, with_text_host
from connectx._connect.steps import Names, Race
from connectx.addresses import AF_INET, AF_INET6

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from connectx._connect.request import Request
    from connectx._connect.steps import Steps
    from connectx.addresses import Address


def by_name(
    address: tuple[str | None, int | str],
    source_address: Address | None,
    kind: int,
    proto: int,
    strategy: str,
    opening: Callable[[Request], Steps[socket.socket]],
    *,
    all_errors: bool,
    awaited: bool = False,
    delay: float | None = None,
) -> Steps[socket.socket]:
    """Connect to one of a name's addresses.

    Args:
        address, source_address, kind, proto, strategy, all_errors: As create_connection()
            takes them.
        opening: The call that connects to one address.
        awaited: Whether the families take turns (RFC 8305), as where attempts race.
        delay: Seconds between the starts of two attempts; None for one after the other.
    """
    errors: list[OSError] = []
    requests = yield from requests_of(address, source_address, kind, proto, strategy, errors)
    if awaited:
        requests = interleaved(requests)
    calls = [opening(request) for request in requests]
    return (yield from first_of(calls, errors, delay, all_errors=all_errors))


def requests_of(
    address: tuple[str | None, int | str],
    source_address: Address | None,
    kind: int,
    proto: int,
    strategy: str,
    errors: list[OSError],
) -> Steps[list[Request]]:
    """Return a request for each of a name's addresses, in the resolver's order.

    Args:
        address, source_address, kind, proto, strategy: As create_connection() takes them.
        errors: Gets the error of each address that no source is found for.
    """
    address = as_tuple(address)
    source_address = with_text_host(as_tuple(source_address or None))
    check_forms(address, source_address, strategy)
    requests: list[Request] = []
    for family, destination in (yield from resolve(address, kind)):
        try:
            source = yield from _resolve_source(source_address, family, kind)
        except OSError as error:
            errors.append(error)
        else:
            requests.append(parse(0, kind, proto, strategy, source, destination))
    return requests


def resolve(address: tuple[str | None, int | str], kind: int) -> Steps[list[tuple[int, Address]]]:
    """Return the addresses of a name, each with its family, in the resolver's order.

    Raises:
        OSError: socket.gaierror; or the name has no address of a family that is served.
    """
    address = scoped(address)
    host, port = address[:2]
    more = cast("tuple[int, ...]", address[2:])
    found: list[tuple[int, Any]] = []
    for family, _, _, _, sockaddr in (yield Names(host, port, kind)):
        if family in (AF_INET, AF_INET6):
            # Of an IPv6 address with flowinfo and scope_id, which getaddrinfo() does not take.
            found.append((int(family), (*sockaddr[:2], *(more or sockaddr[2:]))))
    if not found:
        raise OSError("getaddrinfo returns an empty list")
    return found


def first_of(
    calls: Sequence[Steps[socket.socket]],
    errors: list[OSError],
    delay: float | None,
    *,
    all_errors: bool,
) -> Steps[socket.socket]:
    """Return what the first of several calls returns.

    Args:
        calls: What to go through.
        errors: What went wrong before.
        delay: Seconds between the starts of two calls; None for one after the other.
        all_errors: Whether to raise an ExceptionGroup of all errors, not the last one.
    """
    with last_or_all(errors, all_errors=all_errors):
        return cast("socket.socket", (yield Race(calls, errors, delay)))


@contextlib.contextmanager
def last_or_all(errors: list[OSError], *, all_errors: bool) -> Iterator[None]:
    """Have a block that tries several addresses raise its last error, or a group of all."""
    try:
        yield
    except OSError:
        if all_errors:
            raise ExceptionGroup("create_connection failed", errors) from None
        raise
    finally:
        # The errors' tracebacks refer to the block's frame: break the cycle.
        errors.clear()


def interleaved(requests: Sequence[Request]) -> list[Request]:
    """Return the families in turn, beginning with the first one's (RFC 8305, section 4)."""
    families: dict[int, list[Request]] = {}
    for request in requests:
        families.setdefault(request.origin.family, []).append(request)
    turns: list[Request] = []
    for number in range(max(map(len, families.values()), default=0)):
        turns += [each[number] for each in families.values() if number < len(each)]
    return turns


def _resolve_source(source: Address | None, family: int, kind: int) -> Steps[Address | None]:
    """Return a source whose host may be a name as an address of a family."""
    if not source or not source[0]:
        return source or None
    with contextlib.suppress(OSError):
        socket.inet_pton(family, source[0])
        return source
    found: list[Any] = yield Names(source[0], source[1], kind, family)
    return cast("Address", found[0][4])
