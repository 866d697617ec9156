"""Clients and transports of httpx and httpx2 through a Dialer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from connectx.integrations import _dialers, _httpcore

if TYPE_CHECKING:
    from types import ModuleType

    from connectx._dial.policy import AnyDialer


class Transporting:
    """What has a pool: the first base of a transport's class."""

    #: httpcore or httpcore2, which the pool is of.
    core: ModuleType

    # Of httpx's classes.
    _pool: Any

    def __init__(
        self,
        *arguments: Any,
        dialer: AnyDialer | None = None,
        sources: _dialers.Sources = None,
        ports: _dialers.Ports = None,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        _httpcore.manage(self._pool, self.core, _dialers.blocking(dialer, sources, ports))


class Sending:
    """What makes transports: the first base of a client's class."""

    #: The class of a client's transports.
    transports: type[Transporting]

    def __init__(
        self,
        *arguments: Any,
        dialer: AnyDialer | None = None,
        sources: _dialers.Sources = None,
        ports: _dialers.Ports = None,
        **keywords: Any,
    ) -> None:
        if _dialers.given(dialer, sources, ports) and keywords.get("transport") is not None:
            raise TypeError("the transport connects, so give a dialer to that, or no transport")
        self._dialer = _dialers.blocking(dialer, sources, ports)
        super().__init__(*arguments, **keywords)

    def _init_transport(self, *arguments: Any, **keywords: Any) -> Any:
        transport = keywords.pop("transport", None)
        if transport is not None:
            return transport
        return self.transports(*arguments, **keywords, dialer=self._dialer)

    def _init_proxy_transport(self, *arguments: Any, **keywords: Any) -> Any:
        (proxy,) = arguments
        return self.transports(**keywords, proxy=proxy, dialer=self._dialer)
