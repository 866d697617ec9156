"""urllib.request through a Dialer; for FTP it has a function of its own, which stays as it is."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from connectx.integrations import _dialers
from connectx.integrations.http_client import HTTPConnection, HTTPSConnection

if TYPE_CHECKING:
    from connectx._dial.policy import AnyDialer

__all__ = ["HTTPHandler", "HTTPSHandler", "build_opener"]


class _Handling:
    """What opens URLs: the first base of a handler's class."""

    def __init__(
        self,
        *arguments: Any,
        dialer: AnyDialer | None = None,
        sources: _dialers.Sources = None,
        ports: _dialers.Ports = None,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self._dialer = _dialers.blocking(dialer, sources, ports)

    def do_open(self, http_class: Any, req: urllib.request.Request, **keywords: Any) -> Any:
        """Open a URL with a class of connections: ours, where it is the standard library's."""
        ours = {
            http.client.HTTPConnection: HTTPConnection,
            http.client.HTTPSConnection: HTTPSConnection,
        }.get(http_class)
        if ours is not None:
            http_class = ours
            keywords["dialer"] = self._dialer
        try:
            return super().do_open(http_class, req, **keywords)  # type: ignore[misc] # a handler's
        except urllib.error.URLError as error:
            _dialers.with_cause(error)
            raise


class HTTPHandler(_Handling, urllib.request.HTTPHandler):
    """urllib.request.HTTPHandler, which connects by a dialer.

    Args:
        arguments, keywords: As urllib.request.HTTPHandler takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """


class HTTPSHandler(_Handling, urllib.request.HTTPSHandler):
    """urllib.request.HTTPSHandler, which connects by a dialer.

    Args:
        arguments, keywords: As urllib.request.HTTPSHandler takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """


def build_opener(
    *handlers: urllib.request.BaseHandler | type[urllib.request.BaseHandler],
    dialer: AnyDialer | None = None,
    sources: _dialers.Sources = None,
    ports: _dialers.Ports = None,
) -> urllib.request.OpenerDirector:
    """Do what urllib.request.build_opener does, with handlers that connect by a dialer.

    Args:
        handlers: As urllib.request.build_opener takes them. A handler for HTTP or HTTPS among
            them is used as it is.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """
    by = _dialers.blocking(dialer, sources, ports)
    given = tuple(each if isinstance(each, type) else type(each) for each in handlers)
    ours: list[urllib.request.BaseHandler] = []
    if not any(issubclass(each, urllib.request.HTTPHandler) for each in given):
        ours.append(HTTPHandler(dialer=by))
    if not any(issubclass(each, urllib.request.HTTPSHandler) for each in given):
        ours.append(HTTPSHandler(dialer=by))
    return urllib.request.build_opener(*ours, *handlers)
