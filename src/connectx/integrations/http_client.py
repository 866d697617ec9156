"""http.client through a Dialer."""

from __future__ import annotations

import functools
import http.client
from typing import TYPE_CHECKING, Any

from connectx.integrations import _dialers

if TYPE_CHECKING:
    from connectx._dial.policy import AnyDialer

__all__ = ["HTTPConnection", "HTTPSConnection"]


class HTTPConnection(http.client.HTTPConnection):
    """http.client.HTTPConnection, which connects by a dialer.

    Args:
        arguments, keywords: As http.client.HTTPConnection takes them.
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
        super().__init__(*arguments, **keywords)
        by = _dialers.blocking(dialer, sources, ports)
        # What http.client calls in the place of socket.create_connection(), for its own tests.
        self._create_connection = functools.partial(_dialers.connect, by)


class HTTPSConnection(HTTPConnection, http.client.HTTPSConnection):
    """http.client.HTTPSConnection, which connects by a dialer.

    Args:
        arguments, keywords: As http.client.HTTPSConnection takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """
