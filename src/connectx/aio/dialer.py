"""Dialer for asyncio, uvloop and trio: the awaiting face of a policy."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, TypeVar

from connectx._connect.configured import checked
from connectx._dial.connecting import CallersCall, by_name, call_to
from connectx._dial.policy import AnyDialer
from connectx.aio.connecting import HAPPY_EYEBALLS_DELAY
from connectx.aio.driver import run
from connectx.aio.streams import endpoint_over, stream_over, tls_keywords

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from connectx._connect.configured import SocketOptions
    from connectx._dial.capacity import Capacity
    from connectx.addresses import Address

    Protocol = TypeVar("Protocol", bound=asyncio.BaseProtocol)


class Dialer(AnyDialer):
    """connectx.Dialer for asyncio, uvloop and trio: the same arguments, and methods to await.

    ``aio.Dialer(dialer)`` is the awaiting face of an existing dialer: both have the same
    settings, limits, counts and wait queue, across threads and event loops.
    """

    async def create_connection(
        self,
        address: tuple[str | None, int | str],
        timeout: float | None = None,  # noqa: ASYNC109 - as in socket.create_connection()
        source_address: Address | None = None,
        *,
        all_errors: bool = False,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - as in socket.socket()
        proto: int = 0,
        key: str | None = None,
        socket_options: SocketOptions | None = None,
        wait: float | None = None,
        happy_eyeballs_delay: float | None = HAPPY_EYEBALLS_DELAY,
    ) -> socket.socket:
        """Connect to an address by this dialer's policy; returns a non-blocking socket.

        Args:
            address: ``(host, port)``; the host is a name or an IP address.
            timeout: Seconds for each address and source; waiting for a port is not part
                of it.
            source_address: ``(host, port)`` to connect from: one of the dialer's sources,
                or "" for any, and one of its ports, or 0 for any.
            all_errors: Whether to raise an ExceptionGroup of the errors of all addresses.
            type: SOCK_STREAM or SOCK_DGRAM.
            proto: 0, IPPROTO_MPTCP or IPPROTO_UDPLITE.
            key: What a "sticky" source belongs to; by default the destination's host.
            socket_options: As `connectx.create_connection` takes them.
            wait: Seconds to wait for a port, where the dialer would wait longer.
            happy_eyeballs_delay: As for `connectx.aio.create_connection`.

        Raises:
            OSError: As `connectx.Dialer.create_connection` raises it.
        """
        policy = self._policy
        options = () if socket_options is None else checked(socket_options)
        call = None
        if source_address is None:
            call = call_to(
                policy, address, timeout, type, proto, key, awaited=True, options=options, wait=wait
            )
        if call is None or all_errors:
            return await run(
                by_name(
                    policy,
                    address,
                    timeout,
                    source_address,
                    type,
                    proto,
                    key,
                    all_errors=all_errors,
                    awaited=True,
                    options=options,
                    wait=wait,
                    delay=happy_eyeballs_delay,
                )
            )
        steps = call.begin()
        if steps is not None:
            await run(steps)
        return call.sock

    async def open_connection(
        self,
        host: str | None,
        port: int | str,
        *,
        limit: int = 2**16,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
        proto: int = 0,
        key: str | None = None,
        happy_eyeballs_delay: float | None = HAPPY_EYEBALLS_DELAY,
        ssl: Any = None,
        server_hostname: str | None = None,
        **keywords: Any,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Do what `connectx.aio.open_connection` does, by this dialer's policy.

        `limit` is the reader's, as there.
        """
        tls = tls_keywords(host, ssl, server_hostname, keywords)
        sock = await self.create_connection(
            (host, port), timeout, proto=proto, key=key, happy_eyeballs_delay=happy_eyeballs_delay
        )
        return await stream_over(sock, limit, tls)

    async def create_datagram_endpoint(
        self,
        protocol_factory: Callable[[], Protocol],
        remote_addr: tuple[str | None, int | str],
        *,
        proto: int = 0,
        key: str | None = None,
    ) -> tuple[asyncio.DatagramTransport, Protocol]:
        """Do what `connectx.aio.create_datagram_endpoint` does, by this dialer's policy."""
        sock = await self.create_connection(
            remote_addr, type=socket.SOCK_DGRAM, proto=proto, key=key
        )
        return await endpoint_over(sock, protocol_factory)

    async def connectx(
        self, sock: socket.socket, destination: Address, *, key: str | None = None
    ) -> None:
        """Connect a non-blocking socket made elsewhere, as `connectx.Dialer.connectx` does.

        A stream that is cancelled or fails in the middle of the handshake goes on
        connecting, as after loop.sock_connect(): close it then.

        Raises:
            ValueError: The socket is blocking; or as there.
            OSError: As `connectx.Dialer.connectx` raises it.
        """
        if sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking: call sock.setblocking(False) first")
        call = CallersCall(self._policy, sock, destination, b"", key, awaited=True)
        steps = call.begin()
        if steps is not None:
            await run(steps)

    async def capacity(
        self,
        address: Address,
        *,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - as in socket.socket()
        proto: int = 0,
    ) -> Capacity:
        """Do what `connectx.Dialer.capacity` does; another thread reads the list of sockets."""
        return await run(self._policy.count(address, type, proto))
