"""A delivery cancelled at each of its awaits: no event is lost and no connection leaks.

The write of a settlement is a task of its own, which no cancellation of a delivery reaches.
"""

from __future__ import annotations

import asyncio
import types
from dataclasses import replace
from datetime import UTC

from aiohttp import web

from tests.support import eventually, new_event, receiving
from wds.dispatcher import Dispatcher, default_lane
from wds.domain import destinations
from wds.domain.invariants import Expectations, violations

BACKOFF = (0.05, 0.05)
LEASE_S = 1.6


def await_stack(coroutine) -> tuple[str, ...]:
    """Return where `coroutine` waits: its stack of awaits as `function:line`, outermost first."""
    names = []
    while isinstance(coroutine, types.CoroutineType):
        frame = coroutine.cr_frame
        names.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        coroutine = coroutine.cr_await
    return tuple(names)


@types.coroutine
def cancelled_at_new_await(coroutine, cancelled: set[tuple[str, ...]]):
    """Run `coroutine`; cancel the task at its first await that is not in `cancelled`; add that."""
    thrown: BaseException | None = None
    done = False
    while True:
        try:
            waiting = coroutine.send(None) if thrown is None else coroutine.throw(thrown)
        except StopIteration as stop:
            return stop.value
        thrown = None
        if not done and await_stack(coroutine) not in cancelled:
            cancelled.add(await_stack(coroutine))
            done = True
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        try:
            yield waiting
        except BaseException as error:  # noqa: BLE001 - handed on to the coroutine
            thrown = error


async def one_event(dispatcher: Dispatcher, store) -> None:
    """Take one event all the way in this task, as a turn and a delivery do in theirs."""
    lane = dispatcher.lanes[destinations.DEFAULT_DESTINATION]
    claimed = await store.queue.claim(
        lane.destination.name, 4, owner="d", lease_s=LEASE_S, max_attempts=20
    )
    slots, _ = await lane.reserve(len(claimed.claims))
    for claim, slot in zip(claimed.claims, slots, strict=True):
        lane.count_waiting(slot)
        await dispatcher.deliver(lane, claim, slot)


async def test_delivery_cancelled_at_any_await_still_arrives_and_leaks_nothing(settings, store, db):
    limited = replace(
        settings,
        rate_limit=1000,
        backoff=BACKOFF,
        lease=LEASE_S,
        request_timeout=0.5,
        max_attempts=20,
        concurrency=4,
    )

    async def fail_first(_: web.Request) -> web.Response:
        return web.Response(status=500 if len(receiver.requests) % 2 else 200)

    cancelled: set[tuple[str, ...]] = set()
    runs = 0
    async with receiving() as receiver:
        receiver.answer = fail_first
        lane = default_lane(replace(limited, downstream_url=receiver.url), store)
        dispatcher = Dispatcher([lane], owner="d", store=store, lease_s=LEASE_S)
        untouched = 0
        # A cancellation that a client library swallowed counts as well. Which awaits suspend
        # depends on what has arrived already, so one run without a new await is no proof.
        while untouched < 3:
            runs += 1
            await store.writer.insert([new_event()])
            before = len(cancelled)
            path = one_event(dispatcher, store)
            task = asyncio.create_task(_as_coroutine(cancelled_at_new_await(path, cancelled)))
            await asyncio.wait({task})
            await dispatcher.drain()
            # A client library may swallow it (redis-py does while connecting) and go on; fine.
            assert task.cancelled() or task.exception() is None
            untouched = untouched + 1 if len(cancelled) == before else 0
        assert lane.room() == limited.concurrency
        running = asyncio.create_task(dispatcher.run())
        live = {"next_attempt_at": {"$exists": True}}
        await eventually(lambda: db.events.count_documents(live), lambda left: left == 0)
        dispatcher.stop()
        await running
        assert not lane.client.connector._acquired
        pool = lane.limiter._redis.connection_pool
        assert len(pool._in_use_connections) == 0
        await lane.close()
    passed = {name.partition(":")[0] for names in cancelled for name in names}
    assert {
        "MongoLeaseQueue.claim",
        "RateLimiter.reserve",
        "OutgoingRequest.__aenter__",
        "OutgoingRequest.send",
        "GroupCommit.submit",
    } <= passed
    documents = await db.events.find().to_list(None)
    assert len(documents) == runs
    assert {each["status"] for each in documents} == {"DELIVERED"}
    now = (await db.command("hello"))["localTime"].replace(tzinfo=UTC)
    expected = Expectations(now, 20, BACKOFF, 60)
    assert [list(violations(each, expected)) for each in documents] == [[]] * runs
    for each in documents:
        # Each request has an attempt on record: with its result, or `unknown` if it was cut off.
        assert receiver.ids.count(each["_id"]) <= len(each["attempts"])


async def _as_coroutine(awaitable):
    return await awaitable
