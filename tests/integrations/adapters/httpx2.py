"""httpx2: as httpx."""

from __future__ import annotations

from typing import ClassVar

import httpx2

from tests.integrations.adapters import httpx


class _ByClient(httpx.ByClient):
    own = httpx2
    name = "httpx2"
    plain = "httpx2"
    errors: ClassVar = (httpx2.TransportError,)
    tls_errors: ClassVar = (httpx2.ConnectError,)


class _ByAsyncClient(_ByClient, httpx.ByAsyncClient):
    pass


class _ByTransport(_ByClient, httpx.ByTransport):
    name = "httpx2's HTTPTransport"


class _ByAsyncTransport(_ByClient, httpx.ByAsyncTransport):
    name = "httpx2's AsyncHTTPTransport"


ADAPTERS = [_ByClient(), _ByAsyncClient(), _ByTransport(), _ByAsyncTransport()]
