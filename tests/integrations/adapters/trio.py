"""trio: streams, each of which is a connection."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, ClassVar

import trio

from tests.integrations.adapters.anyio import Streams
from tests.integrations.frame import Adapter, Client, Options, Server

if TYPE_CHECKING:
    from types import ModuleType


class _Client(Streams):
    async def open(self, server: Server) -> Any:
        stream = await self.library.open_tcp_stream(*server.address, **self.options.given)
        if not server.tls:
            return stream
        context = ssl.create_default_context(cafile=self.options.ca)
        wrapped = trio.SSLStream(
            stream, context, server_hostname=server.host, https_compatible=True
        )
        try:
            await wrapped.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(wrapped)
            raise
        return wrapped

    async def send(self, stream: Any, data: bytes) -> None:
        await stream.send_all(data)

    async def receive(self, stream: Any) -> bytes:
        data: bytes = await stream.receive_some()
        return data


class _Adapter(Adapter):
    name = "trio"
    plain = "trio"
    backends = ("trio",)
    errors = (OSError, trio.BrokenResourceError)
    tls_errors = (trio.BrokenResourceError,)
    lacks: ClassVar = dict.fromkeys(("copies", "proxy", "turns"), "a stream is one connection")

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Client(library, options)


ADAPTERS = [_Adapter()]
