"""Work that goes on beside a block, and ends with it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

ASK_AGAIN_S = 0.1
"""Seconds after which work that was told to end is told again."""


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` inside the block; on leaving it, cancel it and wait until it is over."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await ended(task)
        if not task.cancelled():
            task.result()


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and wait until it is over, whatever it comes to.

    Told once it may go on: until Python 3.12 a cancellation is lost that reaches
    `asyncio.wait_for`, which the driver of MongoDB uses, just as what it waits for is done
    (https://github.com/python/cpython/issues/81839).
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=ASK_AGAIN_S)
