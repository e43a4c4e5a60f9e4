"""The heartbeat that every replica writes, and the gauges it refreshes on the way.

The fleet's totals live in one document (`queries.heartbeat`), so a scrape never counts events.
A replica that dies takes at most the last interval's counts with it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import structlog

from wds.concurrency.background import beside
from wds.domain.errors import LimiterUnavailableError, StoreUnavailableError
from wds.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from wds.delivery.rate_limiter import Limiter
    from wds.storage.store import Store

log = structlog.get_logger(__name__)

INTERVAL_S = 2.0
LAST_REPORT_S = 0.3
"""What the last report may take; stopping in time matters more."""


def owner_name() -> str:
    """Return a name for this process that no other process has: host, pid, random."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


async def report_once(store: Store, limiter: Limiter | None, *, owner: str, role: str) -> None:
    """Write one heartbeat and refresh the gauges; what does not answer is shown as down."""
    try:
        fleet = await store.replicas.report(owner=owner, role=role, totals=metrics.own_totals())
        metrics.fleet.show(fleet)
        backlog = await store.queue.backlog("default")
    except StoreUnavailableError as error:
        metrics.STORE_UP.set(0)
        log.warning("heartbeat_failed", cause=str(error))
    else:
        metrics.STORE_UP.set(1)
        metrics.DUE_EVENTS.set(backlog.due)
        metrics.OLDEST_DUE_SECONDS.set(backlog.oldest_due_s)
    try:
        if limiter is not None:
            await limiter.ping()
    except LimiterUnavailableError as error:
        metrics.LIMITER_UP.set(0)
        log.warning("limiter_down", cause=str(error))
    else:
        metrics.LIMITER_UP.set(1)


@asynccontextmanager
async def reporting(
    store: Store, limiter: Limiter | None, *, owner: str, role: str
) -> AsyncIterator[None]:
    """Report every `INTERVAL_S` inside the block, and a last time on leaving it."""

    async def forever() -> None:
        while True:
            try:
                await report_once(store, limiter, owner=owner, role=role)
            except Exception:
                # A defect in reporting must be seen, and must not stop deliveries.
                log.exception("heartbeat_crashed")
            await asyncio.sleep(INTERVAL_S)

    try:
        async with beside(forever()):
            yield
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_REPORT_S):
                await report_once(store, limiter, owner=owner, role=role)
