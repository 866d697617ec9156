"""httpx2 through a Dialer."""

from __future__ import annotations

from connectx.integrations import _dialers
from connectx.integrations._httpx import Sending, Transporting

with _dialers.library("httpx2", "2.0"):
    import httpx2
with _dialers.library("httpcore2", "2.0"):
    import httpcore2

__all__ = ["AsyncClient", "AsyncHTTPTransport", "Client", "HTTPTransport"]


class HTTPTransport(Transporting, httpx2.HTTPTransport):
    """httpx2.HTTPTransport, whose connections are made by a dialer.

    Args:
        arguments, keywords: As httpx2.HTTPTransport takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    core = httpcore2


class AsyncHTTPTransport(Transporting, httpx2.AsyncHTTPTransport):
    """httpx2.AsyncHTTPTransport, whose connections are made by a dialer.

    Args:
        arguments, keywords: As httpx2.AsyncHTTPTransport takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    core = httpcore2


class Client(Sending, httpx2.Client):
    """httpx2.Client, whose connections are made by a dialer.

    Args:
        arguments, keywords: As httpx2.Client takes them. What is mounted is used as it is.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    transports = HTTPTransport


class AsyncClient(Sending, httpx2.AsyncClient):
    """httpx2.AsyncClient, whose connections are made by a dialer.

    Args:
        arguments, keywords: As httpx2.AsyncClient takes them. What is mounted is used as it is.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    transports = AsyncHTTPTransport
