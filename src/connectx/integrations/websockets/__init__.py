"""websockets through a Dialer, for asyncio; `connectx.integrations.websockets.sync` blocks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from connectx.integrations import _dialers
from connectx.integrations._rebinding import Instead, rebound

with _dialers.library("websockets", "15.0"):
    from websockets.asyncio import client

from connectx import aio

if TYPE_CHECKING:
    import socket

    from connectx._dial.policy import AnyDialer

__all__ = ["connect", "unix_connect"]

#: What opens a connection; the other one is its name before 17.0.
_OPEN = "open_tcp_connection"
_OPEN = _OPEN if hasattr(client.connect, _OPEN) else "create_connection"


class connect(client.connect):  # noqa: N801 - the library's name
    """websockets.connect, which connects by a dialer: to be awaited, entered, or iterated over.

    A proxy is reached by the dialer. With `sock` the dialer is not used.

    Args:
        arguments, keywords: As websockets.connect takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    def __init__(
        self,
        *arguments: Any,
        dialer: AnyDialer | None = None,
        sources: _dialers.Sources = None,
        ports: _dialers.Ports = None,
        **keywords: Any,
    ) -> None:
        self._dialer = _dialers.awaiting(dialer, sources, ports)
        super().__init__(*arguments, **keywords)

    async def _open(self) -> client.ClientConnection:
        """Do what the library does, with a loop that has the dialer connect."""
        loop = aio.loop_with(self._dialer)
        names: dict[str, Any] = {"asyncio": Instead(asyncio, get_running_loop=lambda: loop)}
        names["connect_http_proxy"] = rebound(client.connect_http_proxy, **names)
        names["connect_socks_proxy"] = rebound(
            client.connect_socks_proxy, SocksProxy=self._socks_proxy
        )
        opening = rebound(getattr(client.connect, _OPEN), **names)
        return cast("client.ClientConnection", await opening(self))

    def _socks_proxy(self, *arguments: Any) -> Any:
        """Return a proxy of python_socks's, which is reached through another: the dialer."""
        kind: Any = client.__dict__["SocksProxy"]
        return kind(*arguments, forward=_First(self._dialer))

    locals()[_OPEN] = _open


class _First:
    """What python_socks takes for a proxy on the way to a proxy."""

    def __init__(self, dialer: aio.Dialer) -> None:
        self._dialer = dialer

    async def connect(self, dest_host: str, dest_port: int, **_: object) -> socket.socket:
        return await self._dialer.create_connection((dest_host, dest_port))


def unix_connect(path: Any = None, uri: str | None = None, **keywords: Any) -> connect:
    """Do what websockets.unix_connect does; a Unix socket needs no dialer."""
    return cast("connect", rebound(client.unix_connect, connect=connect)(path, uri, **keywords))
