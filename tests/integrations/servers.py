"""Servers for tests of integrations, each in a process of its own."""

from __future__ import annotations

import contextlib
import functools
import socket
import subprocess
from typing import TYPE_CHECKING

from connectx.sandbox.children import Child
from connectx.sandbox.servers import listen
from tests import limits
from tests.integrations import http_server

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence


def start(
    stack: contextlib.ExitStack,
    host: str,
    port: int,
    serve: Callable[..., object] = http_server.answer,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve an address until the stack is closed."""
    with listen(host, port) as listener:
        child = Child(functools.partial(serve, listener, tls))
        stack.callback(child.wait)
        stack.callback(child.kill)
        child.receive()


def silence(stack: contextlib.ExitStack, host: str, port: int) -> None:
    """Have no place for another connection at an address: it answers no SYN."""
    listener = stack.enter_context(listen(host, port, backlog=0))
    for _ in range(2):
        filler = stack.enter_context(socket.socket())
        filler.settimeout(0)
        filler.connect_ex(listener.getsockname())


def run(stack: contextlib.ExitStack, host: str, port: int, command: Sequence[str]) -> None:
    """Run a server's program until the stack is closed; returns when it serves the address."""
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    stack.callback(process.kill)

    def listens() -> bool:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, port)):
            return True
        return False

    limits.until(listens, f"{command[0]} listens")
