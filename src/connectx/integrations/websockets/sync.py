"""websockets.sync.client through a Dialer."""

from __future__ import annotations

import functools
import socket
from typing import TYPE_CHECKING, Any, cast

from connectx.integrations import _dialers
from connectx.integrations._python_socks import First
from connectx.integrations._rebinding import Instead, rebound

with _dialers.library("websockets", "15.0"):
    from websockets.sync import client

if TYPE_CHECKING:
    from websockets.sync.utils import Deadline

    from connectx._dial.policy import AnyDialer
    from connectx.dialer import Dialer

__all__ = ["connect", "reconnect", "unix_connect", "unix_reconnect"]


#: Of releases from 17.1 on: its connect() is made of it.
_reconnect: Any = client.__dict__.get("reconnect")


class reconnect(_reconnect or object):  # type: ignore[misc] # noqa: N801 - the library's name
    """websockets.sync.client.reconnect, which connects by a dialer: to be entered or iterated over.

    A proxy is reached by the dialer. With `sock` the dialer is not used. It needs websockets 17.1.

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
        if _reconnect is None:
            raise ImportError("reconnect needs websockets 17.1 or newer", name="websockets")
        self._dialer = _dialers.blocking(dialer, sources, ports)
        super().__init__(*arguments, **keywords)

    def open_socket(self, deadline: Deadline) -> socket.socket:
        """Do what the library does, and connect by the dialer."""
        opening = rebound(_reconnect.open_socket, **_names(self._dialer))
        return cast("socket.socket", opening(self, deadline))


def _names(dialer: Dialer) -> dict[str, Any]:
    """Return what the library's functions are to call instead."""
    connecting = functools.partial(_dialers.connect, dialer)
    names: dict[str, Any] = {"socket": Instead(socket, create_connection=connecting)}

    def socks_proxy(*arguments: Any) -> Any:
        # One of python_socks's, which is reached through another one: the dialer.
        kind: Any = client.__dict__["SocksProxy"]
        return kind(*arguments, forward=First(dialer))

    return {
        **names,
        "connect_http_proxy": rebound(client.connect_http_proxy, **names),
        "connect_socks_proxy": rebound(client.connect_socks_proxy, SocksProxy=socks_proxy),
    }


def connect(
    *arguments: Any,
    dialer: AnyDialer | None = None,
    sources: _dialers.Sources = None,
    ports: _dialers.Ports = None,
    **keywords: Any,
) -> Any:
    """Do what websockets.sync.client.connect does, and connect by a dialer.

    Args:
        arguments, keywords: As websockets.sync.client.connect takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """
    by = _dialers.blocking(dialer, sources, ports)
    if _reconnect is None:
        return rebound(client.connect, **_names(by))(*arguments, **keywords)
    return rebound(client.connect, reconnect=reconnect)(*arguments, dialer=by, **keywords)


def unix_reconnect(*arguments: Any, **keywords: Any) -> Any:
    """Do what websockets.sync.client.unix_reconnect does; a Unix socket needs no dialer."""
    return rebound(client.unix_reconnect, reconnect=reconnect)(*arguments, **keywords)


def unix_connect(*arguments: Any, **keywords: Any) -> Any:
    """Do what websockets.sync.client.unix_connect does; a Unix socket needs no dialer."""
    opening = rebound(client.unix_connect, connect=connect, unix_reconnect=unix_reconnect)
    return opening(*arguments, **keywords)
