"""What importing connectx.aio loads, and what it has."""

import subprocess
import sys

from connectx import aio
from tests import limits


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-I", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=limits.COMMAND_LIMIT,
    ).stdout


def test_importing_loads_no_event_loop_but_asyncio() -> None:
    loaded = python("import sys, connectx.aio; print(*sys.modules)").split()
    assert "asyncio" in loaded
    assert set(loaded).isdisjoint({"uvloop", "anyio", "trio"})
    loaded = python("import sys, connectx; connectx.Dialer; print(*sys.modules)").split()
    assert set(loaded).isdisjoint({"asyncio", "ssl", "uvloop"})


def test_exports_what_all_lists() -> None:
    for name in aio.__all__:
        assert getattr(aio, name).__name__ == name
