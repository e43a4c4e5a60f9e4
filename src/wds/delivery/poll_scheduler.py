"""When a dispatcher looks at the queue again.

At once while it finds something. After a look in vain it looks once more, and after two it waits to
be told that events may be due (`listener`), for a second or, if that is longer, the poll interval.
Where nobody tells, it looks every poll interval.
"""

from __future__ import annotations

import asyncio
import random
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from wds.domain.deliveries import Claimed

LISTEN_AFTER = 2
"""Looks in a row that found nothing, after which to wait to be told of events."""
LISTEN_MOST_S = 1.0
"""Longest wait to be told, unless looks are seldom anyway: what nobody told of is found by then."""
LOOKS_APART_S = 0.05
"""Least time between a look in vain and the next, however soon that is told to be worthwhile."""
SPREAD_LEAST_S = 0.001
SPREAD_MOST_S = 0.02
"""Longest that a dispatcher waits after being told, in case others are faster anyway."""


class Lookout:
    """What one dispatcher's looks have found: `looked` after each, then `until_next`."""

    def __init__(
        self,
        listen: Callable[[float], Coroutine[Any, Any, bool]] | None,
        *,
        poll_interval: float,
        stopping: asyncio.Event,
    ) -> None:
        """Take the seconds between looks where nobody tells, and how to be told.

        `listen` waits until events may be due, at most so many seconds, and returns whether it
        could: True also when the time is over, False where there is no telling. None is never to
        listen. `stopping` ends every wait.
        """
        self._listen = listen
        self._poll_interval = poll_interval
        self._stopping = stopping
        self._looked_at = 0.0
        self._in_vain = 0
        self._spread_s = 0.0

    def looked(self, claimed: Claimed) -> None:
        """Take note of what a look has found.

        Be later, twice as much each time, while others are faster, and sooner again if not. All
        who listen are told at the same moment: so one of them soon has what is told for itself,
        and the others look when that is gone.
        """
        self._looked_at = monotonic()
        self._in_vain = 0 if claimed.claims else self._in_vain + 1
        if claimed.outrun:
            self._spread_s = min(max(2 * self._spread_s, SPREAD_LEAST_S), SPREAD_MOST_S)
        elif claimed.claims:
            self._spread_s = self._spread_s / 2 if self._spread_s > SPREAD_LEAST_S else 0.0

    def poll_s(self) -> float:
        """Return the seconds until the next look after one in vain, if nobody tells."""
        # Not in step with other replicas, or together they would look no more often than one.
        return self._poll_interval * random.uniform(0.75, 1.25)  # noqa: S311

    async def until_next(self, wait_s: float) -> float:
        """Wait to be told of a reason to look, if it is time to; return the seconds left to wait.

        They are `wait_s` after a look that found something, on stopping and where nobody tells.
        """
        if not self._in_vain or self._listen is None:
            return wait_s
        if self._in_vain < LISTEN_AFTER:
            return min(wait_s, LOOKS_APART_S)
        if self._stopping.is_set() or not await self._told(self._listen):
            return wait_s
        apart_s = self._looked_at + LOOKS_APART_S - monotonic()
        return max(apart_s, random.uniform(0, self._spread_s))  # noqa: S311

    async def _told(self, listen: Callable[[float], Coroutine[Any, Any, bool]]) -> bool:
        listening = asyncio.create_task(listen(max(LISTEN_MOST_S, self._poll_interval)))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({listening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Not waited for: PyMongo may overlook it and wait on for an answer.
            listening.cancel()
            stopping.cancel()
        return listening.done() and listening.result()
