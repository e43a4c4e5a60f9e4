"""A bulk action survives the death of its worker before or after any write."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from tests.support import new_event
from wds.actions.bulk_worker import TOO_SLOW, BulkWorker
from wds.domain.operator_actions import Action, Instruction
from wds.storage import action_queries
from wds.storage.bulk_actions import TRIES, BulkActions

EVENTS, LIMIT, CHUNK = 10, 8, 3
REPLAY = Instruction(Action.REPLAY, "r", "ann", "127.0.0.1")
FILTERS = '{"status": "FAILED_PERMANENTLY"}'


class DeathError(Exception):
    """The process is gone."""


class Mortal:
    """Makes calls to MongoDB, and dies before or after the last of a number of them."""

    def __init__(self, try_for, calls, *, answered):
        self._try_for = try_for
        self._left = calls
        self._answered = answered

    async def __call__(self, budget_s, call):
        self._left -= 1
        if self._left == 0 and not self._answered:
            raise DeathError
        result = await self._try_for(budget_s, call)
        if self._left == 0:
            raise DeathError
        return result


@pytest.fixture
async def failed(store, db, monkeypatch):
    """Make events that failed for good, oldest first; a bulk replay takes three at a time."""
    monkeypatch.setattr("wds.storage.bulk_actions.CHUNK", CHUNK)
    await store.writer.insert([new_event() for _ in range(EVENTS)])
    await fail_all(db)
    oldest_first = db.events.find({}, {"_id": 1}).sort([("received_at", 1), ("_id", 1)])
    return [each["_id"] async for each in oldest_first]


async def fail_all(db):
    """Let every live event fail for good, as a fast dispatcher would."""
    attempt = {"attempt_number": 1, "success": False, "outcome": "failure"}
    await db.events.update_many(
        {"next_attempt_at": {"$exists": True}},
        {
            "$push": {"attempts": attempt},
            "$set": {"status": "FAILED_PERMANENTLY"},
            "$inc": {"attempt_count": 1},
            "$currentDate": {"finished_at": True},
            "$unset": {"next_attempt_at": ""},
        },
    )


async def begin(store, limit=LIMIT):
    return await store.bulk_actions.start(
        REPLAY, filters=FILTERS, limit=limit, per_second=None, matched=EVENTS
    )


async def work(bulk):
    """Carry out the next free bulk action, without a pause between chunks."""
    held = await bulk.take("w")
    while held is not None and await bulk.step(held):
        pass


async def expire(db):
    await db.bulk_actions.update_many(
        {"lease": {"$exists": True}}, [{"$set": {"lease.until": {"$subtract": ["$$NOW", 1]}}}]
    )


async def histories(db, ids):
    found = [await db.events.find_one({"_id": each}) for each in ids]
    return [len(each.get("history", [])) for each in found]


# A run makes about 6 calls for each of 3 chunks; the last cases die in none of them.
@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("calls", range(1, 24))
async def test_bulk_action_changes_each_event_once_wherever_its_worker_dies(
    store, db, failed, calls, answered
):
    await begin(store)
    mortal = BulkActions(store._mongo, store.rollups)
    mortal._try_for = Mortal(mortal._try_for, calls, answered=answered)
    try:
        await work(mortal)
    except DeathError:
        # The replayed events fail again meanwhile, and match the filters once more.
        await fail_all(db)
        await expire(db)
        await work(store.bulk_actions)
    done = await store.bulk_actions.get("r")

    assert (done.state, done.examined, done.changed) == ("done", LIMIT, LIMIT)
    assert await histories(db, failed) == [1] * LIMIT + [0] * (EVENTS - LIMIT)


async def test_control_without_a_recorded_chunk_a_death_exceeds_the_limit(store, db, failed):
    """The worker plans in memory only, and dies after it changed the events."""
    await begin(store)
    mortal = BulkActions(store._mongo, store.rollups)
    mortal._try_for = Mortal(mortal._try_for, 5, answered=True)

    async def plan_in_memory(held):
        held.document["chunk"] = await mortal._next_chunk(held)
        await mortal._carry_out(held.document)

    held = await mortal.take("w")
    with pytest.raises(DeathError):
        await plan_in_memory(held)
    await expire(db)
    await work(store.bulk_actions)

    assert sum(await histories(db, failed)) > LIMIT


async def test_step_changes_nothing_after_its_lease_expired(store, db, failed):
    await begin(store, limit=None)
    slow = await store.bulk_actions.take("slow")
    assert await store.bulk_actions.step(slow)
    await expire(db)
    quick = await store.bulk_actions.take("quick")
    assert await store.bulk_actions.step(quick)
    before = await db.bulk_actions.find_one({})

    assert not await store.bulk_actions.step(slow)
    assert await db.bulk_actions.find_one({}) == before
    assert await histories(db, failed) == [1] * 6 + [0] * 4


async def test_take_never_leases_one_bulk_action_twice(store, failed):
    assert failed
    await begin(store)
    assert await store.bulk_actions.take("a") is not None
    assert await store.bulk_actions.take("b") is None


async def test_worker_fails_a_malformed_bulk_action_and_goes_on(store, db, failed):
    await db.bulk_actions.insert_one(
        action_queries.bulk_action_document(
            Instruction(Action.REPLAY, "broken", "ann", "127.0.0.1"),
            filters="not JSON",
            limit=None,
            per_second=None,
            matched=0,
            now=await store.now(),
        )
    )
    await begin(store)
    worker = BulkWorker(store.bulk_actions, owner="w")
    while await worker.run_once():
        pass

    broken, done = await store.bulk_actions.get("broken"), await store.bulk_actions.get("r")
    assert (broken.state, broken.failure) == ("failed", "JSONDecodeError")
    assert done.state == "done"
    assert sum(await histories(db, failed)) == LIMIT


@asynccontextmanager
async def too_slow(store, mode):
    """Let MongoDB end operations that have a time limit as if they had exceeded it."""
    admin = store._mongo._client.admin
    switch = {"configureFailPoint": "maxTimeAlwaysTimeOut"}
    await admin.command({**switch, "mode": mode})
    try:
        yield
    finally:
        await admin.command({**switch, "mode": "off"})


async def test_worker_fails_a_bulk_action_whose_search_is_always_too_slow(store, failed):
    assert failed
    await begin(store)
    worker = BulkWorker(store.bulk_actions, owner="w")
    async with too_slow(store, "alwaysOn"):
        assert await worker.run_once()
        assert not await worker.run_once()

    ended = await store.bulk_actions.get("r")
    assert (ended.state, ended.failure, ended.changed) == ("failed", TOO_SLOW, 0)


async def test_worker_retries_a_search_that_was_too_slow(store, db, failed):
    await begin(store)
    async with too_slow(store, {"times": TRIES - 1}):
        assert await BulkWorker(store.bulk_actions, owner="w").run_once()

    assert (await store.bulk_actions.get("r")).state == "done"
    assert sum(await histories(db, failed)) == LIMIT


async def test_forget_index_expires_only_finished_bulk_actions(store, db):
    assert store
    indexes = await db.bulk_actions.index_information()
    assert indexes["forget"]["expireAfterSeconds"] == action_queries.BULK_ACTION_KEPT_S
    assert indexes["forget"]["key"] == [("finished_at", 1)]
