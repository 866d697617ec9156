"""Runs a lab command as a user does, and watches it on a terminal."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests import limits

if TYPE_CHECKING:
    from collections.abc import Iterator


def connectx(
    *arguments: str,
    prefix: tuple[str, ...] = (),
    timeout: float = limits.COMMAND_LIMIT,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end; a machine without private networks skips the test."""
    result = subprocess.run(
        [*prefix, sys.executable, "-m", "connectx", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "COLUMNS": "80", **environment},
    )
    if "cannot make a private network namespace" in result.stderr:
        pytest.skip(result.stderr)
    return result


@contextlib.contextmanager
def on_a_terminal(
    *arguments: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the command line in a process group and on a terminal of its own."""
    screen, terminal = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "connectx", *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100", **environment},
        )
    finally:
        os.close(terminal)
    with process, contextlib.closing(os.fdopen(screen, "rb", buffering=0)):
        try:
            yield process, screen
        finally:
            process.kill()


def chunks(screen: int) -> Iterator[bytes]:
    def chunk() -> bytes:
        limits.readable(screen)
        return os.read(screen, 65536)

    # Linux gives EIO, not an end of file, once no process has the terminal any more.
    try:
        yield from iter(chunk, b"")
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def read_until(screen: int, text: bytes) -> None:
    shown = b""
    for chunk in chunks(screen):
        shown += chunk
        if text in shown:
            return
    pytest.fail(f"never said {text!r}: {shown!r}")


def read_to_end(screen: int) -> bytes:
    return b"".join(chunks(screen))
