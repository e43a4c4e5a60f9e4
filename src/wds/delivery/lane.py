"""One destination's share of a dispatcher: how much may be claimed, when to send, when to poll.

What must stay true:

* A request leaves only under a lease that this process still trusts, and inside its slot.
* Every event that `room` allows can be sent within its lease: in time for its slot, with at most
  `max_in_flight` requests at a time.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

from wds.config import SETTLE_MARGIN_S, SLOT_WAIT_S
from wds.delivery.poll_scheduler import PollScheduler
from wds.domain.errors import LimiterUnavailableError
from wds.storage.mongo import uptime
from wds.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from wds.delivery.http_client import HttpClient
    from wds.delivery.rate_limiter import RateLimiter, Slot
    from wds.domain.deliveries import Claim
    from wds.domain.destinations import Destination

log = structlog.get_logger(__name__)

CLAIM_AHEAD_S = 0.25
"""Claim as many events ahead as the rate limit allows in this many seconds, at least 1."""
GATHER_S = 0.02
"""Wait this long for half of the in-flight limit to come free: a claim of one event costs as much
as a claim of many."""
SETTLING_SHARE = 1
"""Deliveries that may wait to be recorded beside those being sent, as a multiple of the in-flight
limit."""
MAX_SLOT_RETRY_S = 1.0
"""Longest wait before asking Redis for slots again, even if Redis answers with a later time."""


class DestinationLane:
    """The deliveries of one dispatcher to one destination.

    Attributes:
        deliveries: the tasks under way, one for each claim.
        stopping: set once; ends every wait of the lane.
    """

    def __init__(
        self,
        destination: Destination,
        *,
        client: HttpClient,
        limiter: RateLimiter | None,
        listen: Callable[[float], Coroutine[Any, Any, bool]] | None,
        poll_interval: float,
    ) -> None:
        """Start empty. `limiter` None means no rate limit; for `listen` see `PollScheduler`."""
        self.destination = destination
        self.client = client
        self.limiter = limiter
        self.stopping = asyncio.Event()
        self.poll_scheduler = PollScheduler(
            listen, poll_interval=poll_interval, stopping=self.stopping
        )
        self.deliveries: set[asyncio.Task[None]] = set()
        self._poll_interval = poll_interval
        self._claim_ahead = destination.max_in_flight
        if limiter is not None:
            ahead = int(destination.rate_limit * CLAIM_AHEAD_S)
            self._claim_ahead = max(1, min(ahead, destination.max_in_flight))
        self._waiting: set[str] = set()  # names of the slots that claims wait for
        self._settling = 0
        self._room_changed = asyncio.Event()
        self._limiter_failed = False

    def stop(self) -> None:
        """End every wait; claims that wait for a slot are then not sent."""
        self.stopping.set()
        self._room_changed.set()

    async def drain(self) -> None:
        """Return once no delivery is under way."""
        while self.deliveries:
            await asyncio.wait(self.deliveries)

    async def close(self) -> None:
        """Close the connections to the receiver and to Redis."""
        await self.client.close()
        if self.limiter is not None:
            await self.limiter.close()

    # -- accounting ------------------------------------------------------------------------

    def start(self, slot: Slot | None, delivery: Coroutine[Any, Any, None]) -> None:
        """Run `delivery`, of a claim with this slot, in a task and a context of its own."""
        if slot is not None:
            self.count_waiting(slot)
        # The claim's log lines take their event id from the context.
        context = contextvars.copy_context()
        task = asyncio.create_task(delivery, context=context)
        self.deliveries.add(task)
        task.add_done_callback(self._finished, context=context)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self.deliveries.discard(task)
        self._room_changed.set()
        if not task.cancelled() and task.exception() is not None:
            # The lease is left to expire. Then the event is sent again, and this attempt is
            # recorded as unknown.
            log.error("delivery_crashed", exc_info=task.exception())

    def count_waiting(self, slot: Slot) -> None:
        """Count the claim that has `slot` as waiting for it."""
        self._waiting.add(slot.name)
        metrics.SLOT_WAITING.inc()

    def stop_waiting(self, slot: Slot | None) -> None:
        """Stop counting the claim started with `slot` as waiting. A second call does nothing."""
        if slot is not None and slot.name in self._waiting:
            self._waiting.discard(slot.name)
            metrics.SLOT_WAITING.dec()
            self._room_changed.set()

    def count_settling(self, change: int) -> None:
        """Count `change` more deliveries as sent and waiting to be recorded."""
        self._settling += change
        self._room_changed.set()

    # -- room ------------------------------------------------------------------------------

    def room(self) -> int:
        """Return how many events may be claimed now; 0 or less for none."""
        limit = self.destination.max_in_flight
        under_way = len(self.deliveries)
        unsent = limit - (under_way - self._settling)
        unsettled = (1 + SETTLING_SHARE) * limit - under_way
        return min(self._claim_ahead - len(self._waiting), unsent, unsettled)

    async def wait_for_room(self) -> None:
        """Wait for room; without a rate limit `GATHER_S` longer, to claim many events at once."""
        await self._wait_for_room_of(1)
        if self.limiter is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_S):
                    await self._wait_for_room_of(self.destination.max_in_flight // 2)

    async def _wait_for_room_of(self, count: int) -> None:
        """Return at once if no delivery is under way that could make room."""
        while self.room() < count and self.deliveries and not self.stopping.is_set():
            self._room_changed.clear()
            await self._room_changed.wait()

    # -- slots -----------------------------------------------------------------------------

    async def check_limiter(self) -> None:
        """Ask the limiter if it failed last time; return if it answers.

        Raises:
            LimiterUnavailableError: it still does not answer.
        """
        if self.limiter is not None and self._limiter_failed:
            await self.limiter.ping()
            self._limiter_failed = False

    async def reserve(self, count: int) -> tuple[Sequence[Slot | None], float]:
        """Reserve up to `count` slots; return them and the seconds until more may be free.

        Without a rate limit every slot is None.

        Raises:
            LimiterUnavailableError: no slot may be used.
        """
        if self.limiter is None:
            return [None] * count, 0.0
        try:
            reserved = await self.limiter.reserve(self.destination.name, count)
        except LimiterUnavailableError:
            self._limiter_failed = True
            raise
        retry_in_s = min(reserved.retry_in_s, MAX_SLOT_RETRY_S)
        return reserved.slots, max(retry_in_s, self._poll_interval)

    async def wait_for_slot(self, slot: Slot | None) -> bool:
        """Sleep until the slot may be used: True. False if stopping, or if there is none in time.

        A slot that was missed is exchanged for another for up to `SLOT_WAIT_S`.
        """
        since = time.monotonic()
        while slot is not None:
            if not await self.sleep_until(slot.ready_at):
                await self._give_back(slot)
                return False
            now = time.monotonic()
            if now <= slot.use_by:
                metrics.SLOT_WAIT_SECONDS.observe(now - since)
                return True
            metrics.SLOTS_MISSED.inc()
            if now - since >= SLOT_WAIT_S:
                await self._give_back(slot)
                return False
            slot = await self._exchange(slot)
            if slot is None:
                return False
        return True

    async def _give_back(self, slot: Slot) -> None:
        """Return an unused slot to Redis."""
        await self._return_and_reserve(slot, 0)

    async def _exchange(self, slot: Slot) -> Slot | None:
        """Return a missed slot to Redis and reserve another; None if there is none in time."""
        reserved = await self._return_and_reserve(slot, 1)
        return reserved[0] if reserved else None

    async def _return_and_reserve(self, slot: Slot, count: int) -> Sequence[Slot]:
        if self.limiter is None:
            return ()
        try:
            reserved = await self.limiter.reserve(self.destination.name, count, give_back=[slot])
        except LimiterUnavailableError:
            self._limiter_failed = True
            return ()
        return reserved.slots

    def may_send(self, claim: Claim) -> bool:
        """Whether the lease outlasts a request and its settlement."""
        needed_s = self.destination.timeout_s + SETTLE_MARGIN_S
        if uptime() + needed_s <= claim.trusted_until:
            return True
        log.warning("claim_too_old_to_send", consequence="deferred")
        return False

    # -- waiting ---------------------------------------------------------------------------

    async def sleep(self, seconds: float) -> None:
        """Sleep, but not after `stop`."""
        await self.sleep_until(time.monotonic() + seconds)

    async def sleep_until(self, instant: float) -> bool:
        """Sleep until an instant of `time.monotonic()`: True. False as soon as stopping."""
        # In a loop, because uvloop's timers count whole milliseconds and may fire early.
        while (remaining := instant - time.monotonic()) > 0 and not self.stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(remaining):
                    await self.stopping.wait()
        return not self.stopping.is_set()
