"""Situations to observe, and how to ask the doctor about them."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from connectx._diagnosis import causes
from connectx._diagnosis.finding import Finding
from connectx.addresses import Endpoint
from connectx.observe import Diagnosis, examine
from tests import limits

LOW, HIGH = 20001, 20020
SIZE = HIGH - LOW + 1
PORT = 9000
HERE = ("127.0.0.1", PORT)
TOWARD = Endpoint(*HERE)

_COMM = Path("/proc/self/comm")


def look(**question: Any) -> Diagnosis:
    return examine(seconds=0.0, **question)


def found(diagnosis: Diagnosis, cause: causes.Cause) -> Finding:
    """The finding with a cause, of which there must be one."""
    findings = [finding for finding in diagnosis.findings if finding.cause is cause]
    assert len(findings) == 1, diagnosis.findings
    return findings[0]


def leave_time_wait(server: socket.socket, destination: tuple[str, int] = HERE) -> int:
    """Connect, and close first; return the port, which then rests."""
    with socket.create_connection(destination) as sock:
        accepted, _ = limits.accept(server)
        port = int(sock.getsockname()[1])
        sock.shutdown(socket.SHUT_WR)
        assert limits.receive(accepted) == b""
        accepted.close()
        assert limits.receive(sock) == b""
    return port


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Have this process named so, as ps(1) shows it; 15 octets at most."""
    former = _COMM.read_bytes()
    _COMM.write_text(name)
    try:
        yield
    finally:
        _COMM.write_bytes(former.removesuffix(b"\n"))
