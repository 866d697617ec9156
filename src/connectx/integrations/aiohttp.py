"""aiohttp through a Dialer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from connectx.errors import ConnectxError
from connectx.integrations import _dialers
from connectx.linux.sockopts import set_ip_bind_address_no_port

with _dialers.library("aiohttp", "3.12"):
    import aiohttp

if TYPE_CHECKING:
    import asyncio
    import socket

    from connectx import aio
    from connectx._dial.policy import AnyDialer

__all__ = ["TCPConnector"]

#: How many connections are kept to take turns where aiohttp has no limit.
_MOST: Final = 100


class TCPConnector(aiohttp.TCPConnector):
    """aiohttp.TCPConnector, which connects by a dialer.

    Names are resolved by aiohttp, and their addresses raced by it (happy eyeballs).

    Args:
        arguments, keywords: As aiohttp.TCPConnector takes them.
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
        self._in_turns = _dialers.in_turns(self._dialer)
        super().__init__(*arguments, **keywords)

    async def _wrap_create_connection(self, *arguments: Any, **keywords: Any) -> Any:
        """Do what aiohttp does, with a loop that connects by the dialer."""
        loop = _Loop(self._loop, self._dialer)
        try:
            return await aiohttp.TCPConnector._wrap_create_connection(  # noqa: SLF001 - what is wrapped
                _Connector(self, loop),  # type: ignore[arg-type] # which stands for one
                *arguments,
                **keywords,
            )
        except aiohttp.ClientConnectorError as error:
            # Where several addresses have failed, aiohttp makes a new error of their texts.
            if loop.failure is not None and _dialers.own_error(error) is None:
                error.os_error.__cause__ = loop.failure
            raise

    async def _get(self, key: Any, traces: Any) -> Any:
        """Take the connection that has been idle longest, unless it is a new one's turn."""
        if self._in_turns and key in self._conns and self._is_new_ones_turn(key):
            return None
        return await super()._get(key, traces)

    def _is_new_ones_turn(self, key: Any) -> bool:
        """Return whether there are fewer connections than sources, which take turns.

        If there is no room for another one, the connection that has been idle longest is closed.
        """
        idle = self._conns[key]
        transport = idle[0][0].transport if idle else None
        if transport is None:
            return False
        most = self._limit_per_host or self._limit or _MOST
        family = transport.get_extra_info("socket").family
        if len(idle) >= _dialers.turns(self._dialer, family, most):
            return False
        used = self._acquired_per_host[key] if self._limit_per_host else self._acquired
        if len(idle) + len(used) >= most:
            protocol, _ = idle.popleft()
            protocol.close()
        return True


class _Connector:
    """A connector but for its loop, and for how it makes sockets."""

    def __init__(self, connector: TCPConnector, loop: _Loop) -> None:
        self._connector = connector
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connector, name)

    def _socket_factory(self, info: Any) -> _Unconnected:
        factory = self._connector._socket_factory  # noqa: SLF001 - it stands for it
        return _Unconnected(None if factory is None else factory(info))


class _Loop:
    """An event loop but for how it connects sockets.

    Attributes:
        failure: What a socket could not be connected for, if that was connectx's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, dialer: aio.Dialer) -> None:
        self._loop = loop
        self._dialer = dialer
        self.failure: ConnectxError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def sock_connect(self, sock: _Unconnected, address: Any) -> None:
        """Connect a socket by the dialer."""
        try:
            await sock.connect(self._dialer, address)
        except ConnectxError as error:
            self.failure = error
            raise

    async def create_connection(self, *arguments: Any, sock: _Unconnected, **keywords: Any) -> Any:
        """Do what the loop does with a socket that is connected by now."""
        return await self._loop.create_connection(*arguments, sock=sock.made, **keywords)


class _Unconnected:
    """A socket as aiohttp has it until it is connected.

    The dialer makes it then, since its own sockets report when they are closed, unless the
    program's socket factory has made it.
    """

    def __init__(self, made: socket.socket | None) -> None:
        self.made = made
        self._source: Any = None

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 - as of a socket
        """Do as of a socket; the dialer's do not block."""
        if self.made is not None:
            self.made.setblocking(flag)

    def bind(self, address: Any) -> None:
        """Take a source address."""
        if self.made is None:
            self._source = address[:2]
        else:
            set_ip_bind_address_no_port(self.made, on=True)
            self.made.bind(address)

    async def connect(self, dialer: aio.Dialer, address: Any) -> None:
        """Connect by a dialer."""
        if self.made is None:
            self.made = await dialer.create_connection(address, source_address=self._source)
        else:
            await dialer.connectx(self.made, address)

    def close(self) -> None:
        """Do as of a socket."""
        if self.made is not None:
            self.made.close()
