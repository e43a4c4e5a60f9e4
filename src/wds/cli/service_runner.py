"""Running a service until a signal stops it. The only user of signal handlers."""

from __future__ import annotations

import asyncio
import gc
import signal
from typing import TYPE_CHECKING

import uvloop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

GC_THRESHOLDS = (20_000, 20, 20)
"""Rarer than Python's own: a request leaves few reference cycles, and a collection is slow."""


def run_until_signal(
    serve: Callable[[asyncio.Event], Awaitable[None]], *, cancel: bool = False
) -> int:
    """Run `serve` with an event that SIGTERM and SIGINT set, and return the exit status.

    A second signal cancels `serve`. With `cancel`, the first one does. The status is 0 if `serve`
    returned, and 128 plus the number of the signal if it was cancelled.
    """

    async def run() -> int:
        stop = asyncio.Event()
        task = asyncio.ensure_future(serve(stop))
        signals: list[int] = []

        def on_signal(number: int) -> None:
            if cancel or stop.is_set():
                task.cancel()
            signals.append(number)
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        try:
            await task
        except asyncio.CancelledError:
            return 128 + (signals[0] if signals else 0)
        return 0

    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())
