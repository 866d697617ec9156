"""Servers for tests of integrations, each in a process of its own."""

from __future__ import annotations

import functools
import socket
from typing import TYPE_CHECKING

from connectx.sandbox.children import Child
from connectx.sandbox.servers import listen
from tests.integrations import http_server

if TYPE_CHECKING:
    import contextlib
    import ssl
    from collections.abc import Callable


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
