"""New events on a real MongoDB: what an insert confirms, repeats and refuses."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from tests.integration.storage.leases import claim, only
from tests.support import new_event
from wds.domain.deliveries import Status
from wds.domain.errors import StoreUnavailableError
from wds.domain.events import Conflict, Receipt


async def test_insert_is_confirmed_by_a_majority_and_journaled(store, db):
    await db.command("profile", 2)
    await store.writer.insert([new_event()])
    await db.command("profile", 0)
    [entry] = await db["system.profile"].find({"op": "insert"}).to_list(None)
    concern = entry["command"]["writeConcern"]
    assert (concern["w"], concern["j"]) == ("majority", True)


async def test_insert_returns_the_first_receipt_or_a_conflict_for_a_taken_key(store, db):
    first, other = new_event(key="k"), new_event(b'{"n":2}', key="k")
    [stored] = await store.writer.insert([first])
    assert stored == Receipt(first.id, Status.RECEIVED, duplicate=False)
    assert await store.writer.insert([first]) == [replace(stored, duplicate=True)]
    assert await store.writer.insert([other]) == [Conflict(first.id, Status.RECEIVED)]
    assert (await only(db))["payload"] == first.payload


async def test_insert_distinguishes_repeats_within_one_write(store, db):
    first, other = new_event(key="k"), new_event(b'{"n":2}', key="k")
    results = await store.writer.insert([first, first, other, new_event()])
    assert [type(result) for result in results] == [Receipt, Receipt, Conflict, Receipt]
    assert [result.duplicate for result in results if isinstance(result, Receipt)] == [
        False,
        True,
        False,
    ]
    assert await db.events.count_documents({}) == 2


async def test_insert_with_a_lost_answer_stores_once_and_reports_no_duplicate(store, db):
    """The driver's own retry fails too, so the second insert finds what the first one wrote."""
    client = db.client
    await client.admin.command(
        "configureFailPoint",
        "failCommand",
        mode={"times": 2},
        data={"failCommands": ["insert"], "writeConcernError": {"code": 64, "errmsg": "lost"}},
    )
    results = await store.writer.insert([new_event(key="k"), new_event()])
    assert [result.duplicate for result in results] == [False, False]
    assert await db.events.count_documents({}) == 2


async def test_inserts_of_one_key_with_lost_answers_report_one_duplicate(store, db, monkeypatch):
    """Both begin within one millisecond, and find the event when they repeat the write."""
    instant = await store.now()
    monkeypatch.setattr(store._mongo, "now", lambda: asyncio.sleep(0, instant))
    fail = {"failCommands": ["insert"], "writeConcernError": {"code": 64, "errmsg": "lost"}}
    await db.client.admin.command("configureFailPoint", "failCommand", mode={"times": 4}, data=fail)
    event = new_event(key="k")
    results = await asyncio.gather(store.writer.insert([event]), store.writer.insert([event]))
    assert sorted(receipt.duplicate for [receipt] in results) == [False, True]
    assert (await only(db))["received_at"] <= instant


async def test_insert_without_confirmation_raises_store_unavailable(store, db, monkeypatch):
    monkeypatch.setattr("wds.storage.event_writer.WRITE_BUDGET_S", 0.3)
    fail = {"failCommands": ["insert"], "errorCode": 11600}
    await db.client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=fail)
    try:
        with pytest.raises(StoreUnavailableError):
            await store.writer.insert([new_event()])
    finally:
        await db.client.admin.command("configureFailPoint", "failCommand", mode="off")


async def test_insert_all_stores_every_event_or_none(store, db):
    [first] = await store.writer.insert([new_event(key="k")])
    batch = [new_event(), new_event(b'{"n":2}', key="k"), new_event()]
    results = await store.writer.insert_all(batch)
    assert Conflict(first.id, Status.RECEIVED) in results
    assert await db.events.count_documents({}) == 1
    batch[1] = new_event(key="k")
    repeated = new_event(key="twice")
    results = await store.writer.insert_all([*batch, repeated, repeated])
    assert [each.duplicate for each in results] == [False, True, False, False, True]
    assert await db.events.count_documents({}) == 4


async def test_insert_all_with_a_lost_commit_answer_stores_once(store, db):
    fail = {"failCommands": ["commitTransaction"], "closeConnection": True}
    await db.client.admin.command("configureFailPoint", "failCommand", mode={"times": 2}, data=fail)
    results = await store.writer.insert_all([new_event(), new_event(key="k")])
    assert [each.duplicate for each in results] == [False, False]
    assert await db.events.count_documents({}) == 2


async def test_insert_all_without_confirmation_stores_nothing(store, db, monkeypatch):
    monkeypatch.setattr("wds.storage.event_writer.WRITE_BUDGET_S", 0.3)
    monkeypatch.setattr("wds.storage.mongo.WRITE_BUDGET_S", 0.3)
    fail = {"failCommands": ["insert"], "errorCode": 11600}
    await db.client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=fail)
    try:
        with pytest.raises(StoreUnavailableError):
            await store.writer.insert_all([new_event(), new_event()])
    finally:
        await db.client.admin.command("configureFailPoint", "failCommand", mode="off")
    assert await db.events.count_documents({}) == 0


async def test_insert_takes_the_due_time_from_the_databases_clock(store, db, monkeypatch):
    wrong = datetime.now(UTC) + timedelta(minutes=5)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 300)
    await store.writer.insert([new_event()])
    assert (await only(db))["received_at"] < wrong - timedelta(minutes=4)
    assert len(await claim(store)) == 1


async def test_insert_without_a_trace_stores_no_trace_field(store, db):
    await store.writer.insert([new_event()])
    assert "trace" not in await only(db)
    [held] = await claim(store)
    assert held.trace is None
