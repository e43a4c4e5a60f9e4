"""The change stream: which changes end a wait, and what happens if the stream fails."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from unittest.mock import AsyncMock

import pytest
from structlog.testing import capture_logs

from tests.support import eventually, new_event
from wds.domain.deliveries import Attempt, Outcome, Settlement, Status
from wds.domain.operator_actions import Action, Instruction
from wds.storage import change_stream as listening
from wds.storage.change_stream import ChangeStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LONG_S = 30.0
SHORT_S = 0.3
LEASE = {"owner": "d", "lease_s": 60, "max_attempts": 5}


class Listener:
    """A change stream that has begun, and the number of changes in each answer since."""

    def __init__(self, store, db, monkeypatch) -> None:
        self._stream = store.change_stream
        self._db = db
        self.answers: list[int] = []
        heed = store.change_stream._keep_cursor

        def counted(answer):
            self.answers.append(len(answer["cursor"].get("nextBatch", ())))
            heed(answer)

        monkeypatch.setattr(store.change_stream, "_keep_cursor", counted)

    async def changes_within(self, max_s: float) -> int:
        """Wait for up to `max_s` seconds; return the number of changes in the one answer read."""
        before = len(self.answers)
        assert await self._stream.wait("default", max_s)
        [changes] = self.answers[before:]
        return changes

    async def changes_after(self, change: Callable[[], Awaitable[object]]) -> int:
        """Make a change during a wait; return the number of changes that ended it."""
        waiting = asyncio.create_task(self.changes_within(LONG_S))
        await eventually(self.is_waiting)
        await change()
        return await waiting

    async def is_waiting(self) -> bool:
        pipeline = [
            {"$currentOp": {}},
            {"$match": {"op": "getmore", "ns": f"{self._db.name}.events"}},
        ]
        return bool(await self._db.client.admin.aggregate(pipeline).to_list(None))


@pytest.fixture
async def listener(store, db, monkeypatch):
    """Begin a change stream that never counts as stale."""
    monkeypatch.setattr(listening, "STALE_S", 60.0)
    assert await store.change_stream.wait(
        "default", LONG_S
    )  # returns as soon as the stream has begun
    return Listener(store, db, monkeypatch)


@asynccontextmanager
async def refusing(db, command: str, code: int):
    """Have MongoDB refuse this command of wds inside the block."""
    data = {"failCommands": [command], "errorCode": code, "appName": "wds"}
    switch = {"configureFailPoint": "failCommand"}
    await db.client.admin.command({**switch, "mode": "alwaysOn", "data": data})
    try:
        yield
    finally:
        await db.client.admin.command({**switch, "mode": "off"})


async def streams(db) -> list[int]:
    """Return the cursor ids of the change streams that are open in MongoDB."""
    pipeline = [
        {"$currentOp": {"idleCursors": True}},
        {"$match": {"type": "idleCursor", "ns": f"{db.name}.events"}},
    ]
    found = await db.client.admin.aggregate(pipeline).to_list(None)
    return [each["cursor"]["cursorId"] for each in found]


async def claimed(store):
    [claim] = (await store.queue.claim("default", 1, **LEASE)).claims
    return claim


def failed(claim, delay_s: float) -> Settlement:
    attempt = Attempt(
        attempt_number=claim.attempt_number,
        timestamp=claim.leased_at,
        outcome=Outcome.FAILURE,
        status_code=500,
        duration_ms=1,
        error="HTTP 500",
        response=None,
    )
    return Settlement(claim, attempt, Status.DELIVERING, delay_s)


async def test_wait_reports_a_new_event(store, listener):
    assert await listener.changes_after(lambda: store.writer.insert([new_event()])) == 1


async def test_wait_reports_a_deferred_event_and_not_a_claim(store, listener):
    await store.writer.insert([new_event()])
    claim = await claimed(store)
    assert await listener.changes_within(SHORT_S) == 1  # the insert
    assert await listener.changes_within(SHORT_S) == 0
    assert await listener.changes_after(lambda: store.queue.settle([Settlement(claim, None)])) == 1


async def test_wait_reports_a_retry(store, listener):
    await store.writer.insert([new_event()])
    claim = await claimed(store)
    await listener.changes_within(SHORT_S)
    assert await listener.changes_after(lambda: store.queue.settle([failed(claim, LONG_S)])) == 1


async def test_wait_reports_a_replay_and_not_a_final_event(store, listener):
    event = new_event()
    await store.writer.insert([event])
    claim = await claimed(store)
    assert await listener.changes_within(SHORT_S) == 1
    success = failed(claim, 0).attempt
    await store.queue.settle([Settlement(claim, success, Status.FAILED_PERMANENTLY)])
    assert await listener.changes_within(SHORT_S) == 0
    replay = Instruction(Action.REPLAY, "r", "ann", "127.0.0.1")
    assert await listener.changes_after(lambda: store.bulk_actions.apply(event.id, replay)) == 1


async def test_wait_reports_many_changes_at_once(store, db, listener):
    await store.writer.insert([new_event() for _ in range(200)])
    await db.events.delete_many({})  # with nothing due, the wait reads the stream
    assert await listener.changes_within(LONG_S) == 200
    assert await listener.changes_within(SHORT_S) == 0


async def test_wait_returns_at_once_while_an_event_is_due(store, listener):
    await store.writer.insert([new_event()])
    for _ in range(3):
        assert await store.change_stream.wait("default", LONG_S)
    assert listener.answers == []


async def test_wait_ends_when_a_retry_is_due(store, listener, monkeypatch):
    monkeypatch.setattr(listening, "MAX_READ_S", LONG_S)
    await store.writer.insert([new_event()])
    await store.queue.settle([failed(await claimed(store), 2.0)])
    began = time.monotonic()
    notified = True
    while notified:  # until a wait ends because of the due time
        before = len(listener.answers)
        assert await store.change_stream.wait("default", LONG_S)
        notified = sum(listener.answers[before:]) > 0
    assert time.monotonic() - began < LONG_S / 2
    found = await eventually(lambda: store.queue.claim("default", 1, **LEASE), lambda it: it.claims)
    [claim] = found.claims
    assert claim.attempt_number == 2


async def test_wait_ignores_the_due_time_of_another_destination(store, listener, db):
    await store.writer.insert([new_event()])
    await db.events.update_many({}, {"$set": {"destination": "elsewhere"}})
    await listener.changes_within(SHORT_S)
    assert await listener.changes_within(SHORT_S) == 0


async def test_wait_replaces_a_stream_that_was_not_read_for_a_while(
    store, db, listener, monkeypatch
):
    [before] = await streams(db)
    await store.writer.insert([new_event()])
    await db.events.delete_many({})
    with monkeypatch.context() as patched:
        patched.setattr(listening, "STALE_S", 0.0)
        assert await store.change_stream.wait("default", LONG_S)
    [after] = await streams(db)
    assert after != before
    assert await listener.changes_within(SHORT_S) == 0


async def test_wait_warns_of_a_lost_stream_and_retries_later(store, db, listener, monkeypatch):
    [cursor] = await streams(db)
    await db.command("killCursors", "events", cursors=[cursor])
    with capture_logs() as logs:
        assert not await store.change_stream.wait("default", LONG_S)
        assert not await store.change_stream.wait("default", LONG_S)  # no second try yet
    assert [(each["event"], each["cause"]) for each in logs] == [
        ("cannot_listen", "CursorNotFound")
    ]
    assert await streams(db) == []
    monkeypatch.setattr(store.change_stream, "_retry_at", time.monotonic())
    assert await store.change_stream.wait("default", LONG_S)
    assert await listener.changes_after(lambda: store.writer.insert([new_event()])) == 1


async def test_wait_that_mongodb_refuses_is_a_warning(store, db):
    unauthorized = 13
    with capture_logs() as logs:
        async with refusing(db, "aggregate", unauthorized):
            assert not await store.change_stream.wait("default", LONG_S)
        assert not await store.change_stream.wait("default", LONG_S)
    assert [(each["event"], each["cause"], each["log_level"]) for each in logs] == [
        ("cannot_listen", "Unauthorized", "warning")
    ]


async def test_wait_opens_no_stream_on_a_sharded_cluster(store, db):
    store._mongo.sharded = True
    with capture_logs() as logs:
        assert not await store.change_stream.wait("default", LONG_S)
    assert logs == []
    assert await streams(db) == []


async def test_store_close_ends_the_change_stream(store, db, listener):  # noqa: ARG001 - listener began a stream
    assert len(await streams(db)) == 1
    await store.close()
    await eventually(lambda: streams(db), lambda seen: seen == [])


async def test_wait_that_is_cancelled_ends_as_cancelled_and_leaves_no_stream(store, db):
    """At every answer of MongoDB that the cancellation can coincide with, and after the last."""
    cancelled = 0
    for passes in range(40):
        stream = ChangeStream(store._mongo)
        assert await stream.wait("default", LONG_S)
        waiting = asyncio.create_task(stream.wait("default", 1.0))
        for _ in range(passes):
            await asyncio.sleep(0)
        if waiting.cancel():
            await asyncio.wait({waiting})
            assert waiting.cancelled(), passes
            cancelled += 1
        await stream.close()
    assert cancelled > 3
    await eventually(lambda: streams(db), lambda seen: seen == [])


async def test_wait_ends_before_the_driver_takes_the_connection_for_lost(listener, monkeypatch):
    monkeypatch.setattr(listening, "MAX_READ_S", 0.2)
    began = time.monotonic()
    assert await listener.changes_within(LONG_S) == 0
    assert 0.2 <= time.monotonic() - began < LONG_S / 2


async def test_wait_after_a_failure_ends_the_failed_stream(store, db, listener, monkeypatch):  # noqa: ARG001
    for _ in range(3):
        async with refusing(db, "getMore", 11601):
            assert not await store.change_stream.wait("default", LONG_S)
        monkeypatch.setattr(store.change_stream, "_retry_at", time.monotonic())
        assert await store.change_stream.wait("default", LONG_S)
    assert len(await streams(db)) == 1


async def test_wait_names_a_lost_connection_by_a_public_class(store, db, listener):  # noqa: ARG001
    data = {"failCommands": ["getMore"], "closeConnection": True, "appName": "wds"}
    switch = {"configureFailPoint": "failCommand", "mode": {"times": 1}}
    await db.client.admin.command({**switch, "data": data})
    with capture_logs() as logs:
        assert not await store.change_stream.wait("default", SHORT_S)
    assert [each["cause"] for each in logs] == ["AutoReconnect"]


async def test_mongo_open_detects_a_sharded_cluster(store, monkeypatch):
    hello = await store._mongo.hello()
    assert not store._mongo.sharded
    mongos = {key: value for key, value in hello.items() if key != "setName"} | {"msg": "isdbgrid"}
    monkeypatch.setattr(store._mongo, "hello", AsyncMock(return_value=mongos))
    await store._mongo.open()
    assert store._mongo.sharded
