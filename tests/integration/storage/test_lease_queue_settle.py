"""Settlements on a real MongoDB: what each end of a claim records, and the fence."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from msgspec.structs import replace

from tests.integration.storage.leases import attempt_of, claim, delivered, expire, failed, only
from tests.support import eventually, new_event
from wds.domain.deliveries import Outcome, Settlement, Status
from wds.domain.errors import StoreUnavailableError
from wds.domain.operator_actions import Action, Instruction
from wds.storage import lease_queries
from wds.storage.event_documents import NO_ANSWER, attempt_document


async def test_settle_delivered_makes_the_event_final(store, db):
    await store.writer.insert([new_event()])
    [held] = await claim(store)
    done = delivered(held)
    assert await store.queue.settle([done]) == [done]
    document = await only(db)
    assert document["status"] == "DELIVERED"
    assert document["finished_at"] >= held.leased_at
    assert not {"lease", "next_attempt_at"} & set(document)
    assert document["attempts"] == [attempt_document(attempt_of(held))]


async def test_settle_retry_is_due_after_its_delay_by_the_databases_clock(store, db):
    await store.writer.insert([new_event()])
    [held] = await claim(store)
    await store.queue.settle([failed(held, 2.0)])
    document = await only(db)
    delay = document["next_attempt_at"] - held.leased_at
    assert timedelta(seconds=2) <= delay < timedelta(seconds=3)
    assert document["status"] == "DELIVERING"
    assert "lease" not in document
    assert await claim(store) == []


async def test_settle_defer_restores_the_document(store, db):
    await store.writer.insert([new_event()])
    before = await only(db)
    [held] = await claim(store)
    await store.queue.settle([Settlement(held, None)])
    after = await only(db)
    assert after == before
    [again] = await claim(store)
    assert again.attempt_number == 1


async def test_settle_defer_of_a_retry_leaves_it_delivering(store, db):
    await store.writer.insert([new_event()])
    await store.queue.settle([failed((await claim(store))[0], 0)])
    [held] = await eventually(lambda: claim(store))
    await store.queue.settle([Settlement(held, None)])
    document = await only(db)
    assert (document["status"], document["attempt_count"]) == ("DELIVERING", 1)


async def test_settle_without_the_lease_changes_nothing(store, db):
    await store.writer.insert([new_event(key="mine"), new_event(key="lost")])
    mine, lost = sorted(
        await claim(store, 2, owner="slow"), key=lambda held: held.id != new_event(key="mine").id
    )
    await db.events.update_one(
        {"_id": lost.id}, [{"$set": {"next_attempt_at": {"$subtract": ["$$NOW", 1]}}}]
    )
    [newer] = await claim(store, owner="quick")
    assert newer.id == lost.id
    before = await db.events.find_one({"_id": lost.id})
    done = delivered(mine)
    assert await store.queue.settle([done, delivered(lost)]) == [done, None]
    assert await db.events.find_one({"_id": lost.id}) == before
    assert await store.queue.settle([delivered(newer)]) != [None]


async def test_control_settle_without_the_fence_overwrites_the_newer_holder(store, db, monkeypatch):
    """The same settlement with the fence removed: the late result replaces the newer lease."""
    monkeypatch.setattr(lease_queries, "fence", lambda ids, _token: {"_id": {"$in": ids}})
    await store.writer.insert([new_event()])
    [lost] = await claim(store, owner="slow")
    await expire(db)
    [newer] = await claim(store, owner="quick")
    await store.queue.settle([failed(lost, 60)])
    document = await only(db)
    assert "lease" not in document
    assert newer.token


async def test_settle_of_many_events_gives_each_its_own_values(store, db):
    """One write covers those of one claim that end alike; MongoDB picks each value by id."""
    await store.writer.insert([new_event() for _ in range(12)])
    held = await claim(store, 12)
    texts = ["$x", "$$ROOT", None, "same", "same", "a\0b"]
    codes = [200, None, 200, 503, 503, 204]
    ended = [
        Settlement(
            each, replace(attempt_of(each), status_code=code, response=text, error=text), status
        )
        for each, code, text, status in zip(
            held[:6], codes, texts, [Status.DELIVERED, Status.FAILED_PERMANENTLY] * 3, strict=True
        )
    ]
    retried = [
        Settlement(
            each, replace(attempt_of(each), status_code=code, error=text), Status.DELIVERING, delay
        )
        for each, code, text, delay in zip(
            held[6:10], codes, texts, [1.0, 2.0, 4.0, 8.0], strict=False
        )
    ]
    deferred = [Settlement(each, None) for each in held[10:]]
    settlements = [*ended, *retried, *deferred]
    random.shuffle(settlements)
    before = await store.now()
    assert await store.queue.settle(settlements) == settlements

    found = {each["_id"]: each async for each in db.events.find()}
    for each in [*ended, *retried]:
        event = found[each.claim.id]
        assert event["status"] == each.status
        assert event["attempts"] == [attempt_document(each.attempt)]
        assert event["last_status_code"] == (each.attempt.status_code or NO_ANSWER)
        assert "lease" not in event
        assert ("finished_at" in event) == (each.status is not Status.DELIVERING)
    for each in retried:
        delay = found[each.claim.id]["next_attempt_at"] - before
        assert each.delay_s <= delay.total_seconds() < each.delay_s + 0.9
    for each in deferred:
        event = found[each.claim.id]
        assert (event["status"], event["attempt_count"], event["attempts"]) == ("RECEIVED", 0, [])


async def test_settle_records_the_others_if_mongodb_refuses_one_event(store, db):
    await store.writer.insert([new_event() for _ in range(8)])
    held = await claim(store, 8)
    await db.events.update_one({"_id": held[3].id}, {"$set": {"attempts": "damaged"}})
    with pytest.raises(StoreUnavailableError):
        await store.queue.settle([delivered(each) for each in held])
    assert await db.events.count_documents({"status": "DELIVERED"}) == 7


async def test_settle_on_a_sharded_cluster_writes_each_event_by_itself(store, db, monkeypatch):
    """An update of many is not safe there while documents move between shards."""
    monkeypatch.setattr(store._mongo, "sharded", True)
    await store.writer.insert([new_event() for _ in range(5)])
    held = await claim(store, 5)
    await db.command("profile", 2)
    settlements = [delivered(each) for each in held]
    assert await store.queue.settle(settlements) == settlements
    await db.command("profile", 0)
    updates = await db["system.profile"].find({"op": "update"}).to_list(None)
    assert [each["command"]["multi"] for each in updates] == [False] * 5


async def test_settle_returns_none_for_a_late_settlement_beside_a_newer_one(store, db):
    await store.writer.insert([new_event()])
    [lost] = await claim(store)
    await expire(db)
    [newer] = await claim(store)
    late, timely = delivered(lost), failed(newer, 60)
    assert await store.queue.settle([late, timely]) == [None, timely]


async def test_settle_with_a_lost_answer_records_each_attempt_once(store, db):
    await store.writer.insert([new_event(), new_event()])
    held = await claim(store, 2)
    fail = {"failCommands": ["update"], "writeConcernError": {"code": 64, "errmsg": "lost"}}
    await db.client.admin.command("configureFailPoint", "failCommand", mode={"times": 2}, data=fail)
    settlements = [delivered(held[0]), failed(held[1], 9)]
    assert await store.queue.settle(settlements) == settlements
    for document in await db.events.find().to_list(None):
        assert len(document["attempts"]) == 1


async def test_settle_retry_of_a_cancelled_event_makes_it_final_and_returns_that(store, db):
    """Settled together with a retry, a delivery and an event whose lease is lost."""
    await store.writer.insert([new_event() for _ in range(4)])
    stopped, retried, done, lost = await claim(store, 4)
    cancel = Instruction(Action.CANCEL, "r", "ann", "127.0.0.1")
    await store.bulk_actions.apply(stopped.id, cancel)
    await db.events.update_one({"_id": lost.id}, {"$set": {"lease.token": "another"}})

    settlements = [failed(stopped, 9), failed(retried, 9), delivered(done), failed(lost, 9)]
    ended = await store.queue.settle(settlements)

    last = replace(settlements[0], status=Status.FAILED_PERMANENTLY, cancelled=True)
    assert ended == [last, settlements[1], settlements[2], None]
    found = {each["_id"]: each async for each in db.events.find()}
    assert found[stopped.id]["status"] == "FAILED_PERMANENTLY"
    assert found[stopped.id]["attempts"] == [attempt_document(settlements[0].attempt)]
    assert not {"lease", "next_attempt_at", "cancelling"} & set(found[stopped.id])
    assert "next_attempt_at" in found[retried.id]
    assert found[lost.id]["attempts"] == []


async def test_settle_retry_whose_cancel_a_failover_undoes_records_nothing(store, db, monkeypatch):
    await store.writer.insert([new_event()])
    [held] = await claim(store)
    await store.bulk_actions.apply(held.id, Instruction(Action.CANCEL, "r", "ann", "127.0.0.1"))
    settle = store.queue._settle

    async def undone_after(settlements):
        written = await settle(settlements)
        await db.events.update_one({"_id": held.id}, {"$unset": {"cancelling": ""}})
        return written

    monkeypatch.setattr(store.queue, "_settle", undone_after)
    assert await store.queue.settle([failed(held, 9)]) == [None]
    assert (await only(db))["lease"]["token"] == held.token


@pytest.mark.parametrize("text", ["$payload", "$$NOW", "{$gt: ''}", "a\0b", "x" * 1024])
async def test_settle_stores_the_answer_of_a_downstream_as_text(store, db, text):
    await store.writer.insert([new_event()])
    [held] = await claim(store)
    attempt = replace(attempt_of(held, Outcome.FAILURE, text), error=text)
    await store.queue.settle([Settlement(held, attempt, Status.DELIVERING, 1)])
    [stored] = (await only(db))["attempts"]
    assert (stored["response"], stored["error"]) == (text, text)
