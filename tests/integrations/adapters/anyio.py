"""anyio: streams, each of which is a connection."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, ClassVar

import anyio

from tests.integrations.frame import LOOPS, Adapter, Client, Options, Server

if TYPE_CHECKING:
    from types import ModuleType


class Streams(Client):
    """A stream to each server, with as much HTTP as it takes."""

    def __init__(self, library: ModuleType, options: Options) -> None:
        self.library = library
        self.options = options
        self._streams: dict[Server, Any] = {}

    async def ask(self, server: Server) -> str:
        if server not in self._streams:
            with anyio.fail_after(self.options.timeout):
                self._streams[server] = await self.open(server)
        stream = self._streams[server]
        await self.send(stream, b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")
        reply = b""
        while not (reply.endswith(b"\n") and b"\r\n\r\n" in reply[:-1]):
            reply += await self.receive(stream)
        return reply.partition(b"\r\n\r\n")[2].decode()

    async def close(self) -> None:
        for each in self._streams.values():
            await each.aclose()

    async def open(self, server: Server) -> Any:
        """Connect."""
        keywords: dict[str, Any] = {"tls_standard_compatible": False, **self.options.given}
        if server.tls:
            keywords["ssl_context"] = ssl.create_default_context(cafile=self.options.ca)
        return await self.library.connect_tcp(*server.address, **keywords)

    async def send(self, stream: Any, data: bytes) -> None:
        """Write."""
        await stream.send(data)

    async def receive(self, stream: Any) -> bytes:
        """Read."""
        data: bytes = await stream.receive()
        return data


class _Adapter(Adapter):
    name = "anyio"
    plain = "anyio"
    backends = LOOPS
    errors = (OSError, anyio.BrokenResourceError, anyio.EndOfStream)
    tls_errors = (ssl.SSLCertVerificationError,)
    lacks: ClassVar = dict.fromkeys(("copies", "proxy", "turns"), "a stream is one connection")

    def client(self, library: ModuleType, options: Options) -> Client:
        return Streams(library, options)


ADAPTERS = [_Adapter()]
