"""The heartbeat that every replica writes, and the gauges that it refreshes.

The totals of all replicas are kept in one document (`storage.replicas`), so a scrape never counts
events. A replica that dies loses at most the counts of its last interval.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from wds.concurrency.background import beside
from wds.domain import destinations
from wds.domain.errors import LimiterUnavailableError, StoreUnavailableError
from wds.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from wds.domain.lease_queue import LeaseQueue

log = structlog.get_logger(__name__)

INTERVAL_S = 2.0
LAST_REPORT_S = 0.3
"""Longest time for the last report; stopping in time matters more."""


def owner_name() -> str:
    """Return a name that no other process has: host, process id and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


class Replicas(Protocol):
    """The part of the store that heartbeats are written to: `storage.replicas`."""

    async def report(
        self, *, owner: str, role: str, totals: dict[str, int]
    ) -> Mapping[str, Any] | None:
        """Write this replica's heartbeat; return the document of all replicas."""


class Limiter(Protocol):
    """The part of the rate limiter that a heartbeat needs."""

    async def ping(self) -> None:
        """Return if Redis answers, or raise `LimiterUnavailableError`."""


async def report_once(
    replicas: Replicas, queue: LeaseQueue, limiter: Limiter | None, *, owner: str, role: str
) -> None:
    """Write one heartbeat and refresh the gauges; a service that does not answer is down."""
    try:
        document = await replicas.report(owner=owner, role=role, totals=metrics.own_totals())
        metrics.all_replicas.show(document)
        backlog = await queue.backlog(destinations.DEFAULT_DESTINATION)
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
    replicas: Replicas, queue: LeaseQueue, limiter: Limiter | None, *, owner: str, role: str
) -> AsyncIterator[None]:
    """Report every `INTERVAL_S` inside the block, and once more on leaving it."""

    async def forever() -> None:
        while True:
            try:
                await report_once(replicas, queue, limiter, owner=owner, role=role)
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
                await report_once(replicas, queue, limiter, owner=owner, role=role)
