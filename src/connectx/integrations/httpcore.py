"""httpcore through a Dialer."""

from __future__ import annotations

from connectx.integrations import _dialers
from connectx.integrations._httpcore import AsyncPooling, Pooling

with _dialers.library("httpcore", "1.0.9"):
    import httpcore

__all__ = ["AsyncConnectionPool", "ConnectionPool"]


class ConnectionPool(Pooling, httpcore.ConnectionPool):
    """httpcore.ConnectionPool, whose connections are made by a dialer.

    Args:
        arguments, keywords: As httpcore.ConnectionPool takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    library = httpcore


class AsyncConnectionPool(AsyncPooling, httpcore.AsyncConnectionPool):
    """httpcore.AsyncConnectionPool, whose connections are made by a dialer.

    Args:
        arguments, keywords: As httpcore.AsyncConnectionPool takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    library = httpcore
