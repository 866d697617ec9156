"""Clients and transports of httpx and httpx2 through a Dialer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from connectx.integrations import _dialers, _httpcore

if TYPE_CHECKING:
    from types import ModuleType

    from connectx._dial.policy import AnyDialer


class Transporting:
    """What has a pool: the first base of a transport's class."""

    #: httpcore or httpcore2, which the pool is of.
    core: ClassVar[ModuleType]

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

    #: Of the transports.
    transports: ClassVar[type[Transporting]]

    def __init__(
        self,
        *arguments: Any,
        dialer: AnyDialer | None = None,
        sources: _dialers.Sources = None,
        ports: _dialers.Ports = None,
        **keywords: Any,
    ) -> None:
        given = not (dialer is sources is ports is None)
        if given and keywords.get("transport") is not None:
            raise TypeError("the transport connects, so give a dialer to that, or no transport")
        self._dialer = _dialers.blocking(dialer, sources, ports)
        super().__init__(*arguments, **keywords)

    def _init_transport(self, *, transport: Any = None, **keywords: Any) -> Any:
        return transport or self.transports(**keywords, dialer=self._dialer)

    def _init_proxy_transport(self, proxy: Any, **keywords: Any) -> Any:
        return self.transports(**keywords, proxy=proxy, dialer=self._dialer)
