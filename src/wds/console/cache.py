"""Answers that cost much, asked for once by all who want them and kept for a while.

An answer stays good for `FACTOR` times as long as it took, within bounds. So however many look at
a page, counting for it takes at most one part in `FACTOR` of the database's time a process.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

T = TypeVar("T")

FACTOR = 10
LEAST_S = 1.0
MOST_S = 60.0
MOST_KEPT = 64
"""Answers remembered; the oldest are forgotten first."""


class Recall(Generic[T]):
    """Answers by question. A failed question is not remembered."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take a clock, in seconds."""
        self._clock = clock
        self._known: OrderedDict[Hashable, tuple[asyncio.Task[T], float]] = OrderedDict()

    async def ask(self, question: Hashable, find: Callable[[], Awaitable[T]]) -> T:
        """Return the answer to `question`, by `find` where it is not known any more.

        Whoever asks while another is being answered waits for the same answer.
        """
        task, good_until = self._known.get(question, (None, 0.0))
        if task is None or (task.done() and self._clock() >= good_until):
            task = asyncio.create_task(self._find(question, find))
            self._known[question] = (task, 0.0)
            self._known.move_to_end(question)
            while len(self._known) > MOST_KEPT:
                self._known.popitem(last=False)
        # One who no longer waits must not take the answer from the others.
        return await asyncio.shield(task)

    async def _find(self, question: Hashable, find: Callable[[], Awaitable[T]]) -> T:
        began = self._clock()
        answer = await find()
        now = self._clock()
        good_for_s = min(max((now - began) * FACTOR, LEAST_S), MOST_S)
        if question in self._known:
            self._known[question] = (self._known[question][0], now + good_for_s)
        return answer
