"""open_connection() and create_datagram_endpoint(): asyncio's streams and transports."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from connectx.aio.connecting import HAPPY_EYEBALLS_DELAY, create_connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx._connect.strategies import StrategyName
    from connectx.addresses import Address

    Protocol = TypeVar("Protocol", bound=asyncio.BaseProtocol)


async def open_connection(
    host: str | None,
    port: int | str,
    *,
    limit: int = 2**16,
    timeout: float | None = None,  # noqa: ASYNC109 - as in socket.create_connection()
    source_address: Address | None = None,
    proto: int = 0,
    strategy: StrategyName = "auto",
    happy_eyeballs_delay: float | None = HAPPY_EYEBALLS_DELAY,
    ssl: Any = None,
    server_hostname: str | None = None,
    **keywords: Any,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """asyncio.open_connection() with shared source ports.

    ssl: as there; the handshake is the loop's own.
    server_hostname: what the server's certificate must be for; by default the host.
    keywords: `ssl_handshake_timeout` and `ssl_shutdown_timeout`, as the loop's
        create_connection() takes them.

    The other arguments, and errors, are those of `create_connection`.
    """
    tls = tls_keywords(host, ssl, server_hostname, keywords)
    sock = await create_connection(
        (host, port),
        timeout,
        source_address,
        proto=proto,
        strategy=strategy,
        happy_eyeballs_delay=happy_eyeballs_delay,
    )
    return await stream_over(sock, limit, tls)


def tls_keywords(
    host: str | None, ssl: Any, server_hostname: str | None, keywords: dict[str, Any]
) -> dict[str, Any]:
    """What loop.create_connection() is to be told of TLS, checked before anything is opened.

    Raises TypeError for keywords that it does not look at where it gets a socket, and
    ValueError for those that have no meaning without TLS.
    """
    for name in keywords.keys() - {"ssl_handshake_timeout", "ssl_shutdown_timeout"}:
        instead = ": say source_address, or give a Dialer sources" * (name == "local_addr")
        raise TypeError(f"open_connection() takes no {name!r}{instead}")
    if ssl:
        wanted = host if server_hostname is None else server_hostname
        return {**keywords, "ssl": ssl, "server_hostname": wanted}
    for name, value in {"server_hostname": server_hostname, **keywords}.items():
        if value is not None:
            raise ValueError(f"{name} is only meaningful with ssl")
    return {}


async def stream_over(
    sock: socket.socket, limit: int, tls: dict[str, Any]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Reader and writer over a connected socket, which is closed if that fails."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = _StreamProtocol(reader, loop=loop)
    try:
        # As asyncio.open_connection() does it, but for the protocol.
        transport, _ = await loop.create_connection(lambda: protocol, sock=sock, **tls)
    except BaseException:
        if protocol.made is not None:
            # A TLS transport that is closed once its handshake is done goes on reading until
            # its peer has closed as well, and the next one to have the descriptor would find
            # it in use. This takes it out of the loop at once.
            protocol.made.abort()
        # The transport closes it as well, some time later.
        sock.close()
        raise
    finally:
        protocol.made = None
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class _StreamProtocol(asyncio.StreamReaderProtocol):
    """Tells of its transport before whoever opens it does.

    made: the transport, from the end of a TLS handshake on.
    """

    made: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made = cast("asyncio.WriteTransport", transport)
        super().connection_made(transport)


async def create_datagram_endpoint(
    protocol_factory: Callable[[], Protocol],
    remote_addr: tuple[str | None, int | str],
    source_address: Address | None = None,
    *,
    proto: int = 0,
    strategy: StrategyName = "auto",
) -> tuple[asyncio.DatagramTransport, Protocol]:
    """loop.create_datagram_endpoint() for a connected socket that shares its source port.

    remote_addr, source_address: as `create_connection` takes them.
    """
    sock = await create_connection(
        remote_addr,
        source_address=source_address,
        type=socket.SOCK_DGRAM,
        proto=proto,
        strategy=strategy,
    )
    return await endpoint_over(sock, protocol_factory)


async def endpoint_over(
    sock: socket.socket, protocol_factory: Callable[[], Protocol]
) -> tuple[asyncio.DatagramTransport, Protocol]:
    """Transport and protocol over a connected socket, which is closed if that fails."""
    loop = asyncio.get_running_loop()
    try:
        # Called here: a factory that raises would leave uvloop's transport unclosed.
        protocol = protocol_factory()
    except BaseException:
        sock.close()
        raise
    opening = asyncio.ensure_future(loop.create_datagram_endpoint(lambda: protocol, sock=sock))
    try:
        # It needs a turn or two of the loop, and no network. Cancelled in between it would
        # close a transport that keeps the descriptor in the loop, if there is data to be
        # sent already, and nobody would know which.
        return await asyncio.shield(opening)
    except BaseException:
        opening.add_done_callback(partial(_discard_endpoint, sock))
        raise


def _discard_endpoint(
    sock: socket.socket, opening: asyncio.Future[tuple[asyncio.DatagramTransport, Any]]
) -> None:
    if opening.cancelled() or opening.exception() is not None:
        sock.close()
    else:
        opening.result()[0].abort()
