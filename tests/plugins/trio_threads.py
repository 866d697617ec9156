"""pytest fixture: threads of trio's that were started in the test's own network.

trio keeps a thread that has done its work for ten seconds, for the next one who needs one. By then
that may be another test, in another namespace, which the thread is not in.
"""

import pytest
import trio._core._thread_cache as cache


@pytest.fixture
def trio_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have trio start threads of its own for the test, and use them for no other."""
    monkeypatch.setattr(cache, "THREAD_CACHE", cache.ThreadCache())
