"""create_connection() for asyncio, uvloop and trio."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final, Literal

from connectx._connect.configured import checked
from connectx._connect.connection import DEFAULT_TIMEOUT
from connectx._connect.here import Connection, opening, plain_if
from connectx._connect.names import by_name
from connectx._connect.request import as_tuple, check_forms, parse_literal, scoped, with_text_host
from connectx.aio.driver import run

if TYPE_CHECKING:
    from connectx._connect.configured import SocketOptions
    from connectx._connect.strategies import StrategyName
    from connectx.addresses import Address

#: Seconds between the starts of two attempts: the Connection Attempt Delay of RFC 8305.
HAPPY_EYEBALLS_DELAY: Final = 0.25


async def create_connection(
    address: tuple[str | None, int | str],
    timeout: float | None = None,  # noqa: ASYNC109 - as in socket.create_connection()
    source_address: Address | None = None,
    *,
    all_errors: bool = False,
    type: int = socket.SOCK_STREAM,  # noqa: A002 - as in socket.socket()
    proto: int = 0,
    strategy: StrategyName = "auto",
    socket_options: SocketOptions | None = None,
    fallback: Literal["plain"] | None = None,
    happy_eyeballs_delay: float | None = HAPPY_EYEBALLS_DELAY,
) -> socket.socket:
    """Connect to an address and return the socket, connected and non-blocking.

    Under trio, too, it awaits without threads, except to read a long list of sockets.

    Args:
        address: ``(host, port)``; the host is a name or an IP address.
        timeout: Seconds for each address; None to wait for as long as the kernel does.
        source_address: ``(host, port)`` to connect from. With an empty host the routing
            table chooses the address; with port 0 connectx chooses the port.
        all_errors: Whether to raise an ExceptionGroup of the errors of all addresses,
            instead of the last one.
        type: SOCK_STREAM or SOCK_DGRAM.
        proto: 0, IPPROTO_MPTCP or IPPROTO_UDPLITE.
        strategy: How source ports are chosen, by name; "auto" is right for nearly all.
        socket_options, fallback: As for `connectx.create_connection`.
        happy_eyeballs_delay: Seconds after which the next address of a name is tried
            beside those under way, the families taking turns (RFC 8305); None tries one
            after the other.

    Raises:
        PortsExhausted: No source port is free (EADDRNOTAVAIL; for UDP EAGAIN, which here
            never means "in progress").
        TimeoutError: The handshake took longer than the timeout.
        OSError: As `connectx.create_connection` raises it.
    """
    to: Any = scoped(as_tuple(address))
    source_address = with_text_host(as_tuple(source_address or None))
    check_forms(to, source_address, strategy)
    request = parse_literal(to, source_address, type, proto, strategy)
    if request is None or all_errors or socket_options is not None or fallback is not None:
        options, plain = checked(socket_options), plain_if(fallback)
        return await run(
            by_name(
                to,
                source_address,
                type,
                proto,
                strategy,
                lambda each: opening(each, timeout, awaited=True, options=options, plain=plain),
                all_errors=all_errors,
                awaited=True,
                delay=happy_eyeballs_delay,
            )
        )
    connection = Connection(request, DEFAULT_TIMEOUT)
    connection.apart(timeout, blocking=False)
    steps = connection.begin()
    if steps is not None:
        await run(steps)
    return connection.sock
