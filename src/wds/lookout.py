"""When a dispatcher looks at the queue again.

At once while it finds something, and every poll interval while it does not: after two looks in
vain it also waits to be told that events may be due (`listener`), and then looks once a second in
any case.
"""

from __future__ import annotations

import asyncio
import random
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wds.store import Claimed

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
    """What one dispatcher's looks have found: `looked` after each, then `sooner`."""

    def __init__(
        self,
        told: Callable[[float], Awaitable[bool]] | None,
        *,
        poll_interval: float,
        stopping: asyncio.Event,
    ) -> None:
        """Take the seconds between looks, and what to wait for after some in vain.

        `told` waits until events may be due, at most so many seconds; False where nobody tells.
        None never listens. `stopping` ends every wait.
        """
        self._told = told
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

    async def sooner(self, wait_s: float) -> float:
        """Return the seconds until the next look, after waiting to be told of a reason for one.

        They are `wait_s` after a look that found something, and where nobody tells.
        """
        if not self._in_vain or self._told is None:
            return wait_s
        if self._in_vain < LISTEN_AFTER:
            return min(wait_s, LOOKS_APART_S)
        if self._stopping.is_set() or not await self._hears(self._told):
            return wait_s
        apart_s = self._looked_at + LOOKS_APART_S - monotonic()
        return max(apart_s, random.uniform(0, self._spread_s))  # noqa: S311

    async def _hears(self, told: Callable[[float], Awaitable[bool]]) -> bool:
        most_s = max(LISTEN_MOST_S, self._poll_interval)
        hearing = asyncio.ensure_future(told(most_s))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({hearing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Not waited for: PyMongo may overlook it and wait on for an answer.
            hearing.cancel()
            stopping.cancel()
        return hearing.done() and hearing.result()
