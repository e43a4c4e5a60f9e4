"""When a dispatcher polls the queue again.

While polls find events, the next one follows at once. After one empty poll another follows shortly.
After `LISTEN_AFTER` empty polls the dispatcher listens to the change stream until events may be
due, for `LISTEN_MAX_S` or the poll interval, whichever is longer. Without a change stream it polls
every poll interval.
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
"""Empty polls in a row after which to listen."""
LISTEN_MAX_S = 1.0
"""Longest time to listen, unless the poll interval is longer. The poll after it finds events whose
notice was missed."""
MIN_POLL_GAP_S = 0.05
"""Least time between an empty poll and the next, however soon a notice arrives."""
MIN_JITTER_S = 0.001
MAX_JITTER_S = 0.02
"""Longest wait after a notice, in case other dispatchers claim the events first."""


class PollScheduler:
    """Decides when one dispatcher polls: call `record_poll` after each poll, then `until_next`."""

    def __init__(
        self,
        listen: Callable[[float], Coroutine[Any, Any, bool]] | None,
        *,
        poll_interval: float,
        stopping: asyncio.Event,
    ) -> None:
        """Start as if the last poll had found events.

        `listen(max_s)` blocks until events may be due. True: notified, or timed out. False: change
        streams are unavailable. Pass None to poll only, every `poll_interval` seconds. `stopping`
        ends every wait.
        """
        self._listen = listen
        self._poll_interval = poll_interval
        self._stopping = stopping
        self._polled_at = 0.0
        self.empty_polls = 0
        """Polls in a row that found nothing."""
        self.jitter_s = 0.0
        """The next poll after a notice waits a random time up to this."""

    def record_poll(self, claimed: Claimed) -> None:
        """Record the result of a poll.

        All dispatchers that listen are notified at the same moment. A dispatcher that sees events
        and loses all of them to others doubles its jitter, up to `MAX_JITTER_S`; one that claims
        halves it. So one dispatcher soon gets the events of a notice to itself, and the others
        poll when these are gone.
        """
        self._polled_at = monotonic()
        self.empty_polls = 0 if claimed.claims else self.empty_polls + 1
        if claimed.others_were_first:
            self.jitter_s = min(max(2 * self.jitter_s, MIN_JITTER_S), MAX_JITTER_S)
        elif claimed.claims:
            self.jitter_s = self.jitter_s / 2 if self.jitter_s > MIN_JITTER_S else 0.0

    def poll_s(self) -> float:
        """Return the seconds from an empty poll to the next if there is no notice."""
        # Random, because dispatchers that poll in step find events no sooner than a single one.
        return self._poll_interval * random.uniform(0.75, 1.25)  # noqa: S311

    async def until_next(self, wait_s: float) -> float:
        """Listen after enough empty polls; return the seconds left until the next poll.

        Returns `wait_s` unchanged after a poll that found events, while stopping, and without a
        change stream.
        """
        if not self.empty_polls or self._listen is None:
            return wait_s
        if self.empty_polls < LISTEN_AFTER:
            return min(wait_s, MIN_POLL_GAP_S)
        if self._stopping.is_set() or not await self._notified(self._listen):
            return wait_s
        gap_s = self._polled_at + MIN_POLL_GAP_S - monotonic()
        return max(gap_s, random.uniform(0, self.jitter_s))  # noqa: S311

    async def _notified(self, listen: Callable[[float], Coroutine[Any, Any, bool]]) -> bool:
        listening = asyncio.create_task(listen(max(LISTEN_MAX_S, self._poll_interval)))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({listening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Not awaited: PyMongo may ignore the cancellation until the server answers.
            listening.cancel()
            stopping.cancel()
        return listening.done() and listening.result()
