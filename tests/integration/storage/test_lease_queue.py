"""The lease queue on a real MongoDB: what is durable, who holds what, what a finish needs."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from datetime import UTC, datetime, timedelta
from itertools import chain
from unittest.mock import AsyncMock

import pytest
from msgspec.structs import replace

from tests.support import clock_caught_up, eventually, new_event
from wds.domain.deliveries import Attempt, Outcome, Settlement, Status
from wds.domain.errors import StandaloneRefusedError, StoreUnavailableError
from wds.domain.events import Conflict, Receipt
from wds.domain.operator_actions import Action, Instruction
from wds.local import embedded_engines
from wds.storage import lease_queries, replicas as watch
from wds.storage.store import Store


async def claim(store: Store, limit: int = 1, *, lease_s: float = 30, owner: str = "d1", most=5):
    await clock_caught_up(store)
    claimed = await store.queue.claim(
        "default", limit, owner=owner, lease_s=lease_s, max_attempts=most
    )
    return claimed.claims


def attempt_of(claim, outcome: Outcome = Outcome.SUCCESS, response: str | None = "ok") -> Attempt:
    failed = outcome is Outcome.FAILURE
    return Attempt(
        attempt_number=claim.attempt_number,
        timestamp=claim.leased_at,
        outcome=outcome,
        status_code=500 if failed else 200,
        duration_ms=3,
        error="HTTP 500" if failed else None,
        response=response,
    )


def delivered(claim) -> Settlement:
    return Settlement(claim, attempt_of(claim), Status.DELIVERED)


def failed(claim, delay_s: float) -> Settlement:
    return Settlement(claim, attempt_of(claim, Outcome.FAILURE), Status.DELIVERING, delay_s)


async def only(db):
    [document] = await db.events.find().to_list(None)
    return document


async def expire(db) -> None:
    """Let every lease run out at once, by the database's own clock."""
    await db.events.update_many(
        {"lease": {"$exists": True}}, [{"$set": {"next_attempt_at": {"$subtract": ["$$NOW", 1]}}}]
    )


# -- insert -------------------------------------------------------------------------------------


async def test_writes_are_acknowledged_by_a_majority_and_journaled(store, db):
    await db.command("profile", 2)
    await store.writer.insert([new_event()])
    await db.command("profile", 0)
    [entry] = await db["system.profile"].find({"op": "insert"}).to_list(None)
    concern = entry["command"]["writeConcern"]
    assert (concern["w"], concern["j"]) == ("majority", True)


async def test_a_repeat_gets_the_first_receipt_and_another_payload_a_conflict(store, db):
    first, other = new_event(key="k"), new_event(b'{"n":2}', key="k")
    [stored] = await store.writer.insert([first])
    assert stored == Receipt(first.id, Status.RECEIVED, duplicate=False)
    assert await store.writer.insert([first]) == [replace(stored, duplicate=True)]
    assert await store.writer.insert([other]) == [Conflict(first.id, Status.RECEIVED)]
    assert (await only(db))["payload"] == first.payload


async def test_repeats_within_one_write_are_told_apart(store, db):
    first, other = new_event(key="k"), new_event(b'{"n":2}', key="k")
    results = await store.writer.insert([first, first, other, new_event()])
    assert [type(result) for result in results] == [Receipt, Receipt, Conflict, Receipt]
    assert [result.duplicate for result in results if isinstance(result, Receipt)] == [
        False,
        True,
        False,
    ]
    assert await db.events.count_documents({}) == 2


async def test_a_write_whose_answer_was_lost_is_written_once_and_is_no_duplicate(store, db):
    """The driver's own retry fails too, so the second insert meets what the first one wrote."""
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


async def test_of_two_inserts_at_once_whose_answers_were_lost_one_wrote_an_event(
    store, db, monkeypatch
):
    """Both begin within one millisecond, and meet the event when they write again."""
    instant = await store.now()
    monkeypatch.setattr(store._mongo, "now", AsyncMock(return_value=instant))
    fail = {"failCommands": ["insert"], "writeConcernError": {"code": 64, "errmsg": "lost"}}
    await db.client.admin.command("configureFailPoint", "failCommand", mode={"times": 4}, data=fail)
    event = new_event(key="k")
    results = await asyncio.gather(store.writer.insert([event]), store.writer.insert([event]))
    assert sorted(receipt.duplicate for [receipt] in results) == [False, True]
    assert (await only(db))["received_at"] <= instant


async def test_an_insert_that_is_never_confirmed_is_an_error(store, db, monkeypatch):
    monkeypatch.setattr("wds.storage.event_writer.WRITE_BUDGET_S", 0.3)
    fail = {"failCommands": ["insert"], "errorCode": 11600}
    await db.client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=fail)
    try:
        with pytest.raises(StoreUnavailableError):
            await store.writer.insert([new_event()])
    finally:
        await db.client.admin.command("configureFailPoint", "failCommand", mode="off")


async def test_a_batch_is_stored_whole_or_not_at_all(store, db):
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


async def test_a_batch_whose_commit_was_not_answered_is_stored_once(store, db):
    fail = {"failCommands": ["commitTransaction"], "closeConnection": True}
    await db.client.admin.command("configureFailPoint", "failCommand", mode={"times": 2}, data=fail)
    results = await store.writer.insert_all([new_event(), new_event(key="k")])
    assert [each.duplicate for each in results] == [False, False]
    assert await db.events.count_documents({}) == 2


async def test_a_batch_that_is_never_confirmed_leaves_nothing(store, db, monkeypatch):
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


async def test_a_new_event_is_due_at_once_whatever_this_machines_clock_says(store, db, monkeypatch):
    wrong = datetime.now(UTC) + timedelta(minutes=5)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 300)
    await store.writer.insert([new_event()])
    assert (await only(db))["received_at"] < wrong - timedelta(minutes=4)
    assert len(await claim(store)) == 1


# -- claim --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 10])
async def test_a_claim_leases_what_is_due_and_nothing_else(store, db, limit):
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


async def test_one_by_one_claims_come_in_due_order(store):
    events = [new_event(key=f"k{number}") for number in range(5)]
    for event in events:
        await store.writer.insert([event])
        await asyncio.sleep(0.002)  # the database's clock counts milliseconds
    claimed = [(await claim(store))[0].id for _ in events]
    assert claimed == [event.id for event in events]


async def race(claim_once, replicas: int) -> list[str]:
    """Let `replicas` claim everything at once; return the ids that they got, together."""

    async def work(number: int) -> list[str]:
        got: list[str] = []
        while ids := await claim_once(number):
            got += ids
        return got

    return list(chain(*await asyncio.gather(*map(work, range(replicas)))))


@pytest.mark.parametrize("limit", [1, 8])
async def test_no_event_is_leased_twice_however_many_race_for_it(settings, store, limit):
    events = [new_event() for _ in range(200)]
    await store.writer.insert(events)
    stores = [Store(settings.mongo_url or "", settings.mongo_db) for _ in range(6)]

    async def claim_once(number: int) -> list[str]:
        return [held.id for held in await claim(stores[number], limit, owner=f"d{number}")]

    got = await race(claim_once, len(stores))
    for each in stores:
        await each.close()
    assert sorted(got) == sorted(event.id for event in events)


async def test_control_reading_before_leasing_lets_two_replicas_have_one_event(store, db):
    """The same race without the atomic claim: look, then write. It must go wrong."""
    events = [new_event() for _ in range(200)]
    await store.writer.insert(events)

    async def claim_once(_: int) -> list[str]:
        found = await db.events.find(lease_queries.due("default")).limit(8).to_list(None)
        ids = [document["_id"] for document in found]
        await db.events.update_many(
            {"_id": {"$in": ids}}, lease_queries.claim(secrets.token_hex(4), "d", 30_000, 5)
        )
        return ids

    got = await race(claim_once, 6)
    assert len(got) > len(set(got))


async def test_an_expired_lease_is_taken_over_and_its_attempt_recorded_as_unknown(store, db):
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
async def test_a_claim_tells_how_long_the_event_was_due_and_whose_trace_it_belongs_to(
    store, db, limit
):
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


async def test_an_event_without_a_trace_has_no_field_for_one(store, db):
    await store.writer.insert([new_event()])
    assert "trace" not in await only(db)
    [held] = await claim(store)
    assert held.trace is None


@pytest.mark.parametrize("limit", [1, 8])
async def test_a_lease_lost_on_the_last_attempt_buries_the_event(store, db, limit):
    await store.writer.insert([new_event()])
    await claim(store, most=1)
    await expire(db)
    await clock_caught_up(store)
    claimed = await store.queue.claim("default", limit, owner="d2", lease_s=30, max_attempts=1)
    assert (claimed.claims, claimed.buried, claimed.lost) == ([], 1, 1)
    document = await only(db)
    assert claimed.buried_ids == [document["_id"]]
    assert document["status"] == "FAILED_PERMANENTLY"
    assert [attempt["outcome"] for attempt in document["attempts"]] == ["unknown"]
    assert document["finished_at"] is not None
    assert not {"lease", "next_attempt_at"} & set(document)


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "among others"])
async def test_an_event_that_a_lower_limit_ends_between_attempts_has_lost_none(store, db, others):
    await store.writer.insert([new_event() for _ in range(1 + others)])
    await db.events.update_many({}, {"$set": {"attempt_count": 2}})
    await clock_caught_up(store)
    claimed = await store.queue.claim("default", 8, owner="d", lease_s=30, max_attempts=2)
    assert (claimed.claims, claimed.buried, claimed.lost) == ([], 1 + others, 0)


async def test_a_claim_whose_answer_was_lost_is_found_again_by_its_token(store, db):
    await store.writer.insert([new_event() for _ in range(4)])
    fail = {"failCommands": ["update"], "writeConcernError": {"code": 64, "errmsg": "lost"}}
    await db.client.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=fail)
    assert len(await claim(store, 4)) == 4


@pytest.mark.parametrize("limit", [1, 2])
async def test_a_claim_ends_where_the_store_takes_a_slower_clock_to_be_ahead(
    store, db, monkeypatch, limit
):
    """As for some seconds after a failover to a member whose clock is behind."""
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


async def test_closing_waits_until_a_transaction_is_ended_that_is_being_given_up(
    settings, db, monkeypatch
):
    monkeypatch.setattr("wds.storage.event_writer.WRITE_BUDGET_S", 0.3)
    store = Store(settings.mongo_url, settings.mongo_db)
    await store.open()
    await store.ping()
    stall = {"failCommands": ["insert"], "blockConnection": True, "blockTimeMS": 600}
    await db.client.admin.command(
        "configureFailPoint", "failCommand", mode={"times": 1}, data=stall
    )
    with pytest.raises(StoreUnavailableError):
        await store.writer.insert_all([new_event()])
    assert store._mongo._endings
    await store.close()
    assert not store._mongo._endings


async def test_closing_leaves_nothing_behind_even_if_the_server_does_not_answer(settings, db):
    before = asyncio.all_tasks()
    store = Store(settings.mongo_url, settings.mongo_db)
    await store.open()
    await store.writer.insert_all([new_event()])
    stall = {"failCommands": ["endSessions"], "blockConnection": True, "blockTimeMS": 8000}
    await db.client.admin.command(
        "configureFailPoint", "failCommand", mode={"times": 2}, data=stall
    )
    try:
        async with asyncio.timeout(5):
            await store.close()
    finally:
        await db.client.admin.command("configureFailPoint", "failCommand", mode="off")
    assert asyncio.all_tasks() == before
    [server] = store._mongo._queue_client._topology._servers.values()
    assert not server.pool.conns


@pytest.mark.parametrize("what", ["ping", "report", "insert", "claim"])
async def test_whoever_is_cancelled_while_the_database_answers_goes_no_further(store, what):
    """Or a loop that was cancelled would begin its next turn, and its owner wait for ever."""
    calls = {
        "ping": store.ping,
        "report": lambda: store.replicas.report(owner="o", role="r", totals={"claimed": 1}),
        "insert": lambda: store.writer.insert([new_event()]),
        "claim": lambda: store.queue.claim("default", 2, owner="d", lease_s=0.001, max_attempts=99),
    }
    await store.writer.insert([new_event(), new_event()])
    await clock_caught_up(store)
    cancelled = 0
    for passes in range(60):
        await store.ping()  # over a connection that is made already, the last one was cut off
        task = asyncio.create_task(calls[what]())
        for _ in range(passes):
            await asyncio.sleep(0)
        if task.cancel():
            await asyncio.wait({task})
            assert task.cancelled(), passes
            cancelled += 1
    assert cancelled > 3
    [server] = store._mongo._queue_client._topology._servers.values()
    assert (server.pool.active_sockets, server.pool.requests) == (0, 0)


async def test_the_databases_clock_is_looked_at_anew_after_the_machine_was_suspended(
    store, monkeypatch
):
    """Events would be stored as received before, in an hour that may have been counted."""
    await store.now()
    asked = []
    hello, clock = store._mongo.hello, time.clock_gettime

    async def noted():
        asked.append(True)
        return await hello()

    monkeypatch.setattr(store._mongo, "hello", noted)
    await store.now()
    assert not asked
    monkeypatch.setattr(
        time, "clock_gettime", lambda of: clock(of) + 60 * (of == time.CLOCK_BOOTTIME)
    )
    await store.now()
    assert asked


# -- settle -------------------------------------------------------------------------------------


async def test_a_success_ends_the_event(store, db):
    await store.writer.insert([new_event()])
    [held] = await claim(store)
    done = delivered(held)
    assert await store.queue.settle([done]) == [done]
    document = await only(db)
    assert document["status"] == "DELIVERED"
    assert document["finished_at"] >= held.leased_at
    assert not {"lease", "next_attempt_at"} & set(document)
    assert document["attempts"] == [lease_queries.attempt_document(attempt_of(held))]


async def test_a_failure_is_due_again_after_its_delay_by_the_databases_clock(store, db):
    await store.writer.insert([new_event()])
    [held] = await claim(store)
    await store.queue.settle([failed(held, 2.0)])
    document = await only(db)
    waits = document["next_attempt_at"] - held.leased_at
    assert timedelta(seconds=2) <= waits < timedelta(seconds=3)
    assert document["status"] == "DELIVERING"
    assert "lease" not in document
    assert await claim(store) == []


async def test_a_deferred_claim_leaves_no_trace(store, db):
    await store.writer.insert([new_event()])
    before = await only(db)
    [held] = await claim(store)
    await store.queue.settle([Settlement(held, None)])
    after = await only(db)
    assert after == before
    [again] = await claim(store)
    assert again.attempt_number == 1


async def test_a_deferred_retry_stays_delivering(store, db):
    await store.writer.insert([new_event()])
    await store.queue.settle([failed((await claim(store))[0], 0)])
    [held] = await eventually(lambda: claim(store))
    await store.queue.settle([Settlement(held, None)])
    document = await only(db)
    assert (document["status"], document["attempt_count"]) == ("DELIVERING", 1)


async def test_a_finish_without_the_lease_is_refused_and_changes_nothing(store, db):
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


async def test_control_without_the_token_a_stale_finish_overwrites_the_newer_holder(
    store, db, monkeypatch
):
    """The same story with the fence taken out: the stale finish wins, so the fence matters."""
    monkeypatch.setattr(lease_queries, "held", lambda ids, _token: {"_id": {"$in": ids}})
    await store.writer.insert([new_event()])
    [lost] = await claim(store, owner="slow")
    await expire(db)
    [newer] = await claim(store, owner="quick")
    await store.queue.settle([failed(lost, 60)])
    document = await only(db)
    assert "lease" not in document
    assert newer.token


async def test_of_events_settled_together_each_gets_its_own_values(store, db):
    """Those of one claim that end alike are one write; MongoDB itself tells them apart."""
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
        assert event["attempts"] == [lease_queries.attempt_document(each.attempt)]
        assert event["last_status_code"] == (each.attempt.status_code or lease_queries.NO_ANSWER)
        assert "lease" not in event
        assert ("finished_at" in event) == (each.status is not Status.DELIVERING)
    for each in retried:
        waits = found[each.claim.id]["next_attempt_at"] - before
        assert each.delay_s <= waits.total_seconds() < each.delay_s + 0.9
    for each in deferred:
        event = found[each.claim.id]
        assert (event["status"], event["attempt_count"], event["attempts"]) == ("RECEIVED", 0, [])


async def test_an_event_that_mongodb_refuses_keeps_no_other_from_being_recorded(store, db):
    await store.writer.insert([new_event() for _ in range(8)])
    held = await claim(store, 8)
    await db.events.update_one({"_id": held[3].id}, {"$set": {"attempts": "damaged"}})
    with pytest.raises(StoreUnavailableError):
        await store.queue.settle([delivered(each) for each in held])
    assert await db.events.count_documents({"status": "DELIVERED"}) == 7


async def test_on_a_sharded_cluster_each_event_is_written_by_itself(store, db, monkeypatch):
    """An update of many is not safe there while data moves from shard to shard."""
    monkeypatch.setattr(store._mongo, "sharded", True)
    await store.writer.insert([new_event() for _ in range(5)])
    held = await claim(store, 5)
    await db.command("profile", 2)
    settlements = [delivered(each) for each in held]
    assert await store.queue.settle(settlements) == settlements
    await db.command("profile", 0)
    updates = await db["system.profile"].find({"op": "update"}).to_list(None)
    assert [each["command"]["multi"] for each in updates] == [False] * 5


async def test_a_late_settlement_beside_the_newer_holders_is_told_to_be_lost(store, db):
    await store.writer.insert([new_event()])
    [lost] = await claim(store)
    await expire(db)
    [newer] = await claim(store)
    late, timely = delivered(lost), failed(newer, 60)
    assert await store.queue.settle([late, timely]) == [None, timely]


async def test_settling_again_after_a_lost_answer_records_the_attempt_once(store, db):
    await store.writer.insert([new_event(), new_event()])
    held = await claim(store, 2)
    fail = {"failCommands": ["update"], "writeConcernError": {"code": 64, "errmsg": "lost"}}
    await db.client.admin.command("configureFailPoint", "failCommand", mode={"times": 2}, data=fail)
    settlements = [delivered(held[0]), failed(held[1], 9)]
    assert await store.queue.settle(settlements) == settlements
    for document in await db.events.find().to_list(None):
        assert len(document["attempts"]) == 1


async def test_a_retry_of_a_cancelled_event_ends_it_and_says_so(store, db):
    """Beside one that is retried, one that is delivered and one whose lease is lost."""
    await store.writer.insert([new_event() for _ in range(4)])
    stopped, retried, done, lost = await claim(store, 4)
    cancel = Instruction(Action.CANCEL, "r", "ann", "127.0.0.1")
    await store.bulk_actions.one(stopped.id, cancel)
    await db.events.update_one({"_id": lost.id}, {"$set": {"lease.token": "another"}})

    settlements = [failed(stopped, 9), failed(retried, 9), delivered(done), failed(lost, 9)]
    ended = await store.queue.settle(settlements)

    last = replace(settlements[0], status=Status.FAILED_PERMANENTLY, cancelled=True)
    assert ended == [last, settlements[1], settlements[2], None]
    found = {each["_id"]: each async for each in db.events.find()}
    assert found[stopped.id]["status"] == "FAILED_PERMANENTLY"
    assert found[stopped.id]["attempts"] == [lease_queries.attempt_document(settlements[0].attempt)]
    assert not {"lease", "next_attempt_at", "cancelling"} & set(found[stopped.id])
    assert "next_attempt_at" in found[retried.id]
    assert found[lost.id]["attempts"] == []


async def test_a_cancel_that_a_failover_undoes_between_two_writes_ends_nothing(
    store, db, monkeypatch
):
    await store.writer.insert([new_event()])
    [held] = await claim(store)
    await store.bulk_actions.one(held.id, Instruction(Action.CANCEL, "r", "ann", "127.0.0.1"))
    end = store.queue._end

    async def undone_after(settlements):
        ended = await end(settlements)
        await db.events.update_one({"_id": held.id}, {"$unset": {"cancelling": ""}})
        return ended

    monkeypatch.setattr(store, "_end", undone_after)
    assert await store.queue.settle([failed(held, 9)]) == [None]
    assert (await only(db))["lease"]["token"] == held.token


@pytest.mark.parametrize("text", ["$payload", "$$NOW", "{$gt: ''}", "a\0b", "x" * 1024])
async def test_what_a_downstream_answers_is_stored_as_text(store, db, text):
    await store.writer.insert([new_event()])
    [held] = await claim(store)
    attempt = replace(attempt_of(held, Outcome.FAILURE, text), error=text)
    await store.queue.settle([Settlement(held, attempt, Status.DELIVERING, 1)])
    [stored] = (await only(db))["attempts"]
    assert (stored["response"], stored["error"]) == (text, text)


# -- fleet, backlog, start ----------------------------------------------------------------------


async def test_heartbeats_add_up_and_the_silent_are_folded_in(store, db):
    await store.replicas.report(owner="a", role="ingest", totals={"events_received": 5})
    await store.replicas.report(owner="b", role="dispatcher", totals={"events_received": 0})
    await store.replicas.report(owner="a", role="ingest", totals={"events_received": 7})
    fleet = await store.replicas.fleet()
    assert {each["owner"]: each["totals"]["events_received"] for each in fleet["replicas"]} == {
        "a": 7,
        "b": 0,
    }
    await db.fleet.update_one(
        {},
        {"$set": {"replicas.$[a].seen_at": datetime(2020, 1, 1, tzinfo=UTC)}},
        array_filters=[{"a.owner": "a"}],
    )
    told = await store.replicas.report(owner="b", role="dispatcher", totals={"events_received": 1})
    fleet = await store.replicas.fleet()
    assert told["replicas"] == fleet["replicas"] and told["retired"] == fleet["retired"]
    assert timedelta() <= fleet["now"] - told["now"] < timedelta(seconds=5)
    assert [each["owner"] for each in fleet["replicas"]] == ["b"]
    assert fleet["retired"] == {"events_received": 7}


async def test_a_replica_folded_in_too_early_is_not_counted_twice(store, db):
    """As after an hour without MongoDB: the first to report folds in all the others."""
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    for owner, count in (("a", 100), ("b", 50)):
        await store.replicas.report(owner=owner, role="ingest", totals={"events_received": count})
    await db.fleet.update_one({}, {"$set": {"replicas.$[].seen_at": long_ago}})
    for owner, count in (("a", 101), ("b", 52)):
        await store.replicas.report(owner=owner, role="ingest", totals={"events_received": count})
    fleet = await store.replicas.fleet()
    own = sum(each["totals"]["events_received"] for each in fleet["replicas"])
    assert own + fleet["retired"]["events_received"] == 153


async def test_the_backlog_is_what_is_due_and_the_age_of_the_oldest(store, db):
    assert (await store.replicas.backlog("default")).due == 0
    await store.writer.insert([new_event() for _ in range(3)])
    await db.events.update_many(
        {}, [{"$set": {"next_attempt_at": {"$subtract": ["$$NOW", 60_000]}}}]
    )
    await claim(store)
    backlog = await store.replicas.backlog("default")
    assert backlog.due == 2
    assert 60 <= backlog.oldest_due_s < 70


async def test_many_due_events_are_counted_anew_only_now_and_then_and_few_each_time(
    store, monkeypatch
):
    now = time.monotonic()
    monkeypatch.setattr("wds.storage.replicas.monotonic", lambda: now)
    monkeypatch.setattr(watch, "MANY", 5)
    counts = []
    for step in (0, 0, 9, 1):
        now += step
        await store.writer.insert([new_event() for _ in range(4)])
        await clock_caught_up(store)
        counts.append((await store.replicas.backlog("default")).due)
    assert counts == [4, 8, 8, 16]


async def test_a_standalone_server_is_refused_with_the_cure(tmp_path):
    binary = embedded_engines._binary("mongod", embedded_engines._MONGOD)
    port = embedded_engines.free_port()
    arguments = ["--dbpath", str(tmp_path), "--port", str(port), "--bind_ip", "127.0.0.1"]
    process = await asyncio.create_subprocess_exec(
        str(binary), *arguments, "--nounixsocket", stdout=asyncio.subprocess.DEVNULL
    )
    store = Store(f"mongodb://127.0.0.1:{port}", "wds")
    try:
        with pytest.raises(StandaloneRefusedError, match=r"--replSet .* rs.initiate"):
            await store.open()
    finally:
        await store.close()
        process.terminate()
        await process.wait()
