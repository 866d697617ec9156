"""httpcore2 through a Dialer."""

from __future__ import annotations

from connectx.integrations import _dialers
from connectx.integrations._httpcore import AsyncPooling, Pooling

with _dialers.library("httpcore2", "2.0"):
    import httpcore2

__all__ = ["AsyncConnectionPool", "ConnectionPool"]


class ConnectionPool(Pooling, httpcore2.ConnectionPool):
    """httpcore2.ConnectionPool, whose connections are made by a dialer.

    Args:
        arguments, keywords: As httpcore2.ConnectionPool takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    library = httpcore2


class AsyncConnectionPool(AsyncPooling, httpcore2.AsyncConnectionPool):
    """httpcore2.AsyncConnectionPool, whose connections are made by a dialer.

    Args:
        arguments, keywords: As httpcore2.AsyncConnectionPool takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    library = httpcore2
