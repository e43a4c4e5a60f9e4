"""When an idle or a busy dispatcher polls the queue, and what the change stream spares it."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import pytest
from aiohttp import web

from tests.dispatchers import all_are, lane_of, replica, running, statuses
from tests.support import clock_caught_up, eventually, new_event
from wds.delivery.poll_scheduler import (
    LISTEN_AFTER,
    LISTEN_MAX_S,
    MAX_JITTER_S,
    MIN_JITTER_S,
    MIN_POLL_GAP_S,
)
from wds.domain.deliveries import Status
from wds.storage import change_stream, event_documents


def polls_of(store, monkeypatch) -> list[float]:
    """Return a list that gets the instant of each poll from now on."""
    instants: list[float] = []
    claim = store.queue.claim

    async def recorded(*arguments, **more):
        instants.append(time.monotonic())
        return await claim(*arguments, **more)

    monkeypatch.setattr(store.queue, "claim", recorded)
    return instants


async def test_run_hardly_polls_while_idle(settings, store, receiver, monkeypatch):
    async with running(replace(settings, rate_limit=0), store, receiver.url):
        await eventually(lambda: store.change_stream._cursor)
        polls = polls_of(store, monkeypatch)
        await eventually(lambda: len(polls), lambda seen: seen >= 4)
    assert polls[3] - polls[0] >= 2 * LISTEN_MAX_S


async def test_run_sends_a_new_event_while_idle_as_soon_as_notified(
    settings, store, db, receiver, monkeypatch
):
    """By polling alone it would take a minute."""
    monkeypatch.setattr(change_stream, "MAX_READ_S", 60.0)
    told = replace(settings, poll_interval=60, lease=120, rate_limit=0)
    async with running(told, store, receiver.url) as dispatcher:
        await eventually(lambda: store.change_stream._cursor)
        for _ in range(3):
            await eventually(
                lambda: lane_of(dispatcher).poll_scheduler.empty_polls,
                lambda empty: empty >= LISTEN_AFTER,
            )
            await store.writer.insert([new_event()])
            await eventually(lambda: statuses(db), all_are(Status.DELIVERED))


async def test_run_sends_a_retry_while_idle_when_it_is_due(
    settings, store, db, receiver, monkeypatch
):
    """By polling alone it would take a minute."""
    monkeypatch.setattr(change_stream, "MAX_READ_S", 60.0)

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
async def test_run_polls_every_interval_without_a_change_stream(
    settings, store, receiver, monkeypatch, refused
):
    monkeypatch.setattr(store.change_stream, "_retry_at", math.inf if refused else 0)
    alone = replace(settings, listen=refused, rate_limit=0)
    async with running(alone, store, receiver.url):
        polls = polls_of(store, monkeypatch)
        await eventually(lambda: len(polls), lambda seen: seen > 20)
    assert polls[20] - polls[0] >= 20 * 0.75 * alone.poll_interval
    assert not store.change_stream._cursor


async def test_stop_does_not_wait_for_the_change_stream(settings, store, receiver, monkeypatch):
    """Not even if the driver ignores a cancellation."""
    listening, heard = asyncio.Event(), asyncio.Event()

    async def deaf(*_):
        listening.set()
        with suppress(asyncio.CancelledError):
            await heard.wait()
        await heard.wait()

    monkeypatch.setattr(store.change_stream, "wait", deaf)
    async with running(replace(settings, rate_limit=0), store, receiver.url):
        await listening.wait()
    assert not heard.is_set()  # it has stopped all the same
    heard.set()


async def test_run_spaces_its_polls_when_notified_of_other_destinations(
    settings, store, db, receiver, monkeypatch
):
    monkeypatch.setattr(change_stream, "MAX_READ_S", 60.0)
    told = replace(settings, poll_interval=60, lease=120, rate_limit=0)
    async with running(told, store, receiver.url):
        await eventually(lambda: store.change_stream._cursor)
        polls = polls_of(store, monkeypatch)
        async with asyncio.timeout(15):  # without notices it would poll after a minute
            while len(polls) < 6:
                event = event_documents.event_document(new_event(), await store.now())
                await db.events.insert_one({**event, "destination": "elsewhere"})
    assert min(later - earlier for earlier, later in pairwise(polls)) >= MIN_POLL_GAP_S - 0.001


async def test_run_polls_again_at_once_after_a_poll_that_found_events(
    settings, store, db, receiver, monkeypatch
):
    busy = replace(settings, concurrency=4, rate_limit=0)
    async with running(busy, store, receiver.url):
        await eventually(lambda: store.change_stream._cursor)
        polls = polls_of(store, monkeypatch)
        await store.writer.insert([new_event() for _ in range(100)])
        await eventually(lambda: statuses(db), all_are(Status.DELIVERED))
    assert min(later - earlier for earlier, later in pairwise(polls)) < MIN_POLL_GAP_S


async def test_run_stops_listening_when_cancelled(settings, store, receiver, monkeypatch):
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


async def take_first(db, app_name: str, turn) -> None:
    """Take all due events away between the two commands with which `turn` claims them."""
    admin = db.client.admin
    block = {"blockConnection": True, "blockTimeMS": 500, "appName": app_name}
    entered = await admin.command(
        "configureFailPoint",
        "failCommand",
        mode={"times": 1},
        data={"failCommands": ["update", "findAndModify"], **block},
    )
    task = asyncio.create_task(turn())
    await admin.command(
        "waitForFailPoint", "failCommand", timesEntered=entered["count"] + 1, maxTimeMS=10_000
    )
    await db.events.update_many({}, {"$unset": {"next_attempt_at": ""}})
    await task


async def test_jitter_grows_while_other_dispatchers_are_faster_and_shrinks_again(
    settings, store, db, receiver
):
    async with replica(replace(settings, rate_limit=0), store, receiver.url) as dispatcher:
        jitters = []
        for others_were_first in [True] * 6 + [False] * 8:
            await store.writer.insert([new_event()])
            await clock_caught_up(store)
            if others_were_first:
                await take_first(db, "wds", dispatcher.run_once)
            else:
                await dispatcher.run_once()
            jitters.append(lane_of(dispatcher).poll_scheduler.jitter_s)
        await dispatcher.drain()
    assert jitters[:2] == [MIN_JITTER_S, 2 * MIN_JITTER_S]
    assert jitters[5] == MAX_JITTER_S
    assert jitters[-1] == 0
    assert jitters[6:] == sorted(jitters[6:], reverse=True)
