"""httpx2: as httpx."""

from __future__ import annotations

import httpx2

from tests.integrations.adapters import httpx


class _ByClient(httpx.ByClient):
    own = httpx2


class _ByAsyncClient(httpx.ByAsyncClient):
    own = httpx2


class _ByTransport(httpx.ByTransport):
    own = httpx2


class _ByAsyncTransport(httpx.ByAsyncTransport):
    own = httpx2


ADAPTERS = [_ByClient(), _ByAsyncClient(), _ByTransport(), _ByAsyncTransport()]
