"""httpcore2: as httpcore."""

from __future__ import annotations

from typing import ClassVar

import httpcore2

from tests.integrations.adapters.httpcore import AsyncPool, Pool


class _Pool(Pool):
    own = httpcore2
    name = "httpcore2"
    plain = "httpcore2"
    errors: ClassVar = (httpcore2.NetworkError, httpcore2.TimeoutException)
    tls_errors: ClassVar = (httpcore2.ConnectError,)


class _AsyncPool(_Pool, AsyncPool):
    pass


ADAPTERS = [_Pool(), _AsyncPool()]
