"""The dispatch loop on real engines, with a receiver that writes down what reaches it."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import count, pairwise
from typing import TYPE_CHECKING

import pytest
from aiohttp import TCPConnector, web
from msgspec import structs
from structlog.testing import capture_logs

from tests.support import clock_caught_up, eventually, most_in_any_second, new_event, receiving
from wds.delivery.http_client import Deliverer, Result
from wds.delivery.poll_scheduler import (
    LISTEN_AFTER,
    LISTEN_MOST_S,
    LOOKS_APART_S,
    SPREAD_LEAST_S,
    SPREAD_MOST_S,
)
from wds.delivery.rate_limiter import Limiter
from wds.dispatcher import Dispatcher
from wds.domain.deliveries import Claim, Outcome, Status
from wds.domain.errors import StoreUnavailableError
from wds.domain.invariants import Expectations, violations
from wds.domain.operator_actions import Action, Instruction
from wds.local import embedded_engines
from wds.storage import change_stream, lease_queries
from wds.storage.mongo import uptime
from wds.telemetry import metrics

if TYPE_CHECKING:
    from wds.config import Settings

QUICK = {"rate_limit": 0, "backoff": (0.05, 0.1, 0.2, 0.4), "request_timeout": 10.0, "lease": 20.0}


@asynccontextmanager
async def replica(settings: Settings, store, url: str, *, owner: str = "d1", limited: bool = True):
    """Give one dispatcher, not yet running."""
    limiter = None
    if settings.rate_limit and limited:
        limiter = Limiter(
            settings.redis_url or "", settings.rate_limit, farthest_s=settings.slot_wait
        )
    deliverer = Deliverer(url, timeout_s=settings.request_timeout, connections=32)
    try:
        yield Dispatcher(settings, owner=owner, store=store, limiter=limiter, deliverer=deliverer)
    finally:
        await deliverer.close()
        if limiter is not None:
            await limiter.close()


@asynccontextmanager
async def running(settings: Settings, store, url: str, **more):
    """Run one dispatcher inside the block, and stop it as SIGTERM would."""
    async with replica(settings, store, url, **more) as dispatcher:
        task = asyncio.create_task(dispatcher.run())
        try:
            yield dispatcher
        finally:
            dispatcher.stop()
            await task


@pytest.fixture
async def receiver():
    async with receiving() as made:
        yield made


@pytest.fixture(autouse=True)
def own_destination(monkeypatch, destination):
    """Give each test a window of its own in the shared Redis."""
    original = Limiter.reserve

    async def reserve(self, name, count, **more):
        return await original(self, f"{destination}:{name}", count, **more)

    monkeypatch.setattr(Limiter, "reserve", reserve)


async def statuses(db) -> list[str]:
    return [document["status"] for document in await db.events.find().to_list(None)]


def all_are(*wanted: Status):
    return lambda seen: bool(seen) and set(seen) <= set(wanted)


async def test_every_event_is_sent_once_with_its_exact_bytes(settings, store, db, receiver):
    events = [new_event(b'{"n": %d}' % number) for number in range(300)]
    await store.writer.insert(events)
    async with running(replace(settings, **QUICK), store, receiver.url):
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
    assert sorted(receiver.ids) == sorted(event.id for event in events)
    bodies = {request.headers["webhook-id"]: request.body for request in receiver.requests}
    assert bodies == {event.id: event.payload for event in events}


async def test_an_attempt_is_logged_with_all_that_is_known_of_it(settings, store, db, receiver):
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


async def test_five_failures_back_off_and_then_the_event_is_given_up(settings, store, db, receiver):
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


async def test_a_replayed_event_has_the_whole_schedule_before_it_again(
    settings, store, db, receiver
):
    async def fail(_: web.Request) -> web.Response:
        return web.Response(status=500)

    receiver.answer = fail
    event = new_event()
    await store.writer.insert([event])
    async with running(replace(settings, **QUICK), store, receiver.url):
        await eventually(lambda: statuses(db), all_are(Status.FAILED_PERMANENTLY))
        instruction = Instruction(Action.REPLAY, "r", "ann", "127.0.0.1")
        await store.bulk_actions.one(event.id, instruction)
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


async def test_the_delays_begin_anew_with_a_replay(settings, store, receiver):
    event = new_event()
    await store.writer.insert([event])
    [claim] = (await store.queue.claim("default", 1, owner="d", lease_s=60, max_attempts=5)).claims
    failure = Result(500, "HTTP 500", None, 1, claim.held_since)
    async with replica(replace(settings, **QUICK), store, receiver.url) as dispatcher:
        for before in (0, 5, 50):
            decided = [
                dispatcher._decide(
                    structs.replace(claim, attempt_number=before + step, attempts_before=before),
                    failure,
                )
                for step in range(1, 6)
            ]
            assert [each.delay_s for each in decided[:4]] == list(QUICK["backoff"])
            assert [each.status for each in decided] == [Status.DELIVERING] * 4 + [
                Status.FAILED_PERMANENTLY
            ]


async def test_a_cancelled_event_is_sent_no_more(settings, store, db, receiver):
    release = asyncio.Event()

    async def fail_late(_: web.Request) -> web.Response:
        await release.wait()
        return web.Response(status=500)

    receiver.answer = fail_late
    event = new_event()
    await store.writer.insert([event])
    async with running(replace(settings, **QUICK), store, receiver.url) as dispatcher:
        await eventually(lambda: len(receiver.requests))
        await store.bulk_actions.one(event.id, Instruction(Action.CANCEL, "r", "ann", "127.0.0.1"))
        release.set()
        await eventually(lambda: statuses(db), all_are(Status.FAILED_PERMANENTLY))
        assert await dispatcher.run_once() > 0  # nothing is due
    assert len(receiver.requests) == 1


async def test_the_log_of_an_attempt_that_was_cancelled_promises_no_retry(
    settings, store, receiver
):
    release = asyncio.Event()

    async def fail_late(_: web.Request) -> web.Response:
        await release.wait()
        return web.Response(status=500)

    receiver.answer = fail_late
    event = new_event()
    await store.writer.insert([event])
    failures = metrics.DELIVERIES_FAILED._value.get()
    with capture_logs() as lines:
        async with running(replace(settings, **QUICK), store, receiver.url):
            await eventually(lambda: len(receiver.requests))
            await store.bulk_actions.one(
                event.id, Instruction(Action.CANCEL, "r", "ann", "127.0.0.1")
            )
            release.set()
    [line] = [each for each in lines if each["event"] == "attempt"]
    assert (line["status"], line["retry_in_s"]) == (Status.FAILED_PERMANENTLY, None)
    assert line["cancelled"] is True
    assert metrics.DELIVERIES_FAILED._value.get() == failures


@pytest.mark.parametrize("others", [0, 2], ids=["alone", "among others"])
async def test_a_cancelled_event_whose_dispatcher_died_is_none_that_failed(
    settings, store, db, receiver, others
):
    """The others' lost attempt was their last; the fleet's alert is for these."""
    cancelled, *rest = [new_event() for _ in range(1 + others)]
    await store.writer.insert([cancelled, *rest])
    await clock_caught_up(store)
    await store.queue.claim("default", 1 + others, owner="doomed", lease_s=60, max_attempts=5)
    await store.bulk_actions.one(cancelled.id, Instruction(Action.CANCEL, "r", "ann", "127.0.0.1"))
    last = {"$set": {"attempt_count": 5}}
    await db.events.update_many({"_id": {"$ne": cancelled.id}}, last)
    past = [{"$set": {"next_attempt_at": {"$subtract": ["$$NOW", 1000]}}}]
    await db.events.update_many({}, past)
    failures = metrics.DELIVERIES_FAILED._value.get()
    unknown = metrics.ATTEMPTS.labels(Outcome.UNKNOWN)
    lost = unknown._value.get()
    with capture_logs() as lines:
        async with running(replace(settings, **QUICK), store, receiver.url):
            await eventually(lambda: statuses(db), all_are(Status.FAILED_PERMANENTLY))
    told = {(each["event"], each["event_id"]) for each in lines if "event_id" in each}

    assert told == {
        ("cancelled_attempt_lost", cancelled.id),
        *(("buried", each.id) for each in rest),
    }
    assert metrics.DELIVERIES_FAILED._value.get() == failures + others
    assert unknown._value.get() == lost + 1 + others
    assert not receiver.requests
    assert await db.events.count_documents({"attempts.outcome": "unknown"}) == 1 + others


async def test_no_more_are_in_flight_than_allowed(settings, store, db, receiver):
    release = asyncio.Event()

    async def wait(_: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    receiver.answer = wait
    await store.writer.insert([new_event() for _ in range(12)])
    few = replace(settings, **QUICK, concurrency=4)
    async with running(few, store, receiver.url):
        await eventually(lambda: len(receiver.requests), lambda n: n == 4)
        await asyncio.sleep(few.poll_interval * 3)
        assert len(receiver.requests) == 4
        assert await db.events.count_documents({"lease": {"$exists": True}}) == 4
        release.set()
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))


async def test_a_finished_delivery_keeps_nothing_for_the_garbage_collector(
    settings, store, db, receiver
):
    """Cycles would hold payloads until thousands of objects have gathered."""
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


async def test_what_waits_to_be_recorded_lets_as_many_again_be_sent_and_no_more(
    settings, store, db, receiver, monkeypatch
):
    recorded = asyncio.Event()
    settle = store.queue.settle

    async def slowly(settlements):
        await recorded.wait()
        return await settle(settlements)

    monkeypatch.setattr(store, "settle", slowly)
    await store.writer.insert([new_event() for _ in range(30)])
    few = replace(settings, **QUICK, concurrency=4)
    async with running(few, store, receiver.url):
        try:
            await eventually(lambda: len(receiver.requests), lambda n: n == 8)
            await asyncio.sleep(few.poll_interval * 3)
            assert len(receiver.requests) == 8
            assert await db.events.count_documents({"lease": {"$exists": True}}) == 8
        finally:
            recorded.set()  # or the dispatcher would never stop
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
    assert len(set(receiver.ids)) == len(receiver.ids) == 30


@pytest.mark.alone
async def test_a_slow_way_to_the_downstream_does_not_break_the_limit(settings, store, db, receiver):
    """Connections that take as long as they like to make: the requests keep their distance."""
    delays = iter([0.3, 0.15, 0.0] * 20)
    connect = TCPConnector._create_connection

    async def slowly(self, *arguments, **more):
        await asyncio.sleep(next(delays))
        return await connect(self, *arguments, **more)

    async def close(_: web.Request) -> web.Response:
        return web.Response(headers={"Connection": "close"})

    receiver.answer = close
    await store.writer.insert([new_event() for _ in range(9)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TCPConnector, "_create_connection", slowly)
        async with running(replace(settings, rate_limit=3), store, receiver.url):
            await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
    assert most_in_any_second([request.at for request in receiver.requests]) <= 3


async def test_a_defect_in_a_turn_does_not_end_deliveries(settings, store, db, receiver):
    fail = {"failCommands": ["find", "findAndModify"], "errorCode": 2, "appName": "wds"}
    await store.writer.insert([new_event()])
    await db.client.admin.command("configureFailPoint", "failCommand", mode={"times": 3}, data=fail)
    async with running(replace(settings, **QUICK), store, receiver.url):
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))


async def test_what_waits_for_a_slot_is_counted_while_it_waits(settings, store, db, receiver):
    await store.writer.insert([new_event()])
    async with replica(replace(settings, rate_limit=1), store, receiver.url) as dispatcher:
        assert dispatcher._limiter is not None
        await dispatcher._limiter.reserve("default", 1)
        await dispatcher.run_once()
        assert metrics.SLOT_WAITING._value.get() == 1
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
        assert metrics.SLOT_WAITING._value.get() == 0


async def test_retry_after_lengthens_the_wait(settings, store, db, receiver):
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


@pytest.mark.alone
async def test_three_replicas_share_the_limit_and_use_it(settings, store, db, receiver):
    await store.writer.insert([new_event() for _ in range(15)])
    limited = replace(settings, rate_limit=3)
    async with (
        running(limited, store, receiver.url, owner="d1"),
        running(limited, store, receiver.url, owner="d2"),
        running(limited, store, receiver.url, owner="d3"),
    ):
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
    instants = [request.at for request in receiver.requests]
    assert len(instants) == len(set(receiver.ids)) == 15
    assert most_in_any_second(instants) <= 3


async def test_control_without_the_shared_limit_there_are_more_in_a_second(
    settings, store, db, receiver
):
    await store.writer.insert([new_event() for _ in range(15)])
    limited = replace(settings, rate_limit=3)
    async with (
        running(limited, store, receiver.url, owner="d1", limited=False),
        running(limited, store, receiver.url, owner="d2", limited=False),
    ):
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
    assert most_in_any_second([request.at for request in receiver.requests]) > 3


async def test_a_turn_claims_no_more_than_can_be_sent_soon(settings, store, db, receiver):
    await store.writer.insert([new_event() for _ in range(30)])
    limited = replace(settings, rate_limit=8)
    async with replica(limited, store, receiver.url) as dispatcher:
        assert dispatcher._limiter is not None
        await dispatcher._limiter.reserve("default", 8)  # so that what is claimed has to wait
        await dispatcher.run_once()
        assert await dispatcher.run_once() == 0
        assert await db.events.count_documents({"lease": {"$exists": True}}) == 2
        dispatcher.stop()
        await dispatcher.run()


async def test_a_claim_without_a_slot_in_time_is_deferred_and_not_counted(
    settings, store, db, receiver
):
    await store.writer.insert([new_event()])
    limited = replace(settings, rate_limit=1)
    async with replica(limited, store, receiver.url) as dispatcher:
        assert dispatcher._limiter is not None
        await dispatcher._limiter.reserve("default", 5)
        wait = await dispatcher.run_once()
        assert 0 < wait <= 1.1
        await eventually(lambda: statuses(db), all_are(Status.RECEIVED))
        [document] = await db.events.find().to_list(None)
        assert (document["attempt_count"], document["attempts"]) == (0, [])
        assert "lease" not in document
    assert receiver.requests == []


async def test_stopping_defers_what_waits_and_finishes_what_is_sent(
    settings, store, db, receiver, monkeypatch
):
    release = asyncio.Event()

    async def slowly(_: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    receiver.answer = slowly
    await store.writer.insert([new_event() for _ in range(4)])
    async with replica(replace(settings, rate_limit=1), store, receiver.url) as dispatcher:
        limiter = dispatcher._limiter
        assert limiter is not None
        reserve = limiter.reserve
        claims = count()

        async def all_but_the_firsts_far_ahead(*arguments, **more):
            reservation = await reserve(*arguments, **more)
            # With one to give back it is another try of the first, which came too late.
            ahead = 60 if "give_back" not in more and next(claims) else 0
            slots = [
                structs.replace(slot, ready_at=slot.ready_at + ahead, use_by=slot.use_by + ahead)
                for slot in reservation.slots
            ]
            return structs.replace(reservation, slots=slots)

        monkeypatch.setattr(limiter, "reserve", all_but_the_firsts_far_ahead)
        task = asyncio.create_task(dispatcher.run())
        leased = {"lease": {"$exists": True}}
        await eventually(lambda: db.events.count_documents(leased), lambda count: count == 2)
        await eventually(lambda: len(receiver.requests))
        dispatcher.stop()
        release.set()
        await task
    seen = sorted(await statuses(db))
    assert seen == ["DELIVERED", "RECEIVED", "RECEIVED", "RECEIVED"]
    assert await db.events.count_documents(leased) == 0
    assert len(receiver.requests) == 1


async def leased(store, settings: Settings) -> Claim:
    """Claim the one event, waiting until it is due."""
    found = await eventually(
        lambda: store.queue.claim("default", 1, owner="d1", lease_s=settings.lease, max_attempts=5),
        lambda claimed: claimed.claims,
    )
    return found.claims[0]


async def test_a_claim_older_than_its_lease_allows_is_not_sent(settings, store, db, receiver):
    """As after a long stall: the lease may pass to another while this request is under way."""
    await store.writer.insert([new_event()])
    quick = replace(settings, **QUICK)
    async with replica(quick, store, receiver.url) as dispatcher:
        held = await leased(store, quick)
        stalled = structs.replace(held, trusted_until=uptime() + quick.request_timeout / 2)
        await dispatcher._deliver(stalled, None)
        assert receiver.requests == []
        assert await statuses(db) == [Status.RECEIVED]
        await dispatcher._deliver(await leased(store, quick), None)
    assert len(receiver.requests) == 1


async def test_a_claim_from_before_the_machine_was_suspended_is_not_sent(
    settings, store, db, receiver, monkeypatch
):
    """Its lease went on meanwhile, by a clock that counted; `time.monotonic()` did not."""
    await store.writer.insert([new_event()])
    quick = replace(settings, **QUICK)
    clock = time.clock_gettime
    async with replica(quick, store, receiver.url) as dispatcher:
        held = await leased(store, quick)
        with monkeypatch.context() as suspended:
            suspended.setattr(
                time, "clock_gettime", lambda of: clock(of) + 60 * (of == time.CLOCK_BOOTTIME)
            )
            await dispatcher._deliver(held, None)
        assert receiver.requests == []
        assert await statuses(db) == [Status.RECEIVED]
        await dispatcher._deliver(await leased(store, quick), None)
    assert len(receiver.requests) == 1


async def test_an_outcome_after_the_lease_has_passed_on_is_refused_and_counted(
    settings, store, db, receiver
):
    await store.writer.insert([new_event()])
    quick = replace(settings, **QUICK)
    lost_before = metrics.LEASES_LOST._value.get()

    async def take_over(_: web.Request) -> web.Response:
        await db.events.update_one({}, {"$set": {"lease.token": "another's"}})
        return web.Response()

    receiver.answer = take_over
    async with replica(quick, store, receiver.url) as dispatcher:
        await dispatcher.run_once()
        await eventually(lambda: not dispatcher._deliveries)
    [document] = await db.events.find().to_list(None)
    assert (document["status"], document["attempts"]) == ("DELIVERING", [])
    assert document["lease"]["token"] == "another's"
    assert metrics.LEASES_LOST._value.get() == lost_before + 1


async def test_while_redis_is_away_nothing_is_sent_and_nothing_is_counted(
    settings, store, db, receiver, tmp_path
):
    port = embedded_engines.free_port()
    away = replace(settings, redis_url=f"redis://127.0.0.1:{port}/0")
    await store.writer.insert([new_event() for _ in range(3)])
    async with running(away, store, receiver.url):
        deferred = metrics.CLAIMS_DEFERRED._value.get()
        await eventually(
            metrics.CLAIMS_DEFERRED._value.get,
            lambda seen: seen > deferred,
        )
        await eventually(lambda: statuses(db), all_are(Status.RECEIVED))
        assert receiver.requests == []
        server = await embedded_engines.start_redis(tmp_path, port=port)
        try:
            await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
        finally:
            await server.stop()
    for document in await db.events.find().to_list(None):
        assert [each["attempt_number"] for each in document["attempts"]] == [1]


async def test_while_mongodb_fails_the_loop_waits_and_then_goes_on(settings, store, db, receiver):
    fail = {"failCommands": ["find", "findAndModify"], "errorCode": 11600}
    await store.writer.insert([new_event()])
    await db.client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=fail)
    try:
        async with running(replace(settings, **QUICK), store, receiver.url) as dispatcher:
            with pytest.raises(StoreUnavailableError):
                await dispatcher.run_once()
            assert receiver.requests == []
            await db.client.admin.command("configureFailPoint", "failCommand", mode="off")
            await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
    finally:
        await db.client.admin.command("configureFailPoint", "failCommand", mode="off")


async def test_a_settlement_survives_the_cancellation_of_the_delivery(
    settings, store, db, receiver
):
    await store.writer.insert([new_event()])
    async with replica(replace(settings, **QUICK), store, receiver.url) as dispatcher:
        settle = store.queue.settle
        entered = asyncio.Event()

        async def slow_settle(settlements):
            entered.set()
            await asyncio.sleep(0.05)
            return await settle(settlements)

        dispatcher._settler._commit = slow_settle
        await dispatcher.run_once()
        await entered.wait()
        for task in list(dispatcher._deliveries):
            task.cancel()
        await dispatcher._settler.drain()
    assert await statuses(db) == [Status.DELIVERED]


def looks_of(store, monkeypatch) -> list[float]:
    """Return the instants of all looks at the queue from now on."""
    instants: list[float] = []
    peek = store.queue._peek

    async def noted(*arguments):
        instants.append(time.monotonic())
        return await peek(*arguments)

    monkeypatch.setattr(store, "_peek", noted)
    return instants


async def test_an_idle_dispatcher_hardly_looks(settings, store, receiver, monkeypatch):
    async with running(settings, store, receiver.url, limited=False):
        await eventually(lambda: store.change_stream._cursor)
        looks = looks_of(store, monkeypatch)
        await eventually(lambda: len(looks), lambda seen: seen >= 4)
    assert looks[3] - looks[0] >= 2 * LISTEN_MOST_S


async def test_an_idle_dispatcher_sends_what_it_is_told_of(
    settings, store, db, receiver, monkeypatch
):
    """Looking alone would find it after a minute."""
    monkeypatch.setattr(change_stream, "MOST_S", 60.0)
    told = replace(settings, poll_interval=60, lease=120)
    async with running(told, store, receiver.url, limited=False) as dispatcher:
        await eventually(lambda: store.change_stream._cursor)
        for _ in range(3):
            await eventually(
                lambda: dispatcher._lookout._in_vain,
                lambda looks: looks >= LISTEN_AFTER,
            )
            await store.writer.insert([new_event()])
            await eventually(lambda: statuses(db), all_are(Status.DELIVERED))


async def test_an_idle_dispatcher_sends_a_retry_when_it_is_due(
    settings, store, db, receiver, monkeypatch
):
    """Looking alone would find it after a minute."""
    monkeypatch.setattr(change_stream, "MOST_S", 60.0)

    async def fail_once(request: web.Request) -> web.Response:
        return web.Response(status=500 if request.headers["webhook-attempt"] == "1" else 200)

    receiver.answer = fail_once
    told = replace(settings, poll_interval=60, lease=120, backoff=(1.5,), rate_limit=0)
    async with running(told, store, receiver.url):
        await store.writer.insert([new_event()])
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
    [first, second] = [request.at for request in receiver.requests]
    assert second - first >= 1.5


@pytest.mark.parametrize("refused", [False, True])
async def test_a_dispatcher_that_is_not_told_looks(settings, store, receiver, monkeypatch, refused):
    monkeypatch.setattr(store.change_stream, "_try_at", math.inf if refused else 0)
    alone = replace(settings, listen=refused)
    async with running(alone, store, receiver.url, limited=False):
        looks = looks_of(store, monkeypatch)
        await eventually(lambda: len(looks), lambda seen: seen > 20)
    assert looks[20] - looks[0] >= 20 * 0.75 * alone.poll_interval
    assert not store.change_stream._cursor


async def test_stopping_does_not_wait_to_be_told(settings, store, receiver, monkeypatch):
    """Not even where the driver overlooks a cancellation."""
    listening, heard = asyncio.Event(), asyncio.Event()

    async def deaf(*_):
        listening.set()
        with suppress(asyncio.CancelledError):
            await heard.wait()
        await heard.wait()

    monkeypatch.setattr(store.change_stream, "wait", deaf)
    async with running(settings, store, receiver.url, limited=False):
        await listening.wait()
    assert not heard.is_set()  # it has stopped all the same
    heard.set()


async def test_looks_that_were_told_for_nothing_are_apart(
    settings, store, db, receiver, monkeypatch
):
    monkeypatch.setattr(change_stream, "MOST_S", 60.0)
    told = replace(settings, poll_interval=60, lease=120)
    async with running(told, store, receiver.url, limited=False):
        await eventually(lambda: store.change_stream._cursor)
        looks = looks_of(store, monkeypatch)
        async with asyncio.timeout(15):  # not told, it would look in a minute
            while len(looks) < 6:
                event = lease_queries.event_document(new_event(), await store.now())
                await db.events.insert_one({**event, "destination": "elsewhere"})
    assert min(later - earlier for earlier, later in pairwise(looks)) >= LOOKS_APART_S - 0.001


async def test_who_finds_something_looks_again_at_once(settings, store, db, receiver, monkeypatch):
    busy = replace(settings, concurrency=4, rate_limit=0)
    async with running(busy, store, receiver.url):
        await eventually(lambda: store.change_stream._cursor)
        looks = looks_of(store, monkeypatch)
        await store.writer.insert([new_event() for _ in range(100)])
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
    assert min(later - earlier for earlier, later in pairwise(looks)) < LOOKS_APART_S


async def test_a_dispatcher_that_is_cancelled_listens_no_more(
    settings, store, receiver, monkeypatch
):
    listening, over = asyncio.Event(), asyncio.Event()

    async def hear(*_):
        listening.set()
        try:
            await asyncio.Event().wait()
        finally:
            over.set()

    monkeypatch.setattr(store.change_stream, "wait", hear)
    async with replica(settings, store, receiver.url) as dispatcher:
        running_on = asyncio.create_task(dispatcher.run())
        await listening.wait()
        running_on.cancel()
        await asyncio.wait({running_on})
        await asyncio.wait_for(over.wait(), 15)


async def test_who_is_outrun_is_later_the_next_time_and_who_is_not_sooner(
    settings, store, receiver, monkeypatch
):
    async with replica(replace(settings, rate_limit=0), store, receiver.url) as dispatcher:
        spreads = []
        for outrun in [True] * 8 + [False] * 8:
            await store.writer.insert([new_event()])
            with monkeypatch.context() as patched:
                if outrun:  # another takes what this one has seen
                    lease = store.queue._lease

                    async def too_late(event_id, destination, update, lease=lease):
                        await lease(event_id, destination, update)
                        return await lease(event_id, destination, update)

                    patched.setattr(store, "_lease", too_late)
                await dispatcher.run_once()
            spreads.append(dispatcher._lookout._spread_s)
        dispatcher.stop()
        await dispatcher.run()
    assert spreads[:2] == [SPREAD_LEAST_S, 2 * SPREAD_LEAST_S]
    assert spreads[7] == SPREAD_MOST_S
    assert spreads[-1] == 0
    assert spreads[8:] == sorted(spreads[8:], reverse=True)
