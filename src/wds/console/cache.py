"""Single-flight cache: concurrent callers share one query, and its result is kept for a while.

A result is kept for `KEEP_FACTOR` times as long as its query took, within bounds. So however many
people watch a page, its counts use about one part in `KEEP_FACTOR` of the database's time per
process.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

T = TypeVar("T")

KEEP_FACTOR = 10
MIN_KEEP_S = 1.0
MAX_KEEP_S = 60.0
MAX_ENTRIES = 64
"""Results kept; the oldest goes first."""


class SingleFlightCache(Generic[T]):
    """Query results by key. A query that fails is not kept."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Create an empty cache; `clock` returns seconds."""
        self._clock = clock
        self._entries: OrderedDict[Hashable, tuple[asyncio.Task[T], float]] = OrderedDict()

    async def get(self, key: Hashable, query: Callable[[], Awaitable[T]]) -> T:
        """Return the result for `key`, by running `query` unless a result is kept.

        A caller that comes while the query runs waits for the same result, or the same error.
        """
        task, expires_at = self._entries.get(key, (None, 0.0))
        if task is None or (task.done() and self._clock() >= expires_at):
            task = asyncio.create_task(self._run(key, query))
            self._entries[key] = (task, 0.0)
            self._entries.move_to_end(key)
            while len(self._entries) > MAX_ENTRIES:
                self._entries.popitem(last=False)
        # A caller that is cancelled must not cancel the query that others wait for.
        return await asyncio.shield(task)

    async def _run(self, key: Hashable, query: Callable[[], Awaitable[T]]) -> T:
        started_at = self._clock()
        result = await query()
        now = self._clock()
        keep_s = min(max((now - started_at) * KEEP_FACTOR, MIN_KEEP_S), MAX_KEEP_S)
        if key in self._entries:
            self._entries[key] = (self._entries[key][0], now + keep_s)
        return result
