"""A name for this process, as others see it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

_COMM = Path("/proc/self/comm")


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Have this process named so, as ps(1) shows it; 15 octets at most."""
    former = _COMM.read_bytes()
    _COMM.write_text(name)
    try:
        yield
    finally:
        _COMM.write_bytes(former.removesuffix(b"\n"))
