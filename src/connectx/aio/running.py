"""The loop around a driver: it goes through a call, and awaits what the call waits for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from connectx._connect.steps import Steps, Wait

_T = TypeVar("_T")


async def run_by(wait: Callable[[Wait], Awaitable[Any]], steps: Steps[_T]) -> _T:
    """Go through a call with a function that waits; returns what the call returns."""
    try:
        what = next(steps)
        while True:
            try:
                answer = await wait(what)
            except BaseException as error:  # noqa: BLE001 - the call's to handle
                what = steps.throw(error)
            else:
                what = steps.send(answer)
    except StopIteration as end:
        return cast("_T", end.value)


def under_trio() -> bool:
    """Return whether the event loop at hand is trio's."""
    # Absent, too, while another thread is importing it.
    lowlevel = getattr(sys.modules.get("trio"), "lowlevel", None)
    if lowlevel is None:
        return False
    try:
        # Not in_trio_run(), which trio has since 0.29 only.
        lowlevel.current_trio_token()
    except RuntimeError:
        return False
    return True
