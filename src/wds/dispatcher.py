"""The dispatch loop: claim, wait for a slot, send, settle.

Any number of replicas run this against one database. Each turn (`run_once`) claims the events that
can be sent soon, reserves their slots in one call, and starts a task for each. The loop never waits
for a delivery. What must stay true:

* Every claim ends in one settlement: recorded, or deferred if nothing was sent.
* A settlement that was submitted is written even if the delivery that waits for it is cancelled.

`delivery.lane` decides how much may be claimed, and whether and when a request may leave.

If the process dies anywhere here, its leases expire and another replica carries on. The lost
attempt is recorded as unknown.
"""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import TYPE_CHECKING

import structlog
from prometheus_async import aio

from wds.concurrency.group_commit import GroupCommit
from wds.concurrency.signals import Signal
from wds.delivery.http_client import HttpClient
from wds.delivery.lane import DestinationLane
from wds.delivery.rate_limiter import RateLimiter
from wds.domain import attempt_results, destinations
from wds.domain.attempt_results import NotSent
from wds.domain.deliveries import Settlement
from wds.domain.errors import LimiterUnavailableError, StartError, StoreUnavailableError
from wds.storage.store import Store
from wds.telemetry import event_log, heartbeat, metrics, tracing
from wds.web import monitoring, server
from wds.web.operator_access import Guard

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wds.config import Settings
    from wds.delivery.rate_limiter import Slot
    from wds.domain.attempt_results import AttemptResult
    from wds.domain.deliveries import Claim, Status
    from wds.telemetry.tracing import DeliveryTrace, Tracer

log = structlog.get_logger(__name__)

DRAIN_MARGIN_S = 4.0
"""Stopping may take this much longer than the longest request, for settlements."""
FIRST_RETRY_S = 0.05
MAX_RETRY_S = 1.0
"""Bounds of the wait after a turn that failed; in between, it doubles with each failure."""


class Signals:
    """Points in the loop that a test can wait for instead of sleeping. Not signals of the OS.

    Attributes:
        polled: a turn has asked the queue for due events.
        settled: a claim was settled, or its settlement failed.
    """

    def __init__(self) -> None:
        """Start each at 0."""
        self.polled = Signal()
        self.settled = Signal()


class Dispatcher:
    """One replica: `run` until `stop`, or `run_once` for a single turn.

    Attributes:
        lanes: name of a destination -> its lane.
    """

    def __init__(
        self,
        lanes: Iterable[DestinationLane],
        *,
        owner: str,
        store: Store,
        lease_s: float,
        tracer: Tracer = tracing.OFF,
    ) -> None:
        """Prepare to deliver on `lanes`, which the caller closes.

        `owner` names this process in its leases, which last `lease_s` seconds.
        """
        self.lanes = {lane.destination.name: lane for lane in lanes}
        self.signals = Signals()
        self._owner = owner
        self._store = store
        self._lease_s = lease_s
        self._tracer = tracer
        self._settlements: GroupCommit[Settlement, Settlement | None] = GroupCommit(
            store.queue.settle, max_batch=1000, max_pending=100_000
        )

    def stop(self) -> None:
        """Claim no more, defer claims without a slot; `run` returns when every claim is settled."""
        for lane in self.lanes.values():
            lane.stop()

    async def run(self) -> None:
        """Take turns until `stop`, then wait for the deliveries under way."""
        async with asyncio.TaskGroup() as group:
            for lane in self.lanes.values():
                group.create_task(self._run_lane(lane))
        await self.drain()

    async def drain(self) -> None:
        """Return once no delivery is under way and every settlement was written or has failed."""
        for lane in self.lanes.values():
            await lane.drain()
        await self._settlements.drain()

    def abandon(self) -> None:
        """Cancel every delivery under way; their leases expire."""
        for lane in self.lanes.values():
            for task in lane.deliveries:
                task.cancel()

    async def run_once(self, destination: str = destinations.DEFAULT_DESTINATION) -> float:
        """Claim the events that can be sent soon and start their deliveries.

        Returns the seconds until the next turn; 0 if more events may be due already.

        Raises:
            StoreUnavailableError: nothing was claimed, as far as this process knows.
            LimiterUnavailableError: every claim of this turn has been deferred.
        """
        return await self._take_turn(self.lanes[destination])

    # -- the loop --------------------------------------------------------------------------

    async def _run_lane(self, lane: DestinationLane) -> None:
        failures = 0
        while not lane.stopping.is_set():
            try:
                wait_s = await lane.poll_scheduler.until_next(await self._take_turn(lane))
                failures = 0
            except Exception as error:  # noqa: BLE001 - a defect must not end deliveries
                _log_failure(error)
                longest = FIRST_RETRY_S * 2 ** min(failures, 10)
                wait_s = random.uniform(0, min(longest, MAX_RETRY_S))  # noqa: S311
                failures += 1
            await lane.sleep(wait_s)
            await lane.wait_for_room()

    async def _take_turn(self, lane: DestinationLane) -> float:
        """See `run_once`."""
        room = lane.room()
        if room < 1:
            return 0.0
        await lane.check_limiter()
        claimed = await self._store.queue.claim(
            lane.destination.name,
            room,
            owner=self._owner,
            lease_s=self._lease_s,
            max_attempts=lane.destination.max_attempts,
        )
        event_log.claimed(claimed)
        lane.poll_scheduler.record_poll(claimed)
        self.signals.polled.fire()
        if not claimed.claims:
            return lane.poll_scheduler.poll_s()
        try:
            slots, retry_in_s = await lane.reserve(len(claimed.claims))
        except LimiterUnavailableError:
            await self._defer(*claimed.claims)
            raise
        for claim, slot in zip(claimed.claims, slots, strict=False):
            lane.start(slot, self.deliver(lane, claim, slot))
        without_slot = claimed.claims[len(slots) :]
        if not without_slot:
            return 0.0
        await self._defer(*without_slot)
        return retry_in_s

    # -- one claim, from lease to settlement -----------------------------------------------

    async def deliver(self, lane: DestinationLane, claim: Claim, slot: Slot | None) -> None:
        """Make one attempt under `claim` and settle it, or defer the claim if nothing was sent."""
        with self._tracer.delivery(claim, limited=slot is not None) as trace:
            event_log.bind(claim, trace.facts)
            result = await aio.track_inprogress(
                metrics.IN_FLIGHT, self._attempt(lane, claim, slot, trace)
            )
            if isinstance(result, NotSent):
                await self._defer(claim)
                return
            metrics.ATTEMPT_SECONDS.observe(result.duration_ms / 1000)
            trace.answered(result)
            trace.settled(await self._settle(lane, claim, result))

    async def _attempt(
        self, lane: DestinationLane, claim: Claim, slot: Slot | None, trace: DeliveryTrace
    ) -> AttemptResult | NotSent:
        try:
            async with lane.client.connect(claim) as request:
                if request.failure is not None:
                    return request.failure
                if not await lane.wait_for_slot(slot):
                    return NotSent("no slot in time")
                lane.stop_waiting(slot)
                if not lane.may_send(claim):
                    return NotSent("the lease is too old")
                if not request.is_open:
                    return NotSent("the receiver closed the connection")
                return await request.send(trace.sent())
        finally:
            lane.stop_waiting(slot)

    async def _defer(self, *claims: Claim) -> None:
        """Release the leases of `claims`. Their attempts are not counted."""
        metrics.CLAIMS_DEFERRED.inc(len(claims))
        try:
            await self._settlements.submit(*(Settlement(claim, None) for claim in claims))
        except StoreUnavailableError:
            event_log.not_deferred(claims)
        finally:
            self.signals.settled.fire()

    async def _settle(
        self, lane: DestinationLane, claim: Claim, result: AttemptResult
    ) -> Status | None:
        """Record `result`; return the event's new status, None if it could not be recorded."""
        settlement = attempt_results.settlement(claim, result, lane.destination)
        lane.count_settling(1)
        try:
            [settled] = await self._settlements.submit(settlement)
        except StoreUnavailableError:  # `storage.mongo` has logged the cause
            event_log.settled(settlement, recorded=None)
            return None
        finally:
            lane.count_settling(-1)
            self.signals.settled.fire()
        event_log.settled(settled or settlement, recorded=settled is not None)
        return settled.status if settled else None


def _log_failure(error: Exception) -> None:
    if isinstance(error, (StoreUnavailableError, LimiterUnavailableError)):
        log.warning("waiting_for", cause=type(error).__name__, detail=str(error))
    else:
        log.error("turn_crashed", exc_info=error)


def default_lane(settings: Settings, store: Store) -> DestinationLane:
    """Return the lane of the default destination, with clients of its own.

    Raises:
        StartError: the destination's URL or that of Redis cannot be used.
    """
    destination = settings.default_destination
    try:
        client = HttpClient(destination)
    except ValueError:  # its message repeats the URL, which may hold a secret
        msg = "WDS_DOWNSTREAM_URL is not a URL that can be requested"
        raise StartError(msg) from None
    limiter = None
    if destination.rate_limit:
        limiter = RateLimiter(
            settings.redis_url or "",
            destination.rate_limit,
            database=settings.mongo_db,
            farthest_s=settings.slot_wait,
        )
    return DestinationLane(
        destination,
        client=client,
        limiter=limiter,
        listen=partial(store.queue.wait_for_change, destination.name) if settings.listen else None,
        poll_interval=settings.poll_interval,
    )


async def serve(settings: Settings, stop: asyncio.Event, tracer: Tracer = tracing.OFF) -> None:
    """Run one dispatcher and its metrics port until `stop`, then settle every claim.

    Raises:
        StartError: the port, the database or a URL cannot be used.
    """
    owner = heartbeat.owner_name()
    store = Store(settings.mongo_url or "", settings.mongo_db)
    lane = default_lane(settings, store)
    try:
        if not await server.wait_until_open(store.open, stop):
            return
        checks = {"mongodb": store.ping}
        if lane.limiter is not None:
            checks["redis"] = lane.limiter.ping
        dispatcher = Dispatcher(
            [lane], owner=owner, store=store, lease_s=settings.lease, tracer=tracer
        )
        async with (
            heartbeat.reporting(
                store.replicas, store.queue, lane.limiter, owner=owner, role="dispatcher"
            ),
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
            drain_s = lane.destination.timeout_s + DRAIN_MARGIN_S - tracer.stop_s
            _, unfinished = await asyncio.wait({running}, timeout=drain_s)
            if unfinished:
                log.warning("drain_cut_short", consequence="leases will expire")
                dispatcher.abandon()
                running.cancel()
                await asyncio.wait({running})
            else:
                running.result()
    finally:
        await tracer.stop()
        await lane.close()
        await store.close()
