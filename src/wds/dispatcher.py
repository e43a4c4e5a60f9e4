"""The dispatch loop: claim, wait for a slot, send, settle.

Any number of replicas run this against one database. Each turn (`run_once`) claims what it can
send soon, reserves slots for all of it at once, and starts a task per event; the loop never
waits for a delivery. What must stay true:

* A request leaves only under a lease that this process still trusts, and inside its slot.
* Every claim ends in one settlement: recorded, or deferred if nothing was sent.
* A settlement that was handed over is written even if whoever waits for it is cancelled.

If the process dies anywhere here, leases expire and another replica carries on; the lost
attempt is recorded as unknown.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import structlog
from prometheus_async import aio
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from wds.concurrency.group_commit import GroupCommit
from wds.config import SETTLE_MARGIN_S
from wds.delivery.http_client import Deliverer, NotSentError
from wds.delivery.poll_scheduler import Lookout
from wds.delivery.rate_limiter import Limiter
from wds.domain import retry_policy
from wds.domain.deliveries import Attempt, Outcome, Settlement, Status
from wds.domain.errors import LimiterUnavailableError, StoreUnavailableError
from wds.storage.mongo import uptime
from wds.storage.store import Store
from wds.telemetry import event_log, heartbeat, metrics, tracing
from wds.web import monitoring, server
from wds.web.operator_access import Guard

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from wds.config import Settings
    from wds.delivery.http_client import Result
    from wds.delivery.rate_limiter import Slot
    from wds.domain.deliveries import Claim
    from wds.telemetry.tracing import Tracer, Trip

log = structlog.get_logger(__name__)

DESTINATION = "default"
AHEAD_S = 0.25
"""Claim at most this many seconds' worth of the allowance before it can be sent, at least one."""
GATHER_S = 0.02
"""Wait this long for half of the concurrency to come free: a claim costs as much for one."""
MOST_SETTLING = 1
"""So many times the concurrency may wait to be recorded beside what is being sent."""
DRAIN_MARGIN_S = 4.0
"""How much longer than the request timeout stopping may take, for settlements."""
MOST_PATIENCE_S = 1.0
"""Longest wait for slots before asking again, whatever Redis's clock says."""
PAUSE_MOST_S = 1.0
"""Longest wait between two looks at a database or a Redis that does not answer."""


class Dispatcher:
    """One replica: `run` until `stop`, or `run_once` for a single turn."""

    def __init__(
        self,
        settings: Settings,
        *,
        owner: str,
        store: Store,
        limiter: Limiter | None,
        deliverer: Deliverer,
        tracer: Tracer = tracing.OFF,
    ) -> None:
        """Take the collaborators; `limiter` None means no rate limit."""
        self._settings = settings
        self._owner = owner
        self._store = store
        self._limiter = limiter
        self._deliverer = deliverer
        self._tracer = tracer
        self._settler: GroupCommit[Settlement, Settlement | None] = GroupCommit(
            store.queue.settle, max_batch=1000, max_pending=100_000
        )
        self._ahead = settings.concurrency
        if limiter is not None:
            self._ahead = max(1, min(int(settings.rate_limit * AHEAD_S), settings.concurrency))
        self._deliveries: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._settling = 0
        self._limiter_failed = False
        self._stopping = asyncio.Event()
        self._room_changed = asyncio.Event()
        self._lookout = Lookout(
            partial(store.change_stream.wait, DESTINATION) if settings.listen else None,
            poll_interval=settings.poll_interval,
            stopping=self._stopping,
        )

    def stop(self) -> None:
        """Claim no more, defer what waits for a slot; `run` returns when the rest is settled."""
        self._stopping.set()
        self._room_changed.set()

    async def run(self) -> None:
        """Take turns until `stop`, waiting with backoff while MongoDB or Redis is away."""
        # For turns after one that failed: its bookkeeping costs a seventh of an idle turn.
        patiently = AsyncRetrying(
            retry=retry_if_exception_type(Exception),
            wait=wait_random_exponential(multiplier=0.05, max=PAUSE_MOST_S),
            stop=lambda _: self._stopping.is_set(),
            sleep=self._pause,
            before_sleep=_log_again,
            retry_error_callback=lambda _: 0.0,
        )
        while not self._stopping.is_set():
            try:
                wait_s = await self._lookout.until_next(await self.run_once())
            except Exception as error:  # noqa: BLE001 - a defect must not end deliveries
                _log_failure(error)
                wait_s = await patiently(self.run_once)
            await self._pause(wait_s)
            await self._room_to_claim()
        while self._deliveries:
            await asyncio.wait(self._deliveries)
        await self._settler.drain()

    def abandon(self) -> None:
        """Let go of every delivery under way; their leases expire."""
        for task in self._deliveries:
            task.cancel()

    async def run_once(self) -> float:
        """Claim and start what can be sent soon; return the seconds until the next turn is due.

        0 means that more may be due already.

        Raises:
            StoreUnavailableError: nothing was claimed, as far as this process knows.
            LimiterUnavailableError: whatever was claimed has been deferred.
        """
        room = self._room()
        if room < 1:
            return 0.0
        if self._limiter is not None and self._limiter_failed:
            await self._limiter.ping()
            self._limiter_failed = False
        claimed = await self._store.queue.claim(
            DESTINATION,
            room,
            owner=self._owner,
            lease_s=self._settings.lease,
            max_attempts=self._settings.max_attempts,
        )
        event_log.claimed(claimed)
        self._lookout.looked(claimed)
        if not claimed.claims:
            return self._lookout.poll_s()
        if self._limiter is None:
            for claim in claimed.claims:
                self._start(claim, None)
            return 0.0
        try:
            granted = await self._limiter.reserve(DESTINATION, len(claimed.claims))
        except LimiterUnavailableError:
            self._limiter_failed = True
            await self._defer(*claimed.claims)
            raise
        for claim, slot in zip(claimed.claims, granted.slots, strict=False):
            self._start(claim, slot)
        left_over = claimed.claims[len(granted.slots) :]
        if not left_over:
            return 0.0
        await self._defer(*left_over)
        return max(min(granted.retry_in_s, MOST_PATIENCE_S), self._settings.poll_interval)

    # -- one claim, from lease to settlement -----------------------------------------------

    def _start(self, claim: Claim, slot: Slot | None) -> None:
        if slot is not None:
            self._count_waiting(1)
        # A context of the claim's own, which its log lines take their event id from.
        context = contextvars.copy_context()
        task = asyncio.create_task(self._deliver(claim, slot), context=context)
        self._deliveries.add(task)
        task.add_done_callback(self._finished, context=context)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._deliveries.discard(task)
        self._room_changed.set()
        if not task.cancelled() and task.exception() is not None:
            # The lease is left to expire: another try will be made, with this one as unknown.
            log.error("delivery_crashed", exc_info=task.exception())

    async def _deliver(self, claim: Claim, slot: Slot | None) -> None:
        with self._tracer.delivery(claim, limited=slot is not None) as trip:
            event_log.bind(claim, trip.facts)
            await self._send(claim, slot, trip)

    async def _send(self, claim: Claim, slot: Slot | None, trip: Trip) -> None:
        counted = slot is not None

        def no_longer_waiting() -> None:
            nonlocal counted
            if counted:
                counted = False
                self._count_waiting(-1)

        async def gate() -> bool:
            reached = slot is None or await self._reach(slot)
            no_longer_waiting()
            return reached and self._may_send(claim)

        try:
            result = await aio.track_inprogress(
                metrics.IN_FLIGHT, self._deliverer.post(claim, gate, trip.sent)
            )
        except NotSentError:
            await self._defer(claim)
            return
        finally:
            no_longer_waiting()
        metrics.ATTEMPT_SECONDS.observe(result.duration_ms / 1000)
        trip.answered(result.status_code, result.error)
        trip.settled(await self._settle(claim, result))

    def _may_send(self, claim: Claim) -> bool:
        """Tell whether the lease outlasts a request and its settlement; if not, time was lost."""
        needed = self._settings.request_timeout + SETTLE_MARGIN_S
        if uptime() + needed <= claim.trusted_until:
            return True
        log.warning("claim_too_old_to_send", consequence="deferred")
        return False

    async def _reach(self, slot: Slot) -> bool:
        """Sleep until a slot may be used: True. False if none can be had or on stopping."""
        since = time.monotonic()
        while await self._sleep_until(slot.ready_at):
            now = time.monotonic()
            if now <= slot.use_by:
                metrics.SLOT_WAIT_SECONDS.observe(now - since)
                return True
            metrics.SLOTS_MISSED.inc()
            wanted = 1 if now - since < self._settings.slot_wait else 0
            granted = await self._give_back(slot, wanted)
            if granted is None:
                return False
            slot = granted
        await self._give_back(slot, 0)
        return False

    async def _give_back(self, slot: Slot, wanted: int) -> Slot | None:
        """Return an unused slot to Redis and reserve `wanted` (0 or 1) others in its place."""
        if self._limiter is None:
            return None
        try:
            granted = await self._limiter.reserve(DESTINATION, wanted, give_back=[slot])
        except LimiterUnavailableError:
            self._limiter_failed = True
            return None
        return granted.slots[0] if granted.slots else None

    async def _defer(self, *claims: Claim) -> None:
        metrics.CLAIMS_DEFERRED.inc(len(claims))
        try:
            await self._settler.submit(*(Settlement(claim, None) for claim in claims))
        except StoreUnavailableError:
            event_log.not_deferred(claims)

    async def _settle(self, claim: Claim, result: Result) -> Status | None:
        """Record `result`; return the status that the event has now, None if it was not."""
        settlement = self._decide(claim, result)
        self._count_settling(1)
        try:
            [ended] = await self._settler.submit(settlement)
        except StoreUnavailableError:  # the cause is logged where it is known
            event_log.settled(settlement, recorded=None)
            return None
        finally:
            self._count_settling(-1)
        event_log.settled(ended or settlement, recorded=ended is not None)
        return ended.status if ended else None

    def _decide(self, claim: Claim, result: Result) -> Settlement:
        succeeded = result.error is None
        attempt = Attempt(
            attempt_number=claim.attempt_number,
            timestamp=claim.leased_at + timedelta(seconds=result.sent_at - claim.held_since),
            outcome=Outcome.SUCCESS if succeeded else Outcome.FAILURE,
            status_code=result.status_code,
            duration_ms=result.duration_ms,
            error=result.error,
            response=result.response,
        )
        if succeeded:
            return Settlement(claim, attempt, Status.DELIVERED)
        if claim.schedule_step >= self._settings.max_attempts:
            return Settlement(claim, attempt, Status.FAILED_PERMANENTLY)
        delay = retry_policy.delay_s(
            self._settings.backoff, claim.schedule_step, result.retry_after_s
        )
        return Settlement(claim, attempt, Status.DELIVERING, delay)

    # -- waiting ---------------------------------------------------------------------------

    def _count_waiting(self, change: int) -> None:
        self._waiting += change
        metrics.SLOT_WAITING.set(self._waiting)
        self._room_changed.set()

    def _count_settling(self, change: int) -> None:
        self._settling += change
        self._room_changed.set()

    def _room(self) -> int:
        unsent = self._settings.concurrency - (len(self._deliveries) - self._settling)
        unsettled = (1 + MOST_SETTLING) * self._settings.concurrency - len(self._deliveries)
        return min(self._ahead - self._waiting, unsent, unsettled)

    async def _room_to_claim(self) -> None:
        """Wait for room; without a limit, for a moment longer, to claim many at once."""
        await self._room_of(1)
        if self._limiter is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_S):
                    await self._room_of(self._settings.concurrency // 2)

    async def _room_of(self, wanted: int) -> None:
        """Wait for so much room; no longer if nothing is under way that could make it."""
        while self._room() < wanted and self._deliveries and not self._stopping.is_set():
            self._room_changed.clear()
            await self._room_changed.wait()

    async def _pause(self, seconds: float) -> None:
        await self._sleep_until(time.monotonic() + seconds)

    async def _sleep_until(self, instant: float) -> bool:
        """Sleep to an instant of `time.monotonic()`; False as soon as stopping."""
        # Again if it woke early: uvloop's timers count whole milliseconds.
        while (remaining := instant - time.monotonic()) > 0 and not self._stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(remaining):
                    await self._stopping.wait()
        return not self._stopping.is_set()


def _log_again(state: RetryCallState) -> None:
    _log_failure(state.outcome.exception() if state.outcome else None)


def _log_failure(error: BaseException | None) -> None:
    if isinstance(error, (StoreUnavailableError, LimiterUnavailableError)):
        log.warning("waiting_for", cause=type(error).__name__, detail=str(error))
    else:
        log.error("turn_crashed", exc_info=error)


async def serve(settings: Settings, stop: asyncio.Event, tracer: Tracer = tracing.OFF) -> None:
    """Run one dispatcher, with its metrics port, until `stop` and all in flight is settled.

    Raises:
        StartError: the port, the database or a URL cannot be used.
    """
    owner = heartbeat.owner_name()
    store = Store(settings.mongo_url or "", settings.mongo_db)
    limiter = None
    if settings.rate_limit:
        limiter = Limiter(
            settings.redis_url or "", settings.rate_limit, farthest_s=settings.slot_wait
        )
    deliverer = Deliverer(
        settings.downstream_url,
        timeout_s=settings.request_timeout,
        connections=settings.concurrency,
        secrets=settings.downstream_secrets,
    )
    try:
        if not await server.wait_until_open(store.open, stop):
            return
        checks = {"mongodb": store.ping}
        if limiter is not None:
            checks["redis"] = limiter.ping
        dispatcher = Dispatcher(
            settings,
            owner=owner,
            store=store,
            limiter=limiter,
            deliverer=deliverer,
            tracer=tracer,
        )
        async with (
            heartbeat.reporting(store, limiter, owner=owner, role="dispatcher"),
            server.listening(
                monitoring.monitoring_app(checks, Guard(settings).middleware),
                settings.host,
                settings.metrics_port,
                shutdown_s=0.2,
            ),
        ):
            running = asyncio.create_task(dispatcher.run())
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            dispatcher.stop()
            patience = settings.request_timeout + DRAIN_MARGIN_S - tracer.stop_s
            _, unfinished = await asyncio.wait({running}, timeout=patience)
            if unfinished:
                log.warning("drain_cut_short", consequence="leases will expire")
                dispatcher.abandon()
                running.cancel()
                await asyncio.wait({running})
            else:
                running.result()
    finally:
        await tracer.stop()
        await deliverer.close()
        if limiter is not None:
            await limiter.close()
        await store.close()
