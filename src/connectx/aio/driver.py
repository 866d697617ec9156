"""Which driver waits: asyncio's, which uvloop shares, or trio's."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from connectx.aio import asyncio_waiting
from connectx.aio.running import run_by, under_trio

if TYPE_CHECKING:
    from connectx._connect.steps import Steps

_T = TypeVar("_T")


async def run(steps: Steps[_T]) -> _T:
    """Go through a call, awaiting what it waits for; returns what it returns."""
    if under_trio():
        from connectx.aio import trio_waiting  # noqa: PLC0415 - only where trio runs

        return await run_by(trio_waiting.wait, steps)
    return await run_by(asyncio_waiting.wait, steps)
