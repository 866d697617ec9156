"""loop_with(): an event loop whose connections are a dialer's, for libraries that ask a loop."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from connectx._connect.own_socket import discard
from connectx.aio.dialer import Dialer
from connectx.aio.streams import endpoint_over

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx._connect.configured import SocketOptions
    from connectx._dial.policy import AnyDialer
    from connectx.addresses import Address

    Protocol = TypeVar("Protocol", bound=asyncio.BaseProtocol)


def loop_with(dialer: AnyDialer) -> asyncio.AbstractEventLoop:
    """Return an event loop whose connections are made by a dialer, for asyncio and uvloop.

    Its create_connection(), and its create_datagram_endpoint() with a remote address, have
    the dialer connect. Their arguments and errors are those of the loop.

    Where a loop is running, it is that loop with other methods, for what takes a loop as an
    argument: ``asyncpg.connect(loop=loop_with(dialer))``. Other users of the loop do not notice.

    Where none is running, it is a new loop, for everything that runs in it, streams included:
    ``asyncio.Runner(loop_factory=lambda: loop_with(dialer))``.

    Args:
        dialer: A `connectx.Dialer` or a `connectx.aio.Dialer`.
    """
    by = dialer if isinstance(dialer, Dialer) else Dialer(dialer)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        loop = asyncio.new_event_loop()
        face: Any = loop
    else:
        face = _Face(loop)
    face.create_connection, face.create_datagram_endpoint = (
        partial(_create_connection, by, loop.create_connection),
        partial(_create_datagram_endpoint, by, loop.create_datagram_endpoint),
    )
    return cast("asyncio.AbstractEventLoop", face)


class _Face:
    """A running loop, some of whose methods are others."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


async def _create_connection(
    dialer: Dialer,
    over: Callable[..., Any],
    protocol_factory: Callable[[], Protocol],
    host: str | None = None,
    port: int | str | None = None,
    *,
    ssl: Any = None,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    sock: socket.socket | None = None,
    local_addr: Address | None = None,
    server_hostname: str | None = None,
    happy_eyeballs_delay: float | None = None,
    interleave: int | None = None,
    all_errors: bool = False,
    **keywords: Any,
) -> tuple[asyncio.Transport, Protocol]:
    """As the loop's create_connection(), which is `over`; families take turns anyhow."""
    del interleave
    keywords |= {"ssl": ssl, "server_hostname": server_hostname}
    if sock is not None or port is None:
        # It has the socket, or the error for there being nothing to connect to.
        made = await over(protocol_factory, host, port, sock=sock, **keywords)
        return cast("tuple[asyncio.Transport, Protocol]", made)
    if ssl and server_hostname is None:
        keywords["server_hostname"] = host
    if not ssl:
        _no_tls(keywords)
    sock = await _dial(
        dialer,
        (host, port),
        local_addr,
        (family, proto, flags),
        all_errors=all_errors,
        happy_eyeballs_delay=happy_eyeballs_delay,
    )
    # From here on it is the protocol's transport that closes the socket.
    owned = False

    def build() -> Protocol:
        nonlocal owned
        protocol = protocol_factory()
        owned = True
        return protocol

    try:
        made = await over(build, sock=sock, **keywords)
    except BaseException:
        if not owned:
            discard(sock)
        raise
    return cast("tuple[asyncio.Transport, Protocol]", made)


def _no_tls(keywords: dict[str, Any]) -> None:
    """Raise ValueError for what is of TLS, before anything is opened."""
    for name, value in keywords.items():
        if name != "ssl" and value is not None:
            raise ValueError(f"{name} is only meaningful with ssl")


async def _create_datagram_endpoint(
    dialer: Dialer,
    over: Callable[..., Any],
    protocol_factory: Callable[[], Protocol],
    local_addr: Address | None = None,
    remote_addr: tuple[str | None, int | str] | None = None,
    *,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    allow_broadcast: bool | None = None,
    **keywords: Any,
) -> tuple[asyncio.DatagramTransport, Protocol]:
    """As the loop's create_datagram_endpoint(), which is `over`."""
    if remote_addr is None or any(value is not None for value in keywords.values()):
        made = await over(
            protocol_factory,
            local_addr,
            remote_addr,
            family=family,
            proto=proto,
            flags=flags,
            allow_broadcast=allow_broadcast,
            **keywords,
        )
        return cast("tuple[asyncio.DatagramTransport, Protocol]", made)
    options = [(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)] if allow_broadcast else None
    sock = await _dial(
        dialer,
        remote_addr,
        local_addr,
        (family, proto, flags),
        type=socket.SOCK_DGRAM,
        socket_options=options,
    )
    return await endpoint_over(sock, protocol_factory)


async def _dial(
    dialer: Dialer,
    address: tuple[str | None, int | str],
    source_address: Address | None,
    hints: tuple[int, int, int],
    *,
    type: int = socket.SOCK_STREAM,  # noqa: A002 - as in socket.socket()
    socket_options: SocketOptions | None = None,
    all_errors: bool = False,
    happy_eyeballs_delay: float | None = None,
) -> socket.socket:
    """Connect to an address; hints: family, protocol and flags, for getaddrinfo()."""
    family, proto, flags = hints
    addresses: list[Any] = [address]
    if family or flags:
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(*address, family=family, type=type, proto=proto, flags=flags)
        addresses = [sockaddr for *_, sockaddr in infos]
    while True:
        to = addresses.pop(0)
        try:
            return await dialer.create_connection(
                to,
                source_address=source_address,
                type=type,
                proto=0 if proto in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) else proto,
                socket_options=socket_options,
                all_errors=all_errors,
                happy_eyeballs_delay=happy_eyeballs_delay,
            )
        except OSError:
            if not addresses:
                raise
