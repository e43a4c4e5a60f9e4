"""The dispatch loop on real engines: events are sent, retried, replayed and cancelled."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from itertools import pairwise

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from tests.dispatchers import QUICK, all_are, running, statuses
from tests.support import clock_caught_up, eventually, new_event, sample
from wds.domain.deliveries import Claim, Outcome, Status
from wds.domain.invariants import Expectations, violations
from wds.domain.operator_actions import Action, Instruction


async def test_run_sends_every_event_once_with_its_exact_bytes(settings, store, db, receiver):
    events = [new_event(b'{"n": %d}' % number) for number in range(300)]
    await store.writer.insert(events)
    async with running(replace(settings, **QUICK), store, receiver.url):
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
    assert sorted(receiver.ids) == sorted(event.id for event in events)
    bodies = {request.headers["webhook-id"]: request.body for request in receiver.requests}
    assert bodies == {event.id: event.payload for event in events}


async def test_attempt_is_stored_with_all_that_is_known_of_it(settings, store, db, receiver):
    await store.writer.insert([new_event()])
    async with running(replace(settings, **QUICK), store, receiver.url):
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
    [document] = await db.events.find().to_list(None)
    [attempt] = document["attempts"]
    assert document["received_at"] <= attempt["timestamp"] <= document["finished_at"]
    del attempt["timestamp"], attempt["duration_ms"]
    assert attempt == {
        "attempt_number": 1,
        "status_code": 200,
        "success": True,
        "outcome": "success",
        "error": None,
        "response": "ok",
    }


async def test_event_fails_permanently_after_five_failures_that_back_off(
    settings, store, db, receiver
):
    async def fail(_: web.Request) -> web.Response:
        return web.Response(status=500, text="no")

    receiver.answer = fail
    await store.writer.insert([new_event()])
    async with running(replace(settings, **QUICK), store, receiver.url):
        await eventually(lambda: statuses(db), all_are(Status.FAILED_PERMANENTLY))
    [document] = await db.events.find().to_list(None)
    assert [each["attempt_number"] for each in document["attempts"]] == [1, 2, 3, 4, 5]
    assert {each["status_code"] for each in document["attempts"]} == {500}
    assert document["attempt_count"] == 5
    waits = [later.at - earlier.at for earlier, later in pairwise(receiver.requests)]
    for waited, delay in zip(waits, QUICK["backoff"], strict=True):
        assert waited >= delay
    numbers = [request.headers["webhook-attempt"] for request in receiver.requests]
    assert numbers == ["1", "2", "3", "4", "5"]


async def test_replayed_event_starts_the_retry_schedule_again(settings, store, db, receiver):
    async def fail(_: web.Request) -> web.Response:
        return web.Response(status=500)

    receiver.answer = fail
    event = new_event()
    await store.writer.insert([event])
    async with running(replace(settings, **QUICK), store, receiver.url):
        await eventually(lambda: statuses(db), all_are(Status.FAILED_PERMANENTLY))
        instruction = Instruction(Action.REPLAY, "r", "ann", "127.0.0.1")
        await store.bulk_actions.apply(event.id, instruction)
        await eventually(lambda: len(receiver.requests), lambda n: n == 10)
        await eventually(lambda: statuses(db), all_are(Status.FAILED_PERMANENTLY))
    numbers = [int(request.headers["webhook-attempt"]) for request in receiver.requests]
    assert numbers == list(range(1, 11))
    waits = [later.at - earlier.at for earlier, later in pairwise(receiver.requests)]
    for waited, delay in zip(waits, (*QUICK["backoff"], 0, *QUICK["backoff"]), strict=True):
        assert waited >= delay
    [document] = await db.events.find().to_list(None)
    expected = Expectations(await store.now(), 5, QUICK["backoff"], 60)
    assert list(violations(document, expected)) == []


async def test_retry_after_of_the_receiver_lengthens_the_backoff(settings, store, db, receiver):
    async def busy_once(_: web.Request) -> web.Response:
        if len(receiver.requests) > 1:
            return web.Response()
        return web.Response(status=429, headers={"Retry-After": "1"})

    receiver.answer = busy_once
    await store.writer.insert([new_event()])
    async with running(replace(settings, **QUICK), store, receiver.url):
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
    first, second = receiver.requests
    assert second.at - first.at >= 1


async def test_cancelled_event_is_not_sent_again(settings, store, db, receiver):
    release = asyncio.Event()

    async def fail_late(_: web.Request) -> web.Response:
        await release.wait()
        return web.Response(status=500)

    receiver.answer = fail_late
    event = new_event()
    await store.writer.insert([event])
    async with running(replace(settings, **QUICK), store, receiver.url) as dispatcher:
        await eventually(lambda: len(receiver.requests))
        await store.bulk_actions.apply(
            event.id, Instruction(Action.CANCEL, "r", "ann", "127.0.0.1")
        )
        release.set()
        await eventually(lambda: statuses(db), all_are(Status.FAILED_PERMANENTLY))
        assert await dispatcher.run_once() > 0  # nothing is due
    assert len(receiver.requests) == 1


async def test_log_line_of_a_cancelled_attempt_announces_no_retry(settings, store, receiver):
    release = asyncio.Event()

    async def fail_late(_: web.Request) -> web.Response:
        await release.wait()
        return web.Response(status=500)

    receiver.answer = fail_late
    event = new_event()
    await store.writer.insert([event])
    failures = sample("wds_deliveries_failed_total")
    with capture_logs() as lines:
        async with running(replace(settings, **QUICK), store, receiver.url):
            await eventually(lambda: len(receiver.requests))
            await store.bulk_actions.apply(
                event.id, Instruction(Action.CANCEL, "r", "ann", "127.0.0.1")
            )
            release.set()
    [line] = [each for each in lines if each["event"] == "attempt"]
    assert (line["status"], line["retry_in_s"]) == (Status.FAILED_PERMANENTLY, None)
    assert line["cancelled"] is True
    assert sample("wds_deliveries_failed_total") == failures


@pytest.mark.parametrize("others", [0, 2], ids=["alone", "among others"])
async def test_cancelled_event_of_a_dead_dispatcher_is_not_counted_as_failed(
    settings, store, db, receiver, others
):
    """The others' lost attempt was their last: the alert on failed events is for these."""
    cancelled, *rest = [new_event() for _ in range(1 + others)]
    await store.writer.insert([cancelled, *rest])
    await clock_caught_up(store)
    await store.queue.claim("default", 1 + others, owner="doomed", lease_s=60, max_attempts=5)
    await store.bulk_actions.apply(
        cancelled.id, Instruction(Action.CANCEL, "r", "ann", "127.0.0.1")
    )
    last = {"$set": {"attempt_count": 5}}
    await db.events.update_many({"_id": {"$ne": cancelled.id}}, last)
    past = [{"$set": {"next_attempt_at": {"$subtract": ["$$NOW", 1000]}}}]
    await db.events.update_many({}, past)
    failures = sample("wds_deliveries_failed_total")
    unknown = sample("wds_attempts_total", outcome=Outcome.UNKNOWN)
    with capture_logs() as lines:
        async with running(replace(settings, **QUICK), store, receiver.url):
            await eventually(lambda: statuses(db), all_are(Status.FAILED_PERMANENTLY))
    logged = {(each["event"], each["event_id"]) for each in lines if "event_id" in each}

    assert logged == {
        ("cancelled_attempt_lost", cancelled.id),
        *(("buried", each.id) for each in rest),
    }
    assert sample("wds_deliveries_failed_total") == failures + others
    assert sample("wds_attempts_total", outcome=Outcome.UNKNOWN) == unknown + 1 + others
    assert not receiver.requests
    assert await db.events.count_documents({"attempts.outcome": "unknown"}) == 1 + others


async def test_delivery_leaves_no_reference_cycle(settings, store, db, receiver):
    """A cycle would hold the payload until the garbage collector runs."""
    quick = replace(settings, **QUICK)
    async with running(quick, store, receiver.url):
        gc.collect()
        gc.disable()
        try:
            events = {event.id: event for event in (new_event() for _ in range(20))}
            await store.writer.insert([*events.values()])
            await eventually(lambda: statuses(db), all_are(Status.DELIVERED))

            async def kept() -> list[str]:
                claims = [each for each in gc.get_objects() if type(each) is Claim]
                return [each.id for each in claims if each.id in events]

            # Not at once: the loop still holds the last batch.
            await eventually(kept, lambda ids: not ids)
        finally:
            gc.enable()
