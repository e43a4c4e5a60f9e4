"""Claims on a real MongoDB: which events are leased, to whom, and which are buried."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime, timedelta
from itertools import chain

import pytest

from tests.integration.storage.leases import claim, expire, only
from tests.support import clock_caught_up, new_event
from wds.storage import lease_queries
from wds.storage.store import Store
from wds.telemetry import event_log, metrics


@pytest.mark.parametrize("limit", [1, 10])
async def test_claim_leases_due_events_only(store, db, limit):
    await store.writer.insert([new_event(key="due"), new_event(key="later")])
    later = new_event(key="later").id
    await db.events.update_one(
        {"_id": later}, {"$set": {"next_attempt_at": datetime.now(UTC) + timedelta(hours=1)}}
    )
    [held] = await claim(store, limit)
    assert held.attempt_number == 1
    document = await db.events.find_one({"_id": held.id})
    assert document["status"] == "DELIVERING"
    assert document["attempt_count"] == 1
    assert document["lease"] == {
        "token": held.token,
        "owner": "d1",
        "since": held.leased_at,
        "due_at": document["received_at"],
    }
    assert document["next_attempt_at"] == held.leased_at + timedelta(seconds=30)
    assert await claim(store, limit) == []


async def test_claim_of_one_takes_events_in_due_order(store):
    events = [new_event(key=f"k{number}") for number in range(5)]
    for event in events:
        await store.writer.insert([event])
        await asyncio.sleep(0.002)  # the database's clock counts milliseconds
    claimed = [(await claim(store))[0].id for _ in events]
    assert claimed == [event.id for event in events]


async def race(claim_once, replicas: int) -> list[str]:
    """Let `replicas` claim everything at once; return all ids that they leased."""

    async def work(number: int) -> list[str]:
        leased: list[str] = []
        while ids := await claim_once(number):
            leased += ids
        return leased

    return list(chain(*await asyncio.gather(*map(work, range(replicas)))))


@pytest.mark.parametrize("limit", [1, 8])
async def test_claim_never_leases_one_event_to_two_replicas(settings, store, limit):
    events = [new_event() for _ in range(200)]
    await store.writer.insert(events)
    stores = [Store(settings.mongo_url or "", settings.mongo_db) for _ in range(6)]

    async def claim_once(number: int) -> list[str]:
        return [held.id for held in await claim(stores[number], limit, owner=f"d{number}")]

    leased = await race(claim_once, len(stores))
    for each in stores:
        await each.close()
    assert sorted(leased) == sorted(event.id for event in events)


async def test_control_claim_without_the_due_predicate_leases_events_twice(store, db):
    """The same race with a read, then a write without the predicate: some events go to two."""
    events = [new_event() for _ in range(200)]
    await store.writer.insert(events)

    async def claim_once(_: int) -> list[str]:
        found = await db.events.find(lease_queries.claimable("default")).limit(8).to_list(None)
        ids = [document["_id"] for document in found]
        await db.events.update_many(
            {"_id": {"$in": ids}}, lease_queries.claim(secrets.token_hex(4), "d", 30_000, 5)
        )
        return ids

    leased = await race(claim_once, 6)
    assert len(leased) > len(set(leased))


async def test_claim_of_an_expired_lease_records_its_attempt_as_unknown(store, db):
    await store.writer.insert([new_event()])
    [lost] = await claim(store, owner="dead")
    await expire(db)
    await clock_caught_up(store)
    claimed = await store.queue.claim("default", 8, owner="d2", lease_s=30, max_attempts=5)
    [held] = claimed.claims
    assert (held.attempt_number, claimed.recovered) == (2, 1)
    [attempt] = (await only(db))["attempts"]
    assert attempt == {
        "attempt_number": 1,
        "timestamp": lost.leased_at,
        "status_code": None,
        "success": False,
        "outcome": "unknown",
        "duration_ms": None,
        "error": lease_queries.LOST_ATTEMPT_ERROR,
        "response": None,
    }


@pytest.mark.parametrize("limit", [1, 8])
async def test_claim_has_the_seconds_waited_and_the_trace_of_its_event(store, db, limit):
    trace = {"traceparent": "00-a-b-01", "tracestate": "$c=d"}
    await store.writer.insert([new_event(trace=trace)])
    await db.events.update_one(
        {},
        [{"$set": {"next_attempt_at": {"$subtract": ["$$NOW", 5000]}}}],
    )
    claimed = await store.queue.claim("default", limit, owner="d", lease_s=30, max_attempts=5)
    [first] = claimed.claims
    assert (first.trace, first.recovered) == (trace, False)
    assert 5 <= first.waited_s < 10
    await expire(db)
    claimed = await store.queue.claim("default", limit, owner="e", lease_s=30, max_attempts=5)
    [second] = claimed.claims
    assert (second.trace, second.recovered) == (trace, True)


@pytest.mark.parametrize("limit", [1, 8])
async def test_claim_buries_an_event_that_lost_its_last_attempt(store, db, limit):
    await store.writer.insert([new_event()])
    await claim(store, most=1)
    await expire(db)
    await clock_caught_up(store)
    claimed = await store.queue.claim("default", limit, owner="d2", lease_s=30, max_attempts=1)
    document = await only(db)
    assert (claimed.claims, claimed.exhausted_ids) == ([], [document["_id"]])
    assert claimed.lost_ids == [document["_id"]]
    assert document["status"] == "FAILED_PERMANENTLY"
    assert [attempt["outcome"] for attempt in document["attempts"]] == ["unknown"]
    assert document["finished_at"] is not None
    assert not {"lease", "next_attempt_at"} & set(document)


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "among others"])
async def test_claim_under_a_lowered_limit_buries_without_a_lost_attempt(store, db, others):
    await store.writer.insert([new_event() for _ in range(1 + others)])
    await db.events.update_many({}, {"$set": {"attempt_count": 2}})
    await clock_caught_up(store)
    claimed = await store.queue.claim("default", 8, owner="d", lease_s=30, max_attempts=2)
    assert (claimed.claims, len(claimed.exhausted_ids), claimed.lost_ids) == ([], 1 + others, [])


async def test_claim_with_a_lost_answer_finds_its_leases_by_token(store, db):
    await store.writer.insert([new_event() for _ in range(4)])
    fail = {"failCommands": ["update"], "writeConcernError": {"code": 64, "errmsg": "lost"}}
    await db.client.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=fail)
    assert len(await claim(store, 4)) == 4


@pytest.mark.parametrize("limit", [1, 2])
async def test_claim_returns_if_the_databases_clock_is_behind_the_estimate(
    store, db, monkeypatch, limit
):
    """As for some seconds after a failover to a member with a slower clock."""
    await store.writer.insert([new_event()])
    later = [{"$set": {"next_attempt_at": {"$add": ["$$NOW", 30_000]}}}]
    await db.events.update_one({}, later)
    now = store._mongo.now

    async def ahead():
        return await now() + timedelta(seconds=60)

    await clock_caught_up(store)
    monkeypatch.setattr(store._mongo, "now", ahead)
    async with asyncio.timeout(15):
        claimed = await store.queue.claim("default", limit, owner="d", lease_s=30, max_attempts=5)
    assert claimed.claims == []
    assert "lease" not in await only(db)


async def test_claim_counts_events_that_it_buried_and_could_not_read(store, db, monkeypatch):
    """A counter that misses them would hide failures from the alerts."""
    await store.writer.insert([new_event() for _ in range(3)])
    await db.events.update_many({}, {"$set": {"attempt_count": 2}})
    await clock_caught_up(store)
    monkeypatch.setattr(lease_queries, "buried_by", lambda _ids, _token: {"$refused": 1})
    failed = metrics.own_totals()["deliveries_failed"]
    claimed = await store.queue.claim("default", 8, owner="d", lease_s=30, max_attempts=2)
    assert (claimed.exhausted_ids, claimed.buried_unread) == ([], 3)
    event_log.claimed(claimed)
    assert metrics.own_totals()["deliveries_failed"] == failed + 3
