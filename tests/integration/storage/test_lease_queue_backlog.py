"""The backlog on a real MongoDB: how many events are due, and for how long."""

from __future__ import annotations

import time

from tests.integration.storage.leases import claim
from tests.support import clock_caught_up, new_event


async def test_backlog_is_the_number_of_due_events_and_the_age_of_the_oldest(store, db):
    assert (await store.queue.backlog("default")).due == 0
    await store.writer.insert([new_event() for _ in range(3)])
    await db.events.update_many(
        {}, [{"$set": {"next_attempt_at": {"$subtract": ["$$NOW", 60_000]}}}]
    )
    await claim(store)
    backlog = await store.queue.backlog("default")
    assert backlog.due == 2
    assert 60 <= backlog.oldest_due_s < 70


async def test_backlog_counts_many_events_rarely_and_few_each_time(store, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr("wds.storage.lease_queue.monotonic", lambda: now)
    monkeypatch.setattr("wds.storage.lease_queue.LARGE_BACKLOG", 5)
    counts = []
    for step in (0, 0, 9, 1):
        now += step
        await store.writer.insert([new_event() for _ in range(4)])
        await clock_caught_up(store)
        counts.append((await store.queue.backlog("default")).due)
    assert counts == [4, 8, 8, 16]
