"""`WDS_RETENTION_DAYS`: only finished events are deleted, and the setting can be changed."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from pathlib import Path

import pytest
from motor.motor_asyncio import AsyncIOMotorClient

from tests.support import eventually, new_event
from wds.domain.errors import StoreUnavailableError
from wds.domain.event_filter import EventFilter
from wds.domain.operator_actions import Action, Instruction
from wds.local import embedded_engines
from wds.local.replica_set import initiate_replica_set
from wds.storage import event_queries, retention
from wds.storage.event_documents import event_document
from wds.storage.store import Store

DAY = timedelta(days=1)


async def insert(db, store, *, age, finished=True):
    """Store an event that was received `age` ago and, if `finished`, finished at the same time."""
    at = await store.now() - age
    document = event_document(new_event(), at)
    if finished:
        del document["next_attempt_at"]
        attempt = {"attempt_number": 1, "success": True, "outcome": "success", "timestamp": at}
        document |= {"status": "DELIVERED", "finished_at": at, "attempts": [attempt]}
        document |= {"attempt_count": 1}
    await db.events.insert_one(document)
    return document["_id"]


async def ids(db):
    return {each["_id"] async for each in db.events.find({}, {"_id": 1})}


async def expiry(db):
    """Return the retention period in seconds, None without one."""
    index = (await db.events.index_information()).get("retention")
    return None if index is None else index["expireAfterSeconds"]


async def test_retention_deletes_old_finished_events_and_no_young_or_live_ones(store, db):
    old = await insert(db, store, age=8 * DAY)
    young = await insert(db, store, age=6 * DAY)
    live = await insert(db, store, age=100 * DAY, finished=False)
    replayed = await insert(db, store, age=50 * DAY)
    await store.bulk_actions.apply(replayed, Instruction(Action.REPLAY, "r", "ann", "127.0.0.1"))
    await store.keep_for(7)

    left = await eventually(lambda: ids(db), lambda seen: old not in seen, within_s=30)
    assert left == {young, live, replayed}
    # Another round of the TTL thread: it has checked the others and kept them.
    another = await insert(db, store, age=9 * DAY)
    await eventually(lambda: ids(db), lambda seen: another not in seen, within_s=30)
    assert await ids(db) == {young, live, replayed}


async def test_control_without_retention_nothing_is_deleted(store, db):
    old = await insert(db, store, age=8 * DAY)
    canary = db["canary"]
    await canary.create_index("at", expireAfterSeconds=1)
    await canary.insert_one({"at": await store.now() - DAY})
    await store.keep_for(None)

    await eventually(lambda: canary.count_documents({}), lambda left: left == 0, within_s=30)
    assert await ids(db) == {old}


async def test_keep_for_sets_changes_and_removes_the_period(store, db):
    seen = []
    for days in (None, 7, 7, 30, 1, None, None, 2):
        await store.keep_for(days)
        seen.append(await expiry(db))
    day = retention.DAY_S

    assert seen == [None, 7 * day, 7 * day, 30 * day, day, None, None, 2 * day]


async def test_keep_for_works_before_the_first_event(settings, db):
    for days in (None, 3):
        store = Store(settings.mongo_url, settings.mongo_db)
        await store.keep_for(days)
        await store.close()
    assert await expiry(db) == 3 * retention.DAY_S


async def test_keep_for_by_six_replicas_at_once_sets_the_period_of_one(settings, db, store):
    assert store
    replicas = [Store(settings.mongo_url, settings.mongo_db) for _ in range(6)]
    for days in [(7,) * 6, (30,) * 6, (1, 2, 3, None, None, 4), (None,) * 6, (5,) * 6]:
        await asyncio.gather(
            *(replica.keep_for(own) for replica, own in zip(replicas, days, strict=True))
        )
        set_to = await expiry(db)
        assert (None if set_to is None else set_to / retention.DAY_S) in days
    for replica in replicas:
        await replica.close()


async def test_retention_index_holds_no_live_event(store, db):
    await store.keep_for(7)
    await insert(db, store, age=DAY, finished=False)
    stats = await db.command("validate", "events")
    assert stats["keysPerIndex"]["retention"] == 0


ROLES = re.findall(
    r'role: "(\w+)", db: "wds"', (Path(__file__).parents[3] / "docs/scaling.md").read_text()
)


@pytest.fixture
async def guarded(tmp_path):
    """Run a replica set with access control; yield a function that makes a user with roles."""
    key = tmp_path / "key"
    key.write_text("x" * 32)
    key.chmod(0o600)
    server = await embedded_engines.start_mongod(tmp_path / "mongo", extra=("--keyFile", str(key)))
    try:
        await initiate_replica_set("127.0.0.1", server.port, embedded_engines.REPLICA_SET)
        here = f"127.0.0.1:{server.port}/?replicaSet={embedded_engines.REPLICA_SET}"
        first = AsyncIOMotorClient(f"mongodb://{here}")
        await first.admin.command("createUser", "root", pwd="root", roles=["root"])
        first.close()
        root = AsyncIOMotorClient(f"mongodb://root:root@{here}")

        async def user(name, roles):
            granted = [{"role": each, "db": "wds"} for each in roles]
            await root.admin.command("createUser", name, pwd=name, roles=granted)
            return f"mongodb://{name}:{name}@{here}&authSource=admin"

        yield user
        root.close()
    finally:
        await server.stop()


async def test_documented_roles_suffice_and_all_are_needed(guarded):
    store = Store(await guarded("wds", ROLES), "wds")
    await store.open()
    event = new_event()
    await store.writer.insert([event])
    await store.writer.insert_all([new_event(), new_event()])
    await store.queue.claim("default", 2, owner="w", lease_s=30, max_attempts=5)
    await store.bulk_actions.apply(event.id, Instruction(Action.CANCEL, "r", "ann", "127.0.0.1"))
    assert await store.change_stream.wait("default", 0.01)
    await store.rollups.counts(event_queries.match(EventFilter()))
    for days in (7, 30, None):
        await store.keep_for(days)
    await store.close()
    less = Store(await guarded("less", ["readWrite"]), "wds")
    await less.open()
    await less.keep_for(7)
    with pytest.raises(StoreUnavailableError, match="Unauthorized"):
        await less.keep_for(30)
    await less.close()
