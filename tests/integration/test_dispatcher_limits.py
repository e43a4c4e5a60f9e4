"""How much a dispatcher claims and sends at a time: the rate limit and the in-flight limit."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import count

import pytest
from aiohttp import TCPConnector, web
from msgspec import structs

from tests.dispatchers import LEASED, QUICK, all_are, lane_of, replica, running, statuses
from tests.support import eventually, most_in_any_second, new_event, sample
from wds.domain import destinations
from wds.domain.deliveries import Status


async def test_run_keeps_no_more_in_flight_than_allowed(settings, store, db, receiver):
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
        assert await db.events.count_documents(LEASED) == 4
        release.set()
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))


async def test_run_sends_as_many_again_while_settlements_are_slow(
    settings, store, db, receiver, monkeypatch
):
    recorded = asyncio.Event()
    settle = store.queue.settle

    async def slowly(settlements):
        await recorded.wait()
        return await settle(settlements)

    monkeypatch.setattr(store.queue, "settle", slowly)
    await store.writer.insert([new_event() for _ in range(30)])
    few = replace(settings, **QUICK, concurrency=4)
    async with running(few, store, receiver.url):
        try:
            await eventually(lambda: len(receiver.requests), lambda n: n == 8)
            await asyncio.sleep(few.poll_interval * 3)
            assert len(receiver.requests) == 8
            assert await db.events.count_documents(LEASED) == 8
        finally:
            recorded.set()  # or the dispatcher would never stop
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
    assert len(set(receiver.ids)) == len(receiver.ids) == 30


@pytest.mark.alone
async def test_rate_limit_holds_when_connecting_is_slow(settings, store, db, receiver):
    """Connecting takes a different time for each request: the requests keep their distance."""
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


async def test_slot_waiting_metric_counts_claims_while_they_wait(settings, store, db, receiver):
    await store.writer.insert([new_event()])
    async with replica(replace(settings, rate_limit=1), store, receiver.url) as dispatcher:
        await lane_of(dispatcher).limiter.reserve(destinations.DEFAULT_DESTINATION, 1)
        await dispatcher.run_once()
        assert sample("wds_slot_waiting") == 1
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
        assert sample("wds_slot_waiting") == 0


@pytest.mark.alone
async def test_rate_limit_is_shared_and_used_by_three_replicas(settings, store, db, receiver):
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


async def test_control_without_the_rate_limit_there_are_more_in_a_second(
    settings, store, db, receiver
):
    await store.writer.insert([new_event() for _ in range(15)])
    unlimited = replace(settings, rate_limit=0)
    async with (
        running(unlimited, store, receiver.url, owner="d1"),
        running(unlimited, store, receiver.url, owner="d2"),
    ):
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
    assert most_in_any_second([request.at for request in receiver.requests]) > 3


async def test_run_once_claims_no_more_than_can_be_sent_soon(settings, store, db, receiver):
    await store.writer.insert([new_event() for _ in range(30)])
    limited = replace(settings, rate_limit=8)
    async with replica(limited, store, receiver.url) as dispatcher:
        # So that claimed events have to wait for their slots.
        await lane_of(dispatcher).limiter.reserve(destinations.DEFAULT_DESTINATION, 8)
        await dispatcher.run_once()
        assert await dispatcher.run_once() == 0
        assert await db.events.count_documents(LEASED) == 2
        dispatcher.stop()
        await dispatcher.run()


async def test_claim_without_a_slot_in_time_is_deferred_and_not_counted(
    settings, store, db, receiver
):
    await store.writer.insert([new_event()])
    limited = replace(settings, rate_limit=1)
    async with replica(limited, store, receiver.url) as dispatcher:
        await lane_of(dispatcher).limiter.reserve(destinations.DEFAULT_DESTINATION, 5)
        wait = await dispatcher.run_once()
        assert 0 < wait <= 1.1
        await eventually(lambda: statuses(db), all_are(Status.RECEIVED))
        [document] = await db.events.find().to_list(None)
        assert (document["attempt_count"], document["attempts"]) == (0, [])
        assert "lease" not in document
    assert receiver.requests == []


async def test_stop_defers_claims_that_wait_and_finishes_sent_requests(
    settings, store, db, receiver, monkeypatch
):
    release = asyncio.Event()

    async def slowly(_: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    receiver.answer = slowly
    await store.writer.insert([new_event() for _ in range(4)])
    async with replica(replace(settings, rate_limit=1), store, receiver.url) as dispatcher:
        limiter = lane_of(dispatcher).limiter
        reserve = limiter.reserve
        turns = count()

        async def first_turn_now_and_others_in_a_minute(name, slots, *, give_back=()):
            reservation = await reserve(name, slots, give_back=give_back)
            # A slot to give back is the first turn's, which was missed: it gets another one.
            if give_back or next(turns) == 0:
                return reservation
            later = [
                structs.replace(slot, ready_at=slot.ready_at + 60, use_by=slot.use_by + 60)
                for slot in reservation.slots
            ]
            return structs.replace(reservation, slots=later)

        monkeypatch.setattr(limiter, "reserve", first_turn_now_and_others_in_a_minute)
        task = asyncio.create_task(dispatcher.run())
        await eventually(lambda: db.events.count_documents(LEASED), lambda leased: leased == 2)
        await eventually(lambda: len(receiver.requests))
        dispatcher.stop()
        release.set()
        await task
    seen = sorted(await statuses(db))
    assert seen == ["DELIVERED", "RECEIVED", "RECEIVED", "RECEIVED"]
    assert await db.events.count_documents(LEASED) == 0
    assert len(receiver.requests) == 1
