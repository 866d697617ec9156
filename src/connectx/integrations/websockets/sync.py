"""websockets.sync.client through a Dialer."""

from __future__ import annotations

import functools
import socket
from typing import TYPE_CHECKING, Any, cast

from connectx.integrations import _dialers
from connectx.integrations._rebinding import Instead, rebound

with _dialers.library("websockets", "17.0"):
    from websockets.sync import client

if TYPE_CHECKING:
    from websockets.sync.utils import Deadline

    from connectx._dial.policy import AnyDialer
    from connectx.dialer import Dialer

__all__ = ["connect", "reconnect", "unix_connect", "unix_reconnect"]


class reconnect(client.reconnect):  # noqa: N801 - the library's name
    """websockets.sync.client.reconnect, which connects by a dialer: to be entered or iterated over.

    A proxy is reached by the dialer. With `sock` the dialer is not used.

    Args:
        arguments, keywords: As websockets.sync.client.reconnect takes them.
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
        self._dialer = _dialers.blocking(dialer, sources, ports)
        super().__init__(*arguments, **keywords)

    def open_socket(self, deadline: Deadline) -> socket.socket:
        """Do what the library does, and connect by the dialer."""
        connecting = functools.partial(_dialers.connect, self._dialer)
        names: dict[str, Any] = {"socket": Instead(socket, create_connection=connecting)}
        names["connect_http_proxy"] = rebound(client.connect_http_proxy, **names)
        names["connect_socks_proxy"] = rebound(
            client.connect_socks_proxy, SocksProxy=self._socks_proxy
        )
        opening = rebound(client.reconnect.open_socket, **names)
        return cast("socket.socket", opening(self, deadline))

    def _socks_proxy(self, *arguments: Any) -> Any:
        """Return a proxy of python_socks's, which is reached through another: the dialer."""
        kind: Any = client.__dict__["SocksProxy"]
        return kind(*arguments, forward=_First(self._dialer))


class _First:
    """What python_socks takes for a proxy on the way to a proxy."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer

    def connect(self, dest_host: str, dest_port: int, timeout: float) -> socket.socket:
        return _dialers.connect(self._dialer, (dest_host, dest_port), timeout)


def connect(*arguments: Any, **keywords: Any) -> Any:
    """Do what websockets.sync.client.connect does; it takes `reconnect`'s keywords, too."""
    return rebound(client.connect, reconnect=reconnect)(*arguments, **keywords)


def unix_reconnect(*arguments: Any, **keywords: Any) -> Any:
    """Do what websockets.sync.client.unix_reconnect does; a Unix socket needs no dialer."""
    return rebound(client.unix_reconnect, reconnect=reconnect)(*arguments, **keywords)


def unix_connect(*arguments: Any, **keywords: Any) -> Any:
    """Do what websockets.sync.client.unix_connect does; a Unix socket needs no dialer."""
    opening = rebound(client.unix_connect, unix_reconnect=unix_reconnect)
    return opening(*arguments, **keywords)
