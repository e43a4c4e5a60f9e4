"""Rollups on a real database: their counts are what counting all events gives."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tests.integration.storage.event_history import (
    draw_filters,
    matches,
    put,
    store_counts,
    stored_total,
    total,
)
from tests.support import new_event
from wds.console import histogram
from wds.domain.deliveries import Status
from wds.domain.event_filter import EventFilter
from wds.domain.operator_actions import Action, Instruction
from wds.storage import rollups
from wds.storage.event_queries import match
from wds.storage.rollup_queries import HOUR, hour_of


async def test_rollups_count_exactly_for_any_filter_whatever_is_stored(store, db, now, history):
    rng = random.Random(8)

    async def check() -> None:
        for _ in range(40):
            filters = draw_filters(rng, now)
            expected = [each for each in history if matches(each, filters)]
            query = match(EventFilter(**filters))
            counts = await store.rollups.counts(query)
            for name, key in (
                ("by_status", lambda each: each["status"]),
                ("by_event_type", lambda each: each["event_type"] or ""),
                ("histogram", lambda each: hour_of(each["received_at"])),
            ):
                found = {each["_id"]: each["count"] for each in counts[name]}
                assert found == Counter(map(key, expected)), filters
            assert await store.rollups.total(query) == len(expected)
            bin_ = rng.choice([bin_ for bin_ in histogram.BINS if bin_.length >= HOUR])
            bars = Counter()
            for at, status, count in await store.rollups.status_counts(query, bin_.unit, bin_.size):
                bars[histogram.bin_start(at, bin_), status] += count
            assert bars == Counter(
                (histogram.bin_start(each["received_at"], bin_), each["status"])
                for each in expected
            )

    await check()
    await store_counts(store, now)
    await check()
    assert await store.rollups.advance() > 0
    assert await store.rollups.advance() == 0
    await check()
    live = sum(each["status"] == Status.DELIVERING for each in history)
    assert live > 0
    assert await stored_total(store, db) == len(history) - live


async def test_rollups_store_only_pairs_for_an_hour_of_too_many_kinds(store, db, now, monkeypatch):
    monkeypatch.setattr(rollups, "MAX_KINDS", 2)
    for number in range(3):
        await put(db, now, source=f"source-{number}")
    await store.rollups._extend([now], now + timedelta(minutes=30))
    await put(db, now + timedelta(minutes=40), source="source-0")
    await store.rollups.advance()
    assert await stored_total(store, db) == 4
    assert await total(store, source=("source-0",)) == 2
    page, _ = await store.reader.page(
        match(EventFilter(source=["source-0"], min_attempts=1)),
        skip=0,
        limit=5,
        after=None,
        include_payload=False,
    )
    assert len(page) == 2


async def test_advance_extends_an_hour_up_to_the_margin(store, db, now):
    for minute in (1, 20, 40):
        await put(db, now + timedelta(minutes=minute))
    for minute, kept in ((0, 0), (30, 2), (60, 3)):
        await store.rollups._extend([now], now + timedelta(minutes=minute))
        assert await stored_total(store, db) == kept
        assert await total(store) == 3


async def test_advance_counts_nothing_younger_than_the_margin(store, db):
    await put(db, datetime.now(UTC) - rollups.MARGIN + timedelta(seconds=61))
    await put(db, datetime.now(UTC) - rollups.MARGIN - timedelta(seconds=61))
    await store.rollups.advance()
    assert await stored_total(store, db) == 1
    assert await total(store) == 2


async def test_advance_counts_an_hour_once_its_last_live_event_is_final(store, db, now):
    event_id = await put(db, now, Status.RECEIVED)
    await put(db, now)
    await store.rollups.advance()
    assert await stored_total(store, db) == 0
    await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERED"}})
    await store.rollups.advance()
    assert await stored_total(store, db) == 2


async def test_advance_does_not_count_a_backlog_repeatedly(store, db, now, monkeypatch):
    """The count could not be stored, and takes about a second for a million events."""
    counted = []
    tally = store.rollups._count

    async def noted(pipeline):
        spans = [each["received_at"] for each in pipeline[0]["$match"]["$or"]]
        counted.extend((span["$gte"], span["$lt"]) for span in spans)
        return await tally(pipeline)

    monkeypatch.setattr(store.rollups, "_count", noted)
    for number in range(20):
        await put(db, now + timedelta(minutes=number), Status.DELIVERING)
    await put(db, now - 5 * HOUR)
    await store.rollups.advance()
    assert any(begin <= now - 5 * HOUR < end for begin, end in counted)
    assert not any(begin < now + HOUR and end > now for begin, end in counted)


async def test_reopened_hour_is_not_stored_until_the_hold_is_over(store, db, now):
    event_id = await put(db, now)
    await put(db, now + HOUR)
    await store.rollups.advance()
    assert await stored_total(store, db) == 2
    await store.rollups.reopen([now + timedelta(minutes=1)])
    await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERING"}})
    assert await total(store, status=("DELIVERING",)) == 1
    await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERED"}})
    await store.rollups.advance()
    assert await stored_total(store, db) == 1
    held_since = datetime.now(UTC) - rollups.HOLD - timedelta(seconds=1)
    await db.hour_kinds.update_one({"_id": now}, {"$set": {"reopened_at": held_since}})
    await store.rollups.advance()
    assert await stored_total(store, db) == 2


async def test_reopen_prevails_over_counting_under_way(store, db, now, monkeypatch):
    event_id = await put(db, now)
    tally = store.rollups._count

    async def tally_and_replay(pipeline):
        counted = await tally(pipeline)
        await store.rollups.reopen([now])
        await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERING"}})
        return counted

    monkeypatch.setattr(store.rollups, "_count", tally_and_replay)
    await store.rollups.advance()
    monkeypatch.undo()
    assert await total(store, status=("DELIVERING",)) == 1


async def test_control_without_reopening_the_stored_count_is_wrong(store, db, now):
    event_id = await put(db, now)
    await store.rollups.advance()
    await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERING"}})
    assert await total(store, status=("DELIVERING",)) == 0


async def test_advance_at_two_replicas_counts_each_hour_once(store, db, now, monkeypatch):
    await put(db, now)
    tally = store.rollups._count
    other = rollups.Rollups(store._mongo)

    async def tally_twice(pipeline):
        counted = await tally(pipeline)
        await other.advance()
        return counted

    monkeypatch.setattr(store.rollups, "_count", tally_twice)
    await store.rollups.advance()
    monkeypatch.undo()
    assert await stored_total(store, db) == 1


async def test_advance_at_a_replica_behind_adds_nothing_twice(store, db, now, monkeypatch):
    """It reads an hour before the other replica extends it beyond the first one's horizon."""
    await put(db, now + timedelta(minutes=20))
    has_live = store.rollups._has_live
    other = rollups.Rollups(store._mongo)

    async def look_and_lag(span):
        await other._extend([now], now + timedelta(minutes=21))
        return await has_live(span)

    monkeypatch.setattr(store.rollups, "_has_live", look_and_lag)
    await store.rollups._extend([now], now + timedelta(minutes=10))
    assert await total(store) == 1
    await store.rollups.advance()
    assert await total(store) == 1


async def test_forget_during_a_replay_does_not_lift_the_hold(store, db, now):
    event_id = await put(db, now)
    await store.rollups.reopen([now])
    await store.rollups.forget()
    await store.rollups.advance()
    await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERING"}})
    assert await total(store, status=("DELIVERING",)) == 1


async def test_inserted_reopens_the_hour_of_a_slow_insert(store, db, monkeypatch):
    await store.writer.insert([new_event()])
    assert await db.hour_kinds.count_documents({}) == 0
    monkeypatch.setattr(rollups, "MARGIN", timedelta(0))
    await store.writer.insert([new_event()])
    assert await db.hour_kinds.count_documents({"reopened_at": {"$exists": True}}) == 1


async def test_rollups_store_nothing_for_an_hour_of_too_many_pairs(store, db, now, monkeypatch):
    monkeypatch.setattr(rollups, "MAX_PAIRS", 2)
    for kind in "abc":
        await put(db, now, kind=kind)
    await store.rollups.advance()
    assert await stored_total(store, db) == 0
    assert await total(store) == 3


REPLAY = Instruction(Action.REPLAY, "r", "ann", "127.0.0.1")


async def replay_one(store, event_id):
    await store.bulk_actions.apply(event_id, REPLAY)


async def replay_in_bulk(store, _):
    await store.bulk_actions.start(
        REPLAY, filters='{"event_type": "a"}', limit=1, per_second=None, matched=1
    )
    taken = await store.bulk_actions.take("w")
    while await store.bulk_actions.step(taken):
        pass


@pytest.mark.parametrize("replay", [replay_one, replay_in_bulk])
async def test_replay_reopens_the_hours_of_its_events(store, db, now, replay):
    event_id = await put(db, now)
    await put(db, now + HOUR)
    await store.rollups.advance()
    await replay(store, event_id)
    await store.rollups.advance()
    assert await total(store) == 2
    assert await total(store, status=("DELIVERED",)) == 1
    assert await total(store, status=("RECEIVED", "DELIVERING")) == 1


async def test_rollups_do_not_trust_hours_with_possibly_deleted_events(store, db, now):
    """Events deleted by MongoDB's TTL monitor are not counted, and all others are."""
    old, young = await put(db, now - 50 * HOUR), await put(db, now - 10 * HOUR)
    late = await put(db, now - 50 * HOUR)
    await store.rollups.advance()
    await store.keep_for(1)
    await db.events.delete_one({"_id": old})
    await store.rollups.advance()
    assert await total(store) == 2
    assert await stored_total(store, db) == 1
    await db.events.delete_many({"_id": {"$in": [young, late]}})
    await store.keep_for(None)
    await store.rollups.advance()
    assert await total(store) == 0


async def test_advance_removes_an_hour_only_once_no_replica_trusts_it(store, db):
    """Otherwise a search that has begun to read it would find an hour without events."""
    store.rollups.keep_for(24 * 3600)
    since = await store.rollups._trusted_since()
    old, lately_trusted = since - 2 * HOUR, since - HOUR
    await db.hour_kinds.insert_many([{"_id": old}, {"_id": lately_trusted}])
    await store.rollups.advance()
    assert await db.hour_kinds.distinct("_id") == [lately_trusted]


async def test_control_trusted_hours_would_count_deleted_events(store, db, now):
    old = await put(db, now - 50 * HOUR)
    await store.rollups.advance()
    await db.events.delete_one({"_id": old})
    assert await total(store) == 1
