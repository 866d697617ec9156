"""What tests of waiting calls have in common."""

import contextlib
import socket
from typing import Any

import pytest

from connectx._dial import connecting, endings
from tests.dialer.drivers import (
    FOREVER,
    SIZE,
    AnyDialer,
    Driver,
    Waits,
    nothing_open,
)
from tests.kernel.raw import FIRST

HERE = ("127.0.0.1", FIRST)

both_kinds = pytest.mark.parametrize(
    "kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"]
)


async def full(
    driver: Driver, stack: contextlib.ExitStack, *, limit: int | None = None, **keywords: Any
) -> tuple[AnyDialer, Waits, list[socket.socket]]:
    """A dialer whose calls wait, since all that there can be is in use: its waits, the connections.

    keywords: for create_connection().
    """
    waits = Waits()
    dialer = driver.dialer(limit=limit, wait=FOREVER, on_wait=waits)
    held = [
        stack.enter_context(await dialer.create_connection(HERE, **keywords))
        for _ in range(limit or SIZE)
    ]
    return dialer, waits, held


def nothing_is_kept(of: AnyDialer) -> None:
    """Nobody waits, and what is not open is not remembered."""
    assert of.stats().waiting == 0
    assert of.policy.destinations.open_to(("tcp", HERE)) == {}
    assert nothing_open(of.policy)


def nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel without socket-destroy notifications."""
    monkeypatch.setattr(connecting, "listen", lambda *_: None)


def never_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the first in line rely on being told."""
    monkeypatch.setattr("connectx._dial.wait_queue._POLL_FIRST", 10 * FOREVER)
    monkeypatch.setattr("connectx._dial.wait_queue._POLL_LONGEST", 10 * FOREVER)


def listeners(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Counts the calls that have begun to hear of others' ends; for inside of a scenario."""
    begun = Waits()

    original = endings.listen

    def listen(*arguments: Any) -> Any:
        noticing = original(*arguments)
        assert noticing is not None
        begun(arguments[0])
        return noticing

    monkeypatch.setattr(connecting, "listen", listen)

    return begun


def silent(stack: contextlib.ExitStack) -> str:
    """The address of a listener that answers no SYN, since its queue is full."""
    listener = stack.enter_context(socket.socket())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.9", 9998))
    listener.listen(0)
    stack.enter_context(
        socket.create_connection(("127.0.0.9", 9998), source_address=("127.0.0.8", 0))
    )
    return "127.0.0.9"
