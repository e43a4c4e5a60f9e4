"""Requests of operators over HTTP, and a dispatcher that settles events as a test needs."""

from __future__ import annotations

import json
from datetime import UTC

from tests.support import clock_caught_up, eventually, new_event
from wds.domain.deliveries import Attempt, Outcome, Settlement, Status
from wds.domain.invariants import Expectations, violations

MOST = 2
"""Attempts that an event gets."""


class Queue:
    def __init__(self, store, db):
        self.store, self.db = store, db

    async def insert(self, count=1, **fields):
        events = [new_event(**fields) for _ in range(count)]
        await self.store.writer.insert(events)
        return [event.id for event in events]

    async def claim(self, limit=1):
        await clock_caught_up(self.store)
        claimed = await self.store.queue.claim(
            "default", limit, owner="d", lease_s=60, max_attempts=MOST
        )
        return claimed.claims

    async def attempt(self, *, succeed, limit=1):
        """Claim due events and settle them like a dispatcher."""
        claims = await self.claim(limit)
        assert all(
            await self.store.queue.settle([settlement(each, succeed=succeed) for each in claims])
        )
        return len(claims)

    async def due_now(self):
        await self.db.events.update_many(
            {"next_attempt_at": {"$exists": True}, "lease": {"$exists": False}},
            [{"$set": {"next_attempt_at": "$$NOW"}}],
        )

    async def failed(self, count=1, **fields):
        """Make events that have failed for good."""
        ids = await self.insert(count, **fields)
        for _ in range(MOST):
            await self.due_now()
            assert await self.attempt(succeed=False, limit=max(count, 2)) == count
        return ids

    async def delivered(self, count=1, **fields):
        ids = await self.insert(count, **fields)
        assert await self.attempt(succeed=True, limit=max(count, 2)) == count
        return ids

    async def event(self, event_id):
        return await self.db.events.find_one({"_id": event_id})

    async def sound(self):
        """Assert every invariant of every event."""
        now = (await self.db.command("hello"))["localTime"].replace(tzinfo=UTC)
        expected = Expectations(now, MOST, (0.0,), 3600)
        async for event in self.db.events.find():
            assert list(violations(event, expected)) == [], event


def settlement(claim, *, succeed):
    outcome = Outcome.SUCCESS if succeed else Outcome.FAILURE
    error = None if succeed else "HTTP 500"
    attempt = Attempt(
        claim.attempt_number, claim.leased_at, outcome, 200 if succeed else 500, 3, error, None
    )
    if succeed:
        return Settlement(claim, attempt, Status.DELIVERED)
    if claim.schedule_step >= MOST:
        return Settlement(claim, attempt, Status.FAILED_PERMANENTLY)
    return Settlement(claim, attempt, Status.DELIVERING, 30.0)


async def post(client, path, body=None, **headers):
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    status, answer = await client.post(
        path, json.dumps(body or {}).encode(), {"Content-Type": "application/json", **sent}
    )
    return status, answer


async def refused(client, path, body=None):
    status, answer = await post(client, path, body)
    return status, answer["error"]["code"]


async def bulk_done(client, request_id):
    async def look():
        _, answer = await client.get(f"/webhooks/bulk/{request_id}")
        return answer

    return await eventually(look, lambda seen: seen["state"] != "running")
