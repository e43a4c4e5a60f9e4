"""Dispatchers that run in the test's own process, for `tests/integration`."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from wds.dispatcher import Dispatcher, default_lane
from wds.domain import destinations

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from wds.config import Settings
    from wds.delivery.lane import DestinationLane
    from wds.domain.deliveries import Status
    from wds.storage.store import Store

QUICK = {"rate_limit": 0, "backoff": (0.05, 0.1, 0.2, 0.4), "request_timeout": 10.0, "lease": 20.0}
LEASED = {"lease": {"$exists": True}}


@asynccontextmanager
async def replica(
    settings: Settings, store: Store, url: str, *, owner: str = "d1"
) -> AsyncIterator[Dispatcher]:
    """Give a dispatcher of events to `url` that does not run yet."""
    lane = default_lane(replace(settings, downstream_url=url), store)
    try:
        yield Dispatcher([lane], owner=owner, store=store, lease_s=settings.lease)
    finally:
        await lane.close()


@asynccontextmanager
async def running(
    settings: Settings, store: Store, url: str, *, owner: str = "d1"
) -> AsyncIterator[Dispatcher]:
    """Run a dispatcher inside the block, and stop it as SIGTERM would."""
    async with replica(settings, store, url, owner=owner) as dispatcher:
        task = asyncio.create_task(dispatcher.run())
        try:
            yield dispatcher
        finally:
            dispatcher.stop()
            await task


def lane_of(dispatcher: Dispatcher) -> DestinationLane:
    return dispatcher.lanes[destinations.DEFAULT_DESTINATION]


async def statuses(db) -> list[str]:
    return [document["status"] for document in await db.events.find().to_list(None)]


def all_are(*expected: Status) -> Callable[[list[str]], bool]:
    return lambda seen: bool(seen) and set(seen) <= set(expected)
