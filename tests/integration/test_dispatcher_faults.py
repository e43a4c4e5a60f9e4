"""What a dispatcher does when time, a lease, MongoDB or Redis fails it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from msgspec import structs

from tests.dispatchers import QUICK, all_are, lane_of, replica, running, statuses
from tests.support import eventually, new_event, sample
from wds.domain.deliveries import Claim, Status
from wds.domain.errors import StoreUnavailableError
from wds.local import embedded_engines
from wds.storage.mongo import uptime

if TYPE_CHECKING:
    from wds.config import Settings


async def test_run_goes_on_after_a_defect_in_a_turn(settings, store, db, receiver):
    fail = {"failCommands": ["find", "findAndModify"], "errorCode": 2, "appName": "wds"}
    await store.writer.insert([new_event()])
    await db.client.admin.command("configureFailPoint", "failCommand", mode={"times": 3}, data=fail)
    async with running(replace(settings, **QUICK), store, receiver.url):
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))


async def leased(store, settings: Settings) -> Claim:
    """Claim the one event, waiting until it is due."""
    found = await eventually(
        lambda: store.queue.claim("default", 1, owner="d1", lease_s=settings.lease, max_attempts=5),
        lambda claimed: claimed.claims,
    )
    return found.claims[0]


async def test_claim_whose_lease_is_too_old_is_not_sent(settings, store, db, receiver):
    """As after a long stall: another replica might claim the event while this request is sent."""
    await store.writer.insert([new_event()])
    quick = replace(settings, **QUICK)
    async with replica(quick, store, receiver.url) as dispatcher:
        held = await leased(store, quick)
        stalled = structs.replace(held, trusted_until=uptime() + quick.request_timeout / 2)
        await dispatcher.deliver(lane_of(dispatcher), stalled, None)
        assert receiver.requests == []
        assert await statuses(db) == [Status.RECEIVED]
        await dispatcher.deliver(lane_of(dispatcher), await leased(store, quick), None)
    assert len(receiver.requests) == 1


async def test_claim_from_before_the_machine_was_suspended_is_not_sent(
    settings, store, db, receiver, monkeypatch
):
    """Its lease went on by the database's clock; `time.monotonic()` stood still."""
    await store.writer.insert([new_event()])
    quick = replace(settings, **QUICK)
    clock = time.clock_gettime
    async with replica(quick, store, receiver.url) as dispatcher:
        held = await leased(store, quick)
        with monkeypatch.context() as suspended:
            suspended.setattr(
                time, "clock_gettime", lambda of: clock(of) + 60 * (of == time.CLOCK_BOOTTIME)
            )
            await dispatcher.deliver(lane_of(dispatcher), held, None)
        assert receiver.requests == []
        assert await statuses(db) == [Status.RECEIVED]
        await dispatcher.deliver(lane_of(dispatcher), await leased(store, quick), None)
    assert len(receiver.requests) == 1


async def test_settlement_after_the_lease_passed_on_is_refused_and_counted(
    settings, store, db, receiver
):
    await store.writer.insert([new_event()])
    quick = replace(settings, **QUICK)
    lost_before = sample("wds_leases_lost_total")

    async def take_over(_: web.Request) -> web.Response:
        await db.events.update_one({}, {"$set": {"lease.token": "another's"}})
        return web.Response()

    receiver.answer = take_over
    async with replica(quick, store, receiver.url) as dispatcher:
        settled = asyncio.create_task(dispatcher.signals.settled.wait())
        await dispatcher.run_once()
        await settled
        await dispatcher.drain()
    [document] = await db.events.find().to_list(None)
    assert (document["status"], document["attempts"]) == ("DELIVERING", [])
    assert document["lease"]["token"] == "another's"
    assert sample("wds_leases_lost_total") == lost_before + 1


async def test_run_sends_and_counts_nothing_while_redis_is_away(
    settings, store, db, receiver, tmp_path
):
    port = embedded_engines.free_port()
    away = replace(settings, redis_url=f"redis://127.0.0.1:{port}/0")
    await store.writer.insert([new_event() for _ in range(3)])
    async with running(away, store, receiver.url):
        deferred = sample("wds_claims_deferred_total")
        await eventually(
            lambda: sample("wds_claims_deferred_total"),
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


async def test_run_waits_while_mongodb_fails_and_then_goes_on(settings, store, db, receiver):
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


async def test_settlement_survives_the_cancellation_of_its_delivery(
    settings, store, db, receiver, monkeypatch
):
    await store.writer.insert([new_event()])
    settle = store.queue.settle
    entered = asyncio.Event()

    async def slow_settle(settlements):
        entered.set()
        await asyncio.sleep(0.05)
        return await settle(settlements)

    monkeypatch.setattr(store.queue, "settle", slow_settle)
    async with replica(replace(settings, **QUICK), store, receiver.url) as dispatcher:
        await dispatcher.run_once()
        await entered.wait()
        dispatcher.abandon()
        await dispatcher.drain()
    assert await statuses(db) == [Status.DELIVERED]
