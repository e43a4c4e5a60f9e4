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
from wds.delivery.http_client import Deliverer
from wds.delivery.rate_limiter import Limiter
from wds.dispatcher import Dispatcher
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


async def deliver_one(dispatcher: Dispatcher, store, limiter: Limiter) -> None:
    """Claim and deliver one event in this task, which a dispatcher does in two tasks."""
    claimed = await store.queue.claim("default", 4, owner="d", lease_s=LEASE_S, max_attempts=20)
    granted = await limiter.reserve("cancelled", len(claimed.claims))
    for claim, slot in zip(claimed.claims, granted.slots, strict=True):
        dispatcher._count_waiting(1)
        await dispatcher._deliver(claim, slot)


async def test_delivery_cancelled_at_any_await_still_arrives_and_leaks_nothing(
    settings, store, db, destination, monkeypatch
):
    reserve = Limiter.reserve
    monkeypatch.setattr(
        Limiter,
        "reserve",
        lambda self, name, n, **more: reserve(self, f"{destination}{name}", n, **more),
    )
    limited = replace(
        settings,
        rate_limit=1000,
        backoff=BACKOFF,
        lease=LEASE_S,
        request_timeout=0.5,
        max_attempts=20,
    )
    limiter = Limiter(settings.redis_url, 1000, farthest_s=1)

    async def fail_first(_: web.Request) -> web.Response:
        return web.Response(status=500 if len(receiver.requests) % 2 else 200)

    cancelled: set[tuple[str, ...]] = set()
    runs = 0
    async with receiving() as receiver:
        receiver.answer = fail_first
        deliverer = Deliverer(receiver.url, timeout_s=0.5, connections=4)
        dispatcher = Dispatcher(
            limited, owner="d", store=store, limiter=limiter, deliverer=deliverer
        )
        untouched = 0
        # A cancellation that a client library swallowed counts as well. Which awaits suspend
        # depends on what has arrived already, so one run without a new await is no proof.
        while untouched < 3:
            runs += 1
            await store.writer.insert([new_event()])
            before = len(cancelled)
            path = deliver_one(dispatcher, store, limiter)
            task = asyncio.create_task(_as_coroutine(cancelled_at_new_await(path, cancelled)))
            await asyncio.wait({task})
            await dispatcher._settler.drain()
            # A client library may swallow the cancellation and go on: redis-py while connecting.
            assert task.cancelled() or task.exception() is None
            untouched = untouched + 1 if len(cancelled) == before else 0
        assert dispatcher._waiting == 0
        running = asyncio.create_task(dispatcher.run())
        live = {"next_attempt_at": {"$exists": True}}
        await eventually(lambda: db.events.count_documents(live), lambda left: left == 0)
        dispatcher.stop()
        await running
        assert not deliverer._session.connector._acquired
        await deliverer.close()
    pool = limiter._redis.connection_pool
    assert len(pool._in_use_connections) == 0
    await limiter.close()
    functions = {name.partition(":")[0] for names in cancelled for name in names}
    assert {
        "MongoLeaseQueue.claim",
        "Limiter.reserve",
        "Deliverer.post",
        "GroupCommit.submit",
    } <= functions
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
