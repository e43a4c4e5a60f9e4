"""A database that version 0.1.0 filled is read, delivered and audited as it is.

`tests/data/version-0.1.json` holds every collection and index of such a database, in MongoDB's
extended JSON: events received, delivered, waiting for a retry, leased by a dispatcher that was
killed, failed, replayed and cancelled.
"""

from __future__ import annotations

from pathlib import Path

import aiohttp
from bson import json_util
from pymongo import IndexModel

from tests.e2e import processes
from tests.support import eventually, receiving

DUMP = Path(__file__).parents[1] / "data" / "version-0.1.json"


async def restore(db) -> dict[str, list[dict]]:
    """Fill the database with the dump; return the documents by collection."""
    dump = json_util.loads(DUMP.read_text(), json_options=json_util.CANONICAL_JSON_OPTIONS)
    for name, collection in dump.items():
        indexes = [
            IndexModel(list(index.pop("key").items()), **index)
            for index in collection["indexes"]
            if index["name"] != "_id_"
        ]
        if indexes:
            await db[name].create_indexes(indexes)
        if collection["documents"]:
            await db[name].insert_many(collection["documents"])
    return {name: collection["documents"] for name, collection in dump.items()}


async def search(url: str, **filters) -> dict:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/webhooks/search", json=filters) as response,
    ):
        assert response.status == 200
        return await response.json()


async def test_database_of_version_0_1_is_searched_delivered_and_audited(engines, db, tmp_path):
    stored = await restore(db)
    before = {event["_id"]: event for event in stored["events"]}
    live = {event_id for event_id, event in before.items() if "next_attempt_at" in event}
    [killed] = [event_id for event_id, event in before.items() if "lease" in event]
    assert len(before) == 22 and len(live) == 7
    async with receiving() as receiver:
        env = {
            **engines.environ(),
            "WDS_MONGO_DB": db.name,
            "WDS_RATE_LIMIT": "0",
            "WDS_BACKOFF": "0.05",  # as it was when the dump was taken; `check` compares
            "WDS_DOWNSTREAM_URL": receiver.url,
        }
        async with processes.ingest(env, cwd=tmp_path) as ingest:
            found = await search(ingest.url, limit=100)
            assert {event["id"] for event in found["events"]} == set(before)
            assert found["total"] == sum(found["aggregations"]["by_status"].values()) == len(before)
            async with processes.dispatcher(env, cwd=tmp_path):
                await eventually(
                    lambda: db.events.count_documents({"next_attempt_at": {"$exists": True}}),
                    lambda count: count == 0,
                )
            found = await search(ingest.url, limit=100)
    assert sorted(receiver.ids) == sorted(live)
    for event in found["events"]:
        earlier = before[event["id"]]["attempts"]
        assert event["attempts"][: len(earlier)] == [
            {**each, "timestamp": event["attempts"][number]["timestamp"]}
            for number, each in enumerate(earlier)
        ]
        if event["id"] in live:
            assert event["status"] == "DELIVERED"
            assert len(event["attempts"]) == len(earlier) + 1 + (event["id"] == killed)
        else:
            assert event["status"] == before[event["id"]]["status"]
    async with processes.running("check", env=env, cwd=tmp_path) as check:
        assert await check.ended() == 0, check.text
