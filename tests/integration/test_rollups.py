"""Kept counts on a real database: always what counting all events would give."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tests.support import new_event
from wds import chart, queries, rollups
from wds.hours import HOUR, start_of
from wds.model import Action, Instruction, Status

STATUSES = [Status.DELIVERED, Status.DELIVERED, Status.FAILED_PERMANENTLY]
TYPES = ["a", "b", None]


@pytest.fixture
def now() -> datetime:
    """Return a full hour, some hours ago."""
    return start_of(datetime.now(UTC)) - 3 * HOUR


async def put(db, at: datetime, status: Status = Status.DELIVERED, kind: str | None = "a") -> str:
    """Store an event as if it had been received at `at`."""
    document = queries.event_document(new_event(event_type=kind), at) | {"status": status}
    if status not in (Status.RECEIVED, Status.DELIVERING):
        del document["next_attempt_at"]
    await db.events.insert_one(document)
    return document["_id"]


async def total(store, **filters) -> int:
    counts = await store.rollups.counts(**filters)
    sums = {await store.rollups.total(**filters)}
    sums |= {sum(each["count"] for each in counts[name]) for name in counts}
    assert len(sums) == 1, counts
    return sums.pop()


async def kept_alone(store, db) -> int:
    """Return what is counted when the events are gone: that part was kept."""
    events = await db.events.find().to_list(None)
    await db.events.delete_many({})
    try:
        return await total(store)
    finally:
        if events:
            await db.events.insert_many(events)


async def test_counts_are_exact_for_any_filters_before_while_and_after_hours_are_kept(
    store, db, now
):
    rng = random.Random(7)
    stored = []
    for _ in range(400):
        at = now - timedelta(seconds=rng.randrange(40 * 3600))
        status, kind = rng.choice(STATUSES), rng.choice(TYPES)
        if at.hour == 5:
            status = Status.DELIVERING
        await put(db, at, status, kind)
        stored.append((at, status, kind))

    async def check() -> None:
        for _ in range(25):
            begin = now - timedelta(seconds=rng.randrange(45 * 3600))
            filters = {
                "statuses": rng.choice([(), ("DELIVERED",), ("DELIVERED", "DELIVERING")]),
                "event_types": rng.choice([(), ("a",), ("a", "b")]),
                "received_from": rng.choice([None, begin, start_of(begin)]),
                "received_to": rng.choice([None, begin + timedelta(seconds=rng.randrange(90_000))]),
            }
            wanted = [
                each
                for each in stored
                if (not filters["statuses"] or each[1] in filters["statuses"])
                and (not filters["event_types"] or each[2] in filters["event_types"])
                and (filters["received_from"] is None or each[0] >= filters["received_from"])
                and (filters["received_to"] is None or each[0] < filters["received_to"])
            ]
            counts = await store.rollups.counts(**filters)
            for name, key in (
                ("by_status", lambda each: str(each[1])),
                ("by_event_type", lambda each: each[2] or ""),
                ("histogram", lambda each: start_of(each[0])),
            ):
                found = {each["_id"]: each["count"] for each in counts[name]}
                assert found == Counter(map(key, wanted))
            assert await store.rollups.total(**filters) == len(wanted)
            await check_outcomes(filters)

    async def check_outcomes(filters) -> None:
        wide = {**filters, "statuses": ()}
        counted = {
            each["_id"]: each["count"] for each in (await store.rollups.counts(**wide))["by_status"]
        }
        del wide["statuses"]
        bin_ = rng.choice([bin_ for bin_ in chart.BINS if bin_.length >= HOUR])
        found = Counter()
        for at, status, count in await store.rollups.outcomes(bin_.unit, bin_.size, **wide):
            found[chart.floor(at, bin_), status] += count
        expected = Counter(
            (chart.floor(at, bin_), str(status))
            for at, status, kind in stored
            if (not wide["event_types"] or kind in wide["event_types"])
            and (wide["received_from"] is None or at >= wide["received_from"])
            and (wide["received_to"] is None or at < wide["received_to"])
        )
        assert found == expected
        assert sum(counted.values()) == sum(found.values())

    await check()
    horizon = now - 20 * HOUR + timedelta(minutes=17)
    await store.rollups._keep([start_of(now) - n * HOUR for n in range(40, 19, -1)], horizon)
    await check()
    assert await store.rollups.advance() > 0
    assert await store.rollups.advance() == 0
    await check()
    live = sum(each[1] == Status.DELIVERING for each in stored)
    assert live > 0
    assert await kept_alone(store, db) == len(stored) - sum(each[0].hour == 5 for each in stored)


async def test_an_hour_is_kept_up_to_the_margin_and_then_further(store, db, now):
    for minute in (1, 20, 40):
        await put(db, now + timedelta(minutes=minute))
    for minute, kept in ((0, 0), (30, 2), (60, 3)):
        await store.rollups._keep([now], now + timedelta(minutes=minute))
        assert await kept_alone(store, db) == kept
        assert await total(store) == 3


async def test_what_is_younger_than_the_margin_is_not_kept(store, db):
    await put(db, datetime.now(UTC) - rollups.MARGIN + timedelta(seconds=61))
    await put(db, datetime.now(UTC) - rollups.MARGIN - timedelta(seconds=61))
    await store.rollups.advance()
    assert await kept_alone(store, db) == 1
    assert await total(store) == 2


async def test_an_hour_with_a_live_event_is_kept_once_that_is_final(store, db, now):
    event_id = await put(db, now, Status.RECEIVED)
    await put(db, now)
    await store.rollups.advance()
    assert await kept_alone(store, db) == 0
    await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERED"}})
    await store.rollups.advance()
    assert await kept_alone(store, db) == 2


async def test_a_backlog_is_not_counted_again_and_again(store, db, now, monkeypatch):
    """Counting would be for nothing, and cost about a second for a million events."""
    counted = []
    tally = store.rollups._tally

    async def noted(pipeline):
        spans = [each["received_at"] for each in pipeline[0]["$match"]["$or"]]
        counted.extend((span["$gte"], span["$lt"]) for span in spans)
        return await tally(pipeline)

    monkeypatch.setattr(store.rollups, "_tally", noted)
    for number in range(20):
        await put(db, now + timedelta(minutes=number), Status.DELIVERING)
    await put(db, now - 5 * HOUR)
    await store.rollups.advance()
    assert any(begin <= now - 5 * HOUR < end for begin, end in counted)
    assert not any(begin < now + HOUR and end > now for begin, end in counted)


async def test_a_reopened_hour_is_counted_anew_and_not_kept_for_a_while(store, db, now):
    event_id = await put(db, now)
    await put(db, now + HOUR)
    await store.rollups.advance()
    assert await kept_alone(store, db) == 2
    await store.rollups.reopen([now + timedelta(minutes=1)])
    await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERING"}})
    assert await total(store, statuses=("DELIVERING",)) == 1
    await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERED"}})
    await store.rollups.advance()
    assert await kept_alone(store, db) == 1
    held_since = datetime.now(UTC) - rollups.HOLD - timedelta(seconds=1)
    await db.hours.update_one({"_id": now}, {"$set": {"reopened_at": held_since}})
    await store.rollups.advance()
    assert await kept_alone(store, db) == 2


async def test_a_reopening_while_an_hour_is_being_counted_prevails(store, db, now, monkeypatch):
    event_id = await put(db, now)
    tally = store.rollups._tally

    async def tally_and_replay(pipeline):
        counted = await tally(pipeline)
        await store.rollups.reopen([now])
        await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERING"}})
        return counted

    monkeypatch.setattr(store.rollups, "_tally", tally_and_replay)
    await store.rollups.advance()
    monkeypatch.undo()
    assert await total(store, statuses=("DELIVERING",)) == 1


async def test_control_without_reopening_the_kept_count_is_wrong(store, db, now):
    event_id = await put(db, now)
    await store.rollups.advance()
    await db.events.update_one({"_id": event_id}, {"$set": {"status": "DELIVERING"}})
    assert await total(store, statuses=("DELIVERING",)) == 0


async def test_replicas_that_count_the_same_hours_count_them_once(store, db, now, monkeypatch):
    await put(db, now)
    tally = store.rollups._tally
    other = rollups.Rollups(store._mongo)

    async def tally_twice(pipeline):
        counted = await tally(pipeline)
        await other.advance()
        return counted

    monkeypatch.setattr(store.rollups, "_tally", tally_twice)
    await store.rollups.advance()
    monkeypatch.undo()
    assert await kept_alone(store, db) == 1


async def test_an_insert_that_took_long_reopens_its_hour(store, db, monkeypatch):
    await store.insert([new_event()])
    assert await db.hours.count_documents({}) == 0
    monkeypatch.setattr(rollups, "MARGIN", timedelta(0))
    await store.insert([new_event()])
    assert await db.hours.count_documents({"reopened_at": {"$exists": True}}) == 1


async def test_an_hour_of_too_many_types_is_counted_each_time(store, db, now, monkeypatch):
    monkeypatch.setattr(rollups, "MAX_KINDS", 2)
    for kind in "abc":
        await put(db, now, kind=kind)
    await store.rollups.advance()
    assert await kept_alone(store, db) == 0
    assert await total(store) == 3


REPLAY = Instruction(Action.REPLAY, "r", "ann", "127.0.0.1")


async def replay_one(store, event_id):
    await store.bulk.one(event_id, REPLAY)


async def replay_in_bulk(store, _):
    await store.bulk.start(
        REPLAY, wanted='{"event_type": "a"}', limit=1, per_second=None, matched=1
    )
    taken = await store.bulk.take("w")
    while await store.bulk.step(taken):
        pass


@pytest.mark.parametrize("replay", [replay_one, replay_in_bulk])
async def test_a_replay_reopens_the_hours_of_its_events(store, db, now, replay):
    event_id = await put(db, now)
    await put(db, now + HOUR)
    await store.rollups.advance()
    await replay(store, event_id)
    await store.rollups.advance()
    assert await total(store) == 2
    assert await total(store, statuses=("DELIVERED",)) == 1
    assert await total(store, statuses=("RECEIVED", "DELIVERING")) == 1


async def test_hours_in_which_events_may_have_been_deleted_are_not_trusted(store, db, now):
    """What MongoDB deletes on its own is not counted any more, and nothing else is missed."""
    old, young = await put(db, now - 50 * HOUR), await put(db, now - 10 * HOUR)
    late = await put(db, now - 50 * HOUR)
    await store.rollups.advance()
    await store.keep_for(1)
    await db.events.delete_one({"_id": old})
    await store.rollups.advance()
    assert await total(store) == 2
    assert await kept_alone(store, db) == 1
    await db.events.delete_many({"_id": {"$in": [young, late]}})
    await store.keep_for(None)
    await store.rollups.advance()
    assert await total(store) == 0


async def test_control_were_they_trusted_deleted_events_would_be_counted(store, db, now):
    old = await put(db, now - 50 * HOUR)
    await store.rollups.advance()
    await db.events.delete_one({"_id": old})
    assert await total(store) == 1
