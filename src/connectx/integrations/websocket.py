"""websocket-client through a Dialer."""

from __future__ import annotations

import errno
import functools
from typing import TYPE_CHECKING, Any, cast

from connectx.errors import ConnectxError
from connectx.integrations import _dialers
from connectx.integrations._python_socks import First
from connectx.integrations._rebinding import Instead, rebound

with _dialers.library("websocket-client", "1.6"):
    import websocket
    from websocket import _http

if TYPE_CHECKING:
    import socket

    from connectx._dial.policy import AnyDialer

__all__ = ["WebSocket", "WebSocketApp", "create_connection"]


class WebSocket(_dialers.WithDialer, websocket.WebSocket):
    """websocket.WebSocket, which connects by a dialer, to a proxy too.

    With `socket` the dialer is not used.

    Args:
        arguments, keywords: As websocket.WebSocket takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    def connect(self, url: str, **options: Any) -> None:
        """Do what the library does, and connect by the dialer."""
        names = {"_open_socket": self._open_socket}
        if _http.HAVE_PYTHON_SOCKS:
            proxy: Any = _http.__dict__["Proxy"]
            create = functools.partial(proxy.create, forward=First(self._dialer))
            names["_start_proxied_socket"] = rebound(
                _http._start_proxied_socket,  # noqa: SLF001 - there is no other way to a proxy
                Proxy=Instead(proxy, create=create),
            )
        connecting = rebound(websocket.WebSocket.connect, connect=rebound(_http.connect, **names))
        connecting(self, url, **options)

    def _open_socket(
        self, addresses: list[Any], options: list[Any], timeout: float | None
    ) -> socket.socket:
        """Connect to the first address that has a port and a server, as the library does."""
        for number, (*_, address) in enumerate(addresses, start=1):
            try:
                return _dialers.connect(
                    self._dialer,
                    address,
                    timeout,
                    None,
                    [*websocket._socket.DEFAULT_SOCKET_OPTION, *options],  # noqa: SLF001 - as there
                )
            except OSError as error:
                cast("Any", error).remote_ip = address[0]
                goes_on = error.errno in {errno.ECONNREFUSED, errno.ENETUNREACH}
                if number == len(addresses) or not (goes_on or isinstance(error, ConnectxError)):
                    raise
        raise AssertionError("the library has looked that there is an address")


class WebSocketApp(_dialers.WithDialer, websocket.WebSocketApp):
    """websocket.WebSocketApp, which connects by a dialer, and connects again by it.

    Args:
        arguments, keywords: As websocket.WebSocketApp takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    def run_forever(self, *arguments: Any, **keywords: Any) -> bool:
        """Do what the library does, with a `WebSocket` that has the dialer."""
        running = rebound(
            websocket.WebSocketApp.run_forever,
            WebSocket=functools.partial(WebSocket, dialer=self._dialer),
        )
        return cast("bool", running(self, *arguments, **keywords))


def create_connection(
    url: str,
    timeout: float | None = None,
    class_: Any = websocket.WebSocket,
    *,
    dialer: AnyDialer | None = None,
    sources: _dialers.Sources = None,
    ports: _dialers.Ports = None,
    **options: Any,
) -> WebSocket:
    """Do what websocket.create_connection does, with a `WebSocket` that has a dialer.

    Args:
        url, timeout, class_, options: As websocket.create_connection takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """
    by = _dialers.blocking(dialer, sources, ports)
    kind = functools.partial(_dialling(class_), dialer=by)
    made = websocket.create_connection(url, timeout, cast("Any", kind), **options)
    return cast("WebSocket", made)


@functools.cache
def _dialling(kind: Any) -> Any:
    """Return a class like another one, such as a program's own, that connects by a dialer."""
    if kind is websocket.WebSocket:
        return WebSocket
    return kind if issubclass(kind, WebSocket) else type(kind.__name__, (kind, WebSocket), {})
