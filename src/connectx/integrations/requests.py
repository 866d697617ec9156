"""requests through a Dialer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from connectx.integrations import _dialers
from connectx.integrations.urllib3 import manage

with _dialers.library("requests", "2.31"):
    import requests
    from requests.adapters import HTTPAdapter as _HTTPAdapter

if TYPE_CHECKING:
    from connectx._dial.policy import AnyDialer

__all__ = ["HTTPAdapter", "Session"]


class HTTPAdapter(_dialers.WithDialer, _HTTPAdapter):
    """requests.adapters.HTTPAdapter, whose connections are made by a dialer.

    A copy shares the dialer. A pickled adapter has a dialer of the same settings, which counts by
    itself.

    Args:
        arguments, keywords: As requests.adapters.HTTPAdapter takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    __attrs__ = [*_HTTPAdapter.__attrs__, "_dialer"]  # noqa: RUF012 - as in the base class

    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        """Do what requests does, and have the manager's pools connect by the dialer."""
        super().init_poolmanager(*arguments, **keywords)
        manage(self.poolmanager, self._dialer)

    def proxy_manager_for(self, proxy: str, **keywords: Any) -> Any:
        """Do what requests does, and have the manager's pools connect by the dialer."""
        is_new = proxy not in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **keywords)
        if is_new:
            manage(manager, self._dialer)
        return manager

    def send(self, *arguments: Any, **keywords: Any) -> requests.Response:
        """Do what requests does; where no port is left, its error has ours as the cause."""
        try:
            return super().send(*arguments, **keywords)
        except requests.exceptions.ConnectionError as error:
            _dialers.with_cause(error)
            raise


class Session(requests.Session):
    """requests.Session, whose connections are made by a dialer.

    Args:
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    def __init__(
        self,
        *,
        dialer: AnyDialer | None = None,
        sources: _dialers.Sources = None,
        ports: _dialers.Ports = None,
    ) -> None:
        super().__init__()
        by = _dialers.blocking(dialer, sources, ports)
        for scheme in ("https://", "http://"):
            self.mount(scheme, HTTPAdapter(dialer=by))
