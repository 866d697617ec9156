"""anyio through a Dialer, on each of its backends."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any, cast

from connectx.aio.running import under_trio
from connectx.integrations import _dialers

with _dialers.library("anyio", "4.10"):
    import anyio
    from anyio.abc import ByteStream, ConnectedUDPSocket, SocketStream
    from anyio.streams.tls import TLSStream

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from anyio.abc import IPAddressType

    from connectx._dial.policy import AnyDialer

__all__ = ["connect_tcp", "create_connected_udp_socket"]


async def connect_tcp(
    remote_host: IPAddressType,
    remote_port: int,
    *,
    local_host: IPAddressType | None = None,
    local_port: int | None = None,
    tls: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    tls_standard_compatible: bool = True,
    tls_hostname: str | None = None,
    happy_eyeballs_delay: float = 0.25,
    dialer: AnyDialer | None = None,
    sources: _dialers.Sources = None,
    ports: _dialers.Ports = None,
) -> ByteStream:
    """Do what anyio.connect_tcp does, by a dialer.

    Args:
        remote_host, remote_port, happy_eyeballs_delay: As anyio.connect_tcp takes them.
        tls, ssl_context, tls_standard_compatible, tls_hostname: As there.
        local_host, local_port: One of the dialer's sources and ports, if it has any.
        dialer, sources, ports: As `connectx.integrations` describes them.

    Returns:
        A SocketStream, or a TLSStream after a TLS handshake.

    Raises:
        OSError: As anyio.connect_tcp raises it; its cause is connectx's, and has the errno.
    """
    sock = await _dialers.dial(
        _dialers.awaiting(dialer, sources, ports),
        (str(remote_host), remote_port),
        (local_host, local_port),
        "All connection attempts failed",
        happy_eyeballs_delay=happy_eyeballs_delay,
    )
    stream = await stream_over(sock)
    if not (tls or tls_hostname or ssl_context):
        return stream
    try:
        return await TLSStream.wrap(
            stream,
            server_side=False,
            hostname=tls_hostname or str(remote_host),
            ssl_context=ssl_context,
            standard_compatible=tls_standard_compatible,
        )
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise


async def create_connected_udp_socket(
    remote_host: IPAddressType,
    remote_port: int,
    *,
    family: int = socket.AF_UNSPEC,
    local_host: IPAddressType | None = None,
    local_port: int = 0,
    reuse_port: bool = False,
    dialer: AnyDialer | None = None,
    sources: _dialers.Sources = None,
    ports: _dialers.Ports = None,
) -> ConnectedUDPSocket:
    """Do what anyio.create_connected_udp_socket does, by a dialer.

    Args:
        remote_host, remote_port, family, reuse_port: As anyio.create_connected_udp_socket takes
            them. Ports are shared without reuse_port, too.
        local_host, local_port: One of the dialer's sources and ports, if it has any.
        dialer, sources, ports: As `connectx.integrations` describes them.

    Raises:
        OSError: As `connectx.Dialer.create_connection` raises it.
    """
    by = _dialers.awaiting(dialer, sources, ports)
    if local_host and not family:
        local = await anyio.getaddrinfo(str(local_host), local_port, type=socket.SOCK_DGRAM)
        family = local[0][0]
    # The first address and no other, as there: nothing says whether it answers.
    found = await anyio.getaddrinfo(
        str(remote_host), remote_port, family=family, type=socket.SOCK_DGRAM
    )
    sock = await by.create_connection(
        found[0][4],
        source_address=_dialers.local(local_host, local_port),
        type=socket.SOCK_DGRAM,
        socket_options=[(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)] if reuse_port else None,
    )
    return cast("ConnectedUDPSocket", await _wrapped(ConnectedUDPSocket.from_socket, sock))


async def stream_over(sock: socket.socket) -> SocketStream:
    """Make a stream of a connected socket, which is closed if that fails."""
    if under_trio():
        # As anyio does; asyncio's transports do it by themselves.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return cast("SocketStream", await _wrapped(SocketStream.from_socket, sock))


async def _wrapped(wrap: Callable[[socket.socket], Any], sock: socket.socket) -> Any:
    if under_trio():
        sock = _dialers.plain(sock)
    try:
        return await wrap(sock)
    except ValueError as error:
        sock.close()
        # It asks for the peer's name, which a connection that was reset has no more.
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from error
    except BaseException:
        sock.close()
        raise
