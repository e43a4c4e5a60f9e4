"""Being told of events: of which changes, and what becomes of a listener that hears nothing."""

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


class Ear:
    """A listener that has begun, and the number of changes in each answer it read since."""

    def __init__(self, store, db, monkeypatch) -> None:
        self._listener = store.change_stream
        self._db = db
        self.heard: list[int] = []
        heed = store.change_stream._heed

        def counted(answer):
            self.heard.append(len(answer["cursor"].get("nextBatch", ())))
            heed(answer)

        monkeypatch.setattr(store.change_stream, "_heed", counted)

    async def hears(self, most_s: float) -> int:
        """Wait, reading the stream; return how many changes it told of."""
        before = len(self.heard)
        assert await self._listener.wait("default", most_s)
        [changes] = self.heard[before:]
        return changes

    async def hears_of(self, change: Callable[[], Awaitable[object]]) -> int:
        """Make a change while waiting; return how many were told."""
        waiting = asyncio.create_task(self.hears(LONG_S))
        await eventually(self.asked)
        await change()
        return await waiting

    async def asked(self) -> bool:
        pipeline = [
            {"$currentOp": {}},
            {"$match": {"op": "getmore", "ns": f"{self._db.name}.events"}},
        ]
        return bool(await self._db.client.admin.aggregate(pipeline).to_list(None))


@pytest.fixture
async def ear(store, db, monkeypatch):
    """Begin to listen, and go on however long it takes until the next wait."""
    monkeypatch.setattr(listening, "STALE_S", 60.0)
    assert await store.change_stream.wait("default", LONG_S)  # returns as soon as it listens
    return Ear(store, db, monkeypatch)


@asynccontextmanager
async def refusing(db, command: str, code: int):
    """Have MongoDB refuse such commands of ours inside the block."""
    data = {"failCommands": [command], "errorCode": code, "appName": "wds"}
    switch = {"configureFailPoint": "failCommand"}
    await db.client.admin.command({**switch, "mode": "alwaysOn", "data": data})
    try:
        yield
    finally:
        await db.client.admin.command({**switch, "mode": "off"})


async def streams(db) -> list[int]:
    """Return the ids of the streams that MongoDB keeps open."""
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


async def test_a_new_event_is_told(store, ear):
    assert await ear.hears_of(lambda: store.writer.insert([new_event()])) == 1


async def test_a_lease_is_not_told_and_its_return_is(store, ear):
    await store.writer.insert([new_event()])
    claim = await claimed(store)
    assert await ear.hears(SHORT_S) == 1  # of the insert
    assert await ear.hears(SHORT_S) == 0
    assert await ear.hears_of(lambda: store.queue.settle([Settlement(claim, None)])) == 1


async def test_a_retry_is_told(store, ear):
    await store.writer.insert([new_event()])
    claim = await claimed(store)
    await ear.hears(SHORT_S)
    assert await ear.hears_of(lambda: store.queue.settle([failed(claim, LONG_S)])) == 1


async def test_a_replay_is_told_and_an_end_is_not(store, ear):
    event = new_event()
    await store.writer.insert([event])
    claim = await claimed(store)
    assert await ear.hears(SHORT_S) == 1
    success = failed(claim, 0).attempt
    await store.queue.settle([Settlement(claim, success, Status.FAILED_PERMANENTLY)])
    assert await ear.hears(SHORT_S) == 0
    replay = Instruction(Action.REPLAY, "r", "ann", "127.0.0.1")
    assert await ear.hears_of(lambda: store.bulk_actions.one(event.id, replay)) == 1


async def test_many_changes_between_two_waits_are_one_reason_to_look(store, db, ear):
    await store.writer.insert([new_event() for _ in range(200)])
    await db.events.delete_many({})  # so that nothing is due, and the stream is read
    assert await ear.hears(LONG_S) == 200
    assert await ear.hears(SHORT_S) == 0


async def test_what_is_due_needs_no_telling(store, ear):
    await store.writer.insert([new_event()])
    for _ in range(3):
        assert await store.change_stream.wait("default", LONG_S)
    assert ear.heard == []


async def test_a_retry_is_not_waited_for_beyond_its_time(store, ear, monkeypatch):
    monkeypatch.setattr(listening, "MOST_S", LONG_S)
    await store.writer.insert([new_event()])
    await store.queue.settle([failed(await claimed(store), 2.0)])
    began = time.monotonic()
    told = True
    while told:  # or it was the time that ended the wait, if it had not come before
        heard = len(ear.heard)
        assert await store.change_stream.wait("default", LONG_S)
        told = sum(ear.heard[heard:]) > 0
    assert time.monotonic() - began < LONG_S / 2
    found = await eventually(lambda: store.queue.claim("default", 1, **LEASE), lambda it: it.claims)
    [claim] = found.claims
    assert claim.attempt_number == 2


async def test_an_event_of_another_destination_is_not_waited_for(store, ear, db):
    await store.writer.insert([new_event()])
    await db.events.update_many({}, {"$set": {"destination": "elsewhere"}})
    await ear.hears(SHORT_S)
    assert await ear.hears(SHORT_S) == 0


async def test_a_stream_not_read_for_a_while_is_ended_and_begun_anew(store, db, ear, monkeypatch):
    [before] = await streams(db)
    await store.writer.insert([new_event()])
    await db.events.delete_many({})
    with monkeypatch.context() as patched:
        patched.setattr(listening, "STALE_S", 0.0)
        assert await store.change_stream.wait("default", LONG_S)
    [after] = await streams(db)
    assert after != before
    assert await ear.hears(SHORT_S) == 0


async def test_a_stream_that_was_lost_is_a_warning_and_tried_again_later(
    store, db, ear, monkeypatch
):
    [cursor] = await streams(db)
    await db.command("killCursors", "events", cursors=[cursor])
    with capture_logs() as logs:
        assert not await store.change_stream.wait("default", LONG_S)
        assert not await store.change_stream.wait("default", LONG_S)  # does not try
    assert [(each["event"], each["cause"]) for each in logs] == [
        ("cannot_listen", "CursorNotFound")
    ]
    assert await streams(db) == []
    monkeypatch.setattr(store.change_stream, "_try_at", time.monotonic())
    assert await store.change_stream.wait("default", LONG_S)
    assert await ear.hears_of(lambda: store.writer.insert([new_event()])) == 1


async def test_a_refusal_is_a_warning_and_no_defect(store, db):
    unauthorized = 13
    with capture_logs() as logs:
        async with refusing(db, "aggregate", unauthorized):
            assert not await store.change_stream.wait("default", LONG_S)
        assert not await store.change_stream.wait("default", LONG_S)
    assert [(each["event"], each["cause"], each["log_level"]) for each in logs] == [
        ("cannot_listen", "Unauthorized", "warning")
    ]


async def test_there_is_no_listening_on_a_sharded_cluster(store, db):
    store._mongo.sharded = True
    with capture_logs() as logs:
        assert not await store.change_stream.wait("default", LONG_S)
    assert logs == []
    assert await streams(db) == []


async def test_closing_ends_the_stream(store, db, ear):  # noqa: ARG001 - ear has begun one
    assert len(await streams(db)) == 1
    await store.close()
    await eventually(lambda: streams(db), lambda seen: seen == [])


async def test_a_wait_that_is_cancelled_ends_so_and_leaves_no_stream(store, db):
    """Whichever answer of MongoDB it comes together with, and if only after the last."""
    cancelled = 0
    for passes in range(40):
        listener = ChangeStream(store._mongo)
        assert await listener.wait("default", LONG_S)
        waiting = asyncio.create_task(listener.wait("default", 1.0))
        for _ in range(passes):
            await asyncio.sleep(0)
        if waiting.cancel():
            await asyncio.wait({waiting})
            assert waiting.cancelled(), passes
            cancelled += 1
        await listener.close()
    assert cancelled > 3
    await eventually(lambda: streams(db), lambda seen: seen == [])


async def test_no_answer_is_waited_for_longer_than_the_driver_takes_it_for_lost(ear, monkeypatch):
    monkeypatch.setattr(listening, "MOST_S", 0.2)
    began = time.monotonic()
    assert await ear.hears(LONG_S) == 0
    assert 0.2 <= time.monotonic() - began < LONG_S / 2


async def test_a_stream_that_failed_is_ended_when_the_next_begins(store, db, ear, monkeypatch):  # noqa: ARG001
    for _ in range(3):
        async with refusing(db, "getMore", 11601):
            assert not await store.change_stream.wait("default", LONG_S)
        monkeypatch.setattr(store.change_stream, "_try_at", time.monotonic())
        assert await store.change_stream.wait("default", LONG_S)
    assert len(await streams(db)) == 1


async def test_a_lost_connection_is_called_by_a_public_name(store, db, ear):  # noqa: ARG001
    data = {"failCommands": ["getMore"], "closeConnection": True, "appName": "wds"}
    switch = {"configureFailPoint": "failCommand", "mode": {"times": 1}}
    await db.client.admin.command({**switch, "data": data})
    with capture_logs() as logs:
        assert not await store.change_stream.wait("default", SHORT_S)
    assert [each["cause"] for each in logs] == ["AutoReconnect"]


async def test_what_kind_of_cluster_it_is_is_asked_when_the_store_is_opened(store, monkeypatch):
    hello = await store._mongo.hello()
    assert not store._mongo.sharded
    mongos = {key: value for key, value in hello.items() if key != "setName"} | {"msg": "isdbgrid"}
    monkeypatch.setattr(store._mongo, "hello", AsyncMock(return_value=mongos))
    await store._mongo.open()
    assert store._mongo.sharded
