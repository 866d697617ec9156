"""httpx through a Dialer."""

from __future__ import annotations

from connectx.integrations import _dialers
from connectx.integrations._httpx import Sending, Transporting

with _dialers.library("httpx", "0.28"):
    import httpx
with _dialers.library("httpcore", "1.0.9"):
    import httpcore

__all__ = ["AsyncClient", "AsyncHTTPTransport", "Client", "HTTPTransport"]


class HTTPTransport(Transporting, httpx.HTTPTransport):
    """httpx.HTTPTransport, whose connections are made by a dialer.

    Args:
        arguments, keywords: As httpx.HTTPTransport takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    core = httpcore


class AsyncHTTPTransport(Transporting, httpx.AsyncHTTPTransport):
    """httpx.AsyncHTTPTransport, whose connections are made by a dialer.

    Args:
        arguments, keywords: As httpx.AsyncHTTPTransport takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    core = httpcore


class Client(Sending, httpx.Client):
    """httpx.Client, whose connections are made by a dialer.

    Args:
        arguments, keywords: As httpx.Client takes them. What is mounted is used as it is.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    transports = HTTPTransport


class AsyncClient(Sending, httpx.AsyncClient):
    """httpx.AsyncClient, whose connections are made by a dialer.

    Args:
        arguments, keywords: As httpx.AsyncClient takes them. What is mounted is used as it is.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    transports = AsyncHTTPTransport
