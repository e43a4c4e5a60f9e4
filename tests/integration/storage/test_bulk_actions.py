"""A bulk action survives the death of whoever works on it, at whichever write it comes."""

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
    """Lets the calls to MongoDB through, until one: dies before it is made or after it is done."""

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
    """Have every live event fail for good, as a fast dispatcher would."""
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
    """Work on what is free to its end, with no patience between chunks."""
    taken = await bulk.take("w")
    while taken is not None and await bulk.step(taken):
        pass


async def expire(db):
    await db.bulk_actions.update_many(
        {"lease": {"$exists": True}}, [{"$set": {"lease.until": {"$subtract": ["$$NOW", 1]}}}]
    )


async def histories(db, ids):
    found = [await db.events.find_one({"_id": each}) for each in ids]
    return [len(each.get("history", [])) for each in found]


# A whole run makes about 6 calls a chunk and 3 chunks; the last cases die in none of them.
@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("calls", range(1, 24))
async def test_wherever_its_worker_dies_every_event_is_replayed_once_and_none_past_the_limit(
    store, db, failed, calls, answered
):
    await begin(store)
    mortal = BulkActions(store._mongo, store.rollups)
    mortal._try_for = Mortal(mortal._try_for, calls, answered=answered)
    try:
        await work(mortal)
    except DeathError:
        # What was replayed fails again meanwhile, and fits the filters once more.
        await fail_all(db)
        await expire(db)
        await work(store.bulk_actions)
    done = await store.bulk_actions.get("r")

    assert (done.state, done.examined, done.changed) == ("done", LIMIT, LIMIT)
    assert await histories(db, failed) == [1] * LIMIT + [0] * (EVENTS - LIMIT)


async def test_control_unless_the_chunk_is_written_down_first_a_death_leads_past_the_limit(
    store, db, failed
):
    """Plan in memory only, and die after the events were changed."""
    await begin(store)
    mortal = BulkActions(store._mongo, store.rollups)
    mortal._try_for = Mortal(mortal._try_for, 5, answered=True)

    async def plan_in_memory(taken):
        taken.document["chunk"] = await mortal._next_chunk(taken)
        await mortal._carry_out(taken.document)

    taken = await mortal.take("w")
    with pytest.raises(DeathError):
        await plan_in_memory(taken)
    await expire(db)
    await work(store.bulk_actions)

    assert sum(await histories(db, failed)) > LIMIT


async def test_a_worker_that_wakes_up_late_changes_nothing(store, db, failed):
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


async def test_what_is_being_worked_on_is_not_taken_twice(store, failed):
    assert failed
    await begin(store)
    assert await store.bulk_actions.take("a") is not None
    assert await store.bulk_actions.take("b") is None


async def test_one_that_cannot_be_carried_out_ends_and_does_not_keep_others_waiting(
    store, db, failed
):
    await db.bulk_actions.insert_one(
        action_queries.bulk_document(
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
    """Let MongoDB find that operations with a time limit have used it up."""
    admin = store._mongo._client.admin
    switch = {"configureFailPoint": "maxTimeAlwaysTimeOut"}
    await admin.command({**switch, "mode": mode})
    try:
        yield
    finally:
        await admin.command({**switch, "mode": "off"})


async def test_one_whose_events_take_too_long_to_find_ends_and_does_not_keep_others_waiting(
    store, failed
):
    assert failed
    await begin(store)
    worker = BulkWorker(store.bulk_actions, owner="w")
    async with too_slow(store, "alwaysOn"):
        assert await worker.run_once()
        assert not await worker.run_once()

    ended = await store.bulk_actions.get("r")
    assert (ended.state, ended.failure, ended.changed) == ("failed", TOO_SLOW, 0)


async def test_one_whose_events_were_slow_to_find_once_goes_on(store, db, failed):
    await begin(store)
    async with too_slow(store, {"times": TRIES - 1}):
        assert await BulkWorker(store.bulk_actions, owner="w").run_once()

    assert (await store.bulk_actions.get("r")).state == "done"
    assert sum(await histories(db, failed)) == LIMIT


async def test_finished_bulk_actions_are_forgotten_in_time_and_running_ones_never(store, db):
    assert store
    indexes = await db.bulk_actions.index_information()
    assert indexes["forget"]["expireAfterSeconds"] == action_queries.BULK_KEPT_S
    assert indexes["forget"]["key"] == [("finished_at", 1)]
