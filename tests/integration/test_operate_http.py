"""Replay and cancel over HTTP: one event, many as a bulk action, and who did it and when."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.support import eventually, new_event
from wds.audit import Expectations, violations
from wds.model import Attempt, Outcome, Settlement, Status

MOST = 2
SCHEDULE = (30.0,)


@pytest.fixture
def queue(store, db):
    """Drive the lease queue as a dispatcher would, with two attempts an event."""
    return Queue(store, db)


class Queue:
    def __init__(self, store, db):
        self.store, self.db = store, db

    async def insert(self, count=1, **fields):
        events = [new_event(**fields) for _ in range(count)]
        await self.store.insert(events)
        return [event.id for event in events]

    async def claim(self, limit=1):
        claimed = await self.store.claim("default", limit, owner="d", lease_s=60, max_attempts=MOST)
        return claimed.claims

    async def attempt(self, *, succeed, limit=1):
        """Claim what is due and settle it like a dispatcher."""
        claims = await self.claim(limit)
        assert all(await self.store.settle([settlement(each, succeed=succeed) for each in claims]))
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
        """Assert that every event keeps every invariant."""
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


# -- replaying one event ------------------------------------------------------------------------


async def test_a_replayed_event_gets_the_whole_schedule_again_and_keeps_its_attempts(client, queue):
    [event_id] = await queue.failed()
    status, answer = await post(
        client, f"/webhooks/events/{event_id}/replay", {"by": "ann", "reason": "they fixed it"}
    )
    assert status == 202
    assert (answer["id"], answer["status"], answer["repeated"]) == (event_id, "DELIVERING", False)
    await queue.sound()
    for _ in range(MOST):
        await queue.due_now()
        assert await queue.attempt(succeed=False) == 1
    await queue.sound()

    _, event = await client.get(f"/webhooks/events/{event_id}")
    assert event["status"] == "FAILED_PERMANENTLY"
    assert [each["attempt_number"] for each in event["attempts"]] == [1, 2, 3, 4]
    assert event["attempts_before"] == 2
    [entry] = event["history"]
    at = datetime.fromisoformat(entry.pop("at"))
    assert abs(at - datetime.now(UTC)) < timedelta(minutes=1)
    assert entry == {
        "action": "replay",
        "by": "ann",
        "remote": "127.0.0.1",
        "reason": "they fixed it",
        "request_id": answer["request_id"],
        "status": "FAILED_PERMANENTLY",
        "attempt_count": 2,
    }


async def test_a_replayed_event_is_due_at_once(client, queue):
    [event_id] = await queue.delivered()
    assert await queue.claim() == []
    await post(client, f"/webhooks/events/{event_id}/replay")
    [claim] = await queue.claim()
    assert (claim.id, claim.attempt_number, claim.schedule_step) == (event_id, 2, 1)
    await queue.sound()


@pytest.mark.parametrize("how", ["header", "body"])
async def test_a_replay_repeated_under_its_request_id_does_nothing_twice(client, queue, how):
    [event_id] = await queue.failed()
    body = {"request_id": "r1"} if how == "body" else {}
    headers = {"Idempotency_Key": "r1"} if how == "header" else {}
    path = f"/webhooks/events/{event_id}/replay"
    first, _ = await post(client, path, body, **headers)
    await queue.attempt(succeed=True)
    before = await queue.event(event_id)
    second, answer = await post(client, path, body, **headers)

    assert (first, second) == (202, 200)
    assert (answer["repeated"], answer["status"]) == (True, "DELIVERED")
    assert await queue.event(event_id) == before


async def test_many_replays_at_once_under_one_request_id_are_one(client, queue):
    [event_id] = await queue.failed()
    path = f"/webhooks/events/{event_id}/replay"
    answers = await asyncio.gather(*(post(client, path, {"request_id": "r"}) for _ in range(10)))

    assert sorted(status for status, _ in answers) == [200] * 9 + [202]
    assert len((await queue.event(event_id))["history"]) == 1


async def test_a_live_lease_is_never_disturbed_by_a_replay(client, queue):
    [event_id] = await queue.insert()
    await queue.claim()
    before = await queue.event(event_id)

    assert await refused(client, f"/webhooks/events/{event_id}/replay") == (409, "in_delivery")
    assert await queue.event(event_id) == before


async def test_an_event_that_waits_after_a_failure_is_tried_now(client, queue):
    [event_id] = await queue.insert()
    await queue.attempt(succeed=False)
    assert await queue.claim() == []
    assert (await post(client, f"/webhooks/events/{event_id}/replay"))[0] == 202
    [claim] = await queue.claim()
    assert (claim.id, claim.schedule_step) == (event_id, 1)
    await queue.sound()


async def test_an_event_with_the_whole_schedule_ahead_is_not_replayed(client, queue):
    [event_id] = await queue.insert()
    path = f"/webhooks/events/{event_id}/replay"
    assert await refused(client, path) == (409, "already_waiting")
    await queue.attempt(succeed=True)
    assert (await post(client, path))[0] == 202
    assert await refused(client, path) == (409, "already_waiting")
    assert len((await queue.event(event_id))["history"]) == 1


async def test_an_event_without_room_for_further_attempts_is_not_replayed(client, queue, db):
    [event_id] = await queue.failed()
    await db.events.update_one(
        {"_id": event_id}, {"$set": {"payload": bytes(16 * 1024**2 - 400_000)}}
    )

    assert await refused(client, f"/webhooks/events/{event_id}/replay") == (409, "no_room")


@pytest.mark.parametrize("action", ["replay", "cancel"])
async def test_an_unknown_event_is_not_found(client, action):
    assert await refused(client, f"/webhooks/events/nothing/{action}") == (404, "not_found")


@pytest.mark.parametrize("path", ["/webhooks/events/x/replay", "/webhooks/replay"])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"by": ""}, "by"),
        ({"by": 1}, "by"),
        ({"request_id": "a\nb"}, "request_id"),
        ({"reason": "x" * 1001}, "reason"),
        ({"foo": 1}, "foo"),
    ],
)
async def test_a_wrong_instruction_is_refused_by_field(client, path, body, field):
    status, answer = await post(
        client, path, {"event_type": "a", **body} if "bulk" in path else body
    )

    assert status == 422
    assert field in {each["field"] for each in answer["error"]["details"]}
