"""httpcore2: as httpcore."""

from __future__ import annotations

import httpcore2

from tests.integrations.adapters.httpcore import AsyncPool, Pool


class _Pool(Pool):
    own = httpcore2


class _AsyncPool(AsyncPool):
    own = httpcore2


ADAPTERS = [_Pool(), _AsyncPool()]
