"""websocket-client: a connection, and an application that is called back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import websocket

from tests.integrations.adapters.websockets import WebSockets, url
from tests.integrations.frame import Client, Options, Server

if TYPE_CHECKING:
    from types import ModuleType


def keywords(options: Options) -> dict[str, Any]:
    found: dict[str, Any] = {"sslopt": {"ca_certs": options.ca} if options.ca else {}}
    if options.proxy:
        host, _, port = options.proxy.strip("/").removeprefix("http://").partition(":")
        found |= {"http_proxy_host": host, "http_proxy_port": port, "proxy_type": "http"}
    else:
        found["http_no_proxy"] = ["*"]
    return found


class _Client(Client):
    def __init__(self, library: ModuleType, options: Options) -> None:
        self._library = library
        self._options = options
        self._connections: dict[Server, Any] = {}

    async def ask(self, server: Server) -> str:
        if server not in self._connections:
            options = self._options
            self._connections[server] = self._library.create_connection(
                url(server), options.timeout, **keywords(options), **options.given
            )
        connection = self._connections[server]
        connection.send("who?")
        answer: str = connection.recv()
        return answer

    async def close(self) -> None:
        for each in self._connections.values():
            each.close()


class _Once:
    """An event loop that comes back when there was one message."""

    def read(self, _: Any, callback: Any) -> None:
        callback()

    def buffwrite(self, sock: Any, data: Any, send: Any, _: Any) -> None:
        send(sock, data)

    def signal(self, *_: Any) -> None:
        """Nothing is signalled."""

    def abort(self) -> None:
        """Nothing is to be ended."""


class _Application(Client):
    """Its connection is left open by the loop, so that it can be asked again."""

    def __init__(self, library: ModuleType, options: Options) -> None:
        self._library = library
        self._options = options
        self._applications: dict[Server, Any] = {}
        self._answers: list[str] = []
        self._errors: list[Exception] = []

    async def ask(self, server: Server) -> str:
        application = self._applications.get(server)
        if application is None:
            application = self._applications[server] = self._library.WebSocketApp(
                url(server),
                on_open=lambda each: each.send("who?"),
                on_message=lambda _, message: self._answers.append(message),
                on_error=lambda _, error: self._errors.append(error),
                **self._options.given,
            )
            websocket.setdefaulttimeout(self._options.timeout)
            try:
                application.run_forever(dispatcher=_Once(), **keywords(self._options))
            finally:
                websocket.setdefaulttimeout(None)
            if self._errors:
                raise self._errors.pop()
        else:
            application.send("who?")
            self._answers.append(application.sock.recv())
        return self._answers.pop()

    async def close(self) -> None:
        for each in self._applications.values():
            each.close()


class _Adapter(WebSockets):
    plain = "websocket"
    errors = (OSError, websocket.WebSocketException)


class _Connection(_Adapter):
    name = "websocket-client"

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Client(library, options)


class _App(_Adapter):
    name = "websocket-client's WebSocketApp"

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Application(library, options)


ADAPTERS = [_Connection(), _App()]
